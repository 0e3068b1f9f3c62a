"""Checks of what Python code passes to the public API: one clear error, not an exception from somewhere below, and no silent answer."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from caffetools.errors import CaffeToolsError

T = TypeVar("T")


def whole_number(name: str, value: object, least: int = 1) -> int:
    """Return an integer argument.

    Args:
        name: Name of the parameter.
        value: Its value; any integer type, but no bool.
        least: Smallest value allowed.

    Raises:
        CaffeToolsError: It is not an integer, or it is too small.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise CaffeToolsError(f"{name} must be an integer, not {value!r}")
    if number < least:
        raise CaffeToolsError(f"{name} must be at least {least}, not {number}")
    return number


def finite_number(name: str, value: object) -> float:
    """Return a number of at least 0. Raises :class:`CaffeToolsError` for another value."""
    if isinstance(value, bool | str) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise CaffeToolsError(f"{name} must be a finite number of at least 0, not {value!r}")
    return float(value)


def file_path(name: str, value: object) -> Path:
    """Return a path argument. Raises :class:`CaffeToolsError` for anything but a ``str`` or an ``os.PathLike`` of one."""
    if isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str):
        return Path(value)
    raise CaffeToolsError(f"{name} must be a path (str or os.PathLike), not {type(value).__name__}")


def several(values: str | os.PathLike[str] | Iterable[T]) -> list[T] | list[str]:
    """Return several names or paths as a list; a text or a path alone is one of them, not a sequence of letters."""
    return [os.fspath(values)] if isinstance(values, str | os.PathLike) else list(values)


def size_pair(name: str, value: object) -> tuple[int, int] | None:
    """Return (width, height), each at least 1; None for None. Raises :class:`CaffeToolsError` for another value."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable) or len(pair := list(value)) != 2:
        raise CaffeToolsError(f"{name} must be (width, height), not {value!r}")
    return whole_number(f"the width of {name}", pair[0]), whole_number(f"the height of {name}", pair[1])
