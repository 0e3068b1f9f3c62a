"""Checks of the names that scripts give."""

from __future__ import annotations

from collections.abc import Iterable

from caffetools.errors import NetError


def expect_names(given: Iterable[str], wanted: Iterable[str], what: str, net: str) -> None:
    """Raise :class:`NetError` unless ``given`` are exactly the net's ``what`` (inputs or outputs)."""
    given, wanted = list(given), list(wanted)
    if set(given) != set(wanted):
        raise NetError(
            f"the net '{net}' has the {what} {', '.join(wanted) or '(none)'}, but is given {', '.join(given)}; give each of them"
        )
