"""The one family of errors that caffetools raises on bad input.

The command line shows such an error as one line, without a traceback. Its ``exit_code`` is 2 where the user can mend the
input, and 1 where a run that was asked for properly failed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown ``word``: ``; did you mean 'x'?`` for the closest known one, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


class CaffeToolsError(Exception):
    """Something the user can understand and mend. The message says what is wrong, where, and what to do."""

    exit_code = 2


class PrototxtError(CaffeToolsError):
    """A prototxt that cannot be read: shown as ``file:line:column: what is wrong``."""

    def __init__(self, message: str, *, path: str | os.PathLike[str] | None = None, line: int = 0, column: int = 0):
        self.path, self.line, self.column = path, line, column
        place = os.fspath(path) if path is not None else "<prototxt>"
        if line:
            place += f":{line}:{column}" if column else f":{line}"
        super().__init__(f"{place}: {message}")


class ModelFileError(CaffeToolsError):
    """A caffemodel, solverstate or binaryproto that is truncated, empty, or of another kind."""


class NetError(CaffeToolsError):
    """A network that cannot be built or run.

    Attributes:
        layer: the layer at fault, if there is one. place: ``file:line`` of its block, where the net came from a file.
    """

    def __init__(self, message: str, *, layer: str | None = None, place: str | None = None):
        self.message, self.layer, self.place = message, layer, place
        parts = [place, f"layer '{layer}'" if layer is not None else None, message]
        super().__init__(": ".join(part for part in parts if part))

    def at(self, place: str) -> NetError:
        """The same error, said of ``place`` (a file, or ``file:line``)."""
        return NetError(self.message, layer=self.layer, place=place)


class DataError(CaffeToolsError):
    """Pictures, lists, databases or means that are missing, broken or unfit."""


class ExportError(CaffeToolsError):
    """A network that has no exact form in the target format, or whose exported form gives other numbers."""

    exit_code = 1


class ZooError(CaffeToolsError):
    """A model card that is unknown or wrong, or a file of it that cannot be fetched or fails its checksum."""


class RunFailed(CaffeToolsError):
    """A run that was set up properly but failed on the way (a NaN loss, a full disk)."""

    exit_code = 1
