"""Change the number of classes around the classifier of a detector: boxes for each class, label makers, evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from caffetools.graph.box_regressors import BOX, BoxRegressor
from caffetools.graph.classifiers import Head
from caffetools.layers.python import named_classes, with_classes
from caffetools.layers.registry import traits
from caffetools.layers.traits import field_at
from caffetools.proto.schema import NetParameter
from caffetools.surgery.changes import Change


def refit_places(net: NetParameter, boxes: BoxRegressor, before: int, classes: int) -> list[Change]:
    """Set ``4 × classes`` in the layers behind a regressor that name it, in place; return what changed.

    Args:
        net: The net.
        boxes: The regressor.
        before: The old number of classes.
        classes: The new number of classes.
    """
    changes, new = [], BOX * classes
    for layer in net.layer:
        for name, path in boxes.counters:
            if layer.name == name and traits(layer).class_count:
                message, field = field_at(layer, path)
                if getattr(message, field) == BOX * before != new:
                    setattr(message, field, new)
                    changes.append(Change(name, field, str(BOX * before), str(new)))
        for name, axis in boxes.reshapes:
            dims = layer.reshape_param.shape.dim
            if layer.name == name and dims[axis] == BOX * before != new:
                dims[axis] = new
                changes.append(Change(name, "dim", str(BOX * before), str(new)))
    return changes


def refit_named_classes(net: NetParameter, before: int, classes: int) -> list[Change]:
    """Set the number of classes in the layers that name it without reading scores, in place; return what changed.

    These are the user's own layers that name it in their ``param_str``, and layers that make labels or compare detections with labels.

    Args:
        net: The net.
        before: The old number of classes; other numbers are left as they are.
        classes: The new number of classes.
    """
    changes = []
    for layer in net.layer if before != classes else ():
        if traits(layer).user_code:
            old = layer.python_param.param_str
            layer.python_param.param_str = with_classes(old, before, classes)
            if layer.python_param.param_str != old:
                changes.append(Change(layer.name, "param_str", old, layer.python_param.param_str))
        for path in traits(layer).names_classes:
            message, field = field_at(layer, path)
            if getattr(message, field) == before:
                setattr(message, field, classes)
                changes.append(Change(layer.name, field, str(before), str(classes)))
    return changes


def other_counts(net: NetParameter, heads: Iterable[Head]) -> list[str]:
    """Describe the user's layers that name one class less than the old classifiers had, perhaps without the background.

    Args:
        net: The retargeted net.
        heads: The classifiers before retargeting.
    """
    known = {head.classes for head in heads}
    layers = [layer for layer in net.layer if traits(layer).user_code]
    named = [layer for layer in layers if any(count + 1 in known for count in named_classes(layer.python_param.param_str))]
    return [f"layer '{layer.name}' has the parameters {layer.python_param.param_str!r}" for layer in named]


def renamed_boxes(net: NetParameter, names: Mapping[str, str]) -> list[str]:
    """Remark that scripts may look for the renamed regressors.

    Args:
        net: The retargeted net.
        names: Old name → new name of the regressors.
    """
    renamed = [f"'{old}' is now '{new}'" for old, new in names.items() if old != new]
    if not renamed or not any(traits(layer).user_code for layer in net.layer):
        return []
    return [f"{', '.join(renamed)}: scripts that look it up by name, as py-faster-rcnn's do for snapshots, need --keep-names"]
