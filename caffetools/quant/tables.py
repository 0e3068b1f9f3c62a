"""Calibration tables of other runtimes: TensorRT's cache, ncnn's table, and the table of caffe-int8-convert-tools.

All three are symmetric: magnitude 127 stands for the threshold of calibration. TensorRT's cache has the scale of each value
(threshold / 127); the two tables have the inverse (127 / threshold) of each layer's input, and of the weights of each output.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from caffetools.layers.base import Layer
from caffetools.layers.convolution import Convolution
from caffetools.net.net import Net
from caffetools.quant.fake import channel_axis, quantizable, weight_maxima

# However the thresholds were found: TensorRT refuses a cache of another calibrator, and trtexec's is IInt8EntropyCalibrator2.
TENSORRT_HEADER = "TRT-8601-EntropyCalibration2"
# ncnn convolves 3x3 kernels by Winograd's F(4,3), whose transformed weights need two bits more.
_WINOGRAD_LEVELS = 31
# Below this caffe-int8-convert-tools takes all weights of an output for 0.
_NO_WEIGHTS = 1e-4


def tensorrt_cache(thresholds: Mapping[str, float]) -> str:
    """Return TensorRT's calibration cache: ``NAME: HEX`` lines, the big-endian float32 of each value's scale.

    Args:
        thresholds: Name of a value of the ONNX model → threshold.
    """
    lines = [f"{name}: {struct.pack('>f', threshold / 127 if threshold else 1.0).hex()}" for name, threshold in thresholds.items()]
    return "\n".join([TENSORRT_HEADER, *lines, ""])


def ncnn_table(net: Net, thresholds: Mapping[str, float], keep: Collection[str] = ()) -> str:
    """Return the table that ncnn2int8 reads: first the scales of all weights (``LAYER_param_0``), then those of the inputs.

    A grouped convolution has a scale for each group, others for each output. Layers without a line are computed in float.

    Args:
        net: The net with its weights.
        thresholds: Layer → threshold of its input.
        keep: Layers to leave out.
    """
    layers = [layer for layer in quantizable(net) if layer.name in thresholds and layer.name not in keep]
    lines = [f"{layer.name}_param_0 {_joined(_ncnn_scales(layer))}" for layer in layers]
    lines += [f"{layer.name} {_joined([_inverse(thresholds[layer.name])])}" for layer in layers]
    return "".join(f"{line}\n" for line in lines)


def caffe_int8_table(net: Net, thresholds: Mapping[str, float], keep: Collection[str] = ()) -> str:
    """Return the table of BUG1989's caffe-int8-convert-tools: convolutions only, a scale for each output.

    Args:
        net: The net with its weights.
        thresholds: Layer → threshold of its input.
        keep: Layers to leave out.
    """
    layers = [layer for layer in quantizable(net) if isinstance(layer, Convolution) and layer.name in thresholds and layer.name not in keep]
    lines = []
    for layer in layers:
        scales = [127 / m if m >= _NO_WEIGHTS else 0.0 for m in _maxima(layer).tolist()]
        lines.append(" ".join([f"{layer.name}_param_0", *(f"{scale:.9g}" for scale in scales)]))
    lines += [f"{layer.name} {_inverse(thresholds[layer.name]):.9g}" for layer in layers]
    return "".join(f"{line}\n" for line in lines)


TABLES: dict[str, tuple[str, Callable[[Net, Mapping[str, float], Collection[str]], str] | None]] = {
    "tensorrt": (".tensorrt.cache", None),
    "ncnn": (".ncnn.table", ncnn_table),
    "caffe": (".caffe-int8.table", caffe_int8_table),
}


def _maxima(layer: Layer) -> NDArray[np.float64]:
    return np.asarray(weight_maxima(layer.blobs[0], channel_axis(layer)).cpu().numpy(), np.float64)


def _ncnn_scales(layer: Layer) -> list[float]:
    maxima = _maxima(layer)
    if not isinstance(layer, Convolution):
        return [_inverse(m) for m in maxima.tolist()]
    if layer.group > 1:
        return [_inverse(m) for m in maxima.reshape(layer.group, -1).max(axis=1).tolist()]
    kernel = layer.kernel
    ones = tuple(kernel.stride) == (1, 1) and tuple(kernel.dilation) == (1, 1)
    levels = _WINOGRAD_LEVELS if tuple(kernel.size) == (3, 3) and ones else 127
    return [_inverse(m, levels) for m in maxima.tolist()]


def _inverse(threshold: float, levels: int = 127) -> float:
    # With nothing but zeros any scale is right.
    return levels / threshold if threshold else 1.0


def _joined(scales: Iterable[float]) -> str:
    # ncnn writes a blank behind each number.
    return "".join(f"{scale:f} " for scale in scales)
