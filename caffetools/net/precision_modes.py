"""The names of the numbers in which a net may compute."""

from __future__ import annotations

from caffetools.errors import CaffeToolsError

MODES = ("fp32", "tf32", "bf16", "fp16")


def check_mode(mode: str) -> None:
    """Raise :class:`CaffeToolsError` unless ``mode`` is one of :data:`MODES`."""
    if mode not in MODES:
        raise CaffeToolsError(f"unknown precision '{mode}'; it is one of {', '.join(MODES)}")
