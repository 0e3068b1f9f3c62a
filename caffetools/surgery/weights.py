"""Net surgery on weights: taking layers out of a .caffemodel, calling them otherwise, putting files together, keeping rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from caffetools.errors import CaffeToolsError
from caffetools.proto.binary import Caffemodel
from caffetools.proto.blobs import Array
from caffetools.proto.schema import NetParameter
from caffetools.proto.upgrades.v1 import upgrade_caffemodel

# Axis of the outputs in each blob that a layer has by class, by type; the third of BatchNorm's is one number for all.
_BY_CLASS = {
    "InnerProduct": 2,
    "MarginInnerProduct": 1,
    "CenterLoss": 1,
    "Convolution": 2,
    "Scale": 2,
    "Bias": 1,
    "PReLU": 1,
    "BatchNorm": 5,
}


def prune_weights(model: Caffemodel, keep: Collection[str] | Callable[[str], bool]) -> Caffemodel:
    """A model with the weights of only those layers that ``keep`` names, or says yes to; the arrays are the same ones."""
    wanted = keep if callable(keep) else keep.__contains__
    return _selected(upgrade_caffemodel(model), wanted)


def rename_layers(model: Caffemodel, names: Mapping[str, str]) -> Caffemodel:
    """A model with layers called otherwise: ``names`` maps old to new.

    Raises:
        CaffeToolsError: the model has no such layer, or two layers would have one name.
    """
    model = upgrade_caffemodel(model)
    known = {layer.name for layer in model.net.layer} | set(model.blobs)
    for old in names:
        if old not in known:
            raise CaffeToolsError(f"the weights have no layer '{old}' to be renamed")
    after = [names.get(name, name) for name in known]
    for name in after:
        if after.count(name) > 1:
            raise CaffeToolsError(f"two layers of the weights would be called '{name}'")
    net = NetParameter()
    net.CopyFrom(model.net)
    for layer in net.layer:
        layer.name = names.get(layer.name, layer.name)
    return Caffemodel(net, {names.get(name, name): arrays for name, arrays in model.blobs.items()})


def merge_weights(models: Sequence[Caffemodel]) -> Caffemodel:
    """One model with the layers of all; of a layer that several have, the last one's.

    Raises:
        CaffeToolsError: there is nothing to merge.
    """
    if not models:
        raise CaffeToolsError("there are no weights to merge")
    upgraded = [upgrade_caffemodel(model) for model in models]
    owner = {name: index for index, model in enumerate(upgraded) for name in (*(layer.name for layer in model.net.layer), *model.blobs)}
    net = NetParameter(name=upgraded[0].net.name)
    blobs: dict[str, list[Array]] = {}
    for index, model in enumerate(upgraded):
        part = _selected(model, lambda name, index=index: owner[name] == index)  # type: ignore[misc]
        net.layer.extend(part.net.layer)
        blobs.update(part.blobs)
    return Caffemodel(net, blobs)


def remap_rows(
    kind: str, arrays: Sequence[Array], rows: Sequence[int | None], fresh: Sequence[Array], *, transposed: bool = False
) -> list[Array]:
    """The blobs of a layer of type ``kind`` for other classes: the old values where ``rows`` has the old place of a class, else the new.

    Args:
        arrays: The old blobs. fresh: blobs of the new size, with what new classes start from.
        rows: For each new class its old place, or None.
        transposed: An InnerProduct whose weights have the outputs on their last axis.

    Raises:
        CaffeToolsError: the type has no values by class, or an array's other axes differ.
    """
    if kind not in _BY_CLASS:
        raise CaffeToolsError(f"a {kind} layer has no values by class that could be kept")
    kept = [place for place, row in enumerate(rows) if row is not None]
    olds = [row for row in rows if row is not None]
    made = []
    for index, (old, new) in enumerate(zip(arrays, fresh, strict=True)):
        array = np.array(new, np.float32)
        # Files of Caffe's first years have (1, 1, outputs, inputs).
        old = old.reshape(old.shape[-array.ndim :]) if old.ndim > array.ndim else old
        if index >= _BY_CLASS[kind] or not array.ndim or (kind == "BatchNorm" and index == 2):
            made.append(np.array(old, np.float32))
            continue
        axis = 1 if transposed and index == 0 else 0
        ours, theirs = (list(a.shape[:axis] + a.shape[axis + 1 :]) for a in (array, old))
        if ours != theirs:
            raise CaffeToolsError(f"blob {index} of the old {kind} layer is {list(old.shape)}, which does not fit {list(array.shape)}")
        np.moveaxis(array, axis, 0)[kept] = np.moveaxis(old, axis, 0)[olds]
        made.append(array)
    return made


def _selected(model: Caffemodel, wanted: Callable[[str], bool]) -> Caffemodel:
    net = NetParameter()
    net.CopyFrom(model.net)
    del net.layer[:]
    net.layer.extend(layer for layer in model.net.layer if wanted(layer.name))
    return Caffemodel(net, {name: arrays for name, arrays in model.blobs.items() if wanted(name)})
