"""Rewriting networks and weights by their graph: retargeting, deploying, folding; and looking at what they are made of."""
