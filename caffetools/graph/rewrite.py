"""Rewrite a net and its weights by passes: functions that insert, remove, rename and replace layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from caffetools.errors import NetError
from caffetools.graph.graph import Graph
from caffetools.proto.blobs import Array
from caffetools.proto.schema import LayerParameter, NetParameter


class Rewriter:
    """A net that is being rewritten. The net and the weights given are not changed; edits take effect in :meth:`result`.

    Indices are those of the net as it was given, also after edits. All edits together take linear time.

    Args:
        net: A ``NetParameter`` in today's form.
        weights: The parameter blobs by layer name, where the weights are rewritten too.
        phase: The phase that ``graph`` is of; None takes all layers.

    Attributes:
        net: The copy that is edited in place; its ``layer`` list keeps its indices until :meth:`result`.
        weights: The blobs by layer name; the arrays are shared with what was given until a pass replaces them.
        graph: Producers and consumers of the net as it was given.
    """

    def __init__(self, net: NetParameter, weights: Mapping[str, Sequence[Array]] | None = None, *, phase: int | None = None):
        self.net = NetParameter()
        self.net.CopyFrom(net)
        self.weights: dict[str, list[Array]] = {name: list(arrays) for name, arrays in (weights or {}).items()}
        self.graph = Graph(self.net, phase)
        self._removed: set[int] = set()
        self._inserted: dict[int, list[Any]] = {}
        self._names: dict[str, str] = {}

    def layer(self, index: int) -> LayerParameter:
        """Return the ``LayerParameter`` at ``index``, which may be edited."""
        return self.net.layer[index]

    def remove(self, index: int) -> None:
        """Remove a layer and its weights. What reads its tops must be rewired or removed too."""
        self._removed.add(index)
        self.weights.pop(self.layer(index).name, None)

    def bypass(self, index: int) -> None:
        """Remove a layer of one bottom and one top, and let the layers that read its top read its bottom.

        Raises:
            NetError: The layer has several bottoms or tops, its top is an output of the net, or another layer overwrites one of the
                two blobs before the last one has read it.
        """
        layer = self.layer(index)
        if not self.can_bypass(index):
            raise NetError("cannot be removed alone: what reads its top could not read its bottom instead", layer=layer.name)
        if (old := layer.top[0]) != (new := layer.bottom[0]):
            for consumer in self.graph.consumers(index, old):
                bottoms = self.layer(consumer).bottom
                bottoms[:] = [new if blob == old else blob for blob in bottoms]
        self.remove(index)

    def can_bypass(self, index: int) -> bool:
        """Return whether :meth:`bypass` would keep what the net computes."""
        layer = self.layer(index)
        if len(layer.bottom) != 1 or len(layer.top) != 1:
            return False
        old, new = layer.top[0], layer.bottom[0]
        if old == new:
            return True
        produced_again = self.graph.is_produced_after(index, old) or self.graph.is_produced_after(index, new)
        return bool(self.graph.consumers(index, old)) and not produced_again

    def insert(self, index: int, layers: Iterable[Any]) -> None:
        """Insert copies of ``layers`` before the layer at ``index``; the number of layers appends them."""
        self._inserted.setdefault(index, []).extend(layers)

    def replace(self, index: int, layers: Iterable[Any]) -> None:
        """Replace a layer by copies of ``layers``, which produce its tops."""
        self.insert(index, layers)
        self.remove(index)

    def rename_layer(self, old: str, new: str) -> None:
        """Rename a layer, and its weights with it; a net may have it once for each phase.

        Raises:
            NetError: No layer has the name, or another one has the new name.
        """
        names = {layer.name for layer in self.net.layer}
        if old not in names or new in names:
            raise NetError(f"cannot be renamed '{new}'" if old in names else "is not in the net", layer=old)
        for layer in self.net.layer:
            if layer.name == old:
                layer.name = new
        if old in self.weights:
            self.weights[new] = self.weights.pop(old)

    def rename_blob(self, old: str, new: str) -> None:
        """Rename a blob in all layers. Blobs renamed more than once take the last name; all are renamed in one go."""
        self._names[old] = new

    def result(self) -> NetParameter:
        """Return the rewritten ``NetParameter``; the weights are in :attr:`weights`."""
        made = NetParameter()
        made.CopyFrom(self.net)
        made.ClearField("layer")
        for index in range(len(self.net.layer) + 1):
            for layer in self._inserted.get(index, ()):
                made.layer.add().CopyFrom(layer)
            if index < len(self.net.layer) and index not in self._removed:
                made.layer.add().CopyFrom(self.net.layer[index])
        for layer in made.layer if self._names else ():
            for blobs in (layer.bottom, layer.top):
                blobs[:] = [self._names.get(blob, blob) for blob in blobs]
        return made


# A pass edits through the rewriter, and returns what it did: names of layers → names of layers that they took in or stand for.
Pass = Callable[[Rewriter], dict[str, list[str]]]


def run_passes(
    net: NetParameter, passes: Sequence[Pass], weights: Mapping[str, Sequence[Array]] | None = None, *, phase: int | None = None
) -> tuple[Any, dict[str, list[Array]], list[dict[str, list[str]]]]:
    """Run passes one after the other.

    Args:
        net: A ``NetParameter`` in today's form; it is not changed.
        passes: The passes, in order; each sees the net that the one before it made.
        weights: The parameter blobs by layer name.
        phase: The phase whose layers the passes see; None is all.

    Returns:
        The net, its weights, and what each pass did.
    """
    blobs = {name: list(arrays) for name, arrays in (weights or {}).items()}
    done = []
    for run in passes:
        rewriter = Rewriter(net, blobs, phase=phase)
        done.append(run(rewriter))
        net, blobs = rewriter.result(), rewriter.weights
    return net, blobs, done
