"""Libraries of native code that lie in the package: where they are, whether they may be used, and how they are loaded."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def library_file(name: str) -> Path:
    """Return the place of the library ``name``, built or not."""
    return Path(__file__).parent.parent / f"{name}.{'dll' if sys.platform == 'win32' else 'so'}"


def switched_off() -> bool:
    """Return whether the environment variable ``CAFFETOOLS_NATIVE`` is 0."""
    return os.environ.get("CAFFETOOLS_NATIVE") == "0"


def load_library(file: Path, version_function: str, version: int) -> ctypes.CDLL | None:
    """Return the library in ``file``; None where it was not built, is of another version, or is not for this machine.

    Args:
        file: The library.
        version_function: Its function that returns the version of its interface.
        version: The one that is expected.
    """
    if not file.exists():
        return None
    try:
        library = ctypes.CDLL(str(file))
        return library if getattr(library, version_function)() == version else None
    except (OSError, AttributeError):
        return None
