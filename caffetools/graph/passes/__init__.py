"""Rewrite passes over a net and its weights."""
