"""A pycaffe net's weights in and out of files, and shared between nets."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.errors import NetError
from caffetools.layers.base import format_shape
from caffetools.net.net import Net
from caffetools.net.weights import layers_by_name, load_weights, read_hdf5_weights, save_weights, write_weights_hdf5
from caffetools.pycaffe import mode

PathLike = str | os.PathLike[str]
# Caffe takes a path as bytes, too: `name.encode()` of scripts that ran under Python 2.
AnyPath = PathLike | bytes


def path_of(path: AnyPath) -> PathLike:
    """Return a path, decoded where it is given as bytes."""
    return os.fsdecode(path) if isinstance(path, bytes) else path


def save(net: Net, path: AnyPath) -> None:
    """Write the weights as a .caffemodel, atomically."""
    save_weights(net, path_of(path))


def load_hdf5(net: Net, path: AnyPath) -> None:
    """Load the weights of an HDF5 caffemodel of any name. Raises :class:`ModelFileError` or :class:`NetError`."""
    load_weights(net, read_hdf5_weights(path_of(path)), warn=mode.warn)


def save_hdf5(net: Net, path: AnyPath, *, write_diff: bool) -> None:
    """Write the weights, and their diffs if asked, as Caffe's ToHDF5 does: groups data/LAYER and diff/LAYER with numbered blobs."""
    diffs = [[_gradient(blob) for blob in layer.blobs] for layer in net.layers] if write_diff else None
    write_weights_hdf5(path_of(path), net, diffs=diffs)


def share(net: Net, source: Net) -> None:
    """Let ``net`` use the parameters of ``source``, layer by layer of the same name (ShareTrainedLayersWith).

    Raises:
        NetError: a layer has another number of parameter blobs in the two nets, or another shape; nothing is shared then.
    """
    pairs = []
    # As in Caffe: of several layers of one name, the first here shares with the last there.
    targets = layers_by_name(net)
    for layer in source.layers:
        target = targets.get(layer.name)
        if target is None:
            continue
        if [tuple(p.shape) for p in target.blobs] != [tuple(p.shape) for p in layer.blobs]:
            here, there = (", ".join(format_shape(p.shape) for p in item.blobs) or "(none)" for item in (target, layer))
            raise NetError(f"cannot share parameters: they are {here} in this net but {there} in the other", layer=layer.name)
        pairs += list(zip(target.blobs, layer.blobs, strict=True))
    for parameter, other in pairs:
        # In C order from now on, so that looking at one of them does not move it away from the other.
        other.data = other.data.contiguous()
        parameter.data = other.data


def _gradient(blob: Tensor) -> NDArray[np.float32]:
    gradient = torch.zeros_like(blob) if blob.grad is None else blob.grad
    return np.asarray(gradient.detach().cpu().numpy(), np.float32, order="C")
