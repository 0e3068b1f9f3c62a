"""A float ONNX model in lower precision: int8 with QuantizeLinear and DequantizeLinear nodes (QDQ), or fp16; Caffe's blob names stay."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Switches onnxruntime's telemetry off, before it is imported.
from caffetools.engines import onnxruntime as _engine  # noqa: F401
from caffetools.errors import ExportError
from caffetools.net.net import Net
from caffetools.onnx.lrn import expand_lrn
from caffetools.onnx.model import OnnxModel
from caffetools.quant.fake import Bounds, quantizable
from caffetools.util.process_settings import import_path_kept, logger_level, warnings_ignored

_PRODUCTS = ("Conv", "Gemm", "MatMul")
# What passes its input on, so that it stays in float with the layer before it.
_FOLLOWERS = ("Relu", "Flatten", "Reshape")
# Their results are some of their input's values.
_SAME_VALUES = ("MaxPool", "Flatten", "Reshape")
# Their results stay near their inputs' precision; normalizations and probabilities are computed in float.
_QUANTIZED = (*_PRODUCTS, "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Add")
_LARGEST_FP16 = float(np.finfo(np.float16).max)


def layer_inputs(net: Net, model: OnnxModel) -> dict[str, str]:
    """Return layer → the ONNX value that its product reads, for each convolution and inner product."""
    nodes = _nodes_by_layer(net, model.proto.graph)
    found = {}
    for layer in quantizable(net):
        product = next((node for node in nodes.get(layer.name, ()) if node.op_type in _PRODUCTS), None)
        if product is not None:
            found[layer.name] = product.input[0]
    return found


def trained_ranges(model: OnnxModel, inputs: Mapping[str, str], trained: Mapping[str, Bounds]) -> dict[str, Bounds]:
    """Return value → range for the ranges that layers learned for their inputs.

    A value that several layers read gets a range that holds all of theirs, and so do values that only pooling or a change of shape
    separates from it: they are rounded alike.

    Args:
        model: The float model.
        inputs: Layer → the value that its product reads.
        trained: Layer → (lowest, highest) of its input.
    """
    makers = {output: node for node in model.proto.graph.node for output in node.output}
    found: dict[str, Bounds] = {}
    for layer, (low, high) in trained.items():
        value = inputs.get(layer)
        while value is not None:
            known = found.get(value, (0.0, 0.0))
            found[value] = min(known[0], low), max(known[1], high)
            node = makers.get(value)
            value = node.input[0] if node is not None and node.op_type in _SAME_VALUES else None
    return found


def to_int8(model: OnnxModel, net: Net, ranges: Mapping[str, tuple[float, float]], keep: Collection[str] = ()) -> onnx.ModelProto:
    """Insert QDQ nodes: uint8 activations with zero points, int8 weights with a scale for each output channel.

    Args:
        model: The float model.
        net: What it was exported from.
        ranges: Value of the model → (lowest, highest) to represent.
        keep: Layers that are not quantized.
    """
    with import_path_kept("onnxruntime"):
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
        from onnxruntime.quantization.calibrate import TensorData, TensorsData

    excluded = _excluded(net, model.proto.graph, keep)
    pools = _pools_of_floats(model.proto.graph, excluded)
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    with _silenced():
        # What quantize_static does after its own calibration; only the newest releases let that read ranges from elsewhere.
        quantizer = QDQQuantizer(
            model.to_proto(),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=[],
            nodes_to_exclude=[*excluded, *pools],
            op_types_to_quantize=list(_QUANTIZED),
            extra_options={
                # Blobs between a convolution and its activation keep their names, and are not rounded: their readers' inputs are.
                "QDQKeepRemovableActivations": True,
                "OpTypesToExcludeOutputQuantization": list(_PRODUCTS),
                "ForceQuantizeNoInputCheck": True,
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        made: onnx.ModelProto = quantizer.model.model
    _quantize_activations(made.graph, ranges, excluded)
    _read_floats(made.graph, [*excluded, *pools])
    _hold_in_float(made.graph, pools)
    # The model is for onnxruntime alone, whose LRN would take most of a net's time.
    expand_lrn(made)
    return made


def to_fp16(model: OnnxModel, net: Net, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Convert weights and computation to fp16; inputs and outputs stay float32.

    Args:
        model: The float model.
        net: What it was exported from.
        keep: Layers that stay in float32.

    Raises:
        ExportError: A weight is too large for fp16; names it.
    """
    with import_path_kept("onnxruntime"):
        from onnxruntime.transformers.float16 import convert_float_to_float16

    for name, array in model.weights.items():
        if array.dtype == np.float32 and array.size and float(np.abs(array).max()) > _LARGEST_FP16:
            layer = name.rpartition("/")[0]
            raise ExportError(f"'{name}' has values above fp16's largest, {_LARGEST_FP16:g}", layer=layer, hint=f"--keep {layer}")
    with _silenced():
        made: onnx.ModelProto = convert_float_to_float16(
            model.to_proto(), keep_io_types=True, node_block_list=_excluded(net, model.proto.graph, keep)
        )
    return made


