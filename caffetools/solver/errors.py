"""Errors of a solver prototxt."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from caffetools.errors import CaffeToolsError


class SolverError(CaffeToolsError):
    """A solver with a field that is wrong, missing or not supported.

    Args:
        message: What is wrong.
        field: Name of the field at fault.
    """

    def __init__(self, message: str, *, field: str = ""):
        super().__init__(message)
        self.field = field

    @property
    def place(self) -> str:
        """Path and line; ``solver`` for a solver that came from no file."""
        return super().place or "solver"

    def in_file(self, path: str | os.PathLike[str]) -> SolverError:
        """Return this error with its place: ``path``, and the line of the field if it is there."""
        line = 0
        with contextlib.suppress(OSError):
            lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
            pattern = re.compile(rf"^[^#]*\b{re.escape(self.field)}\s*[:{{]")
            line = next((number for number, text in enumerate(lines, 1) if self.field and pattern.match(text)), 0)
        return self.located(path, line)


@contextlib.contextmanager
def errors_in_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give a :class:`SolverError` of the body the place of its field in the solver prototxt ``path``."""
    try:
        yield
    except SolverError as error:
        raise error.in_file(path) from None
