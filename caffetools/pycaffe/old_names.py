"""Names that NumPy and Python have removed since Caffe's time, for the scripts that ``caffetools run`` runs."""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


@contextmanager
def provided() -> Iterator[None]:
    """Return a context in which the removed names are there (``np.float``, ``np.int``, ``np.fromstring`` of bytes, ``time.clock``).

    NumPy's scalars have the texts that they had then.

    Names that the installed versions have are left as they are, and what was added is removed again at the end.
    """
    added: list[tuple[ModuleType, str, Any]] = []
    for module, names in _names():
        for name, value in names.items():
            if name not in vars(module) and not _has(module, name):
                added.append((module, name, None))
                setattr(module, name, value)
    added.append((np, "fromstring", np.fromstring))
    np.fromstring = _from_string_of(np.fromstring)
    # Since NumPy 2 a list of scalars is written as [np.float32(0.5)], which programs that read such texts do not take.
    texts = np.printoptions(legacy="1.25") if int(np.__version__.partition(".")[0]) > 1 else contextlib.nullcontext()
    try:
        with texts:
            yield
    finally:
        for module, name, before in reversed(added):
            if before is None:
                vars(module).pop(name, None)
            else:
                setattr(module, name, before)


def _names() -> list[tuple[ModuleType, dict[str, Any]]]:
    types = {"float": float, "int": int, "bool": bool, "object": object, "complex": complex, "str": str, "long": int, "unicode": str}
    arrays = {
        **{"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_, "string_": np.bytes_, "Inf": np.inf, "Infinity": np.inf},
        **{"infty": np.inf, "PINF": np.inf, "NINF": -np.inf, "NaN": np.nan, "product": np.prod, "cumproduct": np.cumprod},
        **{"alltrue": np.all, "sometrue": np.any, "row_stack": np.vstack, "in1d": np.isin, "round_": np.round, "asscalar": _as_scalar},
    }
    containers = {name: getattr(collections.abc, name) for name in collections.abc.__all__}
    return [(np, {**types, **arrays}), (time, {"clock": time.perf_counter}), (collections, containers)]


def _has(module: ModuleType, name: str) -> bool:
    with warnings.catch_warnings():
        # NumPy 1.20 to 1.23 still has them, and says that they will be removed.
        warnings.simplefilter("ignore")
        return hasattr(module, name)


def _as_scalar(array: NDArray[Any]) -> Any:
    return array.item()


def _from_string_of(original: Callable[..., Any]) -> Callable[..., Any]:
    def fromstring(string: str | bytes, dtype: DTypeLike = float, count: int = -1, *, sep: str = "", **options: object) -> Any:
        if sep:
            return original(string, dtype, count, sep=sep, **options)
        # A string of Python 2 holds one character a byte. The copy can be written to, as that of NumPy's own function.
        data = string.encode("latin-1") if isinstance(string, str) else string
        return np.frombuffer(data, dtype, count).copy()

    return fromstring
