"""Rewriting networks: retarget, deploy."""
