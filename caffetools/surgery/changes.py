"""Records of the changes that an operation makes to a network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One change of a layer.

    Attributes:
        layer: The layer's name.
        what: The field or part that changed.
        before: The old value; empty where there was none.
        after: The new value; empty where it was removed.
    """

    layer: str
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        if not self.before:
            return f"{self.layer}: {self.what} set to {self.after}"
        if not self.after:
            return f"{self.layer}: {self.what} {self.before} removed"
        return f"{self.layer}: {self.what} {self.before} → {self.after}"


def number(value: float) -> str:
    """Format a number as in prototxt: ``10``, ``0.25``."""
    return f"{value:.7g}"
