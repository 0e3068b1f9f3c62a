"""How files are read: options that hold for one thread or task, not for the process.

They live in a context variable. A new thread starts with the defaults; :mod:`caffetools.util.threads` and
:mod:`caffetools.util.threads` pass the caller's options to the threads that they start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from caffetools.errors import CaffeToolsError
from caffetools.proto.forks.tables import DIALECTS

# The dialect that keeps fields which no fork has.
ANY = "any"


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading prototxts and binary files.

    Attributes:
        dialect: The fork whose files these are: a name of :data:`~caffetools.proto.forks.tables.DIALECTS`, several joined by ``+``,
            ``"bvlc"``, or ``"any"``, which keeps fields that no fork has. None: detected file by file.

    Raises:
        CaffeToolsError: The dialect is unknown.
    """

    dialect: str | None = None

    def __post_init__(self) -> None:
        if self.dialect is not None:
            split_dialect(self.dialect)

    @property
    def required_forks(self) -> str | None:
        """Return the dialect whose fields a prototxt has to keep to; None where any field of any fork is read."""
        return None if self.dialect == ANY else self.dialect

    @property
    def keep_unknown(self) -> bool:
        """Return whether fields that no fork has are kept as text rather than refused."""
        return self.dialect == ANY


_DEFAULTS = ReadOptions()
_OPTIONS: ContextVar[ReadOptions] = ContextVar("caffetools_read_options", default=_DEFAULTS)


def read_options() -> ReadOptions:
    """Return the options in force in this thread or task."""
    return _OPTIONS.get()


@contextmanager
def reading(options: ReadOptions) -> Iterator[None]:
    """Read files with ``options`` within a ``with`` block; other threads are not affected."""
    token = _OPTIONS.set(options)
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def override_dialect(dialect: str | None) -> AbstractContextManager[None]:
    """Read files as ``dialect`` within a ``with`` block; None detects the dialect of each file.

    Raises:
        CaffeToolsError: The dialect is unknown.
    """
    return reading(ReadOptions(dialect=dialect))


def split_dialect(dialect: str) -> tuple[str, ...]:
    """Return the names of a dialect's forks; BVLC Caffe and ``any`` have none.

    Raises:
        CaffeToolsError: One of them is unknown; the message lists the known ones.
    """
    names = tuple(name for name in dialect.split("+") if name not in ("", ANY, "bvlc"))
    for name in names:
        if name not in DIALECTS:
            raise CaffeToolsError(f"the dialect '{name}' is unknown; known are bvlc, {', '.join(DIALECTS)}, and any")
    return names
