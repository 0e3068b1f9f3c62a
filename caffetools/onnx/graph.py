"""The ONNX graph that layers write themselves into: names, single assignment, parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper

import caffetools
from caffetools.errors import ExportError
from caffetools.layers.base import Layer, Shape
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
    - a node has its layer's name; where a layer needs several, each is ``LAYER/Op``. What lies between them is ``LAYER/hint``.

    Args:
        net: The net to be written. opset: The version of ONNX's operators that the nodes must be valid for.
    """

    def __init__(self, net: Net, opset: int):
        self.opset = opset
        self.model = onnx.ModelProto(producer_name="caffetools", producer_version=caffetools.__version__)
        self.model.opset_import.append(helper.make_opsetid("", opset))
        self.model.ir_version = helper.find_min_ir_version_for(self.model.opset_import)
        self.graph = self.model.graph
        self.graph.name = net.name or "net"
        self.inputs: list[str] = []
        self._shapes = dict(net.blob_shapes)
        self._taken = set(net.blob_shapes)
        # The value that now stands for a blob; within a layer, what its bottoms were when it began.
        self._current: dict[str, str] = {}
        self._bottoms: dict[str, str] = {}
        self._parameters: dict[int, str] = {}
        self._layer: Layer | None = None
        self._written: set[str] = set()

    # ---- for the exporter ----

    def add_layer(self, layer: Layer) -> None:
        """Let ``layer`` add its nodes; tops that a data layer does not make itself become inputs of the graph.

        Raises:
            ExportError: the layer has no exact ONNX form.
        """
        self._layer, self._written = layer, set()
        self._bottoms = {blob: self._current[blob] for blob in layer.bottoms if blob in self._current}
        start = len(self.graph.node)
        layer.to_onnx(self)
        added = self.graph.node[start:]
        for node in added:
            node.name = layer.name if len(added) == 1 else self._unique(f"{layer.name}/{node.op_type}")
        missing = [top for top in layer.tops if top not in self._written and top not in layer.bottoms]
        if missing and not layer.IS_DATA:
            raise ExportError(f"layer '{layer.name}' of type {layer.type_name} wrote no ONNX node for its top '{missing[0]}'")
        self.inputs += missing
        self._current.update(zip(missing, missing, strict=True))
        self._layer, self._bottoms = None, {}

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

        A bottom's name means what it held when the layer began. An Identity from a blob to itself is nothing. ``axes`` (of Reduce…,
        Squeeze, Unsqueeze) and ``split`` are given as attributes whatever the opset; where the operator takes an input, they become it.
        """
        if op == "Identity" and list(inputs) == list(outputs):
            return
        attributes = {key: _plain(value) for key, value in attributes.items() if value is not None}
        values = [self._read(name) for name in inputs]
        name, since = _INPUT_SINCE.get(op, ("", 0))
        if name in attributes and self.opset >= since:
            values.append(self.constant(name, np.array(attributes.pop(name), np.int64)))
        self.graph.node.append(helper.make_node(op, values, [self._write(name) for name in outputs], **attributes))

    def constant(self, hint: str, array: NDArray[Any]) -> str:
        """Add ``array`` as an initializer and return its name, ``LAYER/hint``."""
        name = self._unique(self._inside(hint))
        self._initializer(name, np.asarray(array))
        return name

    def parameter(self, layer: Layer, index: int) -> str:
        """The name of the initializer of ``layer``'s blob ``index``, ``LAYER/INDEX``; added at its first use."""
        blob = layer.blobs[index]
        if id(blob) not in self._parameters:
            name = self._parameters[id(blob)] = self._unique(f"{layer.name}/{index}")
            self._initializer(name, blob.detach().cpu().to(torch.float32).numpy())
        return self._parameters[id(blob)]

    def value(self, hint: str) -> str:
        """A fresh name, ``LAYER/hint``, for a value between two nodes of one layer."""
        return self._unique(self._inside(hint))

    def shape(self, blob: str) -> Shape:
        """The shape of a blob of the net, as the shape rules give it."""
        return self._shapes[blob]

    # ---- names ----

    def _read(self, name: str) -> str:
        return self._bottoms.get(name) or self._current.get(name, name)

    def _write(self, name: str) -> str:
        if self._layer is None or name not in self._layer.tops:
            return name
        if name in self._written:
            raise ExportError(f"layer '{self._layer.name}' of type {self._layer.type_name} writes its top '{name}' twice in ONNX")
        self._written.add(name)
        self._current[name] = self._unique(f"{name}@{self._layer.name}")
        return self._current[name]

    def _inside(self, hint: str) -> str:
        if self._layer is None:
            return hint
        return f"{self._layer.name}/{hint.removeprefix(self._layer.name + '_')}"

    def _unique(self, name: str) -> str:
        fresh, number = name, 2
        while fresh in self._taken:
            fresh, number = f"{name}_{number}", number + 1
        self._taken.add(fresh)
        return fresh

    def _initializer(self, name: str, array: NDArray[Any]) -> None:
        # Filled in place: an AlexNet's weights should not be copied once more through a message of their own.
        tensor = self.graph.initializer.add(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _plain(value: Any) -> Any:
    """``value`` with Python's own numbers, as ONNX's helper wants them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, bool) else value
