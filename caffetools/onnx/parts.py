"""Every value of an ONNX model, computed part by part: a few nodes at a time, so that only the values in use are in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from caffetools.engines.onnxruntime import open_session
from caffetools.onnx.model import SMALL, OnnxModel

Array = NDArray[Any]

# A part ends when its values take this much memory: more parts cost the time of opening a session for each.
_PART_BYTES = 2**23


def run_in_parts(
    model: OnnxModel, inputs: Mapping[str, Array], wanted: Collection[str], sizes: Mapping[str, int]
) -> Iterator[dict[str, Array]]:
    """Run ``model`` in onnxruntime (CPU), each part on what the parts before it made; weights are read in place.

    Args:
        model: The model, valid ONNX.
        inputs: Its inputs by name.
        wanted: The values to give out.
        sizes: Bytes of the values whose size is known; where parts end follows from it.

    Yields:
        The wanted values of each part by name, parts in the order of the nodes.

    Raises:
        EngineError: The model does not take these inputs.
        ModelFileError: onnxruntime does not load a part.
    """
    nodes = list(model.proto.graph.node)
    reads = [_values_read(node) for node in nodes]
    last = {value: index for index, values in enumerate(reads) for value in values}
    alive: dict[str, Array] = dict(inputs)
    for start, end in _split(nodes, sizes):
        made = {value for node in nodes[start:end] for value in node.output if value}
        given = {value for values in reads[start:end] for value in values} - made
        results = [value for value in sorted(made) if value in wanted or last.get(value, -1) >= end]
        if results:
            alive |= _run_part(model, nodes[start:end], {value: alive[value] for value in given if value in alive}, given, results)
            yield {value: alive[value] for value in results if value in wanted}
        alive = {value: array for value, array in alive.items() if last.get(value, -1) >= end}


def _split(nodes: list[onnx.NodeProto], sizes: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    start = used = 0
    for index, node in enumerate(nodes):
        used += sum(sizes.get(value, 0) for value in node.output)
        if used >= _PART_BYTES:
            yield start, index + 1
            start, used = index + 1, 0
    if start < len(nodes):
        yield start, len(nodes)


def _values_read(node: onnx.NodeProto) -> set[str]:
    """Return the values that a node reads, those of the graphs in its attributes included."""
    found = {value for value in node.input if value}
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inner = {value for item in graph.node for value in _values_read(item)} | {value.name for value in graph.output}
            inner -= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            found |= inner - {value for item in graph.node for value in item.output}
    return found


def _run_part(
    model: OnnxModel, nodes: list[onnx.NodeProto], values: Mapping[str, Array], given: Collection[str], results: list[str]
) -> dict[str, Array]:
    """Run ``nodes`` alone. Large weights become inputs: onnxruntime reads inputs in place, but copies initializers."""
    weights = {name: model.weights[name] for name in sorted(given) if name in model.weights}
    # A node may have the shape of its constant checked when it is loaded, so small ones stay initializers.
    fed = {**values, **{name: array for name, array in weights.items() if array.size > SMALL}}
    part = onnx.ModelProto(ir_version=model.proto.ir_version, opset_import=model.proto.opset_import)
    part.functions.extend(model.proto.functions)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items() if name not in fed)
    part.graph.input.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in fed.items()
    )
    part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in results)
    return open_session(part, fast=False, arena=False).run({name: np.ascontiguousarray(array) for name, array in fed.items()})
