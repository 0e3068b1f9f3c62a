"""From a net to an ONNX model: one node for each thing a layer does, under Caffe's names, and nothing else in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, get_args

import onnx
from onnx import TensorProto, helper

from caffetools.engines.input_shapes import shapes_to_properties
from caffetools.errors import ExportError, NetError
from caffetools.layers.base import Shape
from caffetools.net.net import Net
from caffetools.onnx.check import check_model, check_shapes
from caffetools.onnx.clip import merge_clips
from caffetools.onnx.graph import GraphBuilder
from caffetools.onnx.lrn import expand_lrn_in
from caffetools.onnx.model import OnnxModel
from caffetools.onnx.pools import symmetrize_pools
from caffetools.onnx.preprocessing import InGraphPreprocessing, prepend_preprocessing
from caffetools.onnx.shapes import AXES, FreeShapes, find_free_shapes, read_inputs
from caffetools.onnx.verify import Inputs, Verification, verify_model
from caffetools.proto.schema import TEST

# 11 is what TensorRT 7 (the last for the first Jetson's JetPack 4.4) reads; the tests run every layer up to the last one.
OPSETS = range(11, 29)
DEFAULT_OPSET = 17

PathLike = str | os.PathLike[str]
LrnForm = Literal["node", "band"]
LRN_FORMS: tuple[LrnForm, ...] = get_args(LrnForm)


def to_onnx(
    net: Net,
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_axes: Collection[str] = ("batch",),
    properties: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Return ``net`` as one ONNX message with its weights in it (float32), checked; see :func:`build`."""
    return build(net, opset=opset, dynamic_axes=dynamic_axes, properties=properties)[0].to_proto()


def build(
    net: Net,
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_axes: Collection[str] = ("batch",),
    properties: Mapping[str, str] | None = None,
    outputs: Sequence[str] = (),
) -> tuple[OnnxModel, FreeShapes]:
    """Build the ONNX model of ``net``, checked, with every blob's shape as the net's shape rules give it.

    Blobs, parameters and nodes are named as :class:`~caffetools.onnx.graph.GraphBuilder` describes. Inputs that no layer reads are
    left out.

    Args:
        net: A net in the TEST phase, with its weights; its configuration is the same afterwards.
        opset: Version of ONNX's operators, 11 to 28.
        dynamic_axes: Which axes of the inputs have any size: ``batch`` (axis 0), ``height`` and ``width`` (axes 2 and 3 of inputs
            of four axes). Sizes of the others are as the net is configured.
        properties: The model's ``metadata_props``.
        outputs: Blobs that become the model's outputs; the net's outputs when empty.

    Returns:
        The model, whose weights are views of the net's where possible, and its shapes.

    Raises:
        ExportError: A layer has no exact ONNX form, or the net does not take other sizes of ``dynamic_axes``.
    """
    _check_exportable(net, opset, dynamic_axes)
    if all(layer.IS_DATA for layer in net.layers):
        raise ExportError(f"the net '{net.name}' has no outputs: nothing would be exported")
    shapes = find_free_shapes(net, read_inputs(net), dynamic_axes)
    builder = GraphBuilder(net, opset, shapes.free)
    for layer in net.layers:
        builder.add_layer(layer)
    values = builder.finish()
    read = {name for node in builder.graph.node for name in node.input}
    inputs = [blob for blob in builder.inputs if blob in read]
    outputs = [blob for blob in outputs or net.outputs if blob not in builder.inputs or values[blob] != blob]
    if not outputs:
        raise ExportError(f"the net '{net.name}' has no outputs: nothing would be exported")
    graph = builder.graph
    merged = merge_clips(graph, builder.weights, [*(values[blob] for blob in outputs), *builder.inputs])
    values = {blob: value for blob, value in values.items() if value not in merged}
    hidden = [blob for blob in values if blob not in inputs and blob not in outputs and blob not in builder.inputs]
    for field, blobs in ((graph.input, inputs), (graph.output, outputs), (graph.value_info, hidden)):
        for blob in blobs:
            name = blob if field is graph.input else values[blob]
            field.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.dims(blob)))
    sizes = shapes_to_properties({blob: shapes.base[blob] for blob in inputs}) if {"height", "width"} & set(dynamic_axes) else {}
    helper.set_model_props(builder.model, {**(properties or {}), **sizes})
    model = OnnxModel(builder.model, builder.weights, builder.notes)
    check_model(model)
    _check_all_shapes(model, shapes, values)
    check_model(model, full=True)
    return model, shapes


