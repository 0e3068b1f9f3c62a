"""Normalization: BatchNorm and LRN are layers; by instance, group or layer it is written with what every Caffe has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.layers.convolution import Convolution
from caffetools.layers.crop import Tile
from caffetools.layers.eltwise import Eltwise
from caffetools.layers.lrn import LRN
from caffetools.layers.normalization import BatchNorm
from caffetools.layers.reduction import Reduction
from caffetools.layers.scale import Bias, Scale
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.activation import power, product
from caffetools.onnx.import_ops.shape import add_reshape
from caffetools.onnx.import_ops.window import fill_kernel

Array = NDArray[Any]


@importer("BatchNormalization")
def batch_norm(writer: NetWriter, node: Node) -> None:
    """BatchNorm for mean and variance, Scale for scale and shift."""
    scale, shift, mean, variance = (writer.required(node, index, "parameters") for index in range(1, 5))
    if any(name and writer.graph.readers(name) for name in node.outputs[1:]):
        raise node.error("it gives the batch's statistics, as in training")
    del node.outputs[1:]
    if len(writer.shape(node.inputs[0])) < 2:
        raise node.error("it has no channels")
    blob = writer.blob(node, node.inputs[0])
    plain = bool((scale == 1).all() and (shift == 0).all())
    layer = writer.layer(node, BatchNorm.TYPE, [blob], last=plain, weights=[mean, variance, np.ones(1)])
    layer.batch_norm_param.use_global_stats = True
    layer.batch_norm_param.eps = float(node.attributes.get("epsilon", 1e-5))
    if not plain:
        scaled = writer.layer(node, Scale.TYPE, [layer.top[0]], hint="scale", weights=[scale, shift])
        scaled.scale_param.bias_term = True


@importer("LRN")
def lrn(writer: NetWriter, node: Node) -> None:
    """LRN across channels."""
    layer = writer.layer(node, LRN.TYPE, [writer.blob(node, node.inputs[0])])
    param = layer.lrn_param
    param.local_size = int(node.attributes["size"])
    if param.local_size % 2 == 0:
        raise node.error("Caffe's windows have an odd number of channels")
    param.alpha, param.beta = float(node.attributes.get("alpha", 1e-4)), float(node.attributes.get("beta", 0.75))
    param.k = float(node.attributes.get("bias", 1.0))


@importer("InstanceNormalization")
def instance_norm(writer: NetWriter, node: Node) -> None:
    """Each map by its own mean and variance."""
    scale, shift = writer.required(node, 1, "scale"), writer.required(node, 2, "shift")
    blob = _normalized(writer, node, writer.blob(node, node.inputs[0]), axis=2)
    _scaled(writer, node, blob, scale, shift, axis=1)


@importer("LayerNormalization")
def layer_norm(writer: NetWriter, node: Node) -> None:
    """All values from an axis on by their mean and variance."""
    shape = writer.shape(node.inputs[0])
    axis = int(node.attributes.get("axis", -1)) % len(shape)
    if any(name and writer.graph.readers(name) for name in node.outputs[1:]):
        raise node.error("it gives means and deviations too")
    del node.outputs[1:]
    if not axis:
        raise node.error("it runs over the batch")
    scale = np.broadcast_to(writer.required(node, 1, "scale"), shape[axis:])
    bias = writer.constant(node, 2)
    shift = np.zeros(shape[axis:]) if bias is None else np.broadcast_to(bias, shape[axis:])
    blob = _normalized(writer, node, writer.blob(node, node.inputs[0]), axis)
    _scaled(writer, node, blob, scale, shift, axis=axis)


@importer("GroupNormalization")
def group_norm(writer: NetWriter, node: Node) -> None:
    """Groups of channels by their mean and variance; until opset 20 scale and shift are those of groups."""
    shape, groups = writer.shape(node.inputs[0]), int(node.attributes["num_groups"])
    scale, shift = (writer.required(node, index, "parameters").reshape(-1) for index in (1, 2))
    if len(scale) != shape[1]:
        scale, shift = (np.repeat(array, shape[1] // groups) for array in (scale, shift))
    rows = (shape[0], groups, math.prod(shape[1:]) // groups)
    blob = add_reshape(writer, node, writer.blob(node, node.inputs[0]), shape, rows, last=False)
    blob = add_reshape(writer, node, _normalized(writer, node, blob, axis=2), rows, shape, last=False)
    _scaled(writer, node, blob, scale, shift, axis=1)


@importer("ChannelNormalization")
def channel_norm(writer: NetWriter, node: Node) -> None:
    """LayerNormalization over the channels of maps (N, C, H, W), from one whose channels were last."""
    channels = writer.shape(node.inputs[0])[1]
    scale = np.broadcast_to(writer.required(node, 1, "scale").reshape(-1), (channels,))
    bias = writer.constant(node, 2)
    shift = np.zeros(channels) if bias is None else np.broadcast_to(bias.reshape(-1), (channels,))
    blob = writer.blob(node, node.inputs[0])
    less = _tiled(writer, node, _weighted_sum(writer, node, blob, channels, -1 / channels), channels)
    centred = str(writer.layer(node, Eltwise.TYPE, [blob, less], last=False, hint="centred").top[0])
    variance = _weighted_sum(writer, node, power(writer, node, centred, power=2, last=False), channels, 1 / channels)
    factor = power(writer, node, variance, shift=_epsilon(node), power=-0.5, last=False)
    normalized = product(writer, node, [centred, _tiled(writer, node, factor, channels)], last=False)
    _scaled(writer, node, normalized, scale, shift, axis=1)


def _weighted_sum(writer: NetWriter, node: Node, blob: str, channels: int, weight: float) -> str:
    weights = np.full((1, channels, 1, 1), weight, np.float32)
    layer = writer.layer(node, Convolution.TYPE, [blob], last=False, hint="sum", weights=[weights])
    fill_kernel(layer, 1, (1, 1), (1, 1), (0, 0), (1, 1))
    layer.convolution_param.bias_term = False
    return str(layer.top[0])


def _tiled(writer: NetWriter, node: Node, blob: str, channels: int) -> str:
    layer = writer.layer(node, Tile.TYPE, [blob], last=False, hint="tile")
    layer.tile_param.tiles = channels
    return str(layer.top[0])


def _epsilon(node: Node) -> float:
    return float(node.attributes.get("epsilon", 1e-5))


def _normalized(writer: NetWriter, node: Node, blob: str, axis: int) -> str:
    """Add (x - mean) / sqrt(variance + epsilon) over the axes from ``axis`` on; gives the blob. Caffe's MVN adds its epsilon after the root."""
    less = power(writer, node, _mean(writer, node, blob, axis), scale=-1, last=False)
    centred = writer.layer(node, Bias.TYPE, [blob, less], last=False, hint="centred")
    centred.bias_param.axis = 0
    variance = _mean(writer, node, power(writer, node, centred.top[0], power=2, last=False), axis)
    factor = power(writer, node, variance, shift=_epsilon(node), power=-0.5, last=False)
    layer = writer.layer(node, Scale.TYPE, [centred.top[0], factor], last=False, hint="normalized")
    layer.scale_param.axis = 0
    return str(layer.top[0])


def _mean(writer: NetWriter, node: Node, blob: str, axis: int) -> str:
    layer = writer.layer(node, Reduction.TYPE, [blob], last=False, hint="mean")
    layer.reduction_param.axis, layer.reduction_param.operation = axis, layer.reduction_param.MEAN
    return str(layer.top[0])


def _scaled(writer: NetWriter, node: Node, blob: str, scale: Array, shift: Array, *, axis: int) -> None:
    layer = writer.layer(node, Scale.TYPE, [blob], hint="scale", weights=[scale, shift])
    layer.scale_param.bias_term = True
    if axis != 1:
        layer.scale_param.axis = axis
    if scale.ndim != 1:
        layer.scale_param.num_axes = scale.ndim
