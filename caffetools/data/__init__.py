"""Databases, the Datum codec, the transformer, dataset building and means."""
