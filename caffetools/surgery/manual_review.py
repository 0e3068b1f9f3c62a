"""What a retargeted net still has of its old number of classes, where only a person can tell what it should be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from caffetools.graph.classifiers import Head, classifier_param, is_classifier
from caffetools.layers.registry import traits
from caffetools.proto.schema import NetParameter


def manual_review_notes(net: NetParameter, heads: Iterable[Head], renamed: Mapping[str, str]) -> list[str]:
    """Sentences on layers of the retargeted ``net`` that seem to depend on how many classes there were, and were left as they are.

    Args:
        heads: the classifiers, as they were called and as many outputs as they had. renamed: old name → new name.
    """
    told = []
    for head in heads:
        classifier = next(layer for layer in net.layer if layer.name == renamed[head.layer])
        for layer in net.layer:
            if layer.name in renamed.values():
                continue
            if is_classifier(layer) and layer.bottom[:1] == classifier.bottom[:1]:
                outputs = classifier_param(layer).num_output
                if head.num_output > 2 and outputs > head.num_output and outputs % head.num_output == 0:
                    times = outputs // head.num_output
                    told.append(f"layer '{layer.name}' has {outputs} outputs, {times} for each of the {head.num_output} classes that were")
            elif traits(layer).user_code and re.search(rf"classes\D*{head.num_output}\b", layer.python_param.param_str):
                told.append(f"layer '{layer.name}' has the parameters {layer.python_param.param_str!r}")
            elif traits(layer).class_matrix and layer.name == head.loss_layer:
                told.append(f"layer '{layer.name}' reads an infogain matrix, which is of {head.num_output} classes")
    return list(dict.fromkeys(told))
