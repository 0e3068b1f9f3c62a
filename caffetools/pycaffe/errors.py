"""Checks of the names that scripts give."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from caffetools.errors import NetError


def closest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the known name that is closest to ``name``, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def expect_names(given: Iterable[str], wanted: Iterable[str], what: str, net: str) -> None:
    """Raise :class:`NetError` unless ``given`` are exactly the net's ``what`` (inputs or outputs)."""
    given, wanted = list(given), list(wanted)
    if set(given) != set(wanted):
        raise NetError(
            f"the net '{net}' has the {what} {', '.join(wanted) or '(none)'}, but is given {', '.join(given)}; give each of them"
        )
