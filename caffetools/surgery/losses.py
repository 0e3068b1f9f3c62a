"""What a net for training is judged by: its losses, the scores that they read, and the truth that is there in training only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from caffetools.errors import NetError
from caffetools.graph.classifiers import find_heads, loss_weight
from caffetools.graph.graph import Graph, Use, phases
from caffetools.graph.inputs import is_data_layer, is_input
from caffetools.layers.registry import is_known, traits
from caffetools.proto.schema import LayerParameter, NetParameter


@dataclass(frozen=True)
class OutputPoint:
    """Where a deploy net ends for one loss: the blobs that are its outputs, and whether they are the scores that the loss judges.

    Where a layer below the loss reads the truth (a margin, a mask), the net ends before it, in what is no scores yet.
    """

    loss: Any
    blobs: list[str]
    is_logits: bool

    @classmethod
    def of(cls, graph: Graph, loss: Any, truth: Collection[Use]) -> OutputPoint:
        """The ending for ``loss``; arguments and errors as for :func:`scores_of`."""
        scores = scores_of(graph, loss, truth)
        blobs = [strip_label_dependent_tail(graph, blob, truth) for blob in scores]
        return cls(loss, blobs, blobs == scores)


def is_loss(layer: LayerParameter) -> bool:
    """Whether ``layer`` adds to what training makes small: by its type's name, or by its loss_weight."""
    return bool(traits(layer).role == "loss" or any(layer.loss_weight))


def is_loss_or_metric(layer: LayerParameter) -> bool:
    """Whether ``layer`` only tells how good the net is, or keeps a blob quiet."""
    return is_loss(layer) or traits(layer).role in ("metric", "silence")


def losses_of(net: NetParameter) -> dict[int, Any]:
    """Place → layer of the losses of both phases."""
    return {i: layer for graph in phases(net) for i, layer in graph.layers.items() if is_loss(layer) and layer.bottom}


def chosen_losses(net: NetParameter, heads: Collection[str] | None = None) -> list[Any]:
    """The loss layers that a deploy net of ``net`` answers for; files may have them in the TRAIN phase only.

    By default the one with the largest weight, of equals the last; losses that compare scores with labels come before all others.
    ``heads`` names others: losses, their scores, the layers that make them, or ``all``.

    Raises:
        NetError: there is no such loss.
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


def scores_of(graph: Graph, loss: LayerParameter, truth: Collection[Use]) -> list[str]:
    """The blobs that ``loss`` judges: the first that it reads; of an unknown loss all but the truth.

    Args:
        graph: of the phase that is deployed; the loss itself may be in another. truth: see :func:`label_blobs`.

    Raises:
        NetError: they are not made in that phase.
    """
    end = len(graph.param.layer)
    bottoms = [blob for blob in loss.bottom if (graph.producer(end, blob), blob) not in truth] or list(loss.bottom[:1])
    facts = traits(loss)
    if facts.activation is not None or facts.compares == "embeddings" or facts.role != "loss":
        del bottoms[1:]
    for blob in bottoms:
        if graph.producer(end, blob) is None:
            raise NetError(f"what it reads, '{blob}', is not made in the TEST phase", layer=loss.name)
    maker = graph.layers[graph.producer(end, bottoms[0]) or 0]
    if facts.compares == "embeddings" and traits(maker).role == "slice" and maker.slice_param.axis == 0 and maker.bottom:
        # The pictures of a batch, told apart only to be compared.
        return list(maker.bottom)
    return bottoms


def label_blobs(graph: Graph, net: NetParameter) -> set[Use]:
    """(place of the maker, blob) of what is known of the pictures in training only: labels, and what is made from nothing else.

    Tops of data layers that hold labels by their type, or that a loss or an accuracy of ``net`` (in either phase) reads; the first top of
    the first is the picture.
    """
    compared = {blob for layer in net.layer if is_loss_or_metric(layer) for blob in layer.bottom}
    used = {blob for layer in net.layer if not is_loss_or_metric(layer) for blob in layer.bottom}
    truth: set[Use] = set()
    first = True
    for i, layer in graph.layers.items():
        if is_data_layer(layer) or is_input(layer) or (traits(layer).role == "constant" and layer.top):
            for k, top in enumerate(layer.top):
                only_compared = top not in used and not used.isdisjoint(layer.top)
                if (k > 0 or not first or only_compared) and (top in compared or (k > 0 and traits(layer).label_tops != "any")):
                    truth.add((i, top))
            first = False
        elif layer.bottom and all((graph.producer(i, blob), blob) in truth for blob in layer.bottom):
            truth |= {(i, top) for top in layer.top}
    return truth


def strip_label_dependent_tail(graph: Graph, blob: str, truth: Collection[Use]) -> str:
    """``blob``, or what it is made from before a layer mixed truth into it: the embedding below a margin, boxes before their mask."""
    at = len(graph.param.layer)
    while (maker := graph.producer(at, blob)) is not None:
        reads = [(graph.producer(maker, bottom), bottom) for bottom in graph.layers[maker].bottom]
        if not any(use in truth for use in reads) or all(use in truth for use in reads):
            break
        at, blob = maker, next(bottom for place, bottom in reads if (place, bottom) not in truth)
    return blob


def check_no_label_inputs(graph: Graph, net: NetParameter, kept: Collection[int], truth: Collection[Use]) -> None:
    """Raise :class:`NetError` where a layer that is to be deployed needs what is there in training only, or makes it."""
    compared = {blob: layer for layer in net.layer if is_loss(layer) for blob in layer.bottom[1:]}
    for i in sorted(kept):
        layer = graph.layers[i]
        reads = [bottom for bottom in layer.bottom if (graph.producer(i, bottom), bottom) in truth]
        if reads and len(reads) < len(layer.bottom):
            raise NetError(
                f"reads '{reads[0]}', which tells the truth and is not there in use, and what is to be deployed is made from it; "
                "in use this layer must go or be another one: change that in the file first",
                layer=layer.name,
            )
        targets = [top for top in layer.top if top in compared]
        if targets and layer.bottom and (traits(layer).user_code or not is_known(layer.type)):
            raise NetError(
                f"makes '{targets[0]}' for the loss '{compared[targets[0]].name}', so it is a layer for training; "
                "in use this layer must go or be another one: change that in the file first",
                layer=layer.name,
            )


def _classifiers(net: NetParameter) -> list[tuple[str, str]]:
    """(loss, classifier layer) as far as they can be told."""
    try:
        return [(head.loss_layer, head.layer) for head in find_heads(net)]
    except NetError:
        return []
