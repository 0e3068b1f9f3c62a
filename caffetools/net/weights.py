"""Weights in and out of a net, by layer name (Caffe's CopyTrainedLayersFrom and ToProto)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffetools.errors import ModelFileError, NetError
from caffetools.layers.base import Layer, format_shape
from caffetools.net.net import Net
from caffetools.proto.binary import Caffemodel, read_caffemodel, write_caffemodel
from caffetools.proto.blobs import Array, fits_stored
from caffetools.proto.schema import NetParameter

PathLike = str | os.PathLike[str]


@dataclass
class LoadReport:
    """What became of a weights file: layers that took their blobs, layers of the net it has none for, and its layers not in the net."""

    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def load_weights(net: Net, source: PathLike | Caffemodel) -> LoadReport:
    """Copy the blobs of every layer whose name the net also has. Nothing is copied when anything does not fit.

    Raises:
        ModelFileError: the file is missing or damaged.
        NetError: a layer's blobs differ from the net's in number or shape; names the layer, both shapes and the ways out.
    """
    model = source if isinstance(source, Caffemodel) else read_weights(source)
    origin = "the weights" if isinstance(source, Caffemodel) else os.fspath(source)
    report = LoadReport(unused=[name for name in model.blobs if name not in {layer.name for layer in net.layers}])
    copies: list[tuple[torch.Tensor, Array]] = []
    for layer in net.layers:
        if not len(layer.blobs):
            continue
        arrays = model.blobs.get(layer.name)
        if arrays is None:
            report.fresh.append(layer.name)
            continue
        copies += _pair(layer, arrays, origin)
        report.loaded.append(layer.name)
    with torch.no_grad():
        for parameter, array in copies:
            parameter.copy_(torch.from_numpy(np.array(array, copy=not array.flags.writeable)).reshape(parameter.shape))
    return report


def read_weights(path: PathLike) -> Caffemodel:
    """Read a .caffemodel, or a .caffemodel.h5 (groups ``data/LAYER/INDEX``). Raises :class:`ModelFileError`."""
    if Path(path).suffix == ".h5":
        return read_hdf5_weights(path)
    return read_caffemodel(path)


def to_caffemodel(net: Net) -> Caffemodel:
    """The net's layers and weights as Caffe would write them; arrays are copies in C order."""
    param = NetParameter(name=net.name)
    for layer in net.layers:
        param.layer.add().CopyFrom(layer.param)
    blobs = {layer.name: [_array(p) for p in layer.blobs] for layer in net.layers if len(layer.blobs)}
    return Caffemodel(param, blobs)


def save_weights(net: Net, path: PathLike) -> None:
    """Write the net's weights to a .caffemodel, atomically. Raises :class:`RunFailed` where that is not possible."""
    write_caffemodel(path, to_caffemodel(net))


def _pair(layer: Layer, arrays: Sequence[Array], origin: str) -> list[tuple[torch.Tensor, Array]]:
    if len(arrays) != len(layer.blobs):
        raise NetError(f"has {len(layer.blobs)} parameter blob(s), but {origin} holds {len(arrays)} for it", layer=layer.name)
    for index, (parameter, array) in enumerate(zip(layer.blobs, arrays, strict=True)):
        if not fits_stored(tuple(array.shape), tuple(parameter.shape)):
            raise NetError(
                f"parameter blob {index} is {format_shape(parameter.shape)} in the net but {format_shape(array.shape)} in {origin}; "
                "rename the layer to learn it anew (`caffetools retarget` does so for classifiers), or use the net of these weights",
                layer=layer.name,
            )
    return list(zip(layer.blobs, arrays, strict=True))


def _array(parameter: torch.Tensor) -> Any:
    return np.ascontiguousarray(parameter.detach().cpu().numpy(), np.float32)


def read_hdf5_weights(path: PathLike) -> Caffemodel:
    """Read an HDF5 caffemodel (groups ``data/LAYER/INDEX``), whatever its name. Raises :class:`ModelFileError`."""
    import h5py

    blobs: dict[str, list[Array]] = {}
    try:
        with h5py.File(path, "r") as file:
            # A layer's name may hold slashes, which HDF5 takes for nested groups; the blobs are the innermost, numbered.
            def visit(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    layer, _, index = name.rpartition("/")
                    blobs.setdefault(layer, []).append((int(index), np.asarray(item, np.float32)))  # type: ignore[arg-type]

            file["data"].visititems(visit)
    except (OSError, KeyError, ValueError) as error:
        raise ModelFileError(f"{os.fspath(path)}: not an HDF5 caffemodel: {error}") from None
    ordered = {layer: [array for _, array in sorted(items, key=lambda e: e[0])] for layer, items in blobs.items()}
    param = NetParameter()
    for layer in ordered:
        param.layer.add(name=layer)
    return Caffemodel(param, ordered)
