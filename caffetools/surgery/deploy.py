"""Derive the deploy net of a train_val net: inputs for data layers, probabilities for losses, no layers that only training needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache

from google.protobuf.descriptor import FieldDescriptor

from caffetools.errors import NetError
from caffetools.graph.classifiers import copy_class_axis
from caffetools.graph.graph import Graph, Use, unused_name
from caffetools.graph.inputs import (
    as_shapes,
    data_layers_to_inputs,
    dummy_data_to_inputs,
    guessed_tops,
    is_data_layer,
    is_input,
    named_shapes,
)
from caffetools.graph.passes.remove_dropout import remove_dropout
from caffetools.graph.rewrite import run_passes
from caffetools.graph.summary import summarize
from caffetools.layers.base import Shape
from caffetools.layers.registry import is_known, traits
from caffetools.layers.traits import field_at
from caffetools.net.phases import layer_included, make_state
from caffetools.net.topology import check_blob_graph
from caffetools.proto.schema import TEST, LayerParameter, NetParameter
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.surgery.losses import (
    NotDeployable,
    OutputPoint,
    check_no_label_inputs,
    chosen_losses,
    is_loss_or_metric,
    label_blobs,
    losses_of,
)

_FILLERS = ("weight_filler", "bias_filler", "filler")


def deploy_from(
    train_val: NetParameter,
    *,
    batch: int = 1,
    input_shape: Shape | Mapping[str, Shape] | None = None,
    heads: Collection[str] | None = None,
    drop_dropout: bool = False,
) -> NetParameter:
    """Derive the deploy net of a train_val net.

    Of several losses the one with the largest weight is deployed, of equals the last; layers that only the others and the accuracies
    need are removed. A Softmax (Sigmoid for SigmoidCrossEntropyLoss) along the loss's axis turns its logits into a blob called ``prob``.
    For losses over embeddings the embedding is the output; where a layer combines its input with labels (a margin), its input is the output.
    Learning rates, fillers, phase rules and loss weights are removed; names of shared parameters and Dropout layers, which are the
    identity at inference, are kept. A net without a loss, or whose TEST phase already is a deploy net, keeps its outputs.

    Args:
        train_val: A ``NetParameter`` of any age; it is not changed.
        batch: The batch size, where ``input_shape`` does not give it; from 1 to 2³¹ − 1.
        input_shape: (N, C, H, W) or (C, H, W) of the input, or shapes by blob; by default as the data layer of the TEST phase crops
            (of the TRAIN phase, where there is no other).
        heads: Which of several losses to deploy: their names, those of their logits or of the classifier layers, or ``all``. The
            probabilities of more than one are called ``prob_LOSS``.
        drop_dropout: Remove the Dropout layers, which are the identity at inference.

    Raises:
        NetError: No loss has the name of a head, the net has no layers but data and losses, the deployed layers depend on labels, or
            the size of an input is not known.
    """
    if not 1 <= batch < 2**31:
        raise NetError(f"a batch of {batch} is not possible; it must be from 1 to {2**31 - 1}")
    net = upgrade_net(train_val)
    losses = chosen_losses(net, heads)
    tested = dummy_data_to_inputs(_tested(net))
    graph = Graph(tested)
    if heads is None and _is_deployed(graph):
        losses = []
    labels = label_blobs(graph, net)
    ends = [OutputPoint.of(graph, loss, labels) for loss in losses]
    outputs = [blob for end in ends for blob in end.blobs] or _outputs(graph, labels)
    try:
        check_blob_graph(tested.layer, net)
    except NetError as error:
        raise NotDeployable(error.message, layer=error.layer) from None
    needed = graph.needed([(len(tested.layer), blob) for blob in outputs])
    kept = [i for i in sorted(needed) if traits(graph.layers[i]).role not in ("metric", "silence")]
    if not any(tested.layer[i].bottom for i in kept):
        raise NetError(f"the net '{net.name}' has no layer that computes its outputs; there is nothing to deploy")
    check_no_label_inputs(graph, net, kept, labels)
    deployed = _with_layers(tested, kept)
    deployed.ClearField("state")
    _drop_labels(deployed)
    deployed = _with_inputs(deployed, named_shapes(tested, as_shapes(input_shape, batch)), batch)
    if any(traits(end.loss).compares == "embeddings" for end in ends):
        _unwrap_siamese_slice(deployed)
    for layer in deployed.layer:
        _strip(layer)
    for end in ends:
        if end.is_logits:
            _append_output_activation(deployed, end.loss, end.blobs[0], "prob" if len(ends) == 1 else f"prob_{end.loss.name}")
    return run_passes(deployed, [remove_dropout])[0] if drop_dropout else deployed


def batch_statistics(net: NetParameter) -> list[str]:
    """Return the names of the normalizations of a deploy net that take the statistics of each batch, not those that they have stored."""
    names = []
    for layer in net.layer:
        if switch := traits(layer).statistics_switch:
            message, field = field_at(layer, switch)
            if message.HasField(field) and not getattr(message, field) and is_known(layer.type):
                names.append(str(layer.name))
    return names


def left_out(train_val: NetParameter, heads: Collection[str] | None = None) -> list[str]:
    """Return the names of the losses that the deploy net of ``train_val`` has no output for.

    Args:
        train_val: A ``NetParameter`` of any age.
        heads: The losses to deploy, as for :func:`deploy_from`.

    Raises:
        NetError: No loss has the name of a head.
    """
    net = upgrade_net(train_val)
    if heads is None and _is_deployed(Graph(_tested(net))):
        return []
    chosen = {layer.name for layer in chosen_losses(net, heads)}
    return list(dict.fromkeys(layer.name for layer in losses_of(net).values() if layer.name not in chosen))


def _outputs(graph: Graph, labels: Collection[Use]) -> list[str]:
    """Return the outputs of a net without a loss; where metrics read all of them, as in SSD's nets for testing, what those read."""
    ends = [(i, top) for i, top in graph.outputs() if not is_loss_or_metric(graph.layers[i])]
    outputs = [top for _, top in ends]
    if any(graph.layers[i].bottom for i, _ in ends):
        return outputs
    metrics = [(i, layer) for i, layer in graph.layers.items() if traits(layer).role == "metric"]
    measured = [(graph.producer(i, blob), blob) for i, layer in metrics for blob in layer.bottom]
    found = [
        blob for producer, blob in measured if producer is not None and graph.layers[producer].bottom and (producer, blob) not in labels
    ]
    return list(dict.fromkeys(found)) or outputs


