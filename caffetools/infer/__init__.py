"""Inference: preprocessing, classification and feature extraction over any engine."""
