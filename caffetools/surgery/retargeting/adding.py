"""Other depth: new layers put before the classifier, or behind any layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from caffetools.errors import NetError, did_you_mean
from caffetools.proto.schema import FillerParameter, LayerParameter
from caffetools.surgery.changes import Change
from caffetools.surgery.graph import names_in_use, phases
from caffetools.surgery.heads import LINEAR, classifier_param, find_heads, main_head
from caffetools.surgery.retargeting.added import AddedLayer
from caffetools.surgery.retargeting.cutting import end_of_blob
from caffetools.surgery.retargeting.learning import spread_rates

# What a new layer is called, where its type's own name is longer than people write it.
_SHORT = {"InnerProduct": "fc", "Convolution": "conv", "Pooling": "pool", "Dropout": "drop", "BatchNorm": "bn"}

# (layer, the new layer before it): the first may work in place, since the second needs no more of its own blob to go back.
_IN_PLACE = {"ReLU", "Dropout", "BatchNorm", "Scale"}
_OVERWRITABLE = {"InnerProduct", "Convolution", "BatchNorm", "Scale", "Dropout"}


def add_layers(
    net: Any,
    added: Sequence[AddedLayer],
    *,
    heads: Iterable[str] | None = None,
    lr_mult: float = 1.0,
    filler: Any | None = None,
    taken: Iterable[str] = (),
) -> tuple[list[Change], list[str]]:
    """Put ``added`` into ``net``, in place and in their order; return what changed and the names of those that start anew.

    Those without a place come before the main classifier (before each, where two branches meet); those behind a layer come behind all
    that works in place on its blob too, and what read that blob reads theirs.

    Args:
        net: A ``NetParameter`` in today's form.
        heads: The classifiers' names, where they are not to be found from the graph.
        lr_mult: What their lr_mult values are multiplied by. filler: for weights that have none; by default xavier.
        taken: Names that new layers must not be given here, such as those of the layers in the weights that training starts from.

    Raises:
        NetError: there is no such layer to come after, or none that makes one blob, or a name is in use.
    """
    made = _Adding(net, lr_mult, filler, frozenset(taken))
    for after in dict.fromkeys(new.after for new in added):
        layers = [new.layer for new in added if new.after == after]
        if after is not None:
            _add_after(made, after, layers)
            continue
        found = find_heads(net, heads)
        judge = main_head(found).judge
        for name in dict.fromkeys(head.layer for head in found if head.judge == judge):
            _add_before(made, name, layers)
    return made.changes, made.fresh


class _Adding:
    """A net to which layers are being added."""

    def __init__(self, net: Any, lr_mult: float, filler: Any | None, taken: frozenset[str]):
        self.net, self.lr_mult, self.taken = net, lr_mult, taken
        self.filler = FillerParameter(type="xavier") if filler is None else filler
        self.changes: list[Change] = []
        self.fresh: list[str] = []

    def chain(self, place: int, blob: str, layers: Sequence[Any], where: str, rules: Any | None = None) -> str:
        """Insert ``layers`` at ``place``, the first reading ``blob``, with the rules of the layer ``rules``; the blob of the last."""
        before = ""
        for offset, given in enumerate(layers):
            layer = LayerParameter()
            layer.CopyFrom(given)
            layer.name = self._name(given)
            if rules is not None:
                layer.include.extend(rules.include)
                layer.exclude.extend(rules.exclude)
            layer.bottom.append(blob)
            in_place = layer.type in _IN_PLACE and (before in _OVERWRITABLE or (before, layer.type) == ("ReLU", "Dropout"))
            blob = blob if in_place else layer.name
            layer.top.append(blob)
            self._learn(layer)
            self.net.layer.insert(place + offset, layer)
            self.changes.append(Change(layer.name, "layer", "", f"{layer.type}, {where}"))
            before = layer.type
        return blob

    def _name(self, given: Any) -> str:
        used = names_in_use(self.net)
        if given.name:
            if given.name in used:
                raise NetError(
                    f"the net '{self.net.name}' has something called '{given.name}'; give the new layer another name (--add-layer)"
                )
            return str(given.name)
        base = f"{_SHORT.get(given.type, given.type.lower())}_new"
        name, again = base, 1
        while name in used | self.taken:
            again += 1
            name = f"{base}{again}"
        self.fresh.append(name)
        return name

    def _learn(self, layer: Any) -> None:
        if layer.type in LINEAR:
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


def _add_before(adding: _Adding, name: str, layers: Sequence[Any]) -> None:
    """Before the classifier called ``name``, of which a net may have one a phase."""
    net = adding.net
    twins = [layer for layer in net.layer if layer.name == name and layer.bottom]
    blobs = {layer.bottom[0] for layer in twins}
    if len(blobs) != 1:
        raise NetError(
            f"reads {' and '.join(sorted(blobs)) or 'nothing'}; say which layer the new ones come after (--add-layer AFTER=…)", layer=name
        )
    place = next(i for i, layer in enumerate(net.layer) if layer.name == name)
    rules = twins[0] if len(twins) == 1 else None
    last = adding.chain(place, blobs.pop(), layers, f"before {name}", rules)
    for layer in net.layer:
        if layer.name == name:
            layer.bottom[0] = last


def _add_after(adding: _Adding, name: str, layers: Sequence[Any]) -> None:
    """Behind the layer called ``name``, of which a net may have one a phase: all that read its blob reads the last new one's."""
    net = adding.net
    makers = [layer for layer in net.layer if layer.name == name]
    if not makers:
        known = [layer.name for layer in net.layer]
        raise NetError(f"the net '{net.name}' has no layer '{name}' to add one after{did_you_mean(name, known)} (--add-layer)")
    graphs = [graph for graph in phases(net) if any(layer.name == name for layer in graph.layers.values())]
    ends = [end_of_blob(graph, name, "--add-layer") for graph in graphs]
    readers = {i for graph, end in zip(graphs, ends, strict=True) for i in graph.readers(*end)}
    place, blob = max(ends)
    if any(other != blob for _, other in ends):
        raise NetError("makes another blob in each phase; name a layer behind it (--add-layer)", layer=name)
    if readers and min(readers) <= place:
        raise NetError("is there once a phase, and read in between; name a layer behind it (--add-layer)", layer=name)
    reading = [net.layer[i] for i in readers]
    last = adding.chain(place + 1, blob, layers, f"after {name}", makers[0] if len(makers) == 1 else None)
    for layer in reading:
        layer.bottom[:] = [last if bottom == blob else bottom for bottom in layer.bottom]