def _excluded(net: Net, graph: onnx.GraphProto, keep: Collection[str]) -> list[str]:
    """Return the names of the nodes of ``keep``, and of the activations behind them."""
    if not keep:
        return []
    nodes = _nodes_by_layer(net, graph)
    names = [node.name for layer in keep for node in nodes.get(layer, ())]
    values = {name for layer in keep for node in nodes.get(layer, ()) for name in node.output}
    for node in graph.node:
        if node.op_type in _FOLLOWERS and node.input[0] in values:
            names.append(node.name)
            values.update(node.output)
    return list(dict.fromkeys(names))


def _pools_of_floats(graph: onnx.GraphProto, excluded: Collection[str]) -> list[str]:
    """Return the max pooling nodes whose input is not computed in int8: on the CPU they are faster in float."""
    rounded: set[str] = set()
    pools = []
    for node in graph.node:
        if node.name in excluded:
            continue
        if node.op_type == "MaxPool" and node.input[0] not in rounded:
            pools.append(node.name)
        elif node.op_type in _QUANTIZED or (node.op_type in _FOLLOWERS and node.input[0] in rounded):
            rounded.update(node.output)
    return pools


def _quantize_activations(graph: onnx.GraphProto, ranges: Mapping[str, tuple[float, float]], excluded: Collection[str]) -> None:
    """Insert QDQ nodes behind a convolution's Relu where none of its readers does, so that the convolution is computed in int8."""
    kinds = {output: node for node in graph.node for output in node.output}
    read = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    ends = {output.name for output in graph.output}
    for index, node in reversed(list(enumerate(graph.node))):
        maker = kinds.get(node.input[0]) if node.op_type == "Relu" else None
        value = node.output[0]
        if maker is None or maker.op_type != "Conv" or maker.name in excluded or value in read or value in ends or value not in ranges:
            continue
        scale, zero, stored, restored = (f"{value}_{what}" for what in ("scale", "zero_point", "QuantizeLinear", "DequantizeLinear"))
        for reader in graph.node:
            reader.input[:] = [restored if name == value else name for name in reader.input]
        # A Relu's values begin at 0.
        step = np.array(max(ranges[value][1], 0.0) / 255 or 1.0, np.float32)
        graph.initializer.extend([numpy_helper.from_array(step, scale), numpy_helper.from_array(np.array(0, np.uint8), zero)])
        graph.node.insert(index + 1, helper.make_node("DequantizeLinear", [stored, scale, zero], [restored], restored))
        graph.node.insert(index + 1, helper.make_node("QuantizeLinear", [value, scale, zero], [stored], stored))


def _hold_in_float(graph: onnx.GraphProto, pools: Collection[str]) -> None:
    """Insert an operator that changes nothing between ``pools`` and QuantizeLinear, which onnxruntime would move in front of the pool."""
    lowest = "lowest_float"
    made = False
    for index, node in reversed(list(enumerate(graph.node))):
        readers = [reader for reader in graph.node if reader.op_type == "QuantizeLinear" and reader.input[0] == node.output[0]]
        if node.name in pools and readers:
            held = f"{node.output[0]}_held"
            for reader in readers:
                reader.input[0] = held
            graph.node.insert(index + 1, helper.make_node("Max", [node.output[0], lowest], [held], held))
            made = True
    if made:
        graph.initializer.append(numpy_helper.from_array(np.array(np.finfo(np.float32).min, np.float32), lowest))


def _read_floats(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Let the nodes ``names`` read values as they are before they are rounded; drop QDQ nodes that nothing reads then."""
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.name in names:
            for index, value in enumerate(node.input):
                maker = makers.get(value)
                before = makers.get(maker.input[0]) if maker is not None and maker.op_type == "DequantizeLinear" else None
                if before is not None and before.op_type == "QuantizeLinear":
                    node.input[index] = before.input[0]
    while True:
        read = {value for node in graph.node for value in node.input} | {output.name for output in graph.output}
        unread = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.output[0] not in read]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)


def _nodes_by_layer(net: Net, graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return layer → its nodes, which are named ``LAYER`` or ``LAYER/Op``."""
    known = {layer.name for layer in net.layers}
    nodes: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        name = node.name if node.name in known else node.name.rpartition("/")[0]
        nodes.setdefault(name, []).append(node)
    return nodes


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep the converters' remarks from the terminal."""
    with logger_level("", logging.ERROR), warnings_ignored():
        yield
