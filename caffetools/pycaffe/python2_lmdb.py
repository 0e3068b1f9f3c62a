"""``lmdb`` in converted scripts: keys and values are given as text or bytes, and what is read takes text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from caffetools.pycaffe.python2_files import Bytes, to_binary


class _Object:
    """An environment, a transaction or a cursor of lmdb.

    Args:
        real: The object of lmdb.
    """

    def __init__(self, real: object):
        self._real: Any = real

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return _method(found) if callable(found) else found

    def __enter__(self) -> _Object:
        self._real.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._real.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        return map(_wrapped, iter(self._real))

    def __next__(self) -> Any:
        # 2to3 makes next(cursor) of cursor.next().
        return self._real.next()


def _method(method: Callable[..., object]) -> Callable[..., Any]:
    def call(*values: object, **options: object) -> Any:
        return _wrapped(method(*map(_plain, values), **{name: _plain(value) for name, value in options.items()}))

    return call


def _plain(value: object) -> object:
    if isinstance(value, _Object):
        return value._real
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return to_binary(value) if isinstance(value, str) else value


def _wrapped(value: object) -> Any:
    if isinstance(value, bytes):
        return Bytes(value)
    if isinstance(value, tuple):
        return tuple(map(_wrapped, value))
    if type(value).__name__ in ("Environment", "Transaction", "Cursor"):
        return _Object(value)
    return map(_wrapped, value) if isinstance(value, Iterator) else value


def names_for_text(real: ModuleType) -> dict[str, Any]:
    """Return the functions of ``lmdb``, the module ``real``, whose objects take text; a folder's name remains text."""

    def open_environment(path: object, *values: object, **options: object) -> _Object:
        return _Object(real.open(path, *values, **options))

    return {
        **{"open": open_environment, "Environment": open_environment},
        **{name: _method(getattr(real, name)) for name in ("Transaction", "Cursor")},
    }
