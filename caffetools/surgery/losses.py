"""Find the losses of a net for training, the logits that they read, and the label blobs, which exist in training only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from caffetools.errors import NetError
from caffetools.graph.classifiers import find_heads, loss_weight
from caffetools.graph.graph import Graph, Use
from caffetools.graph.inputs import is_data_layer, is_input
from caffetools.layers.registry import is_known, traits
from caffetools.net.phases import layer_included, make_state
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter


class NotDeployable(NetError):
    """A layer that the deployed outputs depend on needs labels or computes targets for a loss, or what an input holds is not known."""


@dataclass(frozen=True)
class OutputPoint:
    """Where a deploy net ends for one loss.

    Where a layer below the loss reads labels (a margin, a mask), the net ends before that layer.

    Attributes:
        loss: The loss's ``LayerParameter``.
        blobs: The names of the blobs that are outputs of the deploy net.
        is_logits: Whether they are the blobs that the loss compares with labels.
    """

    loss: LayerParameter
    blobs: list[str]
    is_logits: bool

    @classmethod
    def of(cls, graph: Graph, loss: LayerParameter, labels: Collection[Use]) -> OutputPoint:
        """Find the outputs for ``loss``; arguments and errors as for :func:`scores_of`."""
        scores = scores_of(graph, loss, labels)
        blobs = [strip_label_dependent_tail(graph, blob, labels) for blob in scores]
        return cls(loss, blobs, blobs == scores)


def is_loss(layer: LayerParameter) -> bool:
    """Return whether ``layer`` contributes to the objective: by its type, or by its loss_weight."""
    return bool(traits(layer).role == "loss" or any(layer.loss_weight))


def is_loss_or_metric(layer: LayerParameter) -> bool:
    """Return whether ``layer`` is a loss, a metric, or a Silence."""
    return traits(layer).role in ("loss", "metric", "silence") or any(layer.loss_weight)


def losses_of(net: NetParameter) -> dict[int, Any]:
    """Return index → ``LayerParameter`` of the losses of both phases."""
    states = make_state(TRAIN), make_state(TEST)
    return {
        i: layer
        for i, layer in enumerate(net.layer)
        if is_loss(layer) and layer.bottom and any(layer_included(layer, state) for state in states)
    }


def chosen_losses(net: NetParameter, heads: Collection[str] | None = None) -> list[Any]:
    """Return the loss layers that a deploy net of ``net`` has outputs for; files may have them in the TRAIN phase only.

    By default it is the one with the largest weight, of equals the last; losses that compare logits with labels come before all others.

    Args:
        net: A ``NetParameter`` in today's form.
        heads: Names of losses, of their logits, or of the classifier layers, or ``all``.

    Raises:
        NetError: No loss has one of the names.
    """
    losses = losses_of(net)
    if heads is None:
        usual = {i: layer for i, layer in losses.items() if traits(layer).activation is not None} or losses
        ranked = sorted(usual.items(), key=lambda item: (loss_weight(item[1]), item[0]))
        return [layer for _, layer in ranked[-1:]]
    called = {layer.name: {layer.name, layer.bottom[0]} for layer in losses.values()}
    if not all(name == "all" or any(name in names for names in called.values()) for name in heads):
        for name, classifier in _classifiers(net):
            called.get(name, set()).add(classifier)
    for name in heads:
        if name != "all" and not any(name in names for names in called.values()):
            raise NetError(
                f"the net '{net.name}' has no loss '{name}' to deploy for; its losses are {', '.join(called) or 'none'} (--heads)"
            )
    # A file may have a loss once a phase.
    by_name = {layer.name: layer for _, layer in sorted(losses.items())}
    return [layer for name, layer in by_name.items() if "all" in heads or not called[name].isdisjoint(heads)]


def scores_of(graph: Graph, loss: LayerParameter, labels: Collection[Use]) -> list[str]:
    """Return the blobs that ``loss`` compares with labels: its first bottom; of an unknown loss all bottoms but the labels.

    Args:
        graph: The graph of the phase that is deployed; the loss itself may be in another.
        loss: The loss's ``LayerParameter``.
        labels: The label blobs; see :func:`label_blobs`.

    Raises:
        NetError: The blobs are not produced in that phase.
    """
    end = len(graph.param.layer)
    bottoms = [blob for blob in loss.bottom if (graph.producer(end, blob), blob) not in labels] or list(loss.bottom[:1])
    facts = traits(loss)
    if facts.activation is not None or facts.compares == "embeddings" or facts.role != "loss":
        del bottoms[1:]
    for blob in bottoms:
        if graph.producer(end, blob) is None:
            raise NetError(f"its bottom '{blob}' is not produced in the TEST phase", layer=loss.name)
    maker = graph.layers[graph.producer(end, bottoms[0]) or 0]
    if facts.compares == "embeddings" and traits(maker).role == "slice" and maker.slice_param.axis == 0 and maker.bottom:
        # The images of a batch are separated only to be compared.
        return list(maker.bottom)
    return bottoms


def label_blobs(graph: Graph, net: NetParameter) -> set[Use]:
    """Return the blobs that exist in training only: labels, and blobs computed from labels alone.

    Labels are tops of data layers that hold labels by the layer's type, or that a loss or an accuracy of ``net`` (in either phase) reads;
    the first top of the first data layer is the image.

    Args:
        graph: The graph of one phase.
        net: The ``NetParameter`` with both phases.

    Returns:
        (index of the producer, blob) of each.
    """
    compared, used = set[str](), set[str]()
    for layer in net.layer:
        (compared if is_loss_or_metric(layer) else used).update(layer.bottom)
    labels: set[Use] = set()
    first = True
    for i, layer in graph.layers.items():
        if is_data_layer(layer) or is_input(layer) or (traits(layer).role == "constant" and layer.top):
            for k, top in enumerate(layer.top):
                only_compared = top not in used and not used.isdisjoint(layer.top)
                if (k > 0 or not first or only_compared) and (top in compared or (k > 0 and traits(layer).label_tops != "any")):
                    labels.add((i, top))
            first = False
        elif layer.bottom and all((graph.producer(i, blob), blob) in labels for blob in layer.bottom):
            labels |= {(i, top) for top in layer.top}
    return labels


def strip_label_dependent_tail(graph: Graph, blob: str, labels: Collection[Use]) -> str:
    """Follow ``blob`` up past the layers that combine it with labels: to the embedding below a margin, to boxes before their mask.

    Args:
        graph: The graph of the phase that is deployed.
        blob: The name of a blob at the end of the net.
        labels: The label blobs; see :func:`label_blobs`.
    """
    at = len(graph.param.layer)
    while (producer := graph.producer(at, blob)) is not None:
        reads = [(graph.producer(producer, bottom), bottom) for bottom in graph.layers[producer].bottom]
        if not any(use in labels for use in reads) or all(use in labels for use in reads):
            break
        at, blob = producer, next(bottom for index, bottom in reads if (index, bottom) not in labels)
    return blob


def check_no_label_inputs(graph: Graph, net: NetParameter, kept: Collection[int], labels: Collection[Use]) -> None:
    """Check that no deployed layer depends on labels or computes targets for a loss.

    Args:
        graph: The graph of the phase that is deployed.
        net: The ``NetParameter`` with both phases.
        kept: The indices of the layers to deploy.
        labels: The label blobs; see :func:`label_blobs`.

    Raises:
        NotDeployable: A layer does.
    """
    compared = {blob: layer for layer in net.layer if is_loss(layer) for blob in layer.bottom[1:]}
    for i in sorted(kept):
        layer = graph.layers[i]
        reads = [bottom for bottom in layer.bottom if (graph.producer(i, bottom), bottom) in labels]
        if reads and len(reads) < len(layer.bottom):
            raise NotDeployable(
                f"depends on label blob '{reads[0]}', which is not available at inference, and the deployed outputs depend on it; "
                "remove or replace this layer in the file first",
                layer=layer.name,
            )
        targets = [top for top in layer.top if top in compared]
        if targets and layer.bottom and (traits(layer).user_code or not is_known(layer.type)):
            raise NotDeployable(
                f"produces '{targets[0]}' for the loss '{compared[targets[0]].name}', so it is a layer for training; "
                "remove or replace this layer in the file first",
                layer=layer.name,
            )


def _classifiers(net: NetParameter) -> list[tuple[str, str]]:
    """Return (loss, classifier layer) of each classifier; empty where none is found."""
    try:
        return [(head.loss_layer, head.layer) for head in find_heads(net)]
    except NetError:
        return []
