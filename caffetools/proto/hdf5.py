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
        Exception: Of class ``error``: it does not hold numbers, or declares more values than its file can hold.
    """
    shape = dataset.shape
    if shape is None or dataset.dtype.kind not in "fiu":
        raise error(f"the dataset '{dataset.name}' holds {dataset.dtype}, not numbers")
    text, name = " x ".join(map(str, shape)), f"{dataset.file.filename}: the dataset '{dataset.name}'"
    if math.prod(shape) > _MOST_VALUES:
        raise error(f"{name} declares {text} values; a blob has at most 2^31 - 1")
    if dataset.id.get_storage_size() == 0 and math.prod(shape):
        return np.broadcast_to(np.float32(dataset.fillvalue), shape)
    declared = math.prod(shape) * max(4, dataset.dtype.itemsize)
    size = Path(dataset.file.filename).stat().st_size
    if declared > max(_ALWAYS_ALLOWED, _MOST_DEFLATED * size):
        raise error(f"{name} declares {text} values, which a file of {size} bytes cannot hold")
    return np.asarray(dataset, np.float32)
