"""Finding a network's classifiers from its graph: what the losses read, followed upwards to the layer that makes the scores."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from caffetools.errors import NetError, did_you_mean
from caffetools.graph.graph import Graph, phases
from caffetools.layers.registry import traits, types
from caffetools.layers.softmax import SoftmaxWithLoss
from caffetools.layers.traits import field_at
from caffetools.proto.schema import LayerParameter, NetParameter

# What may stand between a classifier and its loss and has no parameters: the classes keep their places.
_TRANSPARENT = {"activation", "dropout", "pooling", "sampling", "reshape", "probability", "split"}


class _Unknown(NetError):
    """Nobody can tell from the graph where the classifier is."""


class _Reshaped(NetError):
    """The outputs of the layer ``classifier`` are no classes each."""

    classifier = ""


@dataclass(frozen=True)
class Head:
    """A classifier layer of a net.

    Attributes:
        layer, type_name, num_output: its name, Caffe type and number of classes.
        judge: the loss (of a deploy net: the Softmax) that reads it. weight: that loss's weight.
        followers: layers between the two that have parameters for each class, such as a Scale, or a Deconvolution that enlarges maps.
        reshapes: Reshape layers between the two, whose shape may name the number of classes.
    """

    layer: str
    type_name: str
    num_output: int
    judge: str
    weight: float
    followers: tuple[str, ...] = ()
    reshapes: tuple[str, ...] = ()


def find_heads(param: NetParameter, names: Iterable[str] | None = None) -> list[Head]:
    """The classifier layers of ``param``, in the order of their losses; files with both phases count once.

    A loss that reads the sum (or product, or maximum) of several classifiers' scores, as where two branches meet, has all of them.
    A SigmoidCrossEntropyLoss that compares a net's output with its own input, as autoencoders do, has none.

    Args:
        param: A ``NetParameter`` in today's form. Without any class loss, the Softmax layers whose tops are outputs count as judges,
            and without those the Sigmoid layers.
        names: The classifier layers' names, where the graph should not decide.

    Raises:
        NetError: there is no classifier, or one of ``names`` is none; the message says what was looked for and found.
    """
    if names is not None:
        return [_named(param, name) for name in names]
    heads: dict[str, Head] = {}
    for graph, index in _judges(param):
        for head in _classifiers(graph, index):
            heads.setdefault(head.layer, head)
    if not heads:
        raise NetError(
            f"no classifier was found in the net '{param.name}': it has no {SoftmaxWithLoss.TYPE} or other loss over classes, "
            "and no Softmax as an output"
        )
    return list(heads.values())


def primary_classifier(heads: list[Head]) -> Head:
    """The head whose loss counts most; of equals, the last."""
    return max(enumerate(heads), key=lambda item: (item[1].weight, item[0]))[1]


def classifier_param(layer: LayerParameter) -> Any:
    """The part of a classifier layer that has ``num_output``."""
    return traits(layer).settings_of(layer)


def is_classifier(layer: LayerParameter) -> bool:
    """Whether each output of ``layer`` is a weighted sum of its input, so that it may give one score a class."""
    return traits(layer).role == "classifier"


def is_linear(layer: LayerParameter) -> bool:
    """Whether ``layer`` is such a layer whose outputs depend on its input only, not on labels too."""
    return is_classifier(layer) and not traits(layer).label_bottoms


def is_pointwise(layer: LayerParameter) -> bool:
    """Whether ``layer`` maps each value by itself, without parameters."""
    return traits(layer).role in ("activation", "dropout") and traits(layer).channels == "kept" and not traits(layer).class_axes


def compares_classes(layer: LayerParameter) -> bool:
    """Whether ``layer`` is a loss that compares one score a class with labels."""
    return traits(layer).role == "loss" and traits(layer).compares in ("classes", "targets")


def copy_class_axis(source: Any, target: Any) -> None:
    """Let layer ``target``, a loss or what turns scores into answers, work along the axis on which ``source`` has the classes."""
    given, wanted = traits(source).class_axis, traits(target).class_axis
    if given and wanted:
        (message, field), (into, name) = field_at(source, given), field_at(target, wanted)
        if message.HasField(field):
            setattr(into, name, getattr(message, field))


def flattens(layer: LayerParameter) -> bool:
    """Whether ``layer`` makes (N, values) of any bottom: a Flatten, or a Reshape with these dims."""
    facts, param = traits(layer), layer.reshape_param
    if facts.role != "reshape":
        return False
    return facts.channels == "kept" or (param.axis == 0 and param.num_axes == -1 and list(param.shape.dim) == [0, -1])


def loss_weight(layer: LayerParameter) -> float:
    """The weight of a loss layer's first top; 1 where none is given."""
    return float(layer.loss_weight[0]) if layer.loss_weight else 1.0


def _judges(param: Any) -> list[tuple[Graph, int]]:
    """(graph, place) of what reads scores: the losses of both phases, else the final Softmax (or Sigmoid) layers."""
    graphs = phases(param)
    losses = [(graph, i) for graph in graphs for i, layer in graph.layers.items() if compares_classes(layer)]
    if losses:
        return [(graph, i) for graph, i in losses if not _reconstructs(graph, i)]
    answers = [(graph, i) for graph in graphs for i, _ in graph.outputs() if traits(graph.layers[i]).loss]
    # Probabilities that add up to 1 come before those of one class each.
    return [at for at in answers if traits(at[0].layers[at[1]]).role == "probability"] or answers


