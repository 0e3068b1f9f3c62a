"""Finding a network's classifiers from its graph: what the losses read, followed upwards to the layer that makes the scores."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from caffetools.errors import NetError
from caffetools.surgery.graph import Graph, phases

# Losses that compare one score a class with a label.
CLASS_LOSSES = ("SoftmaxWithLoss", "MultinomialLogisticLoss", "HingeLoss")
CLASSIFIERS = {"InnerProduct": "inner_product_param", "Convolution": "convolution_param"}

# What may stand between a classifier and its loss: the classes stay where they are, each by itself.
_ELEMENTWISE = ("ReLU", "ELU", "Sigmoid", "TanH", "BNLL", "AbsVal", "Power", "Exp", "Log", "Dropout")
_KEEPS_CLASSES = {*_ELEMENTWISE, "Pooling", "Flatten", "Softmax", "Split"}
# Likewise, but with parameters of their own for each class.
_CLASSWISE = {"BatchNorm", "Scale", "Bias", "PReLU"}


@dataclass(frozen=True)
class Head:
    """A classifier layer of a net.

    Attributes:
        layer, type_name, num_output: its name, Caffe type and number of classes.
        judge: the loss (of a deploy net: the Softmax) that reads it. weight: that loss's weight.
        followers: layers between the two that have parameters for each class, such as a Scale.
    """

    layer: str
    type_name: str
    num_output: int
    judge: str
    weight: float
    followers: tuple[str, ...] = ()


def find_heads(param: Any, names: Iterable[str] | None = None) -> list[Head]:
    """The classifier layers of ``param``, in the order of their losses; files with both phases count once.

    Args:
        param: A ``NetParameter`` in today's form. Without any class loss, the Softmax layers whose tops are outputs count as judges.
        names: The classifier layers' names, where the graph should not decide.

    Raises:
        NetError: there is no classifier, or one of ``names`` is none; the message says what was looked for and found.
    """
    if names is not None:
        return [_named(param, name) for name in names]
    heads: dict[str, Head] = {}
    for graph, index in _judges(param):
        head = _classifier(graph, index)
        heads.setdefault(head.layer, head)
    if not heads:
        raise NetError(
            f"no classifier was found in the net '{param.name}': it has no {', '.join(CLASS_LOSSES)}, and no Softmax as an output"
        )
    return list(heads.values())


def main_head(heads: list[Head]) -> Head:
    """The head whose loss counts most; of equals, the last."""
    return max(enumerate(heads), key=lambda item: (item[1].weight, item[0]))[1]


def classifier_param(layer: Any) -> Any:
    """The part of a classifier layer that has ``num_output``."""
    return getattr(layer, CLASSIFIERS[layer.type])


def loss_weight(layer: Any) -> float:
    """The weight of a loss layer's first top; 1 where none is given."""
    return float(layer.loss_weight[0]) if layer.loss_weight else 1.0


def _judges(param: Any) -> list[tuple[Graph, int]]:
    """(graph, place) of what reads scores: the losses of both phases, else the final Softmax layers."""
    graphs = phases(param)
    losses = [(graph, i) for graph in graphs for i, layer in graph.layers.items() if layer.type in CLASS_LOSSES]
    if losses:
        return losses
    return [(graph, i) for graph in graphs for i, _ in graph.outputs() if graph.layers[i].type == "Softmax"]


def _classifier(graph: Graph, index: int) -> Head:
    """Follow the first bottom of the layer at ``index`` up to its classifier."""
    judge = graph.layers[index]
    followers: list[str] = []
    at = f"{judge.type} '{judge.name}'"
    where = f"the scores that {at} reads"
    for maker in graph.walk_up(index, judge.bottom[0]) if judge.bottom else ():
        layer = graph.layers[maker]
        if layer.type in CLASSIFIERS:
            weight = loss_weight(judge)
            return Head(layer.name, layer.type, classifier_param(layer).num_output, judge.name, weight, tuple(followers))
        if layer.type in _CLASSWISE and len(layer.bottom) == 1:
            followers.append(layer.name)
        elif layer.type not in _KEEPS_CLASSES:
            raise NetError(
                f"no classifier was found above {at}: looked for an InnerProduct or Convolution, but {where} come from this "
                f"{layer.type} layer; name the classifiers yourself (--head)",
                layer=layer.name,
            )
    raise NetError(f"no classifier was found above {at}: {where} are an input of the net", layer=judge.name)


def _named(param: Any, name: str) -> Head:
    layer = next((layer for layer in param.layer if layer.name == name), None)
    if layer is None:
        raise NetError(f"the net '{param.name}' has no layer '{name}'")
    if layer.type not in CLASSIFIERS:
        raise NetError(f"is a {layer.type} layer; a classifier is an InnerProduct or a Convolution", layer=name)
    for graph, index in _judges(param):
        with suppress(NetError):
            head = _classifier(graph, index)
            if head.layer == name:
                return head
    return Head(name, layer.type, classifier_param(layer).num_output, "", 0.0)
