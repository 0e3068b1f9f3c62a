"""A deploy prototxt and its weights as one verified ONNX file that also says how pictures are prepared for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.engines.torch import load_all_weights
from caffetools.errors import DataError, ExportError
from caffetools.graph.inputs import is_data_layer
from caffetools.infer.classifier import Options, merge_preprocessing
from caffetools.infer.preprocess import Preprocessor
from caffetools.net.net import Net
from caffetools.onnx.export import DEFAULT_OPSET, export
from caffetools.onnx.metadata import Preprocessing
from caffetools.onnx.verify import TOLERANCE, Verification
from caffetools.proto.schema import TEST

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
) -> Verification:
    """Export a deployed net, verified before ``path`` gets its content.

    Args:
        deploy, weights: The deploy prototxt and its .caffemodel. path: The ONNX file to write.
        options: Mean, labels, scale and size, to be written into the file's metadata (and used for ``pictures``).
        opset: 11 to 20. batch: The batch size to fix; None leaves it free.
        pictures: Files to verify on; seeded random inputs where there are none. tolerance: as for :func:`~caffetools.onnx.verify.verify`.

    Returns:
        What was compared, and the largest differences.

    Raises:
        CaffeToolsError: a file cannot be read, or weights, mean, labels or pictures do not fit the net.
        ExportError: the net has no exact ONNX form, or the exported model gives other numbers.
    """
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
    how = _preprocessing(net, options or Options())
    if how is not None:
        properties |= how[1].how.to_properties()
        if pictures:
            inputs = {how[0]: _read_all(how[1], pictures, batch)}
    elif pictures:
        raise DataError(f"{os.fspath(deploy)}: the net has no single input for pictures, so it cannot be verified on them")
    return export(net, path, opset=opset, dynamic_batch=batch is None, properties=properties, inputs=inputs, tolerance=tolerance)


def _preprocessing(net: Net, options: Options) -> tuple[str, Preprocessor] | None:
    """The net's one input and how pictures are made for it; None where it takes no pictures."""
    shapes = [net.blob_shapes[blob] for blob in net.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (1, 3):
        if options != Options():
            raise DataError(f"the net '{net.name}' has no single input for pictures, so mean, labels, scale and size mean nothing")
        return None
    how = merge_preprocessing(Preprocessing(), options, channels=shapes[0][1])
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
