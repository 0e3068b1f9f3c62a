"""Errors of ``import caffe``: those of caffetools that are also of the type that pycaffe raises, so that scripts' ``except`` clauses hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import cache

from caffetools.errors import CaffeToolsError, NetError


def also(error: CaffeToolsError, *kinds: type[Exception]) -> CaffeToolsError:
    """Return a copy of ``error``, with the same text and fields, that is also an instance of ``kinds``.

    Args:
        error: The error.
        kinds: Built-in exception types: ``RuntimeError``, ``ValueError``, ``KeyError`` …
    """
    missing = tuple(kind for kind in kinds if not isinstance(error, kind))
    if not missing:
        return error
    made = _combined(type(error), missing)(error.message)  # type: ignore[arg-type]
    made.__dict__.update(error.__dict__)
    return made


@contextlib.contextmanager
def raised_also_as(*kinds: type[Exception]) -> Iterator[None]:
    """Let errors of caffetools that are raised inside be instances of ``kinds`` too; see :func:`also`."""
    try:
        yield
    except CaffeToolsError as error:
        converted = also(error, *kinds)
        if converted is error:
            raise
        raise converted.with_traceback(error.__traceback__) from error.__cause__


@cache
def _combined(kind: type[CaffeToolsError], others: tuple[type[Exception], ...]) -> type[CaffeToolsError]:
    made: type[CaffeToolsError] = type(kind.__name__, (kind, *others), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    return made


def expect_names(given: Iterable[str], wanted: Iterable[str], what: str, net: str) -> None:
    """Check the names of arrays that a script gives.

    Args:
        given: The names given.
        wanted: The names needed.
        what: What they are of the net: "inputs" or "outputs".
        net: The net's name.

    Raises:
        NetError: They differ.
    """
    given, wanted = list(given), list(wanted)
    if set(given) != set(wanted):
        raise NetError(
            f"the net '{net}' has the {what} {', '.join(wanted) or '(none)'}, but is given {', '.join(given) or 'none'}; give each of them"
        )
