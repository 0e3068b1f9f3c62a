"""Checks of an ONNX model against ONNX's rules, and of its inferred shapes against Caffe's."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from caffetools.errors import ExportError, ExportMismatch
from caffetools.layers.base import Shape, format_shape
from caffetools.onnx.model import OnnxModel


def check_model(model: OnnxModel, *, full: bool = False) -> None:
    """Check ``model`` with ONNX's own checker, ``full`` with strict shape inference. Raises :class:`ExportMismatch` with what it found."""
    try:
        onnx.checker.check_model(model.light(external=False), full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportMismatch(f"the exported model is not valid ONNX: {_first_line(error)}") from None


def check_shapes(model: OnnxModel, shapes: Mapping[str, Shape], hint: str = "") -> None:
    """Infer the shapes of ``model`` for the inputs in ``shapes`` and compare every other value's with it.

    Args:
        model: The model.
        shapes: Value name → shape, of every blob; all sizes are numbers.
        hint: What to do about an error.

    Raises:
        ExportError: A value has another shape than the net's blob, or ONNX finds that a node does not fit its inputs.
    """
    light = model.light(external=False)
    del light.graph.value_info[:]
    for value in (*light.graph.input, *light.graph.output):
        if value.name in shapes:
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shapes[value.name]))
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"ONNX cannot infer the shapes of the exported model: {_first_line(error)}", hint=hint or None) from None
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        if value.name not in shapes or not value.type.tensor_type.HasField("shape"):
            continue
        expected = shapes[value.name]
        got = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        if len(got) != len(expected) or any(g is not None and g != n for g, n in zip(got, expected, strict=True)):
            found = " x ".join("?" if g is None else str(g) for g in got)
            raise ExportError(
                f"blob '{value.name}' would be {found} in ONNX, but is {format_shape(expected)} in the net", hint=hint or None
            )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