def _reconstructs(graph: Graph, index: int) -> bool:
    """Whether a loss compares scores with what they are made from."""
    loss = graph.layers[index]
    if traits(loss).compares != "targets" or len(loss.bottom) < 2:
        return False
    scores, labels = (_roots(graph, index, bottom) for bottom in loss.bottom[:2])
    return labels <= scores


def _roots(graph: Graph, index: int, blob: str) -> set[str]:
    """The blobs of data layers and inputs that ``blob``, as layer ``index`` reads it, comes from."""
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
    """Follow the first bottom of the layer at ``index`` up to its classifiers."""
    judge = graph.layers[index]
    if not judge.bottom:
        raise _Unknown(f"no classifier was found above {judge.type} '{judge.name}': it reads nothing", layer=judge.name)
    return _follow(graph, judge, index, judge.bottom[0], (), ())


def _follow(graph: Graph, judge: Any, index: int, blob: str, followers: tuple[str, ...], reshapes: tuple[str, ...]) -> list[Head]:
    at = f"{judge.type} '{judge.name}'"
    where = f"the scores that {at} reads"
    for maker in graph.walk_up(index, blob):
        layer = graph.layers[maker]
        if is_classifier(layer):
            outputs = traits(layer).num_output(layer)
            if below := _enlarged(graph, judge, maker, followers, reshapes):
                return below
            _check_reshapes(graph, reshapes, layer, outputs)
            return [Head(layer.name, layer.type, outputs, judge.name, loss_weight(judge), followers, reshapes)]
        facts = traits(layer)
        if facts.channels == "kept" and facts.class_axes:
            followers += (layer.name,)
        elif facts.channels == "reshaped" and _keeps_classes(layer):
            reshapes += (layer.name,)
        elif facts.role == "merge" and len(layer.bottom) > 1:
            with suppress(_Unknown):
                # Where two branches meet, each must end in a classifier.
                return [h for b in dict.fromkeys(layer.bottom) for h in _follow(graph, judge, maker, b, followers, reshapes)]
            raise _not_found(at, where, layer)
        elif facts.channels != "kept" or facts.role not in _TRANSPARENT:
            raise _not_found(at, where, layer)
    raise _Unknown(f"no classifier was found above {at}: {where} are an input of the net", layer=judge.name)


def _enlarged(graph: Graph, judge: Any, index: int, followers: tuple[str, ...], reshapes: tuple[str, ...]) -> list[Head]:
    """The classifiers whose maps the Deconvolution at ``index`` enlarges: those below it with as many outputs; none for other layers."""
    layer = graph.layers[index]
    if traits(layer).coordinates != "transposed" or not layer.bottom:
        return []
    with suppress(_Unknown):
        below = _follow(graph, judge, index, layer.bottom[0], (*followers, layer.name), reshapes)
        if all(head.num_output == traits(layer).num_output(layer) for head in below):
            return below
    return []


def _not_found(at: str, where: str, layer: LayerParameter) -> NetError:
    return _Unknown(
        f"no classifier was found above {at}: looked for an InnerProduct or Convolution, but {where} come from this "
        f"{layer.type} layer; name the classifiers yourself (--head)",
        layer=layer.name,
    )


def _keeps_classes(reshape: Any) -> bool:
    """Whether a Reshape of the whole blob leaves the classes on axis 1, or by themselves on it as in [0, -1]."""
    param = reshape.reshape_param
    dims = list(param.shape.dim)
    return param.axis == 0 and param.num_axes == -1 and len(dims) > 1 and (dims[1] >= 0 or len(dims) == 2)


def _check_reshapes(graph: Graph, reshapes: tuple[str, ...], classifier: Any, outputs: int) -> None:
    for layer in graph.layers.values():
        if layer.name in reshapes and (dim := layer.reshape_param.shape.dim[1]) not in (0, -1, outputs):
            error = _Reshaped(
                f"makes {dim} of the {outputs} outputs of '{classifier.name}', which are several scores a class then; "
                "such a classifier must be changed by hand, with what else depends on it",
                layer=layer.name,
            )
            error.classifier = classifier.name
            raise error


def _named(param: NetParameter, name: str) -> Head:
    layer = next((layer for layer in param.layer if layer.name == name), None)
    if layer is None:
        raise NetError(f"the net '{param.name}' has no layer '{name}'{did_you_mean(name, [layer.name for layer in param.layer])} (--head)")
    if not is_classifier(layer):
        raise NetError(f"is a {layer.type} layer; a classifier is one of {', '.join(types(role='classifier'))} (--head)", layer=name)
    for graph, index in _judges(param):
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
                return head
            if any(graph.layers[i].name == name for i in graph.needed([(index, graph.layers[index].bottom[0])])):
                raise NetError(f"is no classifier: '{head.layer}' is, and reads what is made from it (--head)", layer=name)
    return Head(name, layer.type, classifier_param(layer).num_output, "", 0.0)
