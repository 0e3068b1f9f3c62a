"""Running deployed models."""
