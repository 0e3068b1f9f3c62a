"""What the files of an HDF5Data layer hold, those that MATLAB wrote included, and what is wrong with them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.datasets.inspect import DatabaseSummary
from caffetools.data.datasets.moments import ChannelStatistics, Moments
from caffetools.data.datasets.verify import FAULT_KINDS, Fault, FaultKind, Verification
from caffetools.data.picture_lists import read_lines
from caffetools.errors import DataError
from caffetools.events import EventSink, ignore, reported, reporter
from caffetools.proto.sniff import HEAD, Kind, guard, sniff_bytes

if TYPE_CHECKING:
    import h5py

PathLike = str | os.PathLike[str]
# Values that are read at a time, and different labels that are counted.
_CHUNK, _MOST_LABELS = 1 << 22, 100_000
_LARGEST_ROW = 1 << 28
# Attributes that MATLAB writes.
_CLASS, _EMPTY = "MATLAB_class", "MATLAB_empty"
_NO_NUMBERS = ("char", "cell", "struct", "function_handle", "string", "table")


@dataclass
class Hdf5Dataset:
    """A dataset of the files.

    Attributes:
        rows: Number of rows in all files.
        row_shape: Shape of a row; that of the first file.
        dtype: Type of the values as NumPy names it.
        statistics: Statistics of each channel: of axis 1 if there are three axes or more, else of all values.
        not_finite: Number of NaN and infinite values.
        labels: Label → number of rows, if a row is one whole number; empty if there are too many different ones.
    """

    rows: int
    row_shape: list[int]
    dtype: str
    statistics: ChannelStatistics | None = None
    not_finite: int = 0
    labels: dict[int, int] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """The shape as text, the rows first."""
        return "x".join(map(str, (self.rows, *self.row_shape)))


@dataclass
class Hdf5Summary:
    """The result of :func:`inspect_hdf5`.

    Attributes:
        path: The file, or the list of files.
        files: The files.
        matlab: Whether MATLAB wrote one of them.
        datasets: Name → dataset.
        other: Name → what it is, of what is not an array of numbers.
    """

    path: str
    files: list[str]
    matlab: bool = False
    datasets: dict[str, Hdf5Dataset] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; the labels are strings there."""
        values = asdict(self)
        for dataset in values["datasets"].values():
            dataset["labels"] = {str(label): count for label, count in dataset["labels"].items()}
        return values

    def as_database(self, data: str, label: str) -> DatabaseSummary:
        """Return a summary in the form of that of a database.

        Args:
            data: Name of the dataset of pictures (N, C, H, W).
            label: Name of the dataset of labels.
        """
        pictures, labels = self.datasets.get(data), self.datasets.get(label)
        summary = DatabaseSummary(self.path, "hdf5", records=pictures.rows if pictures is not None else 0)
        if pictures is not None and len(pictures.row_shape) == 3:
            summary.shapes = {"x".join(map(str, pictures.row_shape)): pictures.rows}
        summary.labels = labels.labels if labels is not None else {}
        return summary


def hdf5_files(path: PathLike) -> list[str] | None:
    """Return the files of an HDF5 source.

    Args:
        path: An HDF5 file, or a list of them, one a line, as HDF5Data's ``source``.

    Returns:
        The files; None if ``path`` is neither.
    """
    place = Path(path)
    if not place.is_file():
        return None
    with place.open("rb") as stream:
        head = stream.read(HEAD)
    found = sniff_bytes(head)
    if found is not None and found.kind is Kind.HDF5:
        return [os.fspath(path)]
    if b"\0" in head:
        return None
    names = [name for _, line in read_lines(path) for name in ([line] if Path(line).exists() else line.split())]
    return names if names and (hdf5_files(names[0]) == [names[0]] or Path(names[0]).suffix.lower() in (".h5", ".hdf5")) else None


def inspect_hdf5(path: PathLike, *, events: EventSink = ignore, cancel: CancelToken | None = None) -> Hdf5Summary:
    """Read HDF5 files through and summarize their datasets.

    MATLAB stores columns first, so an array of W x H x C x N there has the axes (N, C, H, W) here, as Caffe reads it.

    Args:
        path: An HDF5 file, or a list of them.
        events: Receives ``Progress`` (unit ``values``).
        cancel: Checked between parts of a file.

    Raises:
        DataError: A file is missing or damaged, or there are no datasets of numbers.
        Cancelled: ``cancel`` was set.
    """
    reader = _Reader(path, events, cancel)
    with reported("dataset", f"Inspecting {os.fspath(path)}", events):
        reader.read(lambda error: _raise(error))
    if not reader.summary.datasets:
        raise DataError(f"there are no datasets of numbers in it{_listed(reader.summary.other)}", path=path)
    return reader.summary


