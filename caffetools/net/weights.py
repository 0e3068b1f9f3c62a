"""Weights in and out of a net, by layer name (Caffe's CopyTrainedLayersFrom and ToProto), also as HDF5."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.errors import ModelFileError, NetError
from caffetools.layers.base import Layer, format_shape
from caffetools.layers.blob_storage import mark_written
from caffetools.net.net import Net
from caffetools.proto.binary import read_caffemodel, write_caffemodel
from caffetools.proto.blobs import Array, fits_stored, release_pages
from caffetools.proto.hdf5 import read_dataset
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import NetParameter
from caffetools.proto.sniff import Kind, guard
from caffetools.util.files import atomic_write

if TYPE_CHECKING:
    from caffetools.net.net import Net


log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
_PIECE = 16 * 1024 * 1024  # bytes of weights that are copied at once


@dataclass
class LoadReport:
    """What a weights file was used for, as names of layers.

    Attributes:
        loaded: Layers that took blobs of the file.
        fresh: Layers of the net that the file has none for.
        unused: Layers of the file that are not in the net.
        ambiguous: Names that several layers with parameters have, in the net or in the file: one of them only took blobs.
    """

    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)


def load_weights(
    net: Net, source: PathLike | Caffemodel, *, warn: Callable[[str], None] = log.warning, in_order: bool = False
) -> LoadReport:
    """Copy the blobs of every layer whose name the net also has. Nothing is copied when anything does not fit.

    A file identifies layers by name only. Of several layers of one name the first of the net gets the blobs (the last, from an HDF5
    file), and of several in the file the last ones are taken, as in Caffe; the others keep their values.

    Args:
        net: The net.
        source: A .caffemodel, a .caffemodel.h5, or what was read from one.
        warn: Takes a line that names the layers that are ambiguous.
        in_order: The file is a snapshot of this net: layers of one name take its blobs in the order in which they are stored.

    Returns:
        Which layers took blobs of the file, which it has none for, and which of its layers the net lacks.

    Raises:
        ModelFileError: The file is missing or damaged.
        NetError: A layer's blobs differ from the net's in number or shape; names the layer, both shapes and what to do.

    Example:
        >>> import caffetools as ct
        >>> net = ct.load_net(ct.zoo_prototxt("lenet"))
        >>> ct.save_weights(net, "lenet.caffemodel")
        >>> ct.load_weights(net, "lenet.caffemodel").loaded
        ['conv1', 'conv2', 'ip1', 'ip2']
    """
    model = source if isinstance(source, Caffemodel) else read_weights(source)
    origin = "the weights" if isinstance(source, Caffemodel) else os.fspath(source)
    from_hdf5 = not isinstance(source, Caffemodel) and _is_hdf5(source)
    known = {layer.name for layer in net.layers}
    report = LoadReport(unused=[name for name in model.blobs if name not in known])
    targets = layers_by_name(net, last=from_hdf5)
    several = Counter(layer.name for layer in net.layers if len(layer.blobs))
    stored = _stored_in_order(model, several) if in_order else {}
    copies: list[tuple[torch.Tensor, Array]] = []
    for layer in net.layers:
        if not len(layer.blobs):
            continue
        if layer.name in stored:
            copies += _pair(layer, layer.blobs_from_file(stored[layer.name].pop(0)), origin)
            report.loaded.append(layer.name)
            continue
        if targets[layer.name] is not layer:
            report.ambiguous.append(layer.name)
            report.fresh.append(layer.name)
            continue
        arrays = model.blobs.get(layer.name)
        if arrays is None:
            report.fresh.append(layer.name)
            continue
        try:
            copies += _pair(layer, layer.blobs_from_file(arrays), origin)
        except NetError as error:
            if several[layer.name] > 1:
                error.hint = "several layers with parameters have this name, and the file's last is for the first of them; give each a name of its own"
            raise
        report.loaded.append(layer.name)
    with torch.no_grad():
        for parameter, array in copies:
            if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
                _copy_in_pieces(parameter.detach().numpy(), array.reshape(parameter.shape))
            else:
                parameter.copy_(torch.from_numpy(np.array(array, copy=not array.flags.writeable)).reshape(parameter.shape))
    mark_written(parameter for parameter, _ in copies)
    _warn_of_ambiguous(report, model, origin, "last" if from_hdf5 else "first", warn, set(stored))
    return report


def _copy_in_pieces(to: NDArray[np.float32], values: Array) -> None:
    """Copy weights through NumPy, which reads the mapped file in place, so that only a piece of the file is in memory at a time."""
    rows = max(1, _PIECE * len(values) // max(values.nbytes, 1)) if values.ndim else 1
    if values.ndim == 0 or rows >= len(values):
        to[...] = values
        release_pages(values)
        return
    for first in range(0, len(values), rows):
        piece = values[first : first + rows]
        to[first : first + rows] = piece
        release_pages(piece)


def _stored_in_order(model: Caffemodel, several: Mapping[str, int]) -> dict[str, list[list[Array]]]:
    """Return the blobs of the layers of each name that the file has as often as the net, more than once, in the order of the file."""
    found: dict[str, list[list[Array]]] = {}
    for index, arrays in sorted(model.repeated.items()):
        if arrays:
            found.setdefault(str(model.net.layer[index].name), []).append(arrays)
    return {name: arrays for name, arrays in found.items() if several.get(name) == len(arrays)}


def layers_by_name(net: Net, *, last: bool = False) -> dict[str, Layer]:
    """Return the layer that each name stands for in Caffe's files: the first of that name, or the last."""
    found: dict[str, Layer] = {}
    for layer in net.layers:
        if last or layer.name not in found:
            found[layer.name] = layer
    return found


