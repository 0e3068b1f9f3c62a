"""Arrays of HDF5 files that may be damaged or hostile: what is declared is compared with what is stored before memory is taken."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import ModelFileError

if TYPE_CHECKING:
    import h5py

# A file may always declare this much; beyond, the values it declares may be as many as deflate can pack into its bytes.
_ALWAYS_ALLOWED = 1 << 26
_MOST_DEFLATED = 1100
_MOST_VALUES = 2**31 - 1


def read_dataset(dataset: h5py.Dataset, *, error: type[ModelFileError] | type[Exception] = ModelFileError) -> NDArray[np.float32]:
    """Read a dataset of numbers as float32.

    A dataset without any stored value is a view of its one fill value, which takes no memory.

    Args:
        dataset: An open dataset of any shape.
        error: The class of the error.

    Raises:
        Exception: Of class ``error``: it does not hold numbers, declares more values than its file can hold, or takes them from a file
            that is missing or in another folder.
    """
    shape, name = dataset.shape, f"{dataset.file.filename}: the dataset '{dataset.name}'"
    if shape is None or dataset.dtype.kind not in "fiu":
        raise error(f"{name} holds {dataset.dtype}, not numbers")
    text = " x ".join(map(str, shape))
    if math.prod(shape) > _MOST_VALUES:
        raise error(f"{name} declares {text} values; a blob has at most 2^31 - 1")
    sources = _sources(dataset, name, error)
    if not sources and dataset.id.get_storage_size() == 0 and math.prod(shape):
        return np.broadcast_to(np.float32(dataset.fillvalue), shape)
    declared = math.prod(shape) * max(4, dataset.dtype.itemsize)
    size = sum(path.stat().st_size for path in {Path(dataset.file.filename), *sources})
    if declared > max(_ALWAYS_ALLOWED, _MOST_DEFLATED * size):
        raise error(f"{name} declares {text} values, which a file of {size} bytes cannot hold")
    return np.asarray(dataset, np.float32)


def _sources(dataset: h5py.Dataset, name: str, error: type[Exception]) -> list[Path]:
    """Return the files of which a virtual dataset is made; HDF5 reads zeros where one is missing.

    Raises:
        Exception: Of class ``error``: one is missing, or in another folder; or the values are in a file that is not HDF5.
    """
    if dataset.external:
        raise error(f"{name} takes its values from the file '{dataset.external[0][0]}', which is not read; store them in the file itself")
    if not dataset.is_virtual:
        return []
    own = Path(dataset.file.filename)
    found = []
    for source in dataset.virtual_sources():
        path = own if source.file_name == "." else own.parent / source.file_name
        if path.resolve().parent != own.resolve().parent or not path.is_file():
            raise error(f"{name} takes its values from the file '{source.file_name}', which is missing, or in another folder")
        found.append(path)
    return found
