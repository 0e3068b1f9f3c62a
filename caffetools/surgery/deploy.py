"""From a net for training to the net that is used: inputs for data, probabilities for losses, nothing that only training needs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from caffetools.errors import NetError
from caffetools.layers.base import Shape
from caffetools.net.state import filter_net, make_state
from caffetools.net.wiring import check_wiring
from caffetools.proto.schema import TEST, NetParameter
from caffetools.proto.upgrade import upgrade_net
from caffetools.surgery.graph import Graph, Use, names_in_use, phases
from caffetools.surgery.heads import find_heads, loss_weight
from caffetools.surgery.inputs import data_layers_to_inputs, is_data_layer

# What turns a loss's scores into what it compares with the labels; "" where the scores are that already.
_ANSWERS = {
    "SoftmaxWithLoss": "Softmax",
    "SigmoidCrossEntropyLoss": "Sigmoid",
    "MultinomialLogisticLoss": "",
    "InfogainLoss": "Softmax",
    "HingeLoss": "",
    "EuclideanLoss": "",
}
_JUDGES = {*_ANSWERS, "ContrastiveLoss", "Accuracy", "Silence"}
_FILLERS = ("weight_filler", "bias_filler", "filler")


def deploy_from(
    train_val: Any,
    *,
    batch: int = 1,
    input_shape: Shape | None = None,
    heads: Collection[str] | None = None,
    drop_dropout: bool = False,
) -> Any:
    """The deploy net of a net for training.

    Of several losses the one with the largest weight counts, of equals the last; what only the others and the accuracies need
    goes. Its scores become a blob called ``prob``: by Softmax (Sigmoid for SigmoidCrossEntropyLoss), along the loss's axis.
    Learning rates, fillers, phase rules and loss weights go; names of shared parameters stay, and so does Dropout, which does
    nothing in use. A net that has no loss keeps its outputs.

    Args:
        train_val: A ``NetParameter`` of any age; it is not changed.
        batch: How many pictures at once, where ``input_shape`` does not say.
        input_shape: (N, C, H, W) or (C, H, W) of the input; by default as the data layer of the TEST phase crops.
        heads: What to keep of several losses: their names, those of their scores or of the layers that make them, or ``all``. The
            answers of more than one are called ``prob_LOSS``.
        drop_dropout: Take the Dropout layers out, which do nothing in use.

    Raises:
        NetError: there is no such head, there is nothing to ship (no layer but data and losses), or the size of the input cannot be told.
    """
    if not 1 <= batch < 2**31:
        raise NetError(f"a batch of {batch} is not possible; it must be from 1 to {2**31 - 1}")
    net = upgrade_net(train_val)
    judges = _chosen_losses(net, heads)
    tested = filter_net(net, make_state(TEST))
    graph = Graph(tested)
    wanted = _wanted(graph, judges)
    check_wiring(tested)
    kept = [i for i in sorted(graph.needed(wanted)) if tested.layer[i].type not in _JUDGES]
    if not any(tested.layer[i].bottom for i in kept):
        raise NetError(f"the net '{net.name}' has no layer that its outputs come from; nothing can be deployed")
    deployed = NetParameter()
    deployed.CopyFrom(tested)
    deployed.ClearField("layer")
    deployed.ClearField("state")
    for i in kept:
        deployed.layer.add().CopyFrom(tested.layer[i])
    _drop_labels(deployed)
    shape = input_shape if input_shape is None or len(input_shape) == 4 else (batch, *input_shape)
    read_data = [i for i, layer in enumerate(deployed.layer) if is_data_layer(layer)]
    deployed = data_layers_to_inputs(deployed, {} if shape is None else {"": shape}, batch=batch)
    for i in read_data:
        _call_as_its_top(deployed, deployed.layer[i])
    for layer in deployed.layer:
        _strip(layer)
    for judge in judges:
        _answer(deployed, judge, "prob" if len(judges) == 1 else f"prob_{judge.name}")
    if drop_dropout:
        _drop_dropout(deployed)
    return deployed


def _chosen_losses(net: Any, heads: Collection[str] | None) -> list[Any]:
    """The loss layers that the deployed net answers for; files may have them in the TRAIN phase only."""
    losses = {}
    for graph in phases(net):
        losses.update({i: layer for i, layer in graph.layers.items() if layer.type in _ANSWERS and layer.bottom})
    if heads is None:
        ranked = sorted(losses.items(), key=lambda item: (loss_weight(item[1]), item[0]))
        return [layer for _, layer in ranked[-1:]]
    called = {layer.name: {layer.name, layer.bottom[0]} for layer in losses.values()}
    for name, classifier in _classifiers(net):
        called.get(name, set()).add(classifier)
    for name in heads:
        if name != "all" and not any(name in names for names in called.values()):
            raise NetError(
                f"the net '{net.name}' has no loss '{name}' to deploy for; its losses are {', '.join(called) or 'none'} (--heads)"
            )
    return [layer for _, layer in sorted(losses.items()) if "all" in heads or not called[layer.name].isdisjoint(heads)]


def _classifiers(net: Any) -> list[tuple[str, str]]:
    """(loss, classifier layer) as far as they can be told."""
    try:
        return [(head.judge, head.layer) for head in find_heads(net)]
    except NetError:
        return []


def _wanted(graph: Graph, judges: list[Any]) -> list[Use]:
    """What the deployed net must give, as bottoms of a layer behind all others; without a loss, the outputs themselves."""
    end = len(graph.param.layer)
    for judge in judges:
        if graph.maker(end, judge.bottom[0]) is None:
            raise NetError(f"what it reads, '{judge.bottom[0]}', is not made in the TEST phase", layer=judge.name)
    if judges:
        return [(end, judge.bottom[0]) for judge in judges]
    return [(end, top) for i, top in graph.outputs() if graph.layers[i].type not in _JUDGES]


def _drop_labels(net: Any) -> None:
    """The tops of data layers that no layer reads go, but for the first."""
    read = {bottom for layer in net.layer for bottom in layer.bottom}
    for layer in net.layer:
        if not layer.bottom and len(layer.top) > 1:
            tops = [top for index, top in enumerate(layer.top) if index == 0 or top in read]
            if layer.type == "Input" and len(layer.input_param.shape) == len(layer.top):
                shapes = [s for s, top in zip(layer.input_param.shape, layer.top, strict=True) if top in tops]
                layer.input_param.CopyFrom(type(layer.input_param)(shape=shapes))
            layer.top[:] = tops


def _call_as_its_top(net: Any, layer: Any) -> None:
    """What was ``mnist`` in training is ``data`` in use, unless another layer is called so."""
    if layer.top[0] not in {other.name for other in net.layer}:
        layer.name = layer.top[0]


def _strip(layer: Any) -> None:
    """Take what only training needs from a layer, in place."""
    for field in ("include", "exclude", "loss_weight", "propagate_down"):
        layer.ClearField(field)
    names = [spec.name for spec in layer.param]
    layer.ClearField("param")
    if any(names):
        for name in names:
            layer.param.add(**({"name": name} if name else {}))
    if layer.type in ("DummyData", "Parameter"):
        return
    for field, param in layer.ListFields():
        if field.name.endswith("_param"):
            for filler in _FILLERS:
                if filler in param.DESCRIPTOR.fields_by_name:
                    param.ClearField(filler)


def _answer(net: Any, judge: Any, called: str) -> None:
    """Append the layer that turns the scores into probabilities."""
    kind = _ANSWERS[judge.type]
    if not kind:
        return
    used, name, again = names_in_use(net), called, 1
    while name in used:
        again += 1
        name = f"{called}_{again}"
    layer = net.layer.add(name=name, type=kind, bottom=[judge.bottom[0]], top=[name])
    if kind == "Softmax" and judge.HasField("softmax_param"):
        layer.softmax_param.CopyFrom(judge.softmax_param)


def _drop_dropout(net: Any) -> None:
    """Take the Dropout layers out, but for those whose own blob cannot be replaced by the one that they read."""
    for dropout in [layer for layer in net.layer if layer.type == "Dropout" and len(layer.top) == len(layer.bottom) == 1]:
        place = list(net.layer).index(dropout)
        old, new = dropout.top[0], dropout.bottom[0]
        later = list(net.layer)[place + 1 :]
        if old != new:
            # Its blob is what the net puts out, or what it reads changes in place before the last one has read it.
            if not any(old in layer.bottom for layer in later) or any(new in layer.top for layer in later):
                continue
            for layer in later:
                for blobs in (layer.bottom, layer.top):
                    blobs[:] = [new if blob == old else blob for blob in blobs]
        del net.layer[place]