def _tested(net: NetParameter) -> NetParameter:
    """Return the net of the TEST phase, with the TRAIN phase's data layers where it reads blobs that only those produce."""
    state = make_state(TEST)
    made, lacking, excluded = set[str](), set[str](), set[int]()
    for index, layer in enumerate(net.layer):
        if layer_included(layer, state):
            made.update(layer.top)
            lacking.update(layer.bottom)
        else:
            excluded.add(index)
    lacking -= made
    for index in sorted(excluded):
        layer = net.layer[index]
        if is_data_layer(layer) and not lacking.isdisjoint(layer.top):
            lacking.difference_update(layer.top)
            excluded.remove(index)
    return _with_layers(net, [index for index in range(len(net.layer)) if index not in excluded])


def _is_deployed(graph: Graph) -> bool:
    """Return whether the TEST phase already is a deploy net, as in DetectNet's files: an Input, and neither losses nor metrics."""
    return any(map(is_input, graph.layers.values())) and not any(map(is_loss_or_metric, graph.layers.values()))


def _with_layers(net: NetParameter, indices: list[int]) -> NetParameter:
    some = NetParameter()
    some.CopyFrom(net)
    layers = list(net.layer)
    if len(indices) < len(layers):
        some.ClearField("layer")
        some.layer.extend(layers[i] for i in indices)
    return some


