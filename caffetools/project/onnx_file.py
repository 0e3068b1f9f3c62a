"""A deploy prototxt and its weights as one verified ONNX file that also says how pictures are prepared for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.engines.torch import load_all_weights
from caffetools.errors import DataError, ExportError
from caffetools.events import ArtifactWritten, EventSink, Warned, ignore
from caffetools.graph.inputs import is_data_layer
from caffetools.infer.classifier import UNKNOWN_MEAN, Options, merge_preprocessing
from caffetools.infer.preprocess import Preprocessor
from caffetools.infer.sidecar import read_preprocessing
from caffetools.net.net import Net
from caffetools.onnx.export import DEFAULT_OPSET, export
from caffetools.onnx.verify import TOLERANCE, Verification
from caffetools.proto.schema import TEST
from caffetools.results import Preprocessing

PathLike = str | os.PathLike[str]


def export_deployed(
    deploy: PathLike,
    weights: PathLike,
    path: PathLike,
    options: Options | None = None,
    *,
    opset: int = DEFAULT_OPSET,
    batch: int | None = None,
    pictures: Sequence[PathLike] = (),
    tolerance: float = TOLERANCE,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Verification:
    """Export a deployed net, verified before ``path`` is written.

    Args:
        deploy: The deploy prototxt; the preprocessing in ``deploy.json`` next to it is written into the file's metadata.
        weights: Its .caffemodel.
        path: The ONNX file to write.
        options: Mean, labels, scale and size in place of those of ``deploy.json``; also used for ``pictures``.
        opset: Version of ONNX's operator set, 11 to 20.
        batch: Batch size to fix; None leaves it dynamic.
        pictures: Image files to verify on; seeded random inputs if empty.
        tolerance: As for :func:`~caffetools.onnx.verify.verify`.
        events: Receives ``Warned`` if no mean is known, and ``ArtifactWritten``.
        cancel: Checked before the export; nothing is written after a cancellation.

    Returns:
        The largest differences found.

    Raises:
        CaffeToolsError: A file cannot be read, or weights, mean, labels or images do not fit the net.
        ExportError: The net has no exact ONNX form, or the exported model gives other numbers.
        Cancelled: ``cancel`` was set.
    """
    if cancel is not None:
        cancel.raise_if_cancelled("the export")
    net = Net.from_file(deploy, TEST, fill=False)
    load_all_weights(net, deploy, weights)
    if any(is_data_layer(layer.param) for layer in net.layers):
        raise DataError(
            f"{os.fspath(deploy)}: the net reads its pictures itself and takes no input; export its deploy prototxt "
            "(`caffetools deploy` writes it)"
        )
    if batch is not None:
        if batch < 1:
            raise ExportError(f"batch size {batch} is not possible; give 1 or more, or dynamic")
        net.reshape({blob: (batch, *net.blob_shapes[blob][1:]) for blob in net.inputs})
    properties = {"caffetools.source": Path(deploy).name, "caffetools.weights": Path(weights).name}
    inputs: dict[str, NDArray[Any]] | None = None
    how = _preprocessing(net, read_preprocessing(deploy) or Preprocessing(), options or Options())
    if how is not None and not how[1].how.mean_known:
        events(Warned(task="export", message=UNKNOWN_MEAN))
    if how is not None:
        properties |= how[1].how.to_properties()
        if pictures:
            inputs = {how[0]: _read_all(how[1], pictures, batch)}
    elif pictures:
        raise DataError(f"{os.fspath(deploy)}: the net has no single input for pictures, so it cannot be verified on them")
    found = export(net, path, opset=opset, dynamic_batch=batch is None, properties=properties, inputs=inputs, tolerance=tolerance)
    events(ArtifactWritten(task="export", path=os.fspath(path), what="onnx"))
    return found


def _preprocessing(net: Net, known: Preprocessing, options: Options) -> tuple[str, Preprocessor] | None:
    """Return the net's only input and its preprocessor; None if it does not take images."""
    shapes = [net.blob_shapes[blob] for blob in net.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (1, 3):
        if options != Options():
            raise DataError(f"the net '{net.name}' has no single input for pictures, so it takes no mean, labels, scale or size")
        return None
    how = merge_preprocessing(known, options, channels=shapes[0][1])
    _check_labels(net, how, options.labels)
    return net.inputs[0], Preprocessor(shapes[0], how)


def _check_labels(net: Net, how: Preprocessing, given: object) -> None:
    classes = {net.blob_shapes[blob][1] for blob in net.outputs if len(net.blob_shapes[blob]) > 1}
    if how.labels and len(how.labels) not in classes:
        origin = f"{os.fspath(given)}: " if isinstance(given, str | os.PathLike) else ""
        counts = ", ".join(map(str, sorted(classes)))
        raise DataError(f"{origin}there are {len(how.labels)} labels, but the net's outputs have {counts} classes")


def _read_all(preprocessor: Preprocessor, pictures: Sequence[PathLike], batch: int | None) -> NDArray[Any]:
    inputs = np.concatenate([preprocessor.centre(preprocessor.read(picture)) for picture in pictures])
    # A fixed batch is filled up with the pictures again, from the first one on.
    return inputs if batch is None else np.resize(inputs, (batch, *inputs.shape[1:]))
