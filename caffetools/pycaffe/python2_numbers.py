"""Numbers of Python 2 in converted scripts: division, rounding, the type ``long`` and the texts of numbers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from io import StringIO
from typing import Any, SupportsIndex, SupportsRound

import numpy as np

# What an operator of two integers is called; the result of each is a long where one of them is.
_OPERATORS = ("add", "sub", "mul", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor")
_SIGNS = ("neg", "pos", "abs", "invert")
LONG = "__long_of_python2__"


class _LongType(type):
    def __instancecheck__(cls, value: object) -> bool:
        return type.__instancecheck__(cls, value) or (type(value) is int and is_long(value))


class Long(int, metaclass=_LongType):
    """A ``long``: an int that ``repr``, ``hex`` and ``oct`` end with an L; ints that do not fit in 64 bits are instances, too."""

    def __repr__(self) -> str:
        return f"{int.__repr__(self)}L"

    def __str__(self) -> str:
        return int.__repr__(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def _staying_long(name: str) -> Callable[..., Any]:
    method = getattr(int, name)

    def call(self: Long, *others: object) -> Any:
        found = method(self, *others)
        return Long(found) if type(found) is int else found

    return call


for _name in (*_OPERATORS, *(f"r{_operator}" for _operator in _OPERATORS), *_SIGNS):
    setattr(Long, f"__{_name}__", _staying_long(f"__{_name}__"))


def is_long(value: int) -> bool:
    """Return whether an int does not fit in the 64 bits of Python 2's ``int``."""
    return not -sys.maxsize - 1 <= value <= sys.maxsize


def mark_longs(source: str, tokens: Callable[[Callable[[], str]], Any]) -> str:
    """Write ``10L`` as a call of :class:`Long`, in the same line.

    Args:
        source: The text of a script for Python 2.
        tokens: The tokenizer of 2to3, which reads such numbers.

    Returns:
        The text; as it was where it cannot be split into tokens.
    """
    lines = source.splitlines(keepends=True)
    try:
        found = [
            (start, end, text) for _, text, start, end, _ in tokens(StringIO(source).readline) if text[-1:] in "lL" and text[:1].isdigit()
        ]
    except Exception:  # what is wrong with it is said by the conversion
        return source
    for (row, first), (_, last), text in reversed(found):
        line = lines[row - 1]
        lines[row - 1] = f"{line[:first]}{LONG}({text[:-1]}){line[last:]}"
    return "".join(lines)


def divide(a: float, b: float) -> Any:
    """Divide as ``/`` of Python 2: integers, and arrays of integers, round down."""
    if _is_integer(a) and _is_integer(b):
        return a // b
    return a / b


def divide_into(a: float, b: float) -> Any:
    """Return what ``a`` is after ``a /= b`` of Python 2; an array is changed in place."""
    if _is_integer(a) and _is_integer(b):
        a //= b
    else:
        a /= b
    return a


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) or (isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer))


def round_half_away(number: SupportsRound[Any], ndigits: int = 0) -> Any:
    """Round as Python 2: halves away from zero, to a float. Arrays and other types round themselves."""
    if isinstance(number, np.floating):
        number = float(number)
    if not isinstance(number, (int, float)) or not math.isfinite(number):
        return round(number, ndigits)
    step = Decimal(1).scaleb(-ndigits)
    return float((Decimal(number) / step).quantize(Decimal(1), ROUND_HALF_UP) * step) if abs(number) < 1e15 else float(number)


def coerce(a: complex, b: complex) -> tuple[complex, complex]:
    """Return ``coerce(a, b)``: both numbers as the wider of their types. Raises TypeError for other values."""
    if not (isinstance(a, (int, float, complex)) and isinstance(b, (int, float, complex))):
        raise TypeError("number coercion failed")
    zero = type(a)(0) + type(b)(0)
    return a + zero, b + zero


def octal(number: SupportsIndex) -> str:
    """Return ``oct(number)``: ``010`` for 8, ``010L`` for a long."""
    if hasattr(type(number), "__oct__"):
        return str(getattr(number, "__oct__")())  # noqa: B009
    digits = f"{abs(number.__index__()):o}"
    return ("-" if number.__index__() < 0 else "") + (digits if digits == "0" else f"0{digits}") + _mark(number)


def hexadecimal(number: SupportsIndex) -> str:
    """Return ``hex(number)``: ``0xffL`` for a long."""
    if hasattr(type(number), "__hex__"):
        return str(getattr(number, "__hex__")())  # noqa: B009
    return hex(number) + _mark(number)


def represent(value: object) -> str:
    """Return ``repr(value)``, with an L behind a long."""
    return repr(Long(value)) if type(value) is int and is_long(value) else repr(value)


def _mark(number: object) -> str:
    return "L" if isinstance(number, Long) else ""
