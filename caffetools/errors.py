"""The error family of caffetools: what went wrong, where (path, line, layer, blob, record) and what to do, as fields.

The text is made from the fields in one place, :meth:`CaffeToolsError.__str__`; no code parses it. The command line shows an error
as one line without a traceback and exits with its ``exit_code``: 2 for bad usage or input, 1 for a run that failed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import TypeVar

PathLike = str | os.PathLike[str]
E = TypeVar("E", bound="CaffeToolsError")


def closest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known word closest to ``word``; None if none is alike enough.

    Args:
        word: What was written.
        known: The words that are known.
        cutoff: How alike the two must be, 0 to 1.
    """
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``; did you mean 'x'?`` for the known word that is :func:`closest` to ``word``, or an empty string; arguments as there."""
    close = closest(word, known, cutoff=cutoff)
    return "" if close is None else f"; did you mean '{close}'?"


class CaffeToolsError(Exception):
    """An error that the user can understand and fix.

    Args:
        message: What is wrong, without its place.
        path: The file at fault.
        line: Line in ``path``, from 1; 0 if unknown.
        column: Column in ``path``, from 1; 0 if unknown.
        layer: Name of the layer at fault.
        blob: Name of the blob at fault.
        record: Key or index of the database record at fault.
        hint: What to do about it; appended to the text after a semicolon.
    """

    exit_code: int = 2

    def __init__(
        self,
        message: str,
        *,
        path: PathLike | None = None,
        line: int = 0,
        column: int = 0,
        layer: str | None = None,
        blob: str | None = None,
        record: str | None = None,
        hint: str | None = None,
    ):
        super().__init__(message)
        self.message = message
        self.path = None if path is None else os.fspath(path)
        self.line, self.column = line, column
        self.layer, self.blob, self.record = layer, blob, record
        self.hint = hint

    @property
    def place(self) -> str:
        """``path``, ``path:line`` or ``path:line:column``; empty if no path is known."""
        if self.path is None:
            return ""
        return ":".join([self.path, *(str(n) for n in (self.line, self.column if self.line else 0) if n)])

    def located(self: E, path: PathLike, line: int = 0, column: int = 0) -> E:
        """Return a copy of this error with its place set, for a caller that knows the file."""
        error = copy.copy(self)
        error.path, error.line, error.column = os.fspath(path), line, column
        error.__traceback__ = error.__cause__ = None
        return error

    def __str__(self) -> str:
        parts = [
            self.place,
            f"record '{self.record}'" if self.record is not None else "",
            f"layer '{self.layer}'" if self.layer is not None else "",
            f"blob '{self.blob}'" if self.blob is not None else "",
            self.message,
        ]
        text = ": ".join(part for part in parts if part)
        if self.hint and text.endswith("?"):
            return f"{text} {self.hint[0].upper()}{self.hint[1:]}"
        return f"{text}; {self.hint}" if self.hint else text


class PrototxtError(CaffeToolsError):
    """A prototxt that cannot be parsed: shown as ``file:line:column: message``."""

    @property
    def place(self) -> str:
        """As for the base class; ``<prototxt>`` for text that came from no file."""
        if self.path is not None:
            return super().place
        return ":".join(["<prototxt>", *(str(n) for n in (self.line, self.column if self.line else 0) if n)])


class ModelFileError(CaffeToolsError):
    """A caffemodel, solverstate or binaryproto that is truncated, empty, or a file of another kind."""


class NetError(CaffeToolsError):
    """A net that cannot be built or run.

    Attributes:
        field: Name of the field of the layer at fault, where one is; its line is shown.
    """

    field: str = ""


class DataError(CaffeToolsError):
    """Images, lists, databases or mean files that are missing, damaged or unfit."""


class ExportError(CaffeToolsError):
    """A net that has no exact form in the target format, or options that do not fit it."""


class ExportMismatch(ExportError):
    """An exported form that gives other numbers than the net, or that its format's checker refuses."""

    exit_code: int = 1


class ZooError(CaffeToolsError):
    """An unknown or invalid model card, or a file of it that cannot be fetched or fails its checksum."""


class RunFailed(CaffeToolsError):
    """A run that started properly but failed on the way (a NaN loss, a full disk)."""

    exit_code: int = 1


class WriteFailed(RunFailed):
    """A file or folder that could not be written; what was at ``path`` before is unchanged.

    Args:
        path: The file or folder as the user knows it, not a temporary one.
        reason: Why, e.g. the system's words for its error.
        hint: What to do about it.
    """

    def __init__(self, path: PathLike, reason: object, *, hint: str | None = "nothing was changed there"):
        super().__init__(str(reason), path=path, hint=hint)
        self.args = (os.fspath(path), str(reason))  # with which it is copied and unpickled

    def __str__(self) -> str:
        text = f"cannot write {self.place}: {self.message}"
        return f"{text}; {self.hint}" if self.hint else text


class Cancelled(CaffeToolsError):
    """Work that was cancelled through a :class:`~caffetools.cancel.CancelToken`; what it left behind is whole and can be resumed."""

    exit_code: int = 130


def mark_user_error(error: BaseException, context: str) -> None:
    """Attach ``context`` (where the user's own code failed) to an exception that is passed on unchanged; the first one is kept."""
    if not hasattr(error, "caffetools_context"):
        error.caffetools_context = context  # type: ignore[attr-defined]


def user_error_context(error: BaseException) -> str:
    """Return what :func:`mark_user_error` attached; empty for other exceptions."""
    return str(getattr(error, "caffetools_context", ""))
