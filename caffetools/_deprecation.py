"""The rule for changes of the public API, and the decorator that announces them.

A public name, parameter or behaviour that is to be removed or changed first warns for one minor release: what is deprecated in
0.2 is removed in 0.3 at the earliest. The public API is what ``caffetools.__all__`` and docs/api.md name.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def deprecated_parameter(name: str, *, since: str, instead: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that warns with :class:`DeprecationWarning` when the keyword ``name`` is given.

    For a whole function or class use ``typing_extensions.deprecated``, which type checkers know too.

    Args:
        name: The parameter.
        since: Version that deprecated it, such as ``"0.2"``.
        instead: What to use, such as ``"events="``.

    Example:
        >>> import warnings
        >>> @deprecated_parameter("progress", since="0.2", instead="events=")
        ... def work(*, progress=None, events=None):
        ...     return "done"
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     work(progress=print)
        'done'
        >>> str(caught[0].message)
        "the parameter 'progress' of work is deprecated since 0.2 and will be removed in 0.3; use events="
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        major, minor = since.split(".")[:2]
        text = (
            f"the parameter '{name}' of {function.__name__} is deprecated since {since} and will be removed in "
            f"{major}.{int(minor) + 1}; use {instead}"
        )

        known: dict[str, str] | None = getattr(function, "deprecated_parameters", None)
        if known is not None:
            # One wrapper for all, so that each warning is shown for the caller's line.
            known[name] = text
            return function
        texts = {name: text}

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for given in texts.keys() & kwargs.keys():
                warnings.warn(texts[given], DeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        call.deprecated_parameters = texts  # type: ignore[attr-defined]
        return call

    return decorate
