"""Records of the changes that an operation makes to a network, and of what it leaves to the user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from caffetools.graph.classifiers import Head, classifier_param, is_classifier
from caffetools.layers.registry import traits
from caffetools.proto.schema import NetParameter


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
                if head.num_output > 2 and outputs > head.num_output and outputs % head.num_output == 0:
                    times = outputs // head.num_output
                    notes.append(f"layer '{layer.name}' has {outputs} outputs, {times} for each of the {head.num_output} old classes")
            elif traits(layer).user_code and re.search(rf"classes\D*{head.num_output}\b", layer.python_param.param_str):
                notes.append(f"layer '{layer.name}' has the parameters {layer.python_param.param_str!r}")
            elif traits(layer).class_matrix and layer.name == head.loss_layer:
                notes.append(f"layer '{layer.name}' reads an infogain matrix of {head.num_output} classes")
    return list(dict.fromkeys(notes))
