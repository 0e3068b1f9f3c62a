"""Net surgery on weights: taking layers out of a .caffemodel, calling them otherwise, putting files together, keeping rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from caffetools.errors import CaffeToolsError
from caffetools.layers.registry import traits
from caffetools.proto.blobs import Array
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import LayerParameter, NetParameter
from caffetools.proto.upgrades.v1 import upgrade_caffemodel


def prune_weights(model: Caffemodel, keep: Collection[str] | Callable[[str], bool]) -> Caffemodel:
    """Keep the weights of some layers; the arrays are shared, not copied.

    Args:
        model: The weights; not changed.
        keep: The names of the layers to keep, or a predicate of the name.
    """
    wanted = keep if callable(keep) else keep.__contains__
    return _selected(upgrade_caffemodel(model), wanted)


def rename_layers(model: Caffemodel, names: Mapping[str, str]) -> Caffemodel:
    """Rename layers of a model.

    Args:
        model: The weights; not changed.
        names: Old name → new name.

    Raises:
        CaffeToolsError: The model lacks one of the layers, or two layers would have one name.
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
    """Merge models into one; of a layer that several have, the last one's weights are taken.

    Args:
        models: The weights, at least one.

    Raises:
        CaffeToolsError: ``models`` is empty.
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


def remap_rows(layer: LayerParameter, arrays: Sequence[Array], rows: Sequence[int | None], fresh: Sequence[Array]) -> list[Array]:
    """Return the blobs of a layer for other classes: the old values of classes that it had, and fresh ones of new classes.

    Args:
        layer: The ``LayerParameter``; its type's traits state along which axis of each blob the classes lie.
        arrays: The old blobs.
        rows: For each new class its index among the old ones, or None.
        fresh: Blobs of the new size, with the values from which new classes start.

    Raises:
        CaffeToolsError: The type has no values by class, or an array's other axes differ.
    """
    axes = traits(layer).class_axes
    if not axes:
        raise CaffeToolsError(f"a {layer.type} layer has no values by class that could be kept")
    kept = [place for place, row in enumerate(rows) if row is not None]
    olds = [row for row in rows if row is not None]
    made = []
    for index, (old, new) in enumerate(zip(arrays, fresh, strict=True)):
        array = np.array(new, np.float32)
        # Files of Caffe's first years have (1, 1, outputs, inputs).
        old = old.reshape(old.shape[-array.ndim :]) if old.ndim > array.ndim else old
        axis = axes[index] if index < len(axes) else None
        if axis is None or not array.ndim:
            made.append(np.array(old, np.float32))
            continue
        ours, theirs = (list(a.shape[:axis] + a.shape[axis + 1 :]) for a in (array, old))
        if ours != theirs:
            raise CaffeToolsError(
                f"blob {index} of the old {layer.type} layer is {list(old.shape)}, which does not fit {list(array.shape)}"
            )
        np.moveaxis(array, axis, 0)[kept] = np.moveaxis(old, axis, 0)[olds]
        made.append(array)
    return made


def _selected(model: Caffemodel, wanted: Callable[[str], bool]) -> Caffemodel:
    net = NetParameter()
    net.CopyFrom(model.net)
    del net.layer[:]
    net.layer.extend(layer for layer in model.net.layer if wanted(layer.name))
    return Caffemodel(net, {name: arrays for name, arrays in model.blobs.items() if wanted(name)})