def _warn_of_ambiguous(
    report: LoadReport, model: Caffemodel, origin: str, which: str, warn: Callable[[str], None], known: Collection[str]
) -> None:
    names = [str(model.net.layer[index].name) for index in model.repeated if index < len(model.net.layer)]
    found = dict.fromkeys([*report.ambiguous, *(name for name in names if name in report.loaded)])
    report.ambiguous = [name for name in found if name not in known]
    if report.ambiguous:
        called = ", ".join(f"'{name}'" for name in report.ambiguous)
        warn(
            f"several layers are called {called}, and {origin} identifies layers by name only: as in Caffe, the {which} of them in the "
            "net has the last blobs of that name, and the others keep their values; give each layer a name of its own"
        )


def read_weights(path: PathLike) -> Caffemodel:
    """Read a .caffemodel, or a .caffemodel.h5 (groups ``data/LAYER/INDEX``). Raises :class:`ModelFileError`."""
    if _is_hdf5(path):
        return read_hdf5_weights(path)
    return read_caffemodel(path)


def to_caffemodel(net: Net) -> Caffemodel:
    """Return the net's layers and weights as Caffe would write them; arrays are copies in C order."""
    param = NetParameter(name=net.name)
    for layer in net.layers:
        param.layer.add().CopyFrom(layer.param)
    arrays = [[_array(p) for p in layer.blobs] for layer in net.layers]
    names = Counter(layer.name for layer in net.layers)
    blobs = {layer.name: own for layer, own in zip(net.layers, arrays, strict=True) if own}
    repeated = {index: own for index, own in enumerate(arrays) if names[net.layers[index].name] > 1}
    return Caffemodel(param, blobs, repeated=repeated)


def save_weights(net: Net, path: PathLike) -> None:
    """Write the net's weights, atomically: HDF5 where the name ends in .h5, else a .caffemodel. Both open in Caffe.

    Args:
        net: The net, on any device.
        path: The file; one that exists is replaced.

    Raises:
        NetError: Two layers have one name, which HDF5 cannot hold.
        RunFailed: The file cannot be written.

    Example:
        >>> import caffetools as ct
        >>> ct.save_weights(ct.load_net(ct.zoo_prototxt("lenet")), "lenet.caffemodel")
    """
    if _is_hdf5(path):
        write_weights_hdf5(path, net)
    else:
        write_caffemodel(path, to_caffemodel(net))


def _is_hdf5(path: PathLike) -> bool:
    return Path(path).suffix == ".h5"


def _pair(layer: Layer, arrays: Sequence[Array], origin: str) -> list[tuple[torch.Tensor, Array]]:
    if len(arrays) != len(layer.blobs):
        raise NetError(f"has {len(layer.blobs)} parameter blob(s), but {origin} holds {len(arrays)} for it", layer=layer.name)
    for index, (parameter, array) in enumerate(zip(layer.blobs, arrays, strict=True)):
        if not fits_stored(tuple(array.shape), tuple(parameter.shape)):
            raise NetError(
                f"parameter blob {index} is {format_shape(parameter.shape)} in the net but {format_shape(array.shape)} in {origin}",
                layer=layer.name,
                hint="rename the layer to train it from its filler (`caffetools retarget` does so for classifiers), or use the net of these weights",
            )
    return list(zip(layer.blobs, arrays, strict=True))


