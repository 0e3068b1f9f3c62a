"""Is the model valid ONNX, and do its shapes come out as Caffe's?"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from caffetools.errors import ExportError
from caffetools.layers.base import Shape, format_shape

# Initializers of at most so many values may be shapes, axes and the like, which shape inference reads.
_SMALL = 256


def check_model(model: onnx.ModelProto) -> None:
    """Hold ``model`` against ONNX's rules. Raises :class:`ExportError` with what its checker says."""
    try:
        onnx.checker.check_model(_without_weights(model))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported model is not valid ONNX: {_first_line(error)}") from None


def check_shapes(model: onnx.ModelProto, shapes: Mapping[str, Shape], advice: str = "") -> None:
    """Infer the shapes of ``model`` for the inputs in ``shapes`` and hold every other value's against them.

    Args:
        shapes: The shape of each value, by name; the batch size is a number. advice: ends the message of an error.

    Raises:
        ExportError: a value has another shape than the net's blob, or ONNX finds that a node does not fit its inputs.
    """
    light = _without_weights(model)
    del light.graph.value_info[:]
    for value in (*light.graph.input, *light.graph.output):
        if value.name in shapes:
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shapes[value.name]))
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(" ".join((f"ONNX cannot infer the shapes of the exported model: {_first_line(error)}", advice)).strip()) from None
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        if value.name not in shapes or not value.type.tensor_type.HasField("shape"):
            continue
        wanted = shapes[value.name]
        got = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        fits = len(got) == len(wanted) and all(g is None or g == w for g, w in zip(got, wanted, strict=True))
        if not fits:
            found = " x ".join("?" if g is None else str(g) for g in got)
            raise ExportError(f"blob '{value.name}' would be {found} in ONNX, but is {format_shape(wanted)} in the net {advice}".strip())


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` that takes its large initializers as inputs: as good for checking, and small."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = model.graph
    light.graph.name = graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(graph, field))
    for tensor in graph.initializer:
        size = 1
        for n in tensor.dims:
            size *= n
        if size <= _SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
