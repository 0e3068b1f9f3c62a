"""Examples in NumPy's .npy and .npz files and in HDF5 files, read and written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.formats.examples import ConvertOptions, Example, Part, Values, checked_label, example_pixels, same_shape
from caffetools.data.picture_lists import read_lines
from caffetools.errors import DataError
from caffetools.proto.numpy_files import open_numpy, read_member
from caffetools.proto.sniff import HEAD, Kind, guard, sniff_bytes
from caffetools.util import urls
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]
_DATA_NAMES, _LABEL_NAMES = ("data", "images", "x", "image", "arr_0"), ("label", "labels", "y", "targets", "arr_1")
_CHANNELS = (1, 3, 4)
_ROWS = 256
# Caffe refuses blobs of more values.
_MOST_VALUES = 2**31 - 1


def numpy_parts(source: PathLike, options: ConvertOptions) -> list[Part]:
    """Return the one part of an .npz file (arrays ``data`` and ``label``), of a folder with data.npy and label.npy, or of one .npy file.

    Raises:
        DataError: It is none of these, holds pickled objects, or its arrays do not belong together.
    """
    if not str(source).endswith(".npz") and not urls.is_folder(source):
        return [Part("", lambda: _rows_of_file(source, options))]
    return [Part("", lambda: _rows_of_arrays(source, options))]


def hdf5_parts(source: PathLike, options: ConvertOptions) -> list[Part]:
    """Return the one part of an HDF5 file, of the files in a folder, or of a text file that lists some, as an HDF5Data layer's source does."""
    return [Part("", lambda: _hdf5_rows(source, options))]


def write_numpy(path: Path, examples: Iterable[Example], options: ConvertOptions) -> int:
    """Write data.npy (N, C, H, W) and label.npy (N), int64, into the existing folder ``path``; return the number of examples.

    Values are written as they come, so that memory stays flat. Examples without a label get -1.

    Raises:
        DataError: Examples differ in shape or type.
    """
    labels: list[int] = []
    header: tuple[tuple[int, ...], np.dtype[Any]] | None = None
    with atomic_write(path / "data.npy") as stream:
        for example, array in same_shape((example, example_pixels(example, options)) for example in examples):
            if header is None:
                header = array.shape, array.dtype
                # The number of rows is not known yet; the header of a file with the most rows leaves room for every other.
                room = _write_header(stream, (2**62, *array.shape), array.dtype)
            stream.write(np.ascontiguousarray(array).tobytes())
            labels.append(-1 if example.label is None else example.label)
        if header is not None:
            stream.seek(0)
            _write_header(stream, (len(labels), *header[0]), header[1], room)
    with atomic_write(path / "label.npy") as stream:
        np.save(stream, np.array(labels, np.int64), allow_pickle=False)
    return len(labels)


