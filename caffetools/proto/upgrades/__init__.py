"""Upgrading V0 and V1 prototxts and weights to the current format."""