def export(
    net: Net,
    path: PathLike,
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_axes: Collection[str] = ("batch",),
    properties: Mapping[str, str] | None = None,
    outputs: Sequence[str] = (),
    inputs: Inputs | None = None,
    preprocessing: InGraphPreprocessing | None = None,
    lrn: LrnForm = "node",
    symmetric_pools: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Write ``net`` to ``path``, after comparing the model in onnxruntime with the net.

    Args:
        net: A net in the TEST phase, with its weights.
        path: The ONNX file to write; a model of 2 GB or more also writes ``PATH.data``.
        opset: As for :func:`build`.
        dynamic_axes: As for :func:`build`.
        properties: As for :func:`build`.
        outputs: As for :func:`build`.
        inputs: Input blob → (N, C, H, W) float32 to compare on; seeded random ones when None.
        preprocessing: Put into the graph in front of the net, which is verified without it.
        lrn: How LRN across channels is written: ``node``, ONNX's LRN, which every runtime and precision has; or ``band``, a convolution,
            square roots and a division, which onnxruntime computes several times as fast on the CPU.
        symmetric_pools: Write average pooling without padding that differs at both ends, where that is exact; some converters read no other.
        progress: Called with (layers compared, all layers); may raise to stop before ``path`` is written.

    Returns:
        The errors of every blob, the largest first, and what they were measured on.

    Raises:
        ExportError: As for :func:`build`, or the exported model gives other numbers; ``path`` is then as it was before.
        RunFailed: The folder cannot be written to, or the disk is full.
    """
    model, shapes = build(net, opset=opset, dynamic_axes=dynamic_axes, properties=properties, outputs=outputs)
    rewritten = expand_lrn_in(model) if lrn == "band" else 0
    rewritten += symmetrize_pools(model) if symmetric_pools else 0
    if rewritten:
        check_model(model, full=True)
    cases = _small_batches(net, shapes.cases) if "batch" in dynamic_axes and inputs is None else shapes.cases
    verification = verify_model(model, net, cases, inputs, name=os.fspath(path), progress=progress)
    if preprocessing is not None:
        prepend_preprocessing(model, preprocessing, opset)
        check_model(model, full=True)
    model.write(path)
    return verification


def _small_batches(net: Net, cases: Sequence[Mapping[str, Shape]]) -> list[Mapping[str, Shape]]:
    """Return the cases with batch sizes of 1, 2, …, where the net takes them: a declared batch of ten need not be run."""
    small = [{blob: (number, *shape[1:]) for blob, shape in case.items()} for number, case in enumerate(cases, 1)]
    try:
        for case in small:
            net.reshape(case)
    except NetError:
        return list(cases)
    finally:
        net.reshape(cases[0])
    return list(small)


def _check_exportable(net: Net, opset: int, dynamic_axes: Collection[str]) -> None:
    for index, blobs in net.rewriting.names.items():
        raise ExportError(
            f"it overwrites the blob '{blobs[0]}', which is read after it (they share memory by a Flatten, Reshape or Split), and ONNX has no such memory",
            layer=net.layers[index].name,
            hint="give the layer a top of its own",
        )
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not possible; {OPSETS[0]} to {OPSETS[-1]} are")
    if unknown := [axis for axis in dynamic_axes if axis not in AXES]:
        raise ExportError(f"'{unknown[0]}' is not a kind of axis; {', '.join(AXES)} are")
    if net.phase != TEST:
        raise ExportError(f"the net '{net.name}' is in the TRAIN phase; export its TEST phase or, better, its deploy prototxt")


def _check_all_shapes(model: OnnxModel, shapes: FreeShapes, values: Mapping[str, str]) -> None:
    for number, blob_shapes in enumerate(shapes.case_shapes):
        try:
            check_shapes(model, {values[blob]: shape for blob, shape in blob_shapes.items() if blob in values})
        except ExportError as error:
            if number:
                raise ExportError(f"with other input sizes, {error}", hint="fix them instead (--batch N, --input-shape)") from None
            raise
