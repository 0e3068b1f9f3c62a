"""The order of values in Python 2, where values of any two types can be compared."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from numbers import Complex, Real
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T", bound="type[Any]")
# Methods of Python 2 under the names that Python 3 calls.
_METHODS = {"__div__": "__truediv__", "__rdiv__": "__rtruediv__", "__idiv__": "__itruediv__"}
_SIGNS: dict[str, Callable[[int, int], bool]] = {"__lt__": operator.lt, "__le__": operator.le, "__gt__": operator.gt, "__ge__": operator.ge}


def order(name: str, a: object, b: object) -> Any:
    """Return ``a < b`` as Python 2 computes it, or another comparison.

    Args:
        name: ``lt``, ``le``, ``gt`` or ``ge``.
        a: The left value.
        b: The right value.

    Returns:
        What Python 3 returns, where it compares the two; else None is less than numbers, those are less than all else, and values of other
        types are ordered by the names of their types.

    Raises:
        TypeError: Python 2 does not compare them either (complex numbers), or one is an array.
    """
    function = getattr(operator, name)
    try:
        return function(a, b)
    except TypeError:
        sign = _sign(a, b)
        if sign is None:
            raise
        return function(sign, 0)


def compare(a: object, b: object) -> int:
    """Compare as ``cmp`` of Python 2: -1, 0 or 1. Raises :class:`TypeError` as :func:`order` does."""
    return int(order("gt", a, b)) - int(order("lt", a, b))


def sort(values: object, *args: object, **options: object) -> object:
    """Call the method ``sort`` of ``values``, an object of any type; a list's values may be of types that Python 3 does not compare."""
    if not isinstance(values, list):
        method: Callable[..., object] = getattr(values, "sort")  # noqa: B009
        return method(*args, **options)
    values[:] = sorted_values(values, *args, **options)
    return None


def sorted_values(values: Iterable[object], *args: object, **options: object) -> list[object]:
    """Return ``sorted(values)`` of Python 2, with the arguments of Python 3's; by position those of Python 2: a comparison, a key, and whether to reverse."""
    values = list(values)
    given = dict(zip(("cmp", "key", "reverse"), args, strict=False))
    comparison, key = given.pop("cmp", None), given.get("key")
    if callable(comparison):
        ordered = functools.cmp_to_key(comparison)
        given["key"] = (lambda value: ordered(key(value))) if callable(key) else ordered
    args, options = (), {**given, **options}
    function: Callable[..., list[object]] = sorted
    try:
        return function(values, *args, **options)
    except TypeError:
        return function(values, *args, **_with_order(options))


def extreme(name: str, *args: object, **options: object) -> object:
    """Return ``max(…)`` or ``min(…)``, as ``name`` says, of Python 2, with the arguments of Python 3's."""
    function: Callable[..., object] = max if name == "max" else min
    if len(args) == 1 and isinstance(args[0], Iterable) and not isinstance(args[0], np.ndarray):
        args = (list(args[0]),)
    try:
        return function(*args, **options)
    except TypeError:
        if len(args) == 1 and isinstance(args[0], np.ndarray):
            raise
        return function(*args, **_with_order(options))


def with_methods(cls: T) -> T:
    """Give a class the methods that Python 3 calls where it has those of Python 2: ``__cmp__``, ``__div__``; used as a decorator."""
    own = vars(cls)
    for old, new in _METHODS.items():
        if old in own and new not in own:
            setattr(cls, new, own[old])
    if "__cmp__" in own:
        for name, holds in _SIGNS.items():
            if name not in own:
                setattr(cls, name, _by_cmp(holds))
        # Set behind the class's creation, so that its values can still be keys.
        for name, holds in {"__eq__": operator.eq, "__ne__": operator.ne}.items():
            if name not in own:
                setattr(cls, name, _by_cmp(holds))
    return cls


def _by_cmp(holds: Callable[[int, int], bool]) -> Callable[[Any, object], bool]:
    return lambda self, other: holds(self.__cmp__(other), 0)


def _with_order(options: dict[str, object]) -> dict[str, object]:
    key = functools.cmp_to_key(compare)
    given = options.get("key")
    return {**options, "key": (lambda value: key(given(value))) if callable(given) else key}


def _sign(a: object, b: object) -> int | None:
    """Return -1, 0 or 1 for values that Python 3 does not compare; None where Python 2 does not either."""
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        for one, other in zip(a, b, strict=False):
            if one is not other and one != other:
                return compare(one, other)
        return compare(len(a), len(b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) or _is_complex(a) or _is_complex(b):
        return None
    ranks = _rank(a), _rank(b)
    if ranks[0] == ranks[1]:
        ranks = (0, str(id(a)).zfill(30)), (0, str(id(b)).zfill(30))
    return compare(*ranks)


def _is_complex(value: object) -> bool:
    return isinstance(value, Complex) and not isinstance(value, Real)


def _rank(value: object) -> tuple[int, str]:
    if value is None or isinstance(value, (Real, np.number, np.bool_)):
        return int(value is not None), ""
    return 2, "str" if isinstance(value, bytes) else type(value).__name__
