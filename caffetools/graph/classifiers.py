"""Find a network's classifiers from its graph: what the losses read, followed upwards to the layer that computes the scores."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from caffetools.errors import NetError, did_you_mean
from caffetools.graph.graph import Graph, phases
from caffetools.graph.merges import TRANSPARENT, averaged_probabilities, is_classifier, is_linear
from caffetools.layers.python import named_classes
from caffetools.layers.registry import traits, types
from caffetools.layers.softmax import SoftmaxWithLoss
from caffetools.layers.traits import field_at
from caffetools.proto.schema import LayerParameter, NetParameter

# Region proposals have so many scores an anchor, for any number of classes.
_OBJECT_OR_NOT = 2
# Further layers that move or join scores before a layer that names the number of classes reads them, as in SSD.
_MOVES_SCORES = frozenset({*TRANSPARENT, "concat", "permute"})


class _Unknown(NetError):
    """The classifier cannot be found from the graph."""


class _Reshaped(NetError):
    """The outputs of the layer ``classifier`` are several scores for each of ``classes`` classes."""

    classifier = ""
    classes = 0


@dataclass(frozen=True)
class Head:
    """A classifier layer of a net.

    Attributes:
        layer: Its name.
        type_name: Its Caffe type.
        num_output: Its number of outputs.
        loss_layer: The name of the loss (of a deploy net: the Softmax) that reads it; "" where none was found.
        weight: That loss's weight.
        followers: Layers between the two that have parameters for each class, such as a Scale, or a Deconvolution that enlarges maps.
        reshapes: (name, axis) of Reshape layers between the two whose shape may name the number of classes, with the axis of the classes.
        outputs_per_class: How many of its outputs belong to each class, such as one for each prior box.
        box_numbers: How many numbers of its own each of these boxes has next to its scores, as in YOLO.
        counters: (layer, ``settings.field``) of further layers that read the scores and name the number of classes.
    """

    layer: str
    type_name: str
    num_output: int
    loss_layer: str
    weight: float
    followers: tuple[str, ...] = ()
    reshapes: tuple[tuple[str, int], ...] = ()
    outputs_per_class: int = 1
    counters: tuple[tuple[str, str], ...] = ()
    box_numbers: int = 0

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.num_output // self.outputs_per_class - self.box_numbers

    def outputs_for(self, classes: int) -> int:
        """Return the number of outputs for another number of classes."""
        return (classes + self.box_numbers) * self.outputs_per_class


def find_heads(param: NetParameter, names: Iterable[str] | None = None) -> list[Head]:
    """Return the classifier layers of a net, in the order of their losses; those of files with both phases once.

    A loss that reads the sum (or product, or maximum) of several classifiers' scores, as where two branches meet, has all of them.
    A SigmoidCrossEntropyLoss that compares a net's output with its own input, as autoencoders do, has none, and the two scores of
    each anchor of region proposals are none where there is another. Without any loss over classes the layers are taken whose scores
    a layer reads that names the number of classes (SSD's MultiBoxLoss), or else the Softmax layers whose tops are outputs, or the
    Sigmoid layers. Linear layers that share a classifier's parameters are classifiers as well.

    Args:
        param: A ``NetParameter`` in today's form.
        names: The classifier layers' names, where the graph should not decide.

    Raises:
        NetError: There is no classifier, one of ``names`` is not one, or a layer reads scores of others that are not named.
    """
    graphs = phases(param)
    if names is not None:
        heads = _with_twins(param, graphs, [_named(param, graphs, name) for name in names])
        _check_counters(graphs, heads)
        return heads
    found: dict[str, Head] = {}
    proposals: _Reshaped | None = None
    for graph, index in _score_consumers(graphs):
        try:
            for head in _classifiers(graph, index):
                found.setdefault(head.layer, head)
        except _Reshaped as error:
            if error.classes != _OBJECT_OR_NOT or not detects(graph):
                raise
            proposals = error
    if not found and proposals is not None:
        raise NetError(f"{proposals.message}; there is no other classifier", layer=proposals.layer)
    if not found:
        raise NetError(
            f"no classifier was found in the net '{param.name}': it has no {SoftmaxWithLoss.TYPE} or other loss over classes, "
            "and no Softmax as an output"
        )
    counted = [_counted(graphs, head) for head in found.values()]
    heads = _with_twins(param, graphs, counted + _of_proposals(graphs, counted))
    _check_counters(graphs, heads)
    return heads


def primary_classifier(heads: list[Head]) -> Head:
    """Return the head whose loss has the largest weight; of equals, the last."""
    return max(enumerate(heads), key=lambda item: (item[1].weight, item[0]))[1]


def classifier_param(layer: LayerParameter) -> Any:
    """Return the settings message of a classifier layer, which has ``num_output``."""
    return traits(layer).settings_of(layer)


def compares_classes(layer: LayerParameter) -> bool:
    """Return whether ``layer`` is a loss that compares one score a class with labels."""
    return traits(layer).role == "loss" and traits(layer).compares in ("classes", "targets")


def detects(graph: Graph) -> bool:
    """Return whether a net has layers for regions, boxes or their targets, or of the user's own that name a number of classes."""
    for layer in graph.layers.values():
        facts = traits(layer)
        if facts.role == "detection" or facts.class_count or facts.names_classes:
            return True
        if facts.user_code and named_classes(layer.python_param.param_str):
            return True
    return False


def copy_class_axis(source: LayerParameter, target: LayerParameter) -> None:
    """Set the class axis of layer ``target`` (a loss, a Softmax or similar) to that of layer ``source``, in place."""
    given, wanted = traits(source).class_axis, traits(target).class_axis
    if given and wanted:
        (message, field), (into, name) = field_at(source, given), field_at(target, wanted)
        if message.HasField(field):
            setattr(into, name, getattr(message, field))


def flattens(layer: LayerParameter) -> bool:
    """Return whether ``layer`` makes (N, values) of any bottom: a Flatten, or a Reshape with these dims."""
    facts, param = traits(layer), layer.reshape_param
    if facts.role != "reshape":
        return False
    return facts.channels == "kept" or (param.axis == 0 and param.num_axes == -1 and list(param.shape.dim) == [0, -1])


def loss_weight(layer: LayerParameter) -> float:
    """Return the weight of a loss layer's first top; 1 where none is given."""
    return float(layer.loss_weight[0]) if layer.loss_weight else 1.0


def _score_consumers(graphs: Sequence[Graph]) -> list[tuple[Graph, int]]:
    """Return (graph, index) of the layers that read scores: the losses of both phases, else the final Softmax (or Sigmoid) layers."""
    losses = [(graph, i) for graph in graphs for i, layer in graph.layers.items() if compares_classes(layer)]
    if losses:
        return [(graph, i) for graph, i in losses if not _reconstructs(graph, i)]
    counting = [(graph, i) for graph in graphs for i, layer in graph.layers.items() if traits(layer).counts_classes(layer) and layer.bottom]
    counting = [(graph, i) for graph, i in counting if not traits(graph.layers[i]).class_maps and _score_layers(graph, i)]
    if counting:
        return counting
    answers = [(graph, i) for graph in graphs for i in _last_layers(graph) if traits(graph.layers[i]).loss]
    # Probabilities that add up to 1 come before those of one class each.
    return [at for at in answers if traits(at[0].layers[at[1]]).role == "probability"] or answers


def _last_layers(graph: Graph) -> list[int]:
    """Return the indices of the layers that make the outputs, those above a last Reshape or an average of probabilities in its place."""
    found: dict[int, None] = {}
    for index, blob in graph.outputs():
        makers = [index] if traits(graph.layers[index]).role != "reshape" else graph.walk_up(len(graph.param.layer), blob)
        maker = next((i for i in makers if traits(graph.layers[i]).role != "reshape"), None)
        if maker is not None:
            found |= dict.fromkeys(averaged_probabilities(graph, maker) or [maker])
    return list(found)


def _reconstructs(graph: Graph, index: int) -> bool:
    """Return whether a loss compares scores with what they are made from."""
    loss = graph.layers[index]
    if traits(loss).compares != "targets" or len(loss.bottom) < 2:
        return False
    scores, labels = (_roots(graph, index, bottom) for bottom in loss.bottom[:2])
    return labels <= scores


def _roots(graph: Graph, index: int, blob: str) -> set[str]:
    """Return the blobs of data layers and inputs that ``blob``, as layer ``index`` reads it, comes from."""
    pending, roots, seen = [(index, blob)], set[str](), set[tuple[int, str]]()
    while pending:
        use = pending.pop()
        if use in seen:
            continue
        seen.add(use)
        maker = graph.producer(*use)
        if maker is None or not graph.layers[maker].bottom:
            roots.add(use[1])
        else:
            pending += [(maker, bottom) for bottom in graph.layers[maker].bottom]
    return roots


def _classifiers(graph: Graph, index: int) -> list[Head]:
    """Follow the scores that the layer at ``index`` reads up to its classifiers."""
    loss = graph.layers[index]
    if traits(loss).class_count:
        layers = [graph.layers[i] for i in _score_layers(graph, index)]
        return [Head(layer.name, layer.type, traits(layer).num_output(layer), loss.name, loss_weight(loss)) for layer in layers]
    if not loss.bottom:
        raise _Unknown(f"no classifier was found above {loss.type} '{loss.name}': it reads nothing", layer=loss.name)
    return _follow(graph, loss, index, loss.bottom[0], (), (), _class_axis(loss))


def _class_axis(layer: LayerParameter) -> int:
    """Return the class axis of the bottom of a loss or of a layer that computes probabilities."""
    if not (path := traits(layer).class_axis):
        return 1
    message, field = field_at(layer, path)
    return int(getattr(message, field))


def _score_layers(graph: Graph, index: int) -> list[int]:
    """Return the indices of the classifiers whose scores the layer at ``index`` reads, moved and joined in any way; empty where one is unknown."""
    layer = graph.layers[index]
    pending = [(index, blob) for blob in reversed(traits(layer).scores(layer))]
    found: dict[int, None] = {}
    while pending:
        producer = graph.producer(*pending.pop())
        if producer is None:
            return []
        above = graph.layers[producer]
        if is_linear(above):
            found[producer] = None
        elif traits(above).role in _MOVES_SCORES:
            pending += [(producer, blob) for blob in reversed(above.bottom)]
        else:
            return []
    return list(found)


def _counted(graphs: Sequence[Graph], head: Head) -> Head:
    """Return ``head`` with the layers that name its number of classes too.

    Raises:
        NetError: They name different numbers, or one that its outputs cannot be divided by.
    """
    counters, reshapes = collect_counters(graphs, head.layer)
    numbers = set(counters.values()) or {head.num_output}
    named = " and ".join(f"'{layer}' names {number}" for (layer, _), number in counters.items())
    if not counters and not head.num_output:
        return head
    boxes = _box_numbers(graphs, counters)
    if len(numbers) > 1 or min(numbers) < 1 or head.num_output % (min(numbers) + boxes):
        raise NetError(
            f"has {head.num_output} outputs, but {named} classes, which does not fit; such a classifier must be changed by hand",
            layer=head.layer,
        )
    classes = min(numbers)
    places = dict(head.reshapes)
    for name, layer in reshapes.items():
        dims = list(layer.reshape_param.shape.dim)
        if name in places and not counters:
            continue
        if dims.count(classes) == 1:
            places[name] = dims.index(classes)
        elif classes in dims:
            raise NetError(f"has {classes} twice in its shape, of which one is the number of classes; change it by hand", layer=name)
    each = head.num_output // (classes + boxes)
    return replace(head, outputs_per_class=each, counters=tuple(counters), reshapes=tuple(places.items()), box_numbers=boxes)


def _of_proposals(graphs: Sequence[Graph], heads: Sequence[Head]) -> list[Head]:
    """Return the classifiers of a detector's proposals, which give a score for each class of ``heads`` too, next to the numbers of a box (MSCNN)."""
    known, classes = {head.layer for head in heads}, {head.classes for head in heads}
    found: dict[str, Head] = {}
    for graph, index in [(one, i) for one in graphs for i, layer in one.layers.items() if traits(layer).box_numbers]:
        facts = traits(graph.layers[index])
        for above in (graph.layers[i] for i in _score_layers(graph, index)):
            outputs = traits(above).num_output(above)
            if facts.class_count and not facts.counts_classes(graph.layers[index]):
                known.add(above.name)
            elif classes == {outputs - facts.box_numbers}:
                found[above.name] = Head(above.name, above.type, outputs, "", 0.0, box_numbers=facts.box_numbers)
    return [_counted(graphs, head) if collect_counters(graphs, name)[0] else head for name, head in found.items() if name not in known]


def _box_numbers(graphs: Sequence[Graph], counters: Collection[tuple[str, str]]) -> int:
    """Return how many numbers of its own each box has in the scores that the layers of ``counters`` read."""
    names = {name for name, _ in counters}
    return max((traits(layer).box_numbers for graph in graphs for layer in graph.layers.values() if layer.name in names), default=0)


def collect_counters(graphs: Sequence[Graph], name: str) -> tuple[dict[tuple[str, str], int], dict[str, Any]]:
    """Return what depends on the number of outputs of a layer, followed down through layers that move scores.

    Args:
        graphs: The graphs of both phases.
        name: The layer's name.

    Returns:
        (layer, ``settings.field``) → number, of layers that name a number of classes, and the Reshape layers by name.
    """
    counters: dict[tuple[str, str], int] = {}
    reshapes: dict[str, Any] = {}
    for graph in graphs:
        for index, layer in graph.layers.items():
            if layer.name == name:
                _collect_counters(graph, index, counters, reshapes)
    return counters, reshapes


def _collect_counters(graph: Graph, index: int, counters: dict[tuple[str, str], int], reshapes: dict[str, Any]) -> None:
    for layer, blob in score_readers(graph, index):
        facts = traits(layer)
        if facts.counts_classes(layer) and blob in facts.scores(layer):
            counters |= {(layer.name, path): int(getattr(*field_at(layer, path))) for path in facts.class_count}
        if _moves_scores(layer) and facts.channels == "reshaped":
            reshapes[layer.name] = layer


def score_readers(graph: Graph, index: int) -> Iterator[tuple[LayerParameter, str]]:
    """Yield the layers that read what the layer at ``index`` gives, followed down through those that move or join scores, each with the blob read."""
    pending, seen = [(index, top) for top in graph.layers[index].top], set[int]()
    while pending:
        producer, blob = pending.pop()
        for consumer in graph.consumers(producer, blob):
            layer = graph.layers[consumer]
            if consumer in seen:
                continue
            yield layer, blob
            if _moves_scores(layer):
                seen.add(consumer)
                pending += [(consumer, top) for top in layer.top]


def _moves_scores(layer: LayerParameter) -> bool:
    # Behind R-FCN's pooling of score maps there still are classes.
    facts = traits(layer)
    return facts.role in _MOVES_SCORES or facts.class_maps


def _with_twins(param: NetParameter, graphs: Sequence[Graph], heads: list[Head]) -> list[Head]:
    """Return ``heads`` and the layers that compute the same scores of other inputs: those that share their parameters."""
    known = {head.layer for head in heads}
    for head in list(heads):
        shared = {spec.name for layer in param.layer if layer.name == head.layer for spec in layer.param[:1] if spec.name}
        for layer in param.layer if shared else ():
            if layer.name in known or (layer.type, traits(layer).num_output(layer)) != (head.type_name, head.num_output):
                continue
            if any(spec.name in shared for spec in layer.param[:1]):
                known.add(layer.name)
                heads.append(_counted(graphs, Head(layer.name, layer.type, head.num_output, "", 0.0)))
    return heads


def _check_counters(graphs: Sequence[Graph], heads: Sequence[Head]) -> None:
    """Raise :class:`NetError` where a layer that names the number of classes reads the scores of further classifiers than ``heads``."""
    names = {head.layer for head in heads}
    counters = {layer for head in heads for layer, _ in head.counters}
    for graph in graphs if counters else ():
        for index, layer in graph.layers.items():
            others = [graph.layers[i].name for i in _score_layers(graph, index)] if layer.name in counters else []
            if missing := [name for name in others if name not in names]:
                raise NetError(
                    f"reads the scores of {', '.join(missing)} too, which would have another number of classes then; "
                    "name all of them (--head)",
                    layer=layer.name,
                )


def _follow(
    graph: Graph, loss: LayerParameter, index: int, blob: str, followers: tuple[str, ...], reshapes: tuple[tuple[str, int], ...], axis: int
) -> list[Head]:
    pooled = 0
    at = f"{loss.type} '{loss.name}'"
    where = f"the scores that {at} reads"
    for maker in graph.walk_up(index, blob):
        layer = graph.layers[maker]
        if is_classifier(layer):
            outputs = traits(layer).num_output(layer)
            if below := _enlarged(graph, loss, maker, followers, reshapes, axis):
                return below
            _check_reshapes(graph, reshapes, layer, pooled or outputs)
            return [Head(layer.name, layer.type, outputs, loss.name, loss_weight(loss), followers, reshapes)]
        facts = traits(layer)
        if facts.channels == "kept" and facts.class_axes:
            followers += (layer.name,)
        elif facts.class_maps:
            # R-FCN's pooling of score maps: each class has several of the classifier's maps.
            pooled = facts.named_classes(layer)
        elif facts.channels == "reshaped" and _keeps_classes(layer, axis):
            reshapes += ((layer.name, axis),)
            # Above it the scores are as the classifier gives them.
            axis = 1
        elif facts.role == "merge" and len(layer.bottom) > 1:
            with suppress(_Unknown):
                # Where two branches meet, each must end in a classifier.
                return [h for b in dict.fromkeys(layer.bottom) for h in _follow(graph, loss, maker, b, followers, reshapes, axis)]
            raise _not_found(at, where, layer)
        elif facts.channels != "kept" or facts.role not in TRANSPARENT or (axis > 1 and not _leaves_axis(layer, axis)):
            raise _not_found(at, where, layer)
    raise _Unknown(f"no classifier was found above {at}: {where} are an input of the net", layer=loss.name)


def _leaves_axis(layer: LayerParameter, axis: int) -> bool:
    """Return whether a layer between a loss and a Reshape leaves the classes on ``axis``, behind the channels, as they are."""
    if traits(layer).role != "pooling":
        return not traits(layer).coordinates or traits(layer).coordinates == "same"
    param = layer.pooling_param
    window = {2: param.kernel_h or param.kernel_size, 3: param.kernel_w or param.kernel_size}
    return not param.global_pooling and window.get(axis) == 1


def _enlarged(
    graph: Graph, loss: LayerParameter, index: int, followers: tuple[str, ...], reshapes: tuple[tuple[str, int], ...], axis: int
) -> list[Head]:
    """Return the classifiers whose maps the Deconvolution at ``index`` enlarges: those below it with as many outputs; none for other layers."""
    layer = graph.layers[index]
    if traits(layer).coordinates != "transposed" or not layer.bottom:
        return []
    with suppress(_Unknown):
        below = _follow(graph, loss, index, layer.bottom[0], (*followers, layer.name), reshapes, axis)
        if all(head.num_output == traits(layer).num_output(layer) for head in below):
            return below
    return []


def _not_found(at: str, where: str, layer: LayerParameter) -> NetError:
    return _Unknown(
        f"no classifier was found above {at}: looked for an InnerProduct or Convolution, but {where} come from this "
        f"{layer.type} layer; name the classifiers yourself (--head)",
        layer=layer.name,
    )


def _keeps_classes(reshape: LayerParameter, axis: int) -> bool:
    """Return whether a Reshape of the whole blob leaves the classes on ``axis``, or alone on axis 1 as in [0, -1]."""
    param = reshape.reshape_param
    dims = list(param.shape.dim)
    return param.axis == 0 and param.num_axes == -1 and len(dims) > axis >= 1 and (dims[axis] >= 0 or len(dims) == 2)


def _check_reshapes(graph: Graph, reshapes: tuple[tuple[str, int], ...], classifier: LayerParameter, outputs: int) -> None:
    axes = dict(reshapes)
    for layer in graph.layers.values():
        if layer.name in axes and (dim := layer.reshape_param.shape.dim[axes[layer.name]]) not in (0, -1, outputs):
            error = _Reshaped(_several(graph, dim, classifier.name, outputs), layer=layer.name)
            error.classifier, error.classes = classifier.name, dim
            raise error


def _several(graph: Graph, classes: int, classifier: str, outputs: int) -> str:
    """Return what is said of a Reshape to fewer classes than a classifier has outputs."""
    has = f"has {classes} in its shape, but '{classifier}' has {outputs} outputs"
    if classes == _OBJECT_OR_NOT and outputs % classes == 0 and detects(graph):
        return f"{has}: two scores, object or not, for each of {outputs // classes} anchors, which do not depend on the number of classes"
    return f"{has}, so several of them belong to each class; change such a classifier, and the layers that depend on it, by hand"


def _named(param: NetParameter, graphs: Sequence[Graph], name: str) -> Head:
    layer = next((layer for layer in param.layer if layer.name == name), None)
    if layer is None:
        raise NetError(f"the net '{param.name}' has no layer '{name}'{did_you_mean(name, [layer.name for layer in param.layer])} (--head)")
    if not is_classifier(layer):
        raise NetError(f"is a {layer.type} layer; a classifier is one of {', '.join(types(role='classifier'))} (--head)", layer=name)
    for graph, index in _score_consumers(graphs):
        try:
            heads = _classifiers(graph, index)
        except _Reshaped as error:
            if error.classifier == name:
                raise
            continue
        except _Unknown:
            continue
        for head in heads:
            if head.layer == name:
                return _counted(graphs, head)
            if any(graph.layers[i].name == name for i in graph.needed([(index, graph.layers[index].bottom[0])])):
                raise NetError(f"is not a classifier: '{head.layer}' is, and reads what is made from it (--head)", layer=name)
    return _counted(graphs, Head(name, layer.type, traits(layer).num_output(layer), "", 0.0))