def verify_hdf5(
    path: PathLike,
    *,
    classes: int | None = None,
    allow: tuple[str, ...] = (),
    label: str = "label",
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Verification:
    """Read HDF5 files through and list what is wrong.

    Args:
        path: An HDF5 file, or a list of them.
        classes: Number of classes: labels must be below it, and each must occur. None: labels must occur from 0 to the highest.
        allow: Kinds of faults that are not listed.
        label: Name of the dataset of labels.
        events: Receives ``Progress`` (unit ``values``).
        cancel: Checked between parts of a file.

    Raises:
        DataError: It is not an HDF5 file or a list, or a kind in ``allow`` is unknown.
        Cancelled: ``cancel`` was set.
    """
    for kind in allow:
        if kind not in FAULT_KINDS:
            raise DataError(f"the kind of fault '{kind}' is unknown; it can be {', '.join(FAULT_KINDS)}")
    reader = _Reader(path, events, cancel)
    with reported("dataset", f"Verifying {os.fspath(path)}", events):
        reader.read(lambda error: reader.faults.append(Fault("damaged", "", str(error))))
    faults = reader.faults
    for name, dataset in reader.summary.datasets.items():
        if dataset.not_finite:
            faults.append(Fault("values", name, f"{dataset.not_finite} of its values are not finite (NaN or infinite)"))
    if label in reader.summary.datasets:
        faults += _label_faults(label, reader.summary.datasets[label], classes)
    rows = max((dataset.rows for dataset in reader.summary.datasets.values()), default=0)
    return Verification(os.fspath(path), rows, [fault for fault in faults if fault.kind not in allow])


def _label_faults(name: str, dataset: Hdf5Dataset, classes: int | None) -> Iterator[Fault]:
    if not dataset.labels:
        if math.prod(dataset.row_shape) == 1 and dataset.rows:
            yield Fault("label", name, "its values are not whole numbers")
        return
    highest = classes if classes is not None else max(dataset.labels) + 1
    for value, count in sorted(dataset.labels.items()):
        if value < 0 or value >= highest:
            reason = "negative" if value < 0 else f"not below the number of classes, {classes}"
            yield Fault("label", name, f"{count} row(s) have the label {value}, which is {reason}")
    missing = [str(value) for value in range(min(highest, _MOST_LABELS)) if value not in dataset.labels]
    if missing:
        yield Fault(
            "gap",
            name,
            f"no row has the label(s) {', '.join(missing[:20])}{', …' if len(missing) > 20 else ''}; the highest is {highest - 1}",
        )


class _Reader:
    """Reads the datasets of all files in parts of bounded size."""

    def __init__(self, path: PathLike, events: EventSink, cancel: CancelToken | None):
        files = hdf5_files(path)
        if files is None:
            raise DataError("it is neither an HDF5 file nor a list of HDF5 files", path=path)
        self.summary = Hdf5Summary(os.fspath(path), files)
        self.faults: list[Fault] = []
        self._report = reporter(events, "dataset", "values", cancel)
        self._moments: dict[str, Moments] = {}
        self._labels: dict[str, Counter[int] | None] = {}

    def read(self, on_error: Callable[[DataError], None]) -> None:
        """Read all files; ``on_error`` gets the error of each that is missing or damaged."""
        import h5py

        for file in self.summary.files:
            try:
                with guard(DataError, file, "an HDF5 file", allowed=(Kind.HDF5,)), h5py.File(file, "r") as opened:
                    self._read_file(opened, file)
            except DataError as error:
                on_error(error)
        for name, dataset in self.summary.datasets.items():
            if name in self._moments:
                dataset.statistics = replace(self._moments[name].statistics(), records=dataset.rows)
            dataset.labels = dict(sorted((self._labels.get(name) or {}).items()))

    def _read_file(self, file: h5py.File, path: str) -> None:
        found: dict[str, h5py.Dataset] = {}
        for name, item in file.items():
            what = _what(item)
            if what:
                self.summary.other[str(name)] = what
            else:
                found[str(name)] = item
            self.summary.matlab |= _CLASS in getattr(item, "attrs", {})
        self._check_rows(found, path)
        total, done = sum(item.size for item in found.values()), 0
        for name, item in found.items():
            self._add(name, item, path)
            for part in _parts(item):
                self._add_values(name, part)
                done += part.size
                self._report(done, total)

    def _check_rows(self, found: dict[str, h5py.Dataset], path: str) -> None:
        rows = {name: item.shape[0] for name, item in found.items()}
        if len(set(rows.values())) < 2:
            return
        text = ", ".join(f"'{name}' {count}" for name, count in rows.items())
        # Imports torch, which the commands that only read databases do without.
        from caffetools.data.layers.hdf5_data import reversed_axes_hint

        hint = reversed_axes_hint([item.shape for item in found.values()])
        self._fault("rows", "", f"{path}: its datasets differ in their number of rows: {text}{hint}")

    def _add(self, name: str, item: h5py.Dataset, path: str) -> None:
        row_shape = [int(size) for size in item.shape[1:]]
        known = self.summary.datasets.get(name)
        if known is None:
            self.summary.datasets[name] = Hdf5Dataset(item.shape[0], row_shape, str(item.dtype))
            self._labels[name] = Counter() if math.prod(row_shape) == 1 else None
            return
        known.rows += item.shape[0]
        if row_shape != known.row_shape:
            one, other = ("x".join(map(str, shape)) or "single values" for shape in (row_shape, known.row_shape))
            self._fault("size", name, f"{path}: its rows are {one}, those of the files before {other}")

    def _add_values(self, name: str, part: NDArray[Any]) -> None:
        dataset = self.summary.datasets[name]
        if part.dtype.kind == "f":
            finite = np.isfinite(part)
            dataset.not_finite += int(part.size - finite.sum())
            part = np.where(finite, part, 0) if not finite.all() else part
        planes = np.moveaxis(part, 1, 0) if part.ndim > 2 else part[np.newaxis]
        if part.size:
            moments = self._moments.setdefault(name, Moments(len(planes)))
            # A file with another number of channels is a fault of its own.
            if moments.channels == len(planes):
                moments.add(planes.reshape(len(planes), -1))
        labels = self._labels[name]
        if labels is not None:
            values, counts = np.unique(part, return_counts=True)
            whole = bool((values == np.floor(values)).all()) and len(values) + len(labels) <= _MOST_LABELS
            if whole:
                labels.update({int(value): int(count) for value, count in zip(values, counts, strict=True)})
            else:
                self._labels[name] = None

    def _fault(self, kind: FaultKind, key: str, message: str) -> None:
        self.faults.append(Fault(kind, key, message))


def _what(item: h5py.Dataset | h5py.Group | h5py.Datatype) -> str:
    """Return what an object is if it is not an array of numbers with rows; else an empty text."""
    import h5py

    if not isinstance(item, h5py.Dataset):
        return "a group"
    if item.attrs.get(_EMPTY):
        return "an empty array of MATLAB"
    kind = item.attrs.get(_CLASS, item.dtype)
    kind = kind.decode("utf-8", "replace") if isinstance(kind, bytes) else str(kind)
    if item.shape is None or not item.shape or item.dtype.kind not in "fiu" or kind in _NO_NUMBERS:
        return f"{kind}, not an array of numbers"
    if math.prod(item.shape[1:]) > _LARGEST_ROW:
        return f"rows of {'x'.join(map(str, item.shape[1:]))} values, which is too large"
    if math.prod(item.shape) and item.id.get_storage_size() == 0:
        return f"{'x'.join(map(str, item.shape))} values of which none is stored"
    return ""


def _parts(item: h5py.Dataset) -> Iterator[NDArray[Any]]:
    """Yield the values of a dataset in parts of rows; one row at least."""
    rows = max(1, _CHUNK // max(1, math.prod(item.shape[1:])))
    for start in range(0, item.shape[0], rows):
        yield np.asarray(item[start : start + rows])


def _listed(other: dict[str, str]) -> str:
    return "".join(f"; '{name}' is {what}" for name, what in list(other.items())[:5])


def _raise(error: DataError) -> None:
    raise error
