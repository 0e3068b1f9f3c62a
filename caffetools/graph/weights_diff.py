"""Weights compared with a network: which layers take theirs, and what the values are like."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from caffetools.graph.summary import Summary
from caffetools.layers.base import Shape
from caffetools.proto.blobs import Array, fits_stored
from caffetools.proto.model import Caffemodel

_PIECE = 1 << 20

FITS, DIFFERS, FRESH, UNCHECKED = "fits", "differs", "fresh", "unchecked"


@dataclass(frozen=True)
class BlobStatistics:
    """Of one parameter blob in a file: its shape, and the mean, standard deviation and largest absolute value (float64)."""

    shape: Shape
    mean: float
    std: float
    absmax: float


@dataclass
class LayerWeights:
    """One layer's part of a weights file.

    Attributes:
        status: ``fits``; ``differs`` in number or shape, so that loading is refused; ``fresh``: the file has none for it;
            ``unchecked``: the net's shapes are not known.
        expected: the net's shapes. blobs: what the file has.
    """

    layer: str
    status: str
    expected: list[Shape] | None
    blobs: list[BlobStatistics] = field(default_factory=list)


@dataclass
class Comparison:
    """A weights file compared with a net.

    Attributes:
        layers: The layers of the net that have parameters.
        unused: The layers of the file that the net does not have.
        ambiguous: Names that several layers have; each of these is compared with the file's layer at its place among those of the name.
    """

    layers: list[LayerWeights]
    unused: list[str]
    ambiguous: list[str] = field(default_factory=list)

    def named(self, status: str) -> list[str]:
        """Return the layers of that status."""
        return [layer.layer for layer in self.layers if layer.status == status]


def compare_weights(summary: Summary, model: Caffemodel) -> Comparison:
    """Compare the shapes in ``model`` with those of the net, layer by layer, and describe the values."""
    layers = []
    of_name = _by_place(summary, model)
    for row in summary.layers:
        if row.parameters is not None and not row.parameters:
            continue
        arrays = next(of_name[row.name], None) if row.name in of_name else model.blobs.get(row.name)
        if row.parameters is None:
            if arrays:
                layers.append(LayerWeights(row.name, UNCHECKED, None, [_describe(a) for a in arrays]))
        else:
            status = FRESH if arrays is None else FITS if all_fit(arrays, row.parameters) else DIFFERS
            layers.append(LayerWeights(row.name, status, row.parameters, [_describe(a) for a in arrays or ()]))
    names = {row.name for row in summary.layers}
    return Comparison(layers, [name for name in model.blobs if name not in names], list(of_name))


def _by_place(summary: Summary, model: Caffemodel) -> dict[str, Iterator[list[Array]]]:
    """Return the arrays of each name that several layers with parameters have, in the net or in the file, in the file's order."""
    in_file: dict[str, list[list[Array]]] = {}
    for index, arrays in sorted(model.repeated.items()):
        if arrays and index < len(model.net.layer):
            in_file.setdefault(str(model.net.layer[index].name), []).append(arrays)
    counts = Counter(row.name for row in summary.layers if row.parameters or row.parameters is None)
    for name, count in counts.items():
        if count > 1 and name in model.blobs:
            in_file.setdefault(name, [model.blobs[name]])
    return {name: iter(arrays) for name, arrays in in_file.items() if name in counts and max(counts[name], len(arrays)) > 1}


def all_fit(arrays: list[Array], shapes: list[Shape]) -> bool:
    """Return whether stored parameter blobs have the number and the shapes that a layer expects."""
    return len(arrays) == len(shapes) and all(fits_stored(a.shape, shape) for a, shape in zip(arrays, shapes, strict=True))


def _describe(array: Array) -> BlobStatistics:
    values = array.reshape(-1)
    total, largest = 0.0, 0.0
    # In pieces, so that double precision does not cost twice the memory of the largest layer.
    pieces = [values[i : i + _PIECE] for i in range(0, values.size, _PIECE)]
    for piece in pieces:
        total += float(piece.sum(dtype=np.float64))
        largest = float(np.maximum(largest, np.abs(piece).max()))  # a NaN stays one
    mean = total / max(1, values.size)
    with np.errstate(invalid="ignore", over="ignore"):
        squares = sum(float(np.square(np.subtract(piece, mean, dtype=np.float64)).sum()) for piece in pieces)
    return BlobStatistics(array.shape, mean, math.sqrt(squares / max(1, values.size)), largest)
