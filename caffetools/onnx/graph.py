"""The ONNX graph that layers add their nodes to: names, single assignment, parameters, sizes that are known at run time only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

import caffetools
from caffetools.errors import ExportError
from caffetools.layers.base import Layer, Shape, Size
from caffetools.net.net import Net

# Attributes that became the last input: operator → (attribute, the opset from which on it is an input).
_INPUT_SINCE = {
    "Split": ("split", 13),
    "ReduceSum": ("axes", 13),
    "Squeeze": ("axes", 13),
    "Unsqueeze": ("axes", 13),
    **{f"Reduce{what}": ("axes", 18) for what in ("Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
}


class GraphBuilder:
    """Collects the nodes of a net's layers; an :class:`~caffetools.layers.base.OnnxGraph`.

    Names in the graph:

    - a blob keeps Caffe's name. ONNX assigns every value once, so of a blob that layers overwrite in place the last version has
      the plain name and an earlier one is ``BLOB@LAYER``, after the layer that made it. An input of the net keeps its plain name
      in any case, since that is what a caller feeds; its later versions have the suffix.
    - a parameter is ``LAYER/INDEX``, as in Caffe's HDF5 weight files: ``conv1/0`` are conv1's weights, ``conv1/1`` its bias. A
      shared one appears once, under the layer that owns it.
    - a node has its layer's name; where a layer needs several, each is ``LAYER/Op``. Values between them are ``LAYER/hint``.
    - where two layers have one name, as Caffe allows, the names made from the second layer end in ``_2``.

    Args:
        net: The net to be written.
        opset: The version of ONNX's operators that the nodes must be valid for.
        free: The axes of each blob whose size is known at run time only.

    Attributes:
        model: The model; its initializers are in ``weights`` only.
        weights: Initializer name → array, C order; parameters are views of the net's memory where it allows.
        inputs: The graph's inputs, in the net's order.
        notes: What a user of the graph should know.
    """

    def __init__(self, net: Net, opset: int, free: Mapping[str, frozenset[int]] | None = None):
        self.opset = opset
        self.model = onnx.ModelProto(producer_name="caffetools", producer_version=caffetools.__version__)
        self.model.opset_import.append(helper.make_opsetid("", opset))
        self.model.ir_version = helper.find_min_ir_version_for(self.model.opset_import)
        self.graph = self.model.graph
        self.graph.name = net.name or "net"
        self.weights: dict[str, NDArray[Any]] = {}
        self.inputs: list[str] = []
        self.notes: list[str] = []
        self._free = dict(free or {})
        self._shapes = dict(net.blob_shapes)
        self._taken = set(net.blob_shapes)
        self._node_names: set[str] = set()
        # The value that now stands for a blob; within a layer, what its bottoms were when it began.
        self._current: dict[str, str] = {}
        self._bottoms: dict[str, str] = {}
        self._parameters: dict[int, str] = {}
        self._sizes: dict[tuple[str, int], str] = {}
        self._layer: Layer | None = None
        self._written: set[str] = set()
        self._nodes: Any = self.graph.node

    # ---- for the exporter ----

    def add_layer(self, layer: Layer) -> None:
        """Let ``layer`` add its nodes; tops that a data layer does not make itself become inputs of the graph.

        Raises:
            ExportError: The layer has no exact ONNX form.
        """
        self._layer, self._written = layer, set()
        self._bottoms = {blob: self._current[blob] for blob in layer.bottoms if blob in self._current}
        start = len(self.graph.node)
        layer.to_onnx(self)
        added = self.graph.node[start:]
        for node in added:
            node.name = _unique(layer.name if len(added) == 1 else f"{layer.name}/{node.op_type}", self._node_names)
        missing = [top for top in layer.tops if top not in self._written and top not in layer.bottoms]
        if missing and not layer.IS_DATA:
            raise ExportError(f"({layer.type_name}) wrote no ONNX node for its top '{missing[0]}'", layer=layer.name)
        self.inputs += missing
        self._current.update(zip(missing, missing, strict=True))
        self._layer, self._bottoms, self._sizes = None, {}, {}

    def finish(self) -> dict[str, str]:
        """Give the last version of every blob its plain name. Returns the final name of each blob's value."""
        names = {value: blob for blob, value in self._current.items() if blob not in self.inputs}
        for node in self.graph.node:
            for field in (node.input, node.output):
                field[:] = [names.get(value, value) for value in field]
        return {blob: names.get(value, value) for blob, value in self._current.items()}

    # ---- for layers ----

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add one operator; ``""`` leaves out an optional input, an attribute of None is left out.

        A bottom's name stands for its value before the layer runs. An Identity from a blob to itself adds nothing. ``axes`` (of
        Reduce…, Squeeze, Unsqueeze) and ``split`` are given as attributes for any opset; where the operator takes an input, they
        become it.
        """
        if op == "Identity" and list(inputs) == list(outputs):
            return
        attributes = {key: _plain(value) for key, value in attributes.items() if value is not None}
        values = [self._read(name) for name in inputs]
        name, since = _INPUT_SINCE.get(op, ("", 0))
        if name in attributes and self.opset >= since:
            values.append(self.constant(name, np.array(attributes.pop(name), np.int64)))
        self._nodes.append(helper.make_node(op, values, [self._write(name) for name in outputs], **attributes))

    def constant(self, hint: str, array: NDArray[Any]) -> str:
        """Add ``array``, of any shape, as an initializer and return its name, ``LAYER/hint``."""
        name = self.value(hint)
        self.weights[name] = np.asarray(array)
        return name

    def parameter(self, layer: Layer, index: int) -> str:
        """Return the name of the initializer of ``layer``'s blob ``index``, ``LAYER/INDEX``; added at its first use."""
        blob = layer.blobs[index]
        if id(blob) not in self._parameters:
            name = self._parameters[id(blob)] = _unique(f"{layer.name}/{index}", self._taken)
            # Channels-last weights are copied, the others (fully connected layers' above all) are views.
            self.weights[name] = np.ascontiguousarray(blob.detach().cpu().to(torch.float32).numpy())
        return self._parameters[id(blob)]

    def value(self, hint: str) -> str:
        """Return a new name, ``LAYER/hint``, for a value between two nodes of one layer."""
        layer = self._layer
        return _unique(hint if layer is None else f"{layer.name}/{hint.removeprefix(layer.name + '_')}", self._taken)

    def shape(self, blob: str) -> Shape:
        """Return the shape of a blob of the net, as the shape rules give it."""
        return self._shapes[blob]

    def is_free(self, blob: str, *axes: int) -> bool:
        """Return whether one of ``axes`` (default: all but the first) of ``blob`` has a size that is known at run time only."""
        return any(axis in self._free.get(blob, ()) for axis in (axes or range(1, len(self._shapes[blob]))))

    def size(self, blob: str, axis: int) -> Size:
        """Return the size of an axis: a number, or where it is free the name of an int64 value of shape (1)."""
        if not self.is_free(blob, axis):
            return self._shapes[blob][axis]
        key = (blob, axis)
        if key not in self._sizes:
            shape, size = self.value("shape_of"), self.value("size")
            self.node("Shape", [blob], [shape])
            self.node("Gather", [shape, self.constant("axis", np.array([axis], np.int64))], [size], axis=0)
            self._sizes[key] = size
        return self._sizes[key]

    def arithmetic(self, op: str, left: Size, right: Size) -> Size:
        """Return ``left op right`` for sizes; ``op`` is Add, Sub, Mul or Div (rounding down, for sizes that are not negative)."""
        if isinstance(left, int) and isinstance(right, int):
            return {"Add": left + right, "Sub": left - right, "Mul": left * right, "Div": left // right if right else 0}[op]
        result = self.value(op.lower())
        self.node(op, [self._size_value(left), self._size_value(right)], [result])
        return result

    def sizes(self, hint: str, parts: Sequence[Size]) -> str:
        """Return the name of an int64 vector of ``parts``: a constant where all are numbers."""
        if all(isinstance(part, int) for part in parts):
            return self.constant(hint, np.array(parts, np.int64))
        joined = self.value(hint)
        self.node("Concat", [self._size_value(part) for part in parts], [joined], axis=0)
        return joined

    def reshape(self, source: str, target: str, parts: Sequence[Size], hint: str = "shape") -> None:
        """Add a Reshape of ``source`` to ``parts``: sizes, 0 for the source's size of that axis, at most one −1 for the rest."""
        named = [index for index, part in enumerate(parts) if not isinstance(part, int)]
        if len(named) == 1 and -1 not in parts:
            parts = [-1 if index == named[0] else part for index, part in enumerate(parts)]
        self.node("Reshape", [source, self.sizes(hint, parts)], [target])

    def note(self, message: str) -> None:
        """Record something about the exported graph that its user should know."""
        self.notes.append(message)

    def scan(
        self,
        states: Sequence[str],
        sequences: Sequence[str],
        ends: Sequence[str],
        outputs: Sequence[str],
        step: Callable[[list[str], list[str]], tuple[list[str], list[str]]],
    ) -> None:
        """Add a Scan over axis 0 of ``sequences``.

        Args:
            states: Values before the first step.
            sequences: Values that give each step its slice.
            ends: Names of the states after the last step.
            outputs: Names of the stacked outputs.
            step: Adds the nodes of one step. Given the names of its states and slices, it returns those of the next states and of
                the step's outputs. Its nodes may read parameters and constants, which lie outside of the body.
        """
        body = onnx.GraphProto(name=f"{self._layer.name if self._layer else 'net'}/step")
        before = [self.value("state_in") for _ in states]
        slices = [self.value("slice") for _ in sequences]
        outer, self._nodes = self._nodes, body.node
        try:
            after, results = step(before, slices)
        finally:
            self._nodes = outer
        for field, names in ((body.input, [*before, *slices]), (body.output, [*after, *results])):
            field.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
        self.node("Scan", [*states, *sequences], [*ends, *outputs], body=body, num_scan_inputs=len(sequences))

    # ---- names ----

    def _size_value(self, part: Size) -> str:
        return self.constant("number", np.array([part], np.int64)) if isinstance(part, int) else part

    def _read(self, name: str) -> str:
        return self._bottoms.get(name) or self._current.get(name, name)

    def _write(self, name: str) -> str:
        if self._layer is None or name not in self._layer.tops:
            return name
        if name in self._written:
            raise ExportError(f"of type {self._layer.type_name} writes its top '{name}' twice in ONNX", layer=self._layer.name)
        self._written.add(name)
        self._current[name] = _unique(f"{name}@{self._layer.name}", self._taken)
        return self._current[name]


def _unique(name: str, taken: set[str]) -> str:
    result, number = name, 2
    while result in taken:
        result, number = f"{name}_{number}", number + 1
    taken.add(result)
    return result


def _plain(value: object) -> Any:
    """Return ``value`` with Python's own numbers, as ONNX's helper wants them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, bool) else value