def _array(parameter: torch.Tensor) -> Any:
    # Not ascontiguousarray, which gives a blob without axes one.
    return np.asarray(parameter.detach().cpu().numpy(), np.float32, order="C")


def read_hdf5_weights(path: PathLike) -> Caffemodel:
    """Read an HDF5 caffemodel (groups ``data/LAYER/INDEX``).

    Raises:
        ModelFileError: The file is missing, damaged or of another kind.
    """
    import h5py

    blobs: dict[str, dict[int, Array]] = {}
    with guard(ModelFileError, path, "an HDF5 .caffemodel", allowed=(Kind.HDF5,)), h5py.File(path, "r") as file:
        # A layer's name may hold slashes, which HDF5 takes for nested groups; the blobs are the innermost, numbered.
        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Group):
                _check_links(item, path)
            if isinstance(item, h5py.Dataset):
                layer, _, index = name.rpartition("/")
                if not index.isdecimal():
                    raise ModelFileError(f"the dataset '{item.name}' is not a blob of a layer, whose name is a number", path=path)
                blobs.setdefault(layer, {})[int(index)] = read_dataset(item)

        data = file.get("data")
        if not isinstance(data, h5py.Group):
            hint = "it is a solver state: the weights are in the .caffemodel.h5 of the same iteration" if "history" in file else None
            raise ModelFileError("an HDF5 file without the group 'data' of weights", path=path, hint=hint)
        _check_links(data, path)
        data.visititems(visit)
    ordered = {layer: [array for _, array in sorted(items.items())] for layer, items in blobs.items()}
    param = NetParameter()
    for layer in ordered:
        param.layer.add(name=layer)
    return Caffemodel(param, ordered)


def _check_links(group: h5py.Group, path: PathLike) -> None:
    """Raise :class:`ModelFileError` where a member of a group is a link to another place, which would be left out."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ModelFileError(f"'{group.name}/{name}' is a link to another place or file, which is not followed", path=path)


def write_weights_hdf5(path: PathLike, net: Net, *, diffs: Sequence[Sequence[Any]] | None = None) -> None:
    """Write a .caffemodel.h5 atomically: the group data/LAYER for every layer, with its blobs by number.

    As in Caffe, a parameter that layers share is stored once, under the first of them.

    Args:
        path: Where to.
        net: The net.
        diffs: For each layer of the net one float32 array a blob, for the groups diff/LAYER, under every owner's name.

    Raises:
        NetError: Several layers have one name; HDF5 cannot hold both.
        RunFailed: The file cannot be written.
    """
    owned: set[int] = set()
    check_names_for_hdf5(net)
    with file_in_memory() as file:
        data = file.create_group("data")
        for position, layer in enumerate(net.layers):
            mine = [(index, blob) for index, blob in enumerate(layer.blobs) if id(blob) not in owned]
            owned.update(id(blob) for _, blob in mine)
            arrays = [(i, np.asarray(blob.detach().cpu().numpy(), np.float32, order="C")) for i, blob in mine]
            write_arrays(data.require_group(layer.name), arrays)
            if diffs is not None:
                write_arrays(file.require_group(f"diff/{layer.name}"), list(enumerate(diffs[position])))
        write_file(file, path)


def check_names_for_hdf5(net: Net) -> None:
    """Raise :class:`NetError` where two layers of ``net`` have one name: HDF5 groups are named after layers (Caffe aborts there)."""
    seen: set[str] = set()
    for layer in net.layers:
        if layer.name in seen:
            raise NetError(
                "two layers of this name cannot be stored in an HDF5 file; rename one, or use snapshot_format: BINARYPROTO",
                layer=layer.name,
            )
        seen.add(layer.name)


def file_in_memory() -> h5py.File:
    """Return an empty HDF5 file in memory; :func:`write_file` gives it a place."""
    # Written to memory first: the library would otherwise write to the final name piece by piece.
    return h5py.File("snapshot", "w", driver="core", backing_store=False)


def write_file(file: h5py.File, path: PathLike) -> None:
    """Write an HDF5 file that is in memory to ``path``, atomically. Raises :class:`RunFailed` where that is not possible."""
    file.flush()
    with atomic_write(path) as stream:
        stream.write(file.id.get_file_image())


def write_arrays(group: h5py.Group, arrays: Sequence[tuple[int, object]]) -> None:
    """Store arrays in a group under their numbers."""
    for index, array in arrays:
        group.create_dataset(str(index), data=array)
