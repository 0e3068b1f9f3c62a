"""Pictures of a database back into files."""

from __future__ import annotations

import csv
import os
import re
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.databases import open_database
from caffetools.data.datasets.inspect import followed
from caffetools.data.datasets.records import DecodedRecord, file_suffix
from caffetools.data.datasets.remote import urls_allowed
from caffetools.data.images import encode_image
from caffetools.errors import DataError
from caffetools.events import ArtifactWritten, EventSink, Warned, ignore, reported
from caffetools.util.files import atomic_write
from caffetools.util.folders import new_folder

PathLike = str | os.PathLike[str]
LIST, BOXES = "list.txt", "boxes.csv"
# Names that Windows reserves for devices.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_LONGEST_NAME = 120


@dataclass
class ExportResult:
    """The result of :func:`export_database`.

    Attributes:
        path: The folder.
        count: Number of files written.
        arrays: How many of them are ``.npy`` files, of records that no picture file holds exactly.
        skipped: The error of each record that cannot be decoded.
    """

    path: str
    count: int = 0
    arrays: int = 0
    skipped: list[DataError] = field(default_factory=list)


@urls_allowed
def export_database(
    path: PathLike,
    out: PathLike,
    *,
    names: list[str] | None = None,
    strict: bool = False,
    force: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> ExportResult:
    """Write each record of a database as a file into the new folder ``out``, by label, with a list for convert_imageset.

    Encoded records give the stored file, byte for byte; raw pixels of 1, 3 or 4 channels a PNG with the same values; ``float_data`` and
    other numbers of channels a NumPy array (C, H, W). ``list.txt`` has a line ``path label`` for each, in the order of the keys.
    Pictures with boxes (SSD's AnnotatedDatum) are in the folder ``pictures``, and ``boxes.csv`` has a line for each box: path, label, and
    xmin, ymin, xmax, ymax in pixels.

    Args:
        path: An LMDB or LevelDB of Datum messages.
        out: Folder to make.
        names: Class names for the folders; label i at place i. By default folders are named by the label.
        strict: Stop at the first record that cannot be decoded, which is otherwise left out.
        force: Replace a folder that an earlier export wrote, once the new one is complete.
        events: Receives ``Progress`` (unit ``records``), ``Warned`` and ``ArtifactWritten``.
        cancel: Checked between records; after a cancellation nothing is at ``out``.

    Raises:
        DataError: It is not a database, ``out`` exists, no record can be decoded, or with ``strict`` one cannot.
        RunFailed: ``out`` cannot be written.
        Cancelled: ``cancel`` was set.
    """
    result = ExportResult(os.fspath(out))
    with reported("dataset", f"Exporting {os.fspath(path)}", events), closing(open_database(path)) as database:
        with new_folder(out, force=force, replaceable=lambda old: (old / LIST).is_file()) as work:
            writer = _Writer(work, names, result)
            for record in followed(database, events, cancel):
                if record.array is not None:
                    writer.write(record, record.array)
                elif record.error is not None:
                    if strict:
                        raise record.error
                    result.skipped.append(record.error)
                    events(Warned(task="dataset", message=f"left out: {record.error}"))
            if not result.count:
                raise DataError("no record can be decoded", path=path, hint=f"the first error: {result.skipped[0]}")
            writer.close()
        events(ArtifactWritten(task="dataset", path=result.path, what="pictures"))
    return result


class _Writer:
    """Writes files below ``folder``; no two get the same name, upper and lower case taken for equal."""

    def __init__(self, folder: Path, names: list[str] | None, result: ExportResult):
        self._folder, self._names, self._result = folder, names, result
        self._used: set[str] = set()
        self._lines: list[str] = []
        self._boxes: list[tuple[str | int, ...]] = []
        self._folders: dict[int | None, str] = {}

    def write(self, record: DecodedRecord, array: NDArray[Any]) -> None:
        content, suffix = _file_of(record.data, array)
        # convert_imageset's keys are a number and the picture's path.
        stem = re.sub(r"^\d{8}_", "", record.key).rpartition("/")[2]
        ending = Path(stem).suffix
        if ending.lower() in (suffix, ".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"):
            stem = stem[: -len(ending)]
        folder = self._folder_of(record.label) if record.boxes is None else "pictures"
        name = self._unique(folder, safe_name(stem), suffix)
        target = self._folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
        self._lines.append(f"{name} {record.label or 0}\n")
        sides = np.tile(array.shape[:0:-1], 2)
        for box in record.boxes or ():
            self._boxes.append((name, box.label, *(f"{value:.6g}" for value in np.multiply(box.corners, sides))))
        self._result.count += 1
        self._result.arrays += suffix == ".npy"

    def close(self) -> None:
        with atomic_write(self._folder / LIST) as stream:
            stream.write("".join(self._lines).encode())
        if self._boxes:
            with atomic_write(self._folder / BOXES, "w") as stream:
                csv.writer(stream, lineterminator="\n").writerows([("path", "label", "xmin", "ymin", "xmax", "ymax"), *self._boxes])

    def _folder_of(self, label: int | None) -> str:
        if label not in self._folders:
            names = self._names
            named = names[label] if names is not None and label is not None and 0 <= label < len(names) else str(label or 0)
            self._folders[label] = self._unique("", safe_name(named), "")
        return self._folders[label]

    def _unique(self, folder: str, stem: str, suffix: str) -> str:
        prefix = f"{folder}/" if folder else ""
        name, number = f"{prefix}{stem}{suffix}", 1
        while name.casefold() in self._used or name == LIST:
            number += 1
            name = f"{prefix}{stem}_{number}{suffix}"
        self._used.add(name.casefold())
        return name


def safe_name(text: str) -> str:
    """Return ``text`` as a name for a file on every system: no separators, control characters, reserved names, or leading dots."""
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*\ufffd\ud800-\udfff\u2028\u2029\x85]', "_", text).strip(" .")[:_LONGEST_NAME].rstrip(" .")
    while len(name.encode()) > 2 * _LONGEST_NAME:
        name = name[:-1]
    return f"_{name}" if not name or _RESERVED.match(name) else name


def _file_of(data: bytes, array: NDArray[Any]) -> tuple[bytes, str]:
    """Return the bytes and the name ending of the file for a record with a stored file, or the values (C, H, W)."""
    if data:
        return data, file_suffix(data)
    if array.dtype == np.uint8 and len(array) in (1, 3, 4):
        pixels = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
        return encode_image(np.ascontiguousarray(pixels), ".png"), ".png"
    stream = BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue(), ".npy"
