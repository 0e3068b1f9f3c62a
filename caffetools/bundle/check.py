"""Check a bundle: its files are intact, and its runner gives the expected classes or boxes for its samples."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from caffetools.bundle import standalone, standalone_check
from caffetools.bundle.standalone_check import SUMS
from caffetools.cancel import CancelToken
from caffetools.errors import DataError, ExportMismatch, ModelFileError
from caffetools.events import EventSink, ignore, reported, reporter
from caffetools.util.checksums import file_sha256
from caffetools.util.files import write_text

PathLike = str | os.PathLike[str]
_KINDS = {"data": DataError, "model": ModelFileError, "numbers": ExportMismatch}


@dataclass(frozen=True)
class BundleCheck:
    """A bundle that passed its check.

    Attributes:
        files: Files compared with SHA256SUMS.
        samples: Sample pictures classified.
        backend: The runtime.
        largest_difference: Of a probability from the expected one, or of a box's corner over the picture's size.
        others: Files in the folder that are not of the bundle, such as an engine that was built.
    """

    files: int
    samples: int
    backend: str
    largest_difference: float
    others: list[str] = field(default_factory=list)


def check_bundle(
    folder: PathLike,
    *,
    backend: str = "auto",
    tolerance: float = standalone_check.TOLERANCE,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> BundleCheck:
    """Check a bundle.

    Args:
        folder: The bundle.
        backend: ``onnxruntime``, ``opencv`` or ``tensorrt``; ``auto`` takes the first that is there, TensorRT if an engine is built.
        tolerance: Largest difference of a probability to accept.
        events: Receives ``Started``, ``Progress`` in files and then in samples that were compared, and ``Finished``.
        cancel: Checked before each file and each sample.

    Returns:
        What was compared.

    Raises:
        DataError: A file is missing, changed or damaged.
        ModelFileError: The runtime cannot load the model.
        ExportMismatch: The model gives other classes, boxes or probabilities than expected.
        Cancelled: ``cancel`` was set.
    """
    token = cancel or CancelToken()

    def report(unit: str, done: int, total: int) -> None:
        if done:
            reporter(events, "check", unit)(done, total)
        if done < total:
            token.raise_if_cancelled("check")

    with reported("check", f"Checking {os.fspath(folder)}", events):
        try:
            return BundleCheck(**standalone_check.check(Path(folder), standalone, backend, tolerance, report))
        except standalone_check.CheckError as error:
            raise _KINDS[error.kind](error.message, path=error.path, line=error.line) from None


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over all files below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    write_text(folder / SUMS, "".join(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files))
