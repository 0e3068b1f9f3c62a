"""NumPy's .npy and .npz files, opened with an error of one line where that fails; nothing pickled is read."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.proto.sniff import Kind, PathLike, wrong_kind

# What NumPy and the modules below it raise for damaged files.
DAMAGED = (
    *(OSError, ValueError, EOFError, SyntaxError, KeyError, TypeError, OverflowError, MemoryError, NotImplementedError, RuntimeError),
    *(BadZipFile, TokenError, zlib.error, struct.error),
)


def open_numpy(path: PathLike, expected: str = "a NumPy file", *, archives: bool = True) -> NDArray[Any] | NpzFile:
    """Return the array of an .npy file, mapped, or the open archive of an .npz file.

    An array is mapped so that a header that declares more values than the file has is an error before memory is taken.

    Args:
        path: The file; its content decides which of the two it is, not its name.
        expected: What the file should be, with its article, for the error.
        archives: Whether an archive is one of the kinds that are expected.

    Raises:
        DataError: It cannot be read, is of another kind, is damaged, or holds Python objects.
    """
    allowed = (Kind.NPY, Kind.NPZ, Kind.ZIP) if archives else (Kind.NPY,)
    try:
        loaded: NDArray[Any] | NpzFile = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None and not os.access(path, os.R_OK):
            raise DataError(f"cannot read {expected}: {os.strerror(error.errno)}", path=path) from None
        if other := wrong_kind(DataError, path, expected, allowed=allowed):
            raise other from None
        # Not NumPy's text: it takes what it does not recognize for a pickle, and names the option that would load it.
        raise DataError(f"cannot be read as {expected}: it is damaged, or holds Python objects, which are not loaded", path=path) from None
    if isinstance(loaded, NpzFile) and not archives:
        loaded.close()
        raise wrong_kind(DataError, path, expected) or DataError(f"it is not {expected}", path=path)
    return loaded


def read_numbers(path: PathLike, expected: str = "a NumPy array (.npy)") -> NDArray[Any]:
    """Return the array of numbers of an .npy file, mapped.

    Args:
        path: The file.
        expected: What the file should be, with its article, for the error.

    Raises:
        DataError: As :func:`open_numpy`, or it does not hold numbers.
    """
    return _numbers(np.asanyarray(open_numpy(path, expected, archives=False)), path)


def read_arrays(path: PathLike) -> NDArray[Any] | Mapping[str, NDArray[Any]]:
    """Return the array of numbers of an .npy file, mapped, or those of an .npz file by their names.

    Raises:
        DataError: As :func:`open_numpy`, or an array is damaged or does not hold numbers.
    """
    loaded = open_numpy(path, "a NumPy file (.npy or .npz)")
    if isinstance(loaded, np.ndarray):
        return _numbers(loaded, path)
    with loaded:
        return {name: _numbers(read_member(loaded, name, path), path, f"the array '{name}'") for name in loaded.files}


def read_member(archive: Mapping[str, NDArray[Any]], name: str, path: PathLike) -> NDArray[Any]:
    """Return one array of an archive, or raise a :class:`DataError` that names it and the file."""
    try:
        return archive[name]
    except DAMAGED as error:
        raise DataError(f"the array '{name}' cannot be read: {error}", path=path) from None


def _numbers(array: NDArray[Any], path: PathLike, what: str = "it") -> NDArray[Any]:
    if array.dtype.kind not in "fiub":
        raise DataError(f"{what} holds values of type {array.dtype}, not numbers", path=Path(path))
    return array
