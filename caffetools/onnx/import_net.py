"""The Caffe net that an import writes: layers, their weights, and which blob holds which value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from caffetools.layers.base import Shape
from caffetools.layers.concat import Silence
from caffetools.layers.inputs import Input
from caffetools.onnx.import_graph import ImportGraph, Node
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import LayerParameter, NetParameter

Array = NDArray[Any]
# bvlc: layers of BVLC Caffe 1.0; ssd: and those of SSD's fork; any: and those of other forks that caffetools computes.
Target = Literal["bvlc", "ssd", "any"]
TARGETS: tuple[Target, ...] = ("bvlc", "ssd", "any")

Handler = Callable[["NetWriter", Node], None]
_HANDLERS: dict[str, list[tuple[int, Handler]]] = {}


def importer(*ops: str, since: int = 1) -> Callable[[Handler], Handler]:
    """Register a function that adds the layers of ONNX operators; a decorator.

    Args:
        ops: Operator names, as in :attr:`Node.op`: those of another domain than ONNX's own with it in front.
        since: The lowest opset that it is right for; of several functions the one with the highest applies.
    """

    def bind(handler: Handler) -> Handler:
        for op in ops:
            _HANDLERS.setdefault(op, []).append((since, handler))
        return handler

    return bind


def find_handler(op: str, opset: int) -> Handler | None:
    """Return the function for an operator of an opset; None where there is none."""
    fitting = [entry for entry in _HANDLERS.get(op, ()) if entry[0] <= opset]
    return max(fitting, key=lambda entry: entry[0])[1] if fitting else None


def imported_operators() -> list[str]:
    """Return the names of all of ONNX's operators that can be imported, sorted; not those that merging patterns makes."""
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    return sorted(op for op in _HANDLERS if op in known)


class NetWriter:
    """Collects the layers of the Caffe net.

    Attributes:
        graph: The ONNX graph.
        target: Which layers may be used.
        net: The net so far, without weights.
        blobs: Layer name → its arrays.
    """

    def __init__(self, graph: ImportGraph, target: Target):
        self.graph, self.target = graph, target
        self.net = NetParameter(name=graph.name)
        self.blobs: dict[str, list[Array]] = {}
        self.shapes: dict[str, Shape] = {}
        self._names: set[str] = set()
        # ONNX value → blob.
        self._values: dict[str, str] = {}
        self._reserved = {clean_name(name) for name in (*graph.inputs, *graph.outputs)}

    # ---- values ----

    def add_input(self, value: str, shape: Shape) -> None:
        """Add an Input layer."""
        layer = self.net.layer.add(name=self._unique(clean_name(value)), type=Input.TYPE)
        blob = clean_name(value)
        layer.top.append(blob)
        layer.input_param.shape.add(dim=shape)
        self._values[value], self.shapes[blob] = blob, shape

    def constant(self, node: Node, index: int) -> Array | None:
        """Return input ``index`` of ``node`` as an array of any shape if it does not depend on the net's inputs, else None; None too where it is left out."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        return self.graph.constants.get(name)

    def required(self, node: Node, index: int, what: str) -> Array:
        """Return input ``index`` of ``node``, an array of any shape, which must be constant."""
        value = self.constant(node, index)
        if value is None:
            raise node.error(f"its {what} must be constant")
        return value

    def shape(self, value: str) -> Shape:
        """Return the shape of an ONNX value."""
        return self.graph.shapes[value]

    def blob(self, node: Node, value: str) -> str:
        """Return the blob that holds an ONNX value."""
        if value not in self._values:
            reason = "is constant" if value in self.graph.constants else "is not known"
            raise node.error(f"its input '{value}' {reason}, which this operator has no layers for")
        return self._values[value]

    def known_blob(self, value: str) -> str | None:
        """Return the blob that holds an ONNX value; None where none does, as for values between nodes that were merged."""
        return self._values.get(value)

    def free_blob(self, name: str) -> str:
        """Return ``name``, or that name with an ending where a blob has it."""
        taken, result, number = {top for layer in self.net.layer for top in layer.top}, name, 2
        while result in taken:
            result, number = f"{name}_out" if number == 2 else f"{name}_out{number}", number + 1
        return result

    def alias(self, node: Node, value: str | None = None) -> None:
        """Let the node's first output be the blob of its first input: nothing is computed."""
        self._values[node.outputs[0]] = self.blob(node, value or node.inputs[0])

    def set_blob(self, value: str, blob: str) -> None:
        """Set the blob that holds an ONNX value."""
        self._values[value] = blob

    # ---- layers ----

    def layer(
        self,
        node: Node,
        kind: str,
        bottoms: Sequence[str],
        *,
        last: bool = True,
        hint: str = "",
        weights: Sequence[Array] = (),
        tops: int = 1,
    ) -> LayerParameter:
        """Add a layer; ``blobs`` have the shapes of its parameters.

        Args:
            node: The node that it is (a part of).
            kind: Its type.
            bottoms: Blob names.
            last: Whether its tops hold the node's outputs; else they are new blobs.
            hint: The end of the name of a layer that is a part of a node.
            weights: Its blobs.
            tops: How many new blobs, where it is not the last.

        Returns:
            The layer's message, to be filled in.
        """
        base = clean_name(node.name)
        name = self._unique(base if last and not hint else f"{base}/{hint or kind.lower()}")
        layer = self.net.layer.add(name=name, type=kind, bottom=list(bottoms))
        if last:
            for value in node.outputs:
                blob = self._blob_name(clean_name(value))
                layer.top.append(blob)
                self._values[value] = blob
                self.shapes[blob] = self.graph.shapes.get(value, ())
        else:
            layer.top.extend([name] if tops == 1 else [f"{name}_{index}" for index in range(tops)])
        if weights:
            self.blobs[name] = [np.asarray(array, np.float32, order="C") for array in weights]
        return layer

    def silence(self, node: Node, blobs: Sequence[str]) -> None:
        """Mark blobs as unused, so that they are no outputs of the net."""
        if blobs:
            self.net.layer.add(name=self._unique(f"{clean_name(node.name)}/silence"), type=Silence.TYPE, bottom=list(blobs))

    def result(self) -> Caffemodel:
        """Return the net with its weights."""
        return Caffemodel(self.net, self.blobs)

    def _unique(self, name: str) -> str:
        result, number = name, 2
        while result in self._names:
            result, number = f"{name}_{number}", number + 1
        self._names.add(result)
        return result

    def _blob_name(self, name: str) -> str:
        taken, result, number = set(self.shapes), name, 2
        while result in taken:
            result, number = f"{name}_{number}", number + 1
        return result


def clean_name(name: str) -> str:
    """Return a name without the leading slash and the operator's name at the end that torch.onnx gives."""
    return name.strip("/") or "value"
