"""What an operation on a network changed, for people to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One change: of ``layer``, ``what`` was ``before`` and is ``after``; empty where there was, or is, nothing."""

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
    """A number as a prototxt shows it: ``10``, ``0.25``."""
    return f"{value:.7g}"