def _with_inputs(net: NetParameter, shapes: dict[str, Shape], batch: int) -> NetParameter:
    """Replace data layers by inputs named after their blobs."""
    read_data = [i for i, layer in enumerate(net.layer) if is_data_layer(layer)]
    for i in read_data:
        unknown = next((top for top in guessed_tops(net.layer[i]) if top not in shapes), None)
        if unknown is not None:
            raise NotDeployable(
                f"the shape of its blob '{unknown}' is not known; give --input-shape {unknown}=SHAPE", layer=net.layer[i].name
            )
    inputs = {top for layer in net.layer if not layer.bottom for top in layer.top}
    net = data_layers_to_inputs(net, {name: shape for name, shape in shapes.items() if name in inputs}, batch=batch)
    for i in read_data:
        _rename_input_layer_to_blob(net, net.layer[i])
    return net


def _unwrap_siamese_slice(net: NetParameter) -> None:
    """Remove the Slice that separates the images of a pair where only one is used; the input then has that one's shape."""
    read = {blob for layer in net.layer for blob in layer.bottom}
    for place, layer in enumerate(net.layer):
        tops = [top for top in layer.top if top in read]
        source = next((other for other in net.layer if is_input(other) and list(other.top) == list(layer.bottom)), None)
        if traits(layer).role == "slice" and source is not None and len(tops) == 1 < len(layer.top):
            row = next(row for row in summarize(net).layers if row.name == layer.name)
            source.top[:] = tops
            source.input_param.shape[0].dim[:] = row.shapes[list(layer.top).index(tops[0])] or ()
            _rename_input_layer_to_blob(net, source)
            del net.layer[place]
            return


def _drop_labels(net: NetParameter) -> None:
    """Remove the tops of data layers that no layer reads; where none is read, keep the first."""
    read = {bottom for layer in net.layer for bottom in layer.bottom}
    for layer in net.layer:
        if not layer.bottom and len(layer.top) > 1:
            tops = [top for top in layer.top if top in read] or [layer.top[0]]
            _keep_entries(layer, [top in tops for top in layer.top])
            layer.top[:] = tops


def _keep_entries(layer: LayerParameter, kept: list[bool]) -> None:
    """Keep the entries of an Input or a DummyData layer, shapes and fillers, of the tops that are ``kept``."""
    if traits(layer).role not in ("input", "constant"):
        return
    settings = traits(layer).settings_of(layer)
    for field, values in settings.ListFields():
        if hasattr(values, "extend") and len(values) == len(kept):
            entries = type(settings)(**{field.name: [value for value, keep in zip(values, kept, strict=True) if keep]})
            settings.ClearField(field.name)
            settings.MergeFrom(entries)


def _rename_input_layer_to_blob(net: NetParameter, layer: LayerParameter) -> None:
    """Name an input layer after its blob (``mnist`` becomes ``data``), unless another layer has that name."""
    if layer.top[0] not in {other.name for other in net.layer}:
        layer.name = layer.top[0]


def _strip(layer: LayerParameter) -> None:
    """Remove the fields that only training needs from a layer, in place."""
    for field in ("include", "exclude", "loss_weight", "propagate_down"):
        layer.ClearField(field)
    names = [spec.name for spec in layer.param]
    layer.ClearField("param")
    if any(names):
        for name in names:
            layer.param.add(**({"name": name} if name else {}))
    if traits(layer).role in ("constant", "parameter"):
        return
    for settings, param in layer.ListFields():
        for filler in _fillers(settings):
            param.ClearField(filler)


@cache
def _fillers(field: FieldDescriptor) -> list[str]:
    """Return the names of the fillers in a layer's settings ``field``."""
    if field.message_type is None or not field.name.endswith("_param"):
        return []
    return [name for name in _FILLERS if name in field.message_type.fields_by_name]


def _append_output_activation(net: NetParameter, loss: LayerParameter, logits: str, base_name: str) -> None:
    """Append the layer that turns the logits of ``loss`` into probabilities."""
    kind = traits(loss).activation
    if not kind:
        return
    name = unused_name(net, base_name)
    layer = net.layer.add(name=name, type=kind, bottom=[logits], top=[name])
    copy_class_axis(loss, layer)