def write_hdf5(path: Path, examples: Iterable[Example], options: ConvertOptions, final: str = "") -> int:
    """Write files data_0000.h5 … of datasets ``data`` (N, C, H, W) and ``label`` (N), float32, and list.txt into the folder ``path``.

    The datasets have the names that an HDF5Data layer with the tops ``data`` and ``label`` reads. As such a layer looks for the files of its
    list from the working directory, list.txt has whole paths.

    Args:
        path: The folder to write into.
        examples: The examples.
        options: Size and channels of pictures, and the most examples in a file.
        final: The folder's later path, for list.txt; empty for names without a folder.

    Returns:
        The number of examples.

    Raises:
        DataError: Examples differ in shape or type.
    """
    import h5py

    count, files = 0, 0
    rows: list[tuple[Values, int]] = []

    def flush() -> None:
        nonlocal files
        with h5py.File(path / f"data_{files:04d}.h5", "w") as file:
            data = file.create_dataset("data", (len(rows), *rows[0][0].shape), "f4")
            for index, (array, _) in enumerate(rows):
                data[index] = array
            file["label"] = np.array([label for _, label in rows], np.float32)
        files += 1
        rows.clear()

    for example, array in same_shape((example, example_pixels(example, options)) for example in examples):
        rows.append((array, _float_label(example)))
        count += 1
        if len(rows) >= min(options.per_file, max(1, _MOST_VALUES // array.size)):
            flush()
    if rows:
        flush()
    lines = "".join(f"{Path(final) / f'data_{number:04d}.h5'}\n" for number in range(files))
    with atomic_write(path / "list.txt", "w") as stream:
        stream.write(lines)
    return count


def _float_label(example: Example) -> int:
    label = 0 if example.label is None else example.label
    if abs(label) > 1 << 24:
        raise DataError(f"{example.place}: its label {label} has no exact float32, which HDF5Data reads")
    return label


def _write_header(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], size: int = 0) -> int:
    """Write the header of an .npy file of format 1.0, filled up to ``size`` bytes; return its size."""
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    text = repr(fields).encode("latin-1")
    length = size - 10 if size else -(-(len(text) + 11) // 64) * 64 - 10
    stream.write(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n")
    return length + 10


def _rows_of_file(source: PathLike, options: ConvertOptions) -> Iterator[Example]:
    with _loaded(source) as array:
        yield from _rows(array, None, source, options)


def _rows_of_arrays(source: PathLike, options: ConvertOptions) -> Iterator[Example]:
    with ExitStack() as stack:
        if urls.is_folder(source):
            names = {name.removesuffix(".npy"): urls.join(source, name) for name in urls.list_files(source) if name.endswith(".npy")}
            get: Callable[[str], Values] = lambda name: stack.enter_context(_loaded(names[name]))  # noqa: E731
        else:
            archive = stack.enter_context(_loaded(source))
            names = {name: name for name in archive.files}
            get = lambda name: read_member(archive, name, source)  # noqa: E731
        data, label = _names(list(names), options, source, arrays="arrays")
        yield from _rows(get(data), get(label) if label else None, source, options)


@contextmanager
def _loaded(source: PathLike) -> Iterator[Any]:
    """Open an .npy file (memory-mapped where it is local) or an .npz file; nothing pickled is read."""
    with urls.local_copy(source) as local:
        try:
            loaded = open_numpy(local)
        except DataError as error:
            raise error.located(os.fspath(source)) from None
        try:
            yield loaded
        finally:
            if hasattr(loaded, "close"):
                loaded.close()


def _names(found: list[str], options: ConvertOptions, source: PathLike, *, arrays: str) -> tuple[str, str | None]:
    """Return the names of the pictures' and the labels' arrays among ``found``."""
    chosen = []
    for given, usual, option in ((options.data, _DATA_NAMES, "--data"), (options.label, _LABEL_NAMES, "--label")):
        name = given or next((name for name in usual if name in found), None)
        if (given and given not in found) or (not name and option == "--data"):
            listed = ", ".join(sorted(found)[:10]) or "none"
            raise DataError(f"it has no {arrays} '{name or usual[0]}'; it has: {listed}", path=source, hint=f"name one with {option}")
        chosen.append(name)
    return str(chosen[0]), chosen[1]


def _rows(data: Values, labels: Values | None, source: PathLike, options: ConvertOptions, start: int = 0) -> Iterator[Example]:
    """Yield the rows of ``data`` (N, …) with those of ``labels`` (N), read ``_ROWS`` at a time."""
    name = os.fspath(source)
    if not data.shape or data.dtype.kind not in "uif" or not len(data):
        raise DataError(f"the pictures must be rows of numbers, not {data.dtype} of shape {tuple(data.shape)}", path=source)
    if labels is not None and (not labels.shape or len(labels) != len(data)):
        raise DataError(f"it has {len(data)} pictures, but labels of the shape {tuple(labels.shape)}", path=source)
    to_planes = _planes(tuple(data.shape[1:]), options, source)
    for begin in range(0, len(data), _ROWS):
        block = _numbers(np.asarray(data[begin : begin + _ROWS]), source)
        numbers = None if labels is None else np.asarray(labels[begin : begin + _ROWS])
        for index, row in enumerate(block):
            place = f"{name}: row {begin + index}"
            label = None if numbers is None else checked_label(numbers[index], place)
            yield Example(f"{start + begin + index:08d}", label, array=np.ascontiguousarray(to_planes(row)), place=place)


def _numbers(block: Values, source: PathLike) -> Values:
    """Return rows as uint8 or float32, the two kinds of values of a Datum; integers that fit neither are refused."""
    if block.dtype == np.uint8:
        return block
    values: Values = block.astype(np.float32)
    if block.dtype.kind in "iu" and not np.array_equal(values.astype(np.float64), block.astype(np.float64)):
        raise DataError("its integers are too large for float32, which a Datum holds", path=source)
    return values


def _planes(shape: tuple[int, ...], options: ConvertOptions, source: PathLike) -> Callable[[Values], Values]:
    """Return a function from a row of ``shape`` to (C, H, W)."""
    if len(shape) < 3:
        return lambda row: row.reshape((1, *row.shape) if row.ndim == 2 else (row.size, 1, 1))
    if len(shape) > 3:
        raise DataError(f"its rows have {len(shape)} axes; a Datum holds three (channels, height, width)", path=source)
    layout = options.layout
    if not layout:
        first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
        if first == last:
            raise DataError(
                f"which axis of its rows of {'x'.join(map(str, shape))} holds the channels is not certain",
                path=source,
                hint="give --layout nchw or --layout nhwc",
            )
        layout = "nchw" if first else "nhwc"
    return (lambda row: row) if layout == "nchw" else (lambda row: row.transpose(2, 0, 1))


def _hdf5_rows(source: PathLike, options: ConvertOptions) -> Iterator[Example]:
    start = 0
    for file in _hdf5_files(source):
        with urls.local_copy(file) as local:
            for example in _rows_of_hdf5(local, file, options, start):
                yield example
                start += 1


def _rows_of_hdf5(local: Path, file: PathLike, options: ConvertOptions, start: int) -> Iterator[Example]:
    import h5py

    with guard(DataError, local, "an HDF5 file", allowed=(Kind.HDF5,)), h5py.File(local, "r") as opened:
        found = [name for name in opened if isinstance(opened.get(name), h5py.Dataset)]
        data, label = _names(found, options, file, arrays="dataset")
        pictures: NDArray[Any] = opened[data]
        # HDF5Data's rows have their channels first.
        hdf5 = options if options.layout else _with_layout(options, "nchw")
        yield from _rows(pictures, opened[label] if label else None, file, hdf5, start)


def _with_layout(options: ConvertOptions, layout: str) -> ConvertOptions:
    from dataclasses import replace

    return replace(options, layout=layout)


def _files_in_folder(folder: PathLike) -> list[str]:
    """Return the HDF5 files in a folder, such as one that :func:`write_hdf5` wrote, in the order of their names."""
    files = [urls.join(folder, name) for name in urls.list_files(folder) if name.endswith((".h5", ".hdf5"))]
    if not files:
        raise DataError("it holds no .h5 or .hdf5 file", path=folder)
    return files


def _hdf5_files(source: PathLike) -> list[str]:
    """Return ``source``, or the files that it lists; as Caffe reads them, from the working directory; else those next to the list."""
    if urls.is_folder(source):
        return _files_in_folder(source)
    with urls.open_binary(source) as stream:
        head = stream.read(HEAD)
    found = sniff_bytes(head)
    if found is not None and found.kind is Kind.HDF5:
        return [os.fspath(source)]
    if urls.is_url(source) or b"\0" in head:
        raise DataError("this is not an HDF5 file" + (f" but {found.noun}" if found is not None else ""), path=source)
    files = []
    for number, line in read_lines(source):
        here = Path(source).parent
        place = next((path for path in (Path(line), here / line, here / Path(line).name) if path.is_file()), None)
        if place is None:
            raise DataError(f"'{line[:200]}' is not a file", path=source, line=number)
        files.append(str(place))
    if not files:
        raise DataError("the list of HDF5 files is empty", path=source)
    return files
