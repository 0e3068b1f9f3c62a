"""HDF5Data: batches from the datasets of HDF5 files (hdf5_data_layer.cpp)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffetools.data.layers.batch_source import BatchMaker, ReadingLayer, State, Tops, batch_size_of
from caffetools.data.picture_lists import read_lines
from caffetools.errors import DataError
from caffetools.layers.base import Shape, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.hdf5 import read_dataset
from caffetools.proto.schema import LayerParameter
from caffetools.proto.sniff import Kind, guard

if TYPE_CHECKING:
    import h5py


@register("HDF5Data")
class HDF5Data(ReadingLayer):
    """Rows of the HDF5 datasets that have the names of the tops: (N, …) each, float32.

    ``source`` lists the files, one a line, relative to the working directory. Rows run through a file, then the next file, then
    from the start; a batch may contain rows of two files. ``shuffle`` shuffles the files, and the rows in each. Nothing is
    transformed. Files that MATLAB writes have their axes reversed already when they are read.
    """

    TRAITS = Traits(role="data", source="hdf5_data_param", file_source=True)
    TOPS = (1, None)

    @classmethod
    def item_shapes(cls, param: LayerParameter) -> list[Shape] | None:
        return row_shapes(param.hdf5_data_param.source, param.top) if cls.source_exists(param) else None

    def open(self, seed: int) -> BatchMaker:
        if self.param.HasField("transform_param"):
            raise self.error("HDF5 data is not transformed; transform it before storing it and remove transform_param")
        param = self.param.hdf5_data_param
        return RowBatches(param.source, self.tops, batch_size_of(self, param.batch_size), seed, shuffle=param.shuffle)


class RowBatches(BatchMaker):
    """Batches of rows; the position is the epoch, the number of the file in it, and the row in the file."""

    def __init__(self, source: str, names: list[str], size: int, seed: int, *, shuffle: bool):
        super().__init__(seed)
        self.files = listed_files(source)
        self.names, self.size, self.shuffle = names, size, shuffle
        self._row_shapes: list[Shape] = []
        self._epoch, self._file, self._row = 0, 0, 0
        self._load()

    def shapes(self) -> list[Shape]:
        return [(self.size, *shape) for shape in self._row_shapes]

    def next(self) -> Tops:
        batch = tuple(np.empty(shape, np.float32) for shape in self.shapes())
        filled = 0
        while filled < self.size:
            if self._row == len(self._rows):
                self._next_file()
            rows = self._take(self.size - filled)
            for top, dataset in zip(batch, self._datasets, strict=True):
                top[filled : filled + len(rows)] = dataset[rows]
            filled += len(rows)
        return batch

    def _take(self, count: int) -> NDArray[np.int64]:
        """Return up to ``count`` of the file's next rows of this rank."""
        if self.world_size == 1:
            rows = self._rows[self._row : self._row + count]
            self._row += len(rows)
            return rows
        taken: list[int] = []
        while self._row < len(self._rows) and len(taken) < count:
            if self.owned_by_this_rank():
                taken.append(self._row)
            self._row += 1
        return self._rows[taken]

    def position(self) -> State:
        return {"epoch": self._epoch, "file": self._file, "row": self._row}

    def seek(self, position: State) -> None:
        self._epoch, self._file = int(position["epoch"]), int(position["file"])
        self._load()
        self._row = int(position["row"])

    def _next_file(self) -> None:
        self._file += 1
        if self._file == len(self.files):
            self._epoch, self._file = self._epoch + 1, 0
        if len(self.files) > 1 or self.shuffle:
            self._load()
        self._row = 0

    def _load(self) -> None:
        order = self.epoch_permutation(self._epoch, len(self.files)) if self.shuffle else np.arange(len(self.files))
        number = int(order[self._file])
        self._datasets = self._read(self.files[number])
        count = len(self._datasets[0])
        self._rows = self.epoch_permutation(self._epoch, count, salt=number + 1) if self.shuffle else np.arange(count)

    def _read(self, path: str) -> list[NDArray[np.float32]]:
        with opened(path) as file:
            datasets = [read_dataset(_dataset(file, name, path), error=DataError) for name in self.names]
        if len({len(dataset) for dataset in datasets}) != 1:
            rows = ", ".join(f"'{name}' {len(dataset)}" for name, dataset in zip(self.names, datasets, strict=True))
            raise DataError(f"{path}: its datasets differ in their number of rows: {rows}{reversed_axes_hint([d.shape for d in datasets])}")
        if not len(datasets[0]):
            raise DataError(f"{path}: its datasets have no rows")
        shapes: list[Shape] = [dataset.shape[1:] for dataset in datasets]
        if self._row_shapes and shapes != self._row_shapes:
            raise DataError(f"{path}: its rows are {_listed(shapes)}, those of the first file {_listed(self._row_shapes)}")
        self._row_shapes = shapes
        return datasets


def row_shapes(source: str, names: Iterable[str]) -> list[Shape]:
    """Return the shapes of the rows of the datasets ``names`` in the first file that the list ``source`` has. Raises :class:`DataError`."""
    path = listed_files(source)[0]
    with opened(path) as file:
        return [_dataset(file, name, path).shape[1:] for name in names]


def listed_files(source: str) -> list[str]:
    """Return the files of a list as Caffe reads it: names between white space, also several on a line. Raises :class:`DataError`."""
    files = [name for _, line in read_lines(source) for name in ([line] if Path(line).exists() else line.split())]
    if not files:
        raise DataError(f"{source}: the list of HDF5 files is empty")
    return files


@contextmanager
def opened(path: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading. Raises :class:`DataError` where it is none, also while it is read."""
    import h5py

    with guard(DataError, path, "an HDF5 file", allowed=(Kind.HDF5,)), h5py.File(path, "r") as file:
        yield file


def _dataset(file: h5py.File, name: str, path: str) -> h5py.Dataset:
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{path}: there is no dataset '{name}' (the layer's top); it has {', '.join(sorted(map(str, file))) or 'none'}")
    if found.dtype.kind not in "fiu" or not found.shape:
        raise DataError(f"{path}: the dataset '{name}' must hold rows of numbers, not {found.dtype} of shape {format_shape(found.shape)}")
    return found


def reversed_axes_hint(shapes: Sequence[Shape]) -> str:
    """Return what to do if datasets of different numbers of rows agree in their last axis, as wrongly ordered ones of MATLAB do."""
    if len({shape[0] for shape in shapes}) < 2 or len({shape[-1] for shape in shapes}) > 1:
        return ""
    return (
        "; they agree in their last axis: reverse the axes (in MATLAB, store data as width x height x channels x N and labels as 1 x N, "
        "since it writes columns first)"
    )


def _listed(shapes: list[Shape]) -> str:
    return ", ".join(format_shape(shape) for shape in shapes)
