"""Tests of the documentation: the commands and the Python code of its pages run."""
