"""Extend a classifier by new classes: keep the weights that still fit, and the rows of the classes that it already has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from caffetools.errors import CaffeToolsError, NetError
from caffetools.graph.learned import declared_blobs
from caffetools.graph.merges import is_classifier
from caffetools.layers.base import Shape
from caffetools.layers.registry import layer_class, traits
from caffetools.proto.blobs import Array
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import LayerParameter, NetParameter
from caffetools.proto.upgrades.v1 import upgrade_caffemodel
from caffetools.surgery.weights import merge_weights, prune_weights, remap_rows
from caffetools.util.files import text_lines


@dataclass(frozen=True)
class Classes:
    """The old and the new classes of a classifier, each in the order of its outputs.

    Attributes:
        old: Names of the classes that the classifier was trained for.
        new: Names of the classes that it is retargeted to.
    """

    old: Sequence[str]
    new: Sequence[str]

    @property
    def row_map(self) -> list[int | None]:
        """For each new class, its index among the old ones; None where it is new."""
        places = {name: place for place, name in enumerate(self.old)}
        return [places.get(name) for name in self.new]


def read_classes(path: Path) -> list[str]:
    """Read the class names in a labels.txt, one a line.

    Args:
        path: The file, UTF-8.

    Raises:
        CaffeToolsError: The file cannot be read, is empty, or has a name twice.
    """
    try:
        names = text_lines(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CaffeToolsError(f"{path}: cannot read the names of classes: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    while names and not names[-1].strip():
        names.pop()
    if not names:
        raise CaffeToolsError(f"{path}: names no class")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CaffeToolsError(f"{path}: has '{twice}' twice, so the row of its weights is ambiguous")
    return names


def trim_weights(model: Caffemodel, net: NetParameter, renamed: dict[str, str]) -> Caffemodel:
    """Keep the weights of the layers that ``net`` still has and that are not reinitialized.

    Args:
        model: The weights; not changed.
        net: The ``NetParameter`` after retargeting.
        renamed: Old name → new name of every reinitialized layer.
    """
    names = {layer.name for layer in net.layer} - set(renamed.values())
    return prune_weights(model, names)


def extend_classifier_weights(
    model: Caffemodel,
    old_net: NetParameter,
    net: NetParameter,
    renamed: dict[str, str],
    shapes: dict[str, list[Shape]],
    classes: Classes,
    *,
    seed: int = 1,
) -> Caffemodel:
    """Copy the rows of the classes that the old classifiers have into the new ones, and initialize the other rows by their fillers.

    Args:
        model: The weights of the old net; not changed.
        old_net: The ``NetParameter`` before retargeting.
        net: The ``NetParameter`` after retargeting.
        renamed: Old name → new name of the layers with values by class.
        shapes: The shapes of the new net's parameter blobs, by layer.
        classes: The old and the new classes.
        seed: Seed of the generator that new rows are drawn with.

    Returns:
        The weights that still fit, and float32 blobs of the new classifiers.

    Raises:
        CaffeToolsError: None of the classes was known, or the old labels are not as many as the old classifiers' outputs.
        NetError: The weights lack a classifier.
    """
    if not any(row is not None for row in classes.row_map):
        raise CaffeToolsError("none of the new classes is among the old ones; train without --grow-from")
    model = upgrade_caffemodel(model)
    trimmed = trim_weights(model, net, renamed)
    # Its own, because a training in another thread draws from torch's global one.
    generator = torch.Generator().manual_seed(seed)
    heads = Caffemodel(type(net)(), {})
    for old, new in renamed.items():
        before, after = (next(layer for layer in n.layer if layer.name == name) for n, name in ((old_net, old), (net, new)))
        if traits(before).coordinates == "transposed" and after.convolution_param.weight_filler.type == "bilinear":
            continue  # it starts from bilinear interpolation, for any number of classes
        outputs = traits(before).num_output(before) if is_classifier(before) else len(classes.old)
        if outputs != len(classes.old):
            raise CaffeToolsError(f"the old labels are {len(classes.old)}, but layer '{old}' has {outputs} outputs (--grow-from)")
        arrays = model.blobs.get(old)
        if arrays is None:
            raise NetError("has no weights in the file, so no class can be kept", layer=old)
        fresh = _initial_blobs(after, shapes[new], arrays, generator)
        heads.net.layer.add().CopyFrom(after)
        heads.blobs[new] = remap_rows(before, arrays, classes.row_map, fresh)
    return merge_weights([trimmed, heads])


def _initial_blobs(layer: LayerParameter, shapes: list[Shape], arrays: Sequence[Array], generator: torch.Generator) -> list[Array]:
    """Return blobs of ``shapes`` with the initial values of new classes: those of the fillers that the layer's class declares."""
    specs = declared_blobs(layer) or []
    specs = [replace(spec, shape=shape) for spec, shape in zip(specs, shapes, strict=True)]
    return [values.numpy() for values in layer_class(layer.type).values_for_new_classes(specs, arrays, generator)]
