"""Records of the changes that an operation makes to a network, and of what it leaves to the user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from caffetools.graph.box_regressors import BOX
from caffetools.graph.classifiers import Head, classifier_param
from caffetools.graph.graph import phases
from caffetools.graph.merges import is_classifier
from caffetools.layers.registry import is_known, traits
from caffetools.proto.schema import LayerParameter, NetParameter
from caffetools.proto.text import format_text

# Numbers of classes that fields have for other reasons, such as a weight of 1.
COMMON = (1, 2, 3)


@dataclass(frozen=True)
class Change:
    """One change of a layer.

    Attributes:
        layer: The layer's name.
        what: The field or part that changed.
        before: The old value; empty where there was none.
        after: The new value; empty where it was removed.
    """

    layer: str
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        if not self.before:
            return f"{self.layer}: {self.what} set to {self.after}"
        if not self.after:
            return f"{self.layer}: {self.what} {self.before} removed"
        return f"{self.layer}: {self.what} {self.before} → {self.after}"


def number(value: float) -> str:
    """Format a number as in prototxt: ``10``, ``0.25``."""
    return f"{value:.7g}"


def manual_review_notes(net: NetParameter, heads: Iterable[Head], renamed: Mapping[str, str]) -> list[str]:
    """Describe the layers of a retargeted net that seem to depend on the old number of classes and were not changed.

    Args:
        net: The retargeted ``NetParameter``.
        heads: The classifiers before retargeting.
        renamed: Old name → new name of the reinitialized layers.
    """
    notes = []
    for head in heads:
        classifier = next(layer for layer in net.layer if layer.name == renamed[head.layer])
        for layer in net.layer:
            if layer.name in renamed.values():
                continue
            if is_classifier(layer) and layer.bottom[:1] == classifier.bottom[:1]:
                outputs = classifier_param(layer).num_output
                boxes = BOX * head.outputs_per_class if head.outputs_per_class > 1 else 0
                if head.num_output > 2 and outputs > head.num_output and outputs % head.num_output == 0 and outputs != boxes:
                    times = outputs // head.num_output
                    notes.append(f"layer '{layer.name}' has {outputs} outputs, {times} for each of the {head.num_output} old classes")
            elif traits(layer).user_code and re.search(rf"classes\D*{head.num_output}\b", layer.python_param.param_str):
                notes.append(f"layer '{layer.name}' has the parameters {layer.python_param.param_str!r}")
            elif traits(layer).class_matrix and layer.name == head.loss_layer:
                notes.append(f"layer '{layer.name}' reads an infogain matrix of {head.num_output} classes")
    return list(dict.fromkeys(notes))


def unknown_counts(net: NetParameter, heads: Iterable[Head], renamed: Mapping[str, str], classes: int) -> list[str]:
    """Describe the layers of unknown types that read a classifier's scores and have its old number of classes, or one less, in a field.

    Such a field is the label of the background or of the blank, for example.

    Args:
        net: The retargeted ``NetParameter``.
        heads: The classifiers before retargeting.
        renamed: Old name → new name of the reinitialized layers.
        classes: The new number of classes.
    """
    notes = []
    for head in heads:
        if head.classes in (classes, *COMMON):
            continue
        numbers = rf"\b(\w+: (?:{head.classes}|{head.classes - 1}))(?![\w.])"
        for layer in _readers(net, renamed[head.layer]):
            facts = traits(layer)
            foreign = not (is_known(layer.type) or facts.class_count or facts.names_classes)
            if foreign and (found := re.search(numbers, format_text(layer))):
                notes.append(f"layer '{layer.name}' has {found[1]}, and the old classes were {head.classes}")
    return list(dict.fromkeys(notes))


def _readers(net: NetParameter, name: str) -> list[LayerParameter]:
    """Return the layers that depend on the layer ``name``."""
    found = []
    for graph in phases(net):
        tops = [(index, top) for index, layer in graph.layers.items() if layer.name == name for top in layer.top]
        found += [graph.layers[index] for index in sorted(graph.descendants(tops))]
    return found


def ignored_labels(net: NetParameter, heads: Iterable[Head], classes: int) -> list[str]:
    """Describe the losses and accuracies that ignore a label which is one of the new classes and was none of the old ones.

    Args:
        net: The retargeted ``NetParameter``.
        heads: The classifiers before retargeting.
        classes: The new number of classes.
    """
    before = max(head.classes for head in heads)
    notes = []
    for layer in net.layer:
        for param in (layer.loss_param, layer.accuracy_param):
            if param.HasField("ignore_label") and before <= param.ignore_label < classes:
                notes.append(f"layer '{layer.name}' ignores the label {param.ignore_label}, which is one of the new classes")
    return list(dict.fromkeys(notes))
