"""Checks of what Python code passes to the public API: one clear error, not an exception from somewhere below, and no silent answer."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from caffetools.cancel import CancelToken
from caffetools.errors import CaffeToolsError

T = TypeVar("T")

# Generators take these seeds; NumPy's Mersenne Twister, which some functions draw with, takes 32 bits.
MOST_SEED, MOST_SEED32 = 2**63 - 1, 2**32 - 1


def whole_number(name: str, value: object, least: int = 1, most: int = 2**63 - 1) -> int:
    """Return an integer argument.

    Args:
        name: Name of the parameter.
        value: Its value; any integer type, but no bool.
        least: Smallest value allowed.
        most: Largest value allowed.

    Raises:
        CaffeToolsError: It is not an integer, or it is out of range.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise CaffeToolsError(f"{name} must be an integer, not {value!r}")
    if number < least:
        raise CaffeToolsError(f"{name} must be at least {least}, not {number}")
    if number > most:
        raise CaffeToolsError(f"{name} must be at most {most}, not {number}")
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


def positive_number(name: str, value: object) -> float:
    """Return a finite number above 0. Raises :class:`CaffeToolsError` for another value."""
    number = finite_number(name, value)
    if number == 0:
        raise CaffeToolsError(f"{name} must be above 0, not {value!r}")
    return number


def several(name: str, values: str | os.PathLike[str] | Iterable[T]) -> list[T] | list[str]:
    """Return several names or paths as a list; a text or a path alone is one of them, not a sequence of letters.

    Args:
        name: Name of the parameter.
        values: Its value.

    Raises:
        CaffeToolsError: It is neither a text, a path nor iterable.
    """
    if isinstance(values, str | os.PathLike):
        return [os.fspath(values)]
    if isinstance(values, bytes) or not isinstance(values, Iterable):
        raise CaffeToolsError(f"{name} must be one text or a sequence of them, not {values!r}")
    return list(values)


def shape(name: str, value: object) -> tuple[int, ...]:
    """Return a shape: integers of at least 1. Raises :class:`CaffeToolsError` for another value."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise CaffeToolsError(f"{name} must be a shape such as (1, 3, 227, 227), not {value!r}")
    return tuple(whole_number(f"each size of {name}", size) for size in value)


def named_shapes(name: str, value: object) -> dict[str, tuple[int, ...]]:
    """Return a mapping of blob names to shapes. Raises :class:`CaffeToolsError` for another value."""
    if not isinstance(value, Mapping):
        raise CaffeToolsError(f"{name} must be a mapping of blob names to shapes, not {value!r}")
    return {str(blob): shape(f"{name}[{blob!r}]", sizes) for blob, sizes in value.items()}


def check_control(events: object, cancel: object) -> None:
    """Raise :class:`CaffeToolsError` for an event sink that cannot be called, or a cancel token that is none."""
    if not callable(events):
        raise CaffeToolsError(f"events must be a function of one event, not {type(events).__name__}")
    if cancel is not None and not isinstance(cancel, CancelToken):
        raise CaffeToolsError(f"cancel must be a CancelToken, not {type(cancel).__name__}")


def size_pair(name: str, value: object) -> tuple[int, int] | None:
    """Return (width, height), each at least 1; None for None. Raises :class:`CaffeToolsError` for another value."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable) or len(pair := list(value)) != 2:
        raise CaffeToolsError(f"{name} must be (width, height), not {value!r}")
    return whole_number(f"the width of {name}", pair[0]), whole_number(f"the height of {name}", pair[1])
