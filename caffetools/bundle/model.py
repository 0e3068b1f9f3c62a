"""The ONNX model of a bundle: the names that jetson-inference expects, and its normalization of pictures taken back."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from caffetools.errors import DataError, ExportError
from caffetools.infer.preprocess import Preprocessor
from caffetools.proto.sniff import Kind, wrong_kind
from caffetools.quant.tables import TENSORRT_HEADER

INPUT, OUTPUT = "input_0", "output_0"


@dataclass(frozen=True)
class Normalization:
    """What jetson-inference gives an ONNX model: RGB, (pixel / 255 - ``mean``) / ``std``, both of 3 values."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @property
    def pixel_mean(self) -> list[float]:
        """What is subtracted from pixels of 0 to 255."""
        return [float(np.float32(255 * value)) for value in self.mean]

    @property
    def pixel_scale(self) -> list[float]:
        """The factors after that."""
        return [float(np.float32(1 / (255 * value))) for value in self.std]

    @property
    def largest(self) -> float:
        """The largest magnitude of a normalized pixel."""
        return float(np.max(np.maximum(self.mean, 1 - self.mean) / self.std))


# Of its imageNet and of its detectNet.
IMAGENET = Normalization(np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
DETECTNET = Normalization(np.full(3, 0.5), np.full(3, 0.5))


def rename_value(model: onnx.ModelProto, old: str, new: str) -> None:
    """Rename a value of the graph wherever it occurs. Raises :class:`ExportError` if ``new`` is another value's name."""
    if old == new:
        return
    graph = model.graph
    used = {name for node in graph.node for name in (*node.input, *node.output)} | {tensor.name for tensor in graph.initializer}
    if new in used:
        raise ExportError(f"a blob of the net has the name '{new}', which the bundle's model needs", hint="rename the blob")
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for values in (graph.input, graph.output, graph.value_info):
        for value in values:
            if value.name == old:
                value.name = new


def split_unsqueezes(model: onnx.ModelProto) -> None:
    """Write each Unsqueeze of several axes as one for each axis: OpenCV 4.6, which Debian 12 has, reads no others (operators up to 12)."""
    nodes = []
    for node in model.graph.node:
        axes = sorted(helper.get_node_attr_value(node, "axes")) if node.op_type == "Unsqueeze" else []
        names = [node.input[0], *(f"{node.output[0]}/{axis}" for axis in axes[:-1]), *node.output]
        for before, after, axis in zip(names, names[1:], axes, strict=False):
            nodes.append(helper.make_node("Unsqueeze", [before], [after], name=f"{node.name}/{axis}", axes=[axis]))
        if not axes:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def prepend_denormalization(model: onnx.ModelProto, normalization: Normalization, preprocessor: Preprocessor) -> None:
    """Make the model take jetson-inference's normalized RGB pictures: input ``input_0``, then a 1x1 convolution gives the net's input.

    Args:
        model: A model with one input of (1, 3, H, W).
        normalization: What is taken back.
        preprocessor: Order of the channels, mean and scale of that input.
    """
    graph, mean, scale = model.graph, preprocessor.input_mean, preprocessor.how.scale
    given = graph.input[0]
    if given.name == INPUT:
        rename_value(model, INPUT, f"{INPUT}/net")
    blob = given.name
    is_image = mean.shape[1:] != (1, 1)
    matrix = np.zeros((3, 3, 1, 1), np.float32)
    bias = np.zeros(3, np.float64)
    values = np.broadcast_to(mean.reshape(-1), (3,)) if not is_image else np.zeros(3)
    for channel in range(3):
        source = channel if preprocessor.how.channel_order == "RGB" else 2 - channel
        matrix[channel, source] = 255 * normalization.std[source] * scale
        bias[channel] = (255 * normalization.mean[source] - values[channel]) * scale
    result = f"{blob}/pixels" if is_image else blob
    tensors = {f"{INPUT}/matrix": matrix, f"{INPUT}/bias": bias.astype(np.float32)}
    nodes = [helper.make_node("Conv", [INPUT, *tensors], [result], name=f"{INPUT}/denormalize", kernel_shape=[1, 1])]
    if is_image:
        tensors[f"{INPUT}/mean"] = (mean * np.float32(scale)).astype(np.float32)[np.newaxis]
        nodes.append(helper.make_node("Sub", [result, f"{INPUT}/mean"], [blob], name=f"{INPUT}/subtract_mean"))
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    graph.value_info.append(helper.make_tensor_value_info(blob, TensorProto.FLOAT, shape))
    given.CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape))


def adapt_calibration(path: Path, names: dict[str, str], input_range: float | None) -> str:
    """Return a TensorRT calibration cache for the bundle's model, with the header that trtexec asks for.

    Args:
        path: The cache, as ``caffetools quantize`` writes it (``OUT.tensorrt.cache``).
        names: Name of a value in the cache → its name in the bundle; the net's input first.
        input_range: Largest magnitude of ``input_0``, where it is a value of its own.

    Raises:
        DataError: It cannot be read, is not such a cache, or is of another net.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise DataError(f"cannot read the calibration cache: {reason}", path=path, hint="`caffetools quantize` writes one") from None
    if not lines or not lines[0].startswith("TRT-"):
        if other := wrong_kind(DataError, path, "a TensorRT calibration cache", allowed=(Kind.TEXT,)):
            raise other
        raise DataError("not a TensorRT calibration cache", path=path, hint="`caffetools quantize` writes one")
    entries = [line.rpartition(": ")[::2] for line in lines[1:] if line.strip()]
    first = next(iter(names))
    if first not in {name for name, _ in entries}:
        raise DataError(f"it has no range of the net's input '{first}': it is the cache of another net", path=path)
    made = [f"{names.get(name, name)}: {value}" for name, value in entries]
    if input_range is not None:
        made.insert(0, f"{INPUT}: {struct.pack('>f', input_range / 127).hex()}")
    return "\n".join([TENSORRT_HEADER, *made, ""])
