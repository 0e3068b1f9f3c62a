"""Insert new layers before the classifier, or behind any layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from caffetools.errors import NetError, did_you_mean
from caffetools.graph.classifiers import classifier_param, find_heads, primary_classifier
from caffetools.graph.graph import names_in_use, phases
from caffetools.graph.merges import is_linear
from caffetools.layers.activation import ReLU
from caffetools.layers.convolution import Convolution
from caffetools.layers.dropout import Dropout
from caffetools.layers.inner_product import InnerProduct
from caffetools.layers.normalization import BatchNorm
from caffetools.layers.pooling import Pooling
from caffetools.layers.registry import is_known, layer_class, traits
from caffetools.proto.schema import FillerParameter, LayerParameter, NetParameter
from caffetools.surgery.changes import Change
from caffetools.surgery.freezing import spread_rates
from caffetools.surgery.layer_spec import LayerSpec
from caffetools.surgery.losses import is_loss_or_metric
from caffetools.surgery.truncation import end_of_blob

# What a new layer is called, where its type's own name is longer than people write it.
_SHORT = {InnerProduct.TYPE: "fc", Convolution.TYPE: "conv", Pooling.TYPE: "pool", Dropout.TYPE: "drop", BatchNorm.TYPE: "bn"}


def add_layers(
    net: NetParameter,
    added: Sequence[LayerSpec],
    *,
    heads: Iterable[str] | None = None,
    lr_mult: float = 1.0,
    filler: FillerParameter | None = None,
    taken: Iterable[str] = (),
) -> tuple[list[Change], list[str]]:
    """Insert layers into a net, in place and in the order given.

    Layers without a position are inserted before the primary classifier (before each, where two branches merge); those behind a layer
    come behind the layers that work in place on its top, and all consumers of that blob read the last new layer's top.

    Args:
        net: A ``NetParameter`` in today's form.
        added: The layers to insert.
        heads: The classifiers' names, where they are not found from the graph.
        lr_mult: The factor of the new layers' lr_mult values.
        filler: The ``FillerParameter`` of weights that have none; by default xavier.
        taken: Names that new layers may not be given, such as those of the layers in the weights that training starts from.

    Returns:
        The changes, and the names of the new layers.

    Raises:
        NetError: The layer to insert behind is missing or has several tops, a name is in use, or the net would have another classifier.
    """
    made = _Inserter(net, lr_mult, filler, frozenset(taken))
    before = _main(net, heads)
    for after in dict.fromkeys(new.after for new in added):
        layers = [new.layer for new in added if new.after == after]
        if after is not None:
            _add_after(made, after, layers)
            continue
        for name in before:
            _add_before(made, name, layers)
    if _main(net, heads) != before:
        raise NetError(f"the new layers would come after the classifier {' and '.join(before)}; name a layer before it (--add-layer)")
    return made.changes, made.fresh


def _main(net: NetParameter, heads: Iterable[str] | None) -> list[str]:
    """Return the names of the classifiers that the loss with the largest weight reads."""
    found = find_heads(net, heads)
    loss_layer = primary_classifier(found).loss_layer
    return list(dict.fromkeys(head.layer for head in found if head.loss_layer == loss_layer))


class _Inserter:
    """A net into which layers are being inserted."""

    def __init__(self, net: NetParameter, lr_mult: float, filler: FillerParameter | None, taken: frozenset[str]):
        self.net, self.lr_mult, self.taken = net, lr_mult, taken
        self.filler = FillerParameter(type="xavier") if filler is None else filler
        self.changes: list[Change] = []
        self.fresh: list[str] = []

    def chain(self, place: int, blob: str, layers: Sequence[Any], where: str, rules: LayerParameter | None, names: list[str]) -> str:
        """Insert ``layers`` at index ``place``, the first reading ``blob``, with the phase rules of the layer ``rules``.

        ``names`` are those of a first copy; an empty list is filled with new names. Returns the top of the last layer.
        """
        before = ""
        if not names:
            names += self._names(layers)
        for offset, (given, name) in enumerate(zip(layers, names, strict=True)):
            layer = LayerParameter()
            layer.CopyFrom(given)
            layer.name = name
            if rules is not None:
                layer.include.extend(rules.include)
                layer.exclude.extend(rules.exclude)
            layer.bottom.append(blob)
            in_place = _may_overwrite(layer.type, before)
            blob = blob if in_place else layer.name
            layer.top.append(blob)
            self._learn(layer)
            self.net.layer.insert(place + offset, layer)
            self.changes.append(Change(layer.name, "layer", "", f"{layer.type}, {where}"))
            before = layer.type
        return blob

    def _names(self, layers: Sequence[Any]) -> list[str]:
        """Return a name for each layer that neither the net nor the weights have."""
        names: list[str] = []
        for given in layers:
            used = {*names_in_use(self.net), *self.taken, *names}
            base = str(given.name) or f"{_SHORT.get(given.type, given.type.lower())}_new"
            name, again = base, 1
            if given.name and name in used:
                owner = "weights have" if name in self.taken else f"net '{self.net.name}' has"
                hint = "give the new layer another name, since it is reinitialized (--add-layer)"
                raise NetError(f"the {owner} something called '{name}'; {hint}")
            while name in used:
                again += 1
                name = f"{base}{again}"
            names.append(name)
        self.fresh += names
        return names

    def _learn(self, layer: LayerParameter) -> None:
        if is_linear(layer):
            param = classifier_param(layer)
            if not param.HasField("weight_filler"):
                # Zeros, the default, would keep all gradients from the layers below.
                param.weight_filler.CopyFrom(self.filler)
            if not layer.param:
                layer.param.add(lr_mult=1, decay_mult=1)
                if param.bias_term:
                    layer.param.add(lr_mult=2, decay_mult=0)
        if self.lr_mult != 1:
            for spec in spread_rates(layer):
                spec.lr_mult *= self.lr_mult


def _may_overwrite(kind: str, before: str) -> bool:
    """Return whether a new layer of type ``kind`` may work in place on the top of a new layer of type ``before``."""
    if not before or not (is_known(kind) and is_known(before) and traits(kind).in_place):
        return False
    maker = layer_class(before)
    if maker.TRAITS.role == "dropout" or not maker.NEEDS_TOP:
        return True
    # A rectifier's gradient needs the sign of its top only, which dropout leaves or sets to 0 with the gradient.
    return before == ReLU.TYPE and traits(kind).role == "dropout"


def _add_before(inserter: _Inserter, name: str, layers: Sequence[Any]) -> None:
    """Insert before the classifier ``name``, of which a net may have one a phase."""
    net = inserter.net
    twins = [layer for layer in net.layer if layer.name == name and layer.bottom]
    blobs = {layer.bottom[0] for layer in twins}
    if len(blobs) != 1:
        raise NetError(
            f"reads {' and '.join(sorted(blobs)) or 'nothing'}; name the layer to insert after (--add-layer AFTER=…)", layer=name
        )
    blob = blobs.pop()
    places = [i for i, layer in enumerate(net.layer) if layer.name == name]
    makers = [graph.producer(i, blob) for graph in phases(net) for i in graph.layers if i in places]
    if all(maker is None or maker < places[0] for maker in makers):
        # One chain for all of them, where what they read is there before the first.
        copies = {places[0]: twins[0] if len(twins) == 1 else None}
    else:
        copies = {place: net.layer[place] for place in places}
    names: list[str] = []
    for place, rules in sorted(copies.items(), reverse=True):
        last = inserter.chain(place, blob, layers, f"before {name}", rules, names)
    for layer in net.layer:
        if layer.name == name:
            layer.bottom[0] = last


def _add_after(inserter: _Inserter, name: str, layers: Sequence[Any]) -> None:
    """Insert behind the layer ``name``, of which a net may have one a phase; consumers of its top read the last new layer's top."""
    net = inserter.net
    makers = [layer for layer in net.layer if layer.name == name]
    if not makers:
        known = [layer.name for layer in net.layer]
        raise NetError(f"the net '{net.name}' has no layer '{name}' to add one after{did_you_mean(name, known)} (--add-layer)")
    graphs = [graph for graph in phases(net) if any(layer.name == name for layer in graph.layers.values())]
    ends = [end_of_blob(graph, name, "--add-layer") for graph in graphs]
    readers = {i for graph, end in zip(graphs, ends, strict=True) for i in graph.consumers(*end)}
    place, blob = max(ends)
    if not readers or any(is_loss_or_metric(net.layer[i]) for i, _ in ends):
        raise NetError("has a top that no layer reads; name a layer before the classifier (--add-layer)", layer=name)
    if any(other != blob for _, other in ends):
        raise NetError("produces a different blob in each phase; name a layer after it (--add-layer)", layer=name)
    if readers and min(readers) <= place:
        raise NetError("has consumers that are defined once a phase; name a layer after it (--add-layer)", layer=name)
    reading = [net.layer[i] for i in readers]
    last = inserter.chain(place + 1, blob, layers, f"after {name}", makers[0] if len(makers) == 1 else None, [])
    for layer in reading:
        layer.bottom[:] = [last if bottom == blob else bottom for bottom in layer.bottom]
