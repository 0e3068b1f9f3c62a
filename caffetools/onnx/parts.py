"""An ONNX model run part by part: a few nodes at a time, so that only the values and weights in use are in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from caffetools.engines.onnxruntime import open_session
from caffetools.net.malloc_tuning import return_freed_memory
from caffetools.onnx.model import OnnxModel

Array = NDArray[Any]

# A part ends when its values take this much memory: more parts cost the time of opening a session for each.
_PART_BYTES = 2**21
# Parts of the optimized model have weights of this many bytes, or of this share of all: onnxruntime holds up to three copies of them.
_PART_WEIGHTS, _PART_SHARE = 2**22, 8


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
    uses = _Uses(model, wanted)
    alive: dict[str, Array] = dict(inputs)
    for start, end in _split(uses.nodes, sizes):
        given, results = uses.of_part(start, end)
        if results:
            alive |= _run_part(model, uses.nodes[start:end], {value: alive[value] for value in given if value in alive}, given, results)
            yield {value: alive[value] for value in results if value in wanted}
        alive = {value: array for value, array in alive.items() if uses.after(value, end)}


def run_optimized(
    model: OnnxModel,
    batches: Sequence[Mapping[str, Array]],
    wanted: Collection[str],
    running: Callable[[Mapping[str, Array]], AbstractContextManager[None]] = lambda batch: nullcontext(),
) -> list[dict[str, Array]]:
    """Run ``model`` in onnxruntime (CPU), optimized as where it is used, in parts that begin at a layer with weights.

    Args:
        model: The model, valid ONNX.
        batches: Its inputs by name, of several sizes; each part is loaded once for all of them.
        wanted: The values to return.
        running: Makes what surrounds the run of each part on a batch.

    Returns:
        The wanted values by name for each batch.

    Raises:
        EngineError: The model does not take these inputs.
        ModelFileError: onnxruntime does not load a part.
    """
    uses = _Uses(model, wanted)
    alive: list[dict[str, Array]] = [dict(batch) for batch in batches]
    for start, end in _split_weights(uses.reads, model.weights):
        given, results = uses.of_part(start, end)
        if results:
            fed = [{value: values[value] for value in given if value in values} for values in alive]
            weights = {name: model.weights[name] for name in sorted(given) if name in model.weights}
            part = _part_of(model, uses.nodes[start:end], fed, weights, results)
            session = open_session(part.light(), weights=part.large_weights, arena=False)
            for batch, values, inputs in zip(batches, alive, fed, strict=True):
                with running(batch):
                    values |= session.run(inputs)
                return_freed_memory()
            # It has copies of its weights.
            del session
            return_freed_memory()
        alive = [{name: array for name, array in values.items() if name in wanted or uses.after(name, end)} for values in alive]
    return [{name: values[name] for name in wanted} for values in alive]


class _Uses:
    """Which values the parts of a model read and make.

    Attributes:
        nodes: The nodes, in order.
        reads: The values that each of them reads.
    """

    def __init__(self, model: OnnxModel, wanted: Collection[str]):
        self.nodes = list(model.proto.graph.node)
        self.reads = [_values_read(node) for node in self.nodes]
        self._last = {value: index for index, values in enumerate(self.reads) for value in values}
        self._wanted = wanted

    def of_part(self, start: int, end: int) -> tuple[set[str], list[str]]:
        """Return the values that nodes ``start`` to ``end`` read from elsewhere, and those of theirs that are wanted or read later."""
        made = {value for node in self.nodes[start:end] for value in node.output if value}
        given = {value for values in self.reads[start:end] for value in values} - made
        return given, [value for value in sorted(made) if value in self._wanted or self.after(value, end)]

    def after(self, value: str, end: int) -> bool:
        """Return whether node ``end`` or a later one reads ``value``."""
        return self._last.get(value, -1) >= end


def _split_weights(reads: Sequence[Collection[str]], weights: Mapping[str, Array]) -> Iterator[tuple[int, int]]:
    limit = max(_PART_WEIGHTS, sum(array.nbytes for array in weights.values()) // _PART_SHARE)
    start = used = 0
    for index, values in enumerate(reads):
        size = sum(weights[value].nbytes for value in values if value in weights)
        # A part begins at a layer with a share of the weights, so that the activation or BatchNorm behind one is not cut off.
        if start < index and used + size > limit and size > limit // 64:
            yield start, index
            start, used = index, 0
        used += size
    if start < len(reads):
        yield start, len(reads)


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
    fed = {**values, **OnnxModel(model.proto, weights).large_weights}
    part = _part_of(model, nodes, [fed], {name: array for name, array in weights.items() if name not in fed}, results)
    return open_session(part.light(), fast=False, arena=False).run(fed)


def _part_of(
    model: OnnxModel, nodes: list[onnx.NodeProto], fed: Sequence[Mapping[str, Array]], weights: dict[str, Array], results: list[str]
) -> OnnxModel:
    """Return a model of ``nodes`` alone, with inputs of the sizes in ``fed``; sizes that differ there are free."""
    part = onnx.ModelProto(ir_version=model.proto.ir_version, opset_import=model.proto.opset_import)
    part.functions.extend(model.proto.functions)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    for name, array in fed[0].items():
        sizes = zip(*(values[name].shape for values in fed), strict=True)
        shape = [size[0] if len(set(size)) == 1 else None for size in sizes]
        part.graph.input.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape))
    part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in results)
    return OnnxModel(part, weights)
