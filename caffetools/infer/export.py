"""A deploy prototxt and its weights as one verified ONNX file that also holds its preprocessing and a model card."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import caffetools
from caffetools.cancel import CancelToken
from caffetools.engines.torch import load_all_weights
from caffetools.errors import DataError, ExportError
from caffetools.events import ArtifactWritten, EventSink, Warned, ignore, reporter
from caffetools.graph.inputs import is_data_layer
from caffetools.infer.classifier import UNKNOWN_MEAN, PreprocessOptions, merge_preprocessing
from caffetools.infer.preprocess import Preprocessor
from caffetools.infer.sidecar import read_preprocessing
from caffetools.layers.base import Shape
from caffetools.net.malloc_tuning import return_freed_memory
from caffetools.net.net import Net, error_context
from caffetools.net.phases import filter_net, make_state
from caffetools.onnx.cut import cut_net
from caffetools.onnx.export import DEFAULT_OPSET, LrnForm, export
from caffetools.onnx.preprocessing import InGraphPreprocessing
from caffetools.onnx.shapes import batch_limit
from caffetools.onnx.verify import Verification
from caffetools.proto.schema import TEST
from caffetools.proto.text import read_net
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.results import PREPROCESSED, Preprocessing
from caffetools.util.checksums import file_sha256
from caffetools.util.files import check_not_read

PathLike = str | os.PathLike[str]
# The property of the model card that holds the prototxt's SHA-256.
SOURCE_SHA256, WEIGHTS_SHA256 = "caffetools.source_sha256", "caffetools.weights_sha256"


@dataclass(frozen=True)
class ExportOptions:
    """How a deploy net becomes an ONNX file.

    Attributes:
        opset: Version of ONNX's operators, 11 to 28.
        dynamic_axes: Which axes of the inputs have any size: ``batch``, ``height``, ``width``; None for the batch where the net
            takes any.
        batch: The batch size to fix; None leaves it as the net declares it, or free.
        input_shapes: Input blob → shape, in place of the net's own.
        outputs: Blobs to export instead of the net's outputs; layers that they do not need are left out.
        sources: Blobs that become inputs; the layers before them are left out.
        preprocess: Put mean subtraction, channel swap and scale into the graph, which then takes uint8 (N, H, W, 3) RGB pictures.
        lrn: How LRN across channels is written; see :func:`~caffetools.onnx.export.export`.
        symmetric_pools: Average pooling without padding that differs at both ends; see there.
    """

    opset: int = DEFAULT_OPSET
    dynamic_axes: Collection[str] | None = None
    batch: int | None = None
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    sources: Sequence[str] = ()
    preprocess: bool = False
    lrn: LrnForm = "node"
    symmetric_pools: bool = False


def export_deployed(
    deploy: PathLike,
    weights: PathLike,
    path: PathLike,
    options: PreprocessOptions | None = None,
    how: ExportOptions | None = None,
    *,
    pictures: Sequence[PathLike] = (),
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Verification:
    """Export a deployed net, verified before ``path`` gets its content.

    Args:
        deploy: The deploy prototxt; the preprocessing in ``deploy.json`` next to it is written into the file's metadata.
        weights: Its .caffemodel.
        path: The ONNX file to write.
        options: Mean, labels, scale and size in place of those of ``deploy.json``; also used for ``pictures``.
        how: Sizes, operators and parts of the net.
        pictures: Image files to verify on; seeded random inputs if empty.
        events: Receives ``Progress`` in layers compared, ``Warned`` if no mean is known, where the batch size is fixed without being
            asked for, and for each note on the model, and ``ArtifactWritten``.
        cancel: Checked before the export and after each layer that was compared; nothing is written after a cancellation.

    Returns:
        The largest differences found.

    Raises:
        CaffeToolsError: A file cannot be read, or weights, mean, labels or pictures do not fit the net.
        ExportError: The net has no exact ONNX form, or the exported model gives other numbers.
        Cancelled: ``cancel`` was set.
    """
    if cancel is not None:
        cancel.raise_if_cancelled("the export")
    check_not_read(path, [deploy, weights, *pictures])
    how = how or ExportOptions()
    net = build_deployed(deploy, weights, how)
    axes, limit = free_axes(net, how)
    card = model_card(net, deploy, weights)
    inputs: dict[str, NDArray[Any]] | None = None
    in_graph: InGraphPreprocessing | None = None
    found = find_preprocessing(net, _known_preprocessing(net, deploy, how), options or PreprocessOptions())
    if found is not None:
        blob, preprocessor = found
        card |= preprocessor.how.to_properties()
        if pictures:
            inputs = {blob: _read_all(preprocessor, pictures, how.batch)}
        if how.preprocess:
            in_graph = _in_graph(blob, preprocessor, axes)
            card[PREPROCESSED] = "uint8 NHWC RGB" if preprocessor.channels == 3 else "uint8 NHWC"
    elif pictures or how.preprocess:
        raise DataError(f"{os.fspath(deploy)}: the net has no single input for pictures, so it cannot preprocess or be verified on them")
    verification = export(
        net,
        path,
        opset=how.opset,
        dynamic_axes=axes,
        properties=card,
        outputs=how.outputs,
        inputs=inputs,
        preprocessing=in_graph,
        lrn=how.lrn,
        symmetric_pools=how.symmetric_pools,
        progress=reporter(events, "export", "layers", cancel),
    )
    if found is not None and not found[1].how.mean_known:
        events(Warned(task="export", message=UNKNOWN_MEAN))
    for note in (*([limit] if limit else []), *verification.notes):
        events(Warned(task="export", message=note))
    events(ArtifactWritten(task="export", path=os.fspath(path), what="onnx"))
    return verification


def free_axes(net: Net, how: ExportOptions) -> tuple[list[str], str]:
    """Return which axes of the inputs have any size, and a note where the batch size is fixed without being asked for."""
    if how.dynamic_axes is not None or how.batch is not None:
        return [axis for axis in how.dynamic_axes or () if axis != "batch" or how.batch is None], ""
    limit = batch_limit(net)
    return ([], f"The batch size is fixed: {limit}.") if limit else (["batch"], "")


def preprocessing_of_part(how: ExportOptions, given: PreprocessOptions, whole: PreprocessOptions) -> PreprocessOptions:
    """Return the preprocessing for a part of a net of the zoo: its card's is for the net's own input, and the labels for its own output.

    Args:
        how: Which part.
        given: Preprocessing of the caller.
        whole: The same, with what the card adds.
    """
    if how.sources:
        return given
    return replace(whole, labels=None) if how.outputs and given.labels is None else whole


def _known_preprocessing(net: Net, deploy: PathLike, how: ExportOptions) -> Preprocessing:
    """Return what ``deploy.json`` has for the part of the net that is exported."""
    known = read_preprocessing(deploy) or Preprocessing()
    if how.sources:
        return Preprocessing()
    return replace(known, labels=()) if how.outputs and len(known.labels) not in _class_counts(net) else known


def build_deployed(deploy: PathLike, weights: PathLike, how: ExportOptions) -> Net:
    """Build the part of a deploy net that ``how`` asks for, with its weights. Raises :class:`CaffeToolsError` where that fails."""
    net = build_part(deploy, how)
    for parameter in net.parameters():
        # In the order in which they are written, so that the file is written from them and not from copies; all are read.
        parameter.data = parameter.data.new_empty(parameter.shape)
    return_freed_memory()
    load_all_weights(net, deploy, weights)
    return net


def build_part(deploy: PathLike, how: ExportOptions) -> Net:
    """Build the part of a deploy net that ``how`` asks for, its parameters not filled. Raises :class:`CaffeToolsError` where that fails."""
    param = filter_net(upgrade_net(read_net(deploy)), make_state(TEST))
    # Before the net is built: building opens what data layers read.
    if any(is_data_layer(layer) for layer in param.layer):
        raise DataError(
            "the net reads its pictures itself and takes no input",
            path=deploy,
            hint="export its deploy prototxt (`caffetools deploy` writes it)",
        )
    with error_context(deploy):
        if how.outputs or how.sources:
            param = cut_net(param, how.outputs, how.sources, how.input_shapes)
        net = Net(param, TEST, fill=False)
    unknown = [blob for blob in how.input_shapes if blob not in net.inputs]
    if unknown and not how.sources:
        raise ExportError(f"'{unknown[0]}' is not an input of {os.fspath(deploy)}; its inputs are {', '.join(net.inputs)}")
    with error_context(deploy):
        net.reshape({blob: shape for blob, shape in how.input_shapes.items() if blob in net.inputs})
        if how.batch is not None:
            if how.batch < 1:
                raise ExportError(f"batch size {how.batch} is not possible; give 1 or more, or dynamic")
            net.reshape({blob: (how.batch, *net.blob_shapes[blob][1:]) for blob in net.inputs})
    return net


def model_card(net: Net, deploy: PathLike, weights: PathLike) -> dict[str, str]:
    """Return what the file was made from: names and SHA-256 of the sources, and the version of caffetools."""
    return {
        "caffetools.version": caffetools.__version__,
        "caffetools.net": net.name,
        "caffetools.source": Path(deploy).name,
        SOURCE_SHA256: file_sha256(deploy),
        "caffetools.weights": Path(weights).name,
        WEIGHTS_SHA256: file_sha256(weights),
    }


def find_preprocessing(net: Net, known: Preprocessing, options: PreprocessOptions) -> tuple[str, Preprocessor] | None:
    """Return the net's only input and its preprocessor; None if it does not take images.

    Raises:
        DataError: What is known of the pictures does not fit the net.
    """
    shapes = [net.blob_shapes[blob] for blob in net.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (1, 3):
        if options != PreprocessOptions():
            raise DataError(f"the net '{net.name}' has no single input for pictures, so it takes no mean, labels, scale or size")
        return None
    how = merge_preprocessing(known, options, channels=shapes[0][1])
    _check_labels(net, how, options.labels)
    return net.inputs[0], Preprocessor(shapes[0], how)


def _in_graph(blob: str, preprocessor: Preprocessor, axes: Sequence[str]) -> InGraphPreprocessing:
    mean = preprocessor.input_mean
    if mean.shape[1:] != (1, 1) and ({"height", "width"} & set(axes) or mean.shape[1:] != (preprocessor.height, preprocessor.width)):
        raise ExportError(
            "a mean image fits one size of pictures only; give the mean of each channel (--mean 104,117,123), or fix the size"
        )
    return InGraphPreprocessing(blob, mean, preprocessor.how.scale, preprocessor.how.channel_order)


def _check_labels(net: Net, how: Preprocessing, given: object) -> None:
    classes = _class_counts(net)
    if how.labels and len(how.labels) not in classes:
        origin = f"{os.fspath(given)}: " if isinstance(given, str | os.PathLike) else ""
        counts = ", ".join(map(str, sorted(classes)))
        raise DataError(f"{origin}there are {len(how.labels)} labels, but the net's outputs have {counts} classes")


def _class_counts(net: Net) -> set[int]:
    return {net.blob_shapes[blob][1] for blob in net.outputs if len(net.blob_shapes[blob]) > 1}


def _read_all(preprocessor: Preprocessor, pictures: Sequence[PathLike], batch: int | None) -> NDArray[Any]:
    inputs = np.concatenate([preprocessor.centre(preprocessor.read(picture)) for picture in pictures])
    # A fixed batch is filled up with the pictures again, from the first one on.
    return inputs if batch is None else np.resize(inputs, (batch, *inputs.shape[1:]))
