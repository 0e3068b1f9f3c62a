"""From a net to an ONNX model: one node for each thing a layer does, under Caffe's names, and nothing else in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

from caffetools.errors import ExportError, NetError
from caffetools.layers.base import Shape
from caffetools.net.net import Net
from caffetools.onnx.check import check_model, check_shapes
from caffetools.onnx.graph import GraphBuilder
from caffetools.onnx.verify import TOLERANCE, Inputs, Verification, verify
from caffetools.proto.schema import TEST
from caffetools.util.files import atomic_write

# 11 is what TensorRT 7 (the last for the first Jetson's JetPack 4.4) reads; above 20 no layer's form has been held against Caffe.
OPSETS = range(11, 21)
DEFAULT_OPSET = 17

# protobuf cannot hold more than this in one message, and ONNX's external data are files of their own that could be half-written.
SIZE_LIMIT = 2**31 - 1
_ROOM_FOR_THE_GRAPH = 2**22

_ADVICE = "fix the batch size instead (--batch N)"

PathLike = str | os.PathLike[str]


def to_onnx(
    net: Net, *, opset: int = DEFAULT_OPSET, dynamic_batch: bool = True, properties: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """``net`` as an ONNX model with its weights in it (float32), checked, with every blob's shape as the net's shape rules give it.

    Blobs, parameters and nodes are named as :class:`~caffetools.onnx.graph.GraphBuilder` says. Inputs that no layer reads are left out.

    Args:
        net: A net in the TEST phase, with the weights that are to be written.
        opset: 11 to 20.
        dynamic_batch: The first axis of all inputs is symbolic (``N``); False fixes it as it is in the net.
        properties: ``metadata_props`` of the model.

    Raises:
        ExportError: a layer has no exact ONNX form; the net cannot take any batch size (then say ``dynamic_batch=False``); the weights
            are over 2 GB.
    """
    _check_exportable(net, opset)
    builder = GraphBuilder(net, opset)
    for layer in net.layers:
        builder.add_layer(layer)
    values = builder.finish()
    read = {name for node in builder.graph.node for name in node.input}
    inputs = [blob for blob in builder.inputs if blob in read]
    outputs = [blob for blob in net.outputs if blob not in builder.inputs or values[blob] != blob]
    if not outputs:
        raise ExportError(f"the net '{net.name}' has no outputs: nothing would be exported")
    shapes = [dict(net.blob_shapes)]
    if dynamic_batch:
        shapes.append(_shapes_of_next_batch(net, inputs))
    batches = (shapes[0][inputs[0]][0], shapes[-1][inputs[0]][0]) if dynamic_batch else (0, 0)
    graph = builder.graph
    graph.input.extend(_value(blob, blob, shapes, batches) for blob in inputs)
    graph.output.extend(_value(values[blob], blob, shapes, batches) for blob in outputs)
    hidden = [blob for blob in values if blob not in inputs and blob not in outputs and blob not in builder.inputs]
    graph.value_info.extend(_value(values[blob], blob, shapes, batches) for blob in hidden)
    model = builder.model
    helper.set_model_props(model, dict(properties or {}))
    check_model(model)
    for case, advice in zip(shapes, ("", f"with another batch size; {_ADVICE}"), strict=False):
        check_shapes(model, {values[blob]: shape for blob, shape in case.items() if blob in values}, advice)
    return model


def export(
    net: Net,
    path: PathLike,
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_batch: bool = True,
    properties: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
    tolerance: float = TOLERANCE,
) -> Verification:
    """Write ``net`` to ``path``, after holding what onnxruntime makes of it against the net.

    Args:
        net, opset, dynamic_batch, properties: as for :func:`to_onnx`.
        inputs: Input blobs by name to compare on, (N, C, H, W) float32; seeded random ones when None.
        tolerance: The largest difference allowed, as :func:`~caffetools.onnx.verify.verify` measures it.

    Returns:
        What was compared, and the largest differences.

    Raises:
        ExportError: as :func:`to_onnx`, or the exported model gives other numbers; ``path`` is then as it was before.
        RunFailed: the folder cannot be written to, or the disk is full.
    """
    data = to_onnx(net, opset=opset, dynamic_batch=dynamic_batch, properties=properties).SerializeToString()
    verification = verify(data, net, inputs, tolerance, shown_as=path)
    with atomic_write(path) as stream:
        stream.write(data)
    return verification


def _check_exportable(net: Net, opset: int) -> None:
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not possible; {OPSETS[0]} to {OPSETS[-1]} are")
    if net.phase != TEST:
        raise ExportError(f"the net '{net.name}' is in the TRAIN phase; export its TEST phase or, better, its deploy prototxt")
    size = sum(parameter.numel() * 4 for parameter in net.parameters()) + _ROOM_FOR_THE_GRAPH
    if size > SIZE_LIMIT:
        raise ExportError(f"the net '{net.name}' has {size / 2**30:.1f} GB of weights; an ONNX file holds at most 2 GB")


def _shapes_of_next_batch(net: Net, inputs: list[str]) -> dict[str, Shape]:
    """Every blob's shape when the inputs' first axis is one longer; raises :class:`ExportError` where that is not possible."""
    shapes = {blob: net.blob_shapes[blob] for blob in inputs}
    batches = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(batches) > 1:
        raise ExportError(f"the inputs {', '.join(shapes)} differ in their first axis, so it cannot stand for the batch; {_ADVICE}")
    if batches == {0} or not batches:
        raise ExportError(f"the net '{net.name}' has no input with a batch axis; {_ADVICE}")
    try:
        net.reshape({blob: (shape[0] + 1, *shape[1:]) for blob, shape in shapes.items()})
        return dict(net.blob_shapes)
    except NetError as error:
        raise ExportError(f"the net takes no other batch size than {batches.pop()} ({error}); {_ADVICE}") from None
    finally:
        net.reshape(shapes)


def _value(name: str, blob: str, shapes: list[dict[str, Shape]], batches: tuple[int, int]) -> Any:
    """The ONNX type of a blob: axes that follow the batch are ``N``, axes that depend on it in another way are left open."""
    shape: list[int | str | None] = list(shapes[0][blob])
    if len(shapes) > 1:
        for axis, (here, there) in enumerate(zip(shapes[0][blob], shapes[1][blob], strict=True)):
            if here != there:
                shape[axis] = "N" if (here, there) == batches else None
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
