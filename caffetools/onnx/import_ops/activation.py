"""Activations, each value by itself, and Softmax."""

from __future__ import annotations

import math

import numpy as np

from caffetools.layers.activation import BNLL, ELU, AbsVal, Clip, PReLU, ReLU, Sigmoid, Swish, TanH, Threshold
from caffetools.layers.base import Layer
from caffetools.layers.eltwise import Eltwise
from caffetools.layers.fork_activation import HSigmoid, HSwish, ReLU6
from caffetools.layers.power import Exp, Log, Power
from caffetools.layers.reshape import Flatten, Reshape
from caffetools.layers.scale import Scale
from caffetools.layers.softmax import Softmax
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer

PLAIN: dict[str, type[Layer]] = {
    "Relu": ReLU, "Sigmoid": Sigmoid, "Tanh": TanH, "Abs": AbsVal, "Softplus": BNLL, "Exp": Exp, "Log": Log,
}  # fmt: skip
_SAME = ("Identity", "Dropout")
# Most axes of a blob of which Caffe gives num, channels, height and width.
_LEGACY_AXES = 4


@importer(*PLAIN)
def plain(writer: NetWriter, node: Node) -> None:
    """Add a layer without settings."""
    writer.layer(node, PLAIN[node.op].TYPE, [writer.blob(node, node.inputs[0])])


@importer(*_SAME)
def same(writer: NetWriter, node: Node) -> None:
    """Import an operator that is the identity at inference."""
    if any(name and writer.graph.readers(name) for name in node.outputs[1:]):
        raise node.error("its mask is used")
    training = writer.constant(node, 2)
    if node.op == "Dropout" and training is not None and bool(np.asarray(training).reshape(-1)[0]):
        raise node.error("it drops values, as in training")
    writer.alias(node)


@importer("Cast")
def cast(writer: NetWriter, node: Node) -> None:
    """Nothing, since whole numbers, and true and false, are floats in a blob; whether a value is 0 where it becomes true or false."""
    given, made = (writer.graph.sample[value].dtype.kind for value in (node.inputs[0], node.outputs[0]))
    if made == "b" and given != "b":
        size = writer.layer(node, AbsVal.TYPE, [writer.blob(node, node.inputs[0])], last=False, hint="abs")
        writer.layer(node, Threshold.TYPE, [size.top[0]])
    elif made in "iu" and given not in "iub":
        raise node.error("Caffe has no layer that rounds values to whole numbers")
    else:
        writer.alias(node)


@importer("LeakyRelu")
def leaky_relu(writer: NetWriter, node: Node) -> None:
    """ReLU with a slope."""
    layer = writer.layer(node, ReLU.TYPE, [writer.blob(node, node.inputs[0])])
    layer.relu_param.negative_slope = float(node.attributes.get("alpha", 0.01))


@importer("Elu")
def elu(writer: NetWriter, node: Node) -> None:
    """ELU."""
    writer.layer(node, ELU.TYPE, [writer.blob(node, node.inputs[0])]).elu_param.alpha = float(node.attributes.get("alpha", 1.0))


@importer("PRelu")
def prelu(writer: NetWriter, node: Node) -> None:
    """PReLU with a slope for each channel, or one."""
    slope, shape = writer.required(node, 1, "slope"), writer.shape(node.inputs[0])
    channels = shape[1] if len(shape) > 1 else 1
    shared = slope.size == 1
    # A slope lies along the last axes; its channels are at axis 1.
    aligned = (1,) * (len(shape) - slope.ndim) + slope.shape
    by_channel = slope.ndim <= len(shape) and len(shape) > 1 and slope.size == aligned[1] == channels
    if not shared and not by_channel and (slope.ndim > len(shape) or aligned[0] != 1):
        raise node.error("its slopes differ from item to item")
    # Caffe's PReLU asks for num, channels, height and width, which a blob of more axes does not have.
    if (shared or by_channel) and (len(shape) <= _LEGACY_AXES or writer.target == "any"):
        layer = writer.layer(node, PReLU.TYPE, [writer.blob(node, node.inputs[0])], weights=[slope.reshape(() if shared else (channels,))])
        if shared:
            layer.prelu_param.channel_shared = True
        return
    # x = max(x, 0) - max(-x, 0), with a factor for the second.
    blob = writer.blob(node, node.inputs[0])
    above = str(writer.layer(node, ReLU.TYPE, [blob], last=False, hint="above").top[0])
    below = str(writer.layer(node, ReLU.TYPE, [power(writer, node, blob, scale=-1, last=False)], last=False, hint="below").top[0])
    if shared:
        _difference(writer, node, above, below, [1, -float(slope.reshape(-1)[0])], last=True)
        return
    factors = slope.reshape(channels) if by_channel else np.broadcast_to(slope, (1, *shape[1:]))[0]
    scaled = writer.layer(node, Scale.TYPE, [below], last=False, hint="slopes", weights=[factors])
    scaled.scale_param.num_axes = factors.ndim
    _difference(writer, node, above, scaled.top[0], [1, -1], last=True)


@importer("Clip")
def clip(writer: NetWriter, node: Node) -> None:
    """Values held between two numbers."""
    low, high = (_bound(writer, node, index, name) for index, name in ((1, "min"), (2, "max")))
    add_clip(writer, node, writer.blob(node, node.inputs[0]), low, high)


def _bound(writer: NetWriter, node: Node, index: int, name: str) -> float | None:
    if name in node.attributes:
        value = float(node.attributes[name])
    elif index < len(node.inputs) and node.inputs[index]:
        value = float(np.asarray(writer.required(node, index, name)).reshape(-1)[0])
    else:
        return None
    return value if abs(value) < 1e30 else None


def add_clip(writer: NetWriter, node: Node, blob: str, low: float | None, high: float | None, *, last: bool = True) -> str:
    """Hold ``blob`` between ``low`` and ``high`` by ReLU, Power and Eltwise, which every Caffe has; gives the blob."""
    if (low, high) == (None, None):
        writer.set_blob(node.outputs[0], blob)
        return blob
    if writer.target == "any" and (low, high) == (0.0, 6.0):
        return str(writer.layer(node, ReLU6.TYPE, [blob], last=last).top[0])
    if writer.target == "any" and low is not None and high is not None:
        layer = writer.layer(node, Clip.TYPE, [blob], last=last)
        layer.clip_param.min, layer.clip_param.max = low, high
        return str(layer.top[0])
    if low is not None:
        blob = _above(writer, node, blob, low, last=last and high is None)
    if high is not None:
        # min(x, h) = x − max(x − h, 0): exact for every x below h, where h − max(h − x, 0) would round.
        over = power(writer, node, blob, shift=-high, last=False) if high else blob
        over = str(writer.layer(node, ReLU.TYPE, [over], last=False, hint="over").top[0])
        blob = _difference(writer, node, blob, over, [1, -1], last=last)
    return blob


def _above(writer: NetWriter, node: Node, blob: str, low: float, *, last: bool) -> str:
    """max(x, l): a ReLU, or x + max(l − x, 0)."""
    if not low:
        return str(writer.layer(node, ReLU.TYPE, [blob], last=last, hint="" if last else "relu").top[0])
    under = power(writer, node, blob, scale=-1, shift=low, last=False)
    under = str(writer.layer(node, ReLU.TYPE, [under], last=False, hint="under").top[0])
    return _difference(writer, node, blob, under, [1, 1], last=last)


def _difference(writer: NetWriter, node: Node, first: str, second: str, coefficients: list[float], *, last: bool) -> str:
    layer = writer.layer(node, Eltwise.TYPE, [first, second], last=last, hint="" if last else "sum")
    if coefficients != [1, 1]:
        layer.eltwise_param.coeff.extend(coefficients)
    return str(layer.top[0])


def power(writer: NetWriter, node: Node, blob: str, *, scale: float = 1, shift: float = 0, power: float = 1, last: bool = True) -> str:
    """Add (shift + scale · x)^power; gives the blob."""
    layer = writer.layer(node, Power.TYPE, [blob], last=last, hint="" if last else "power")
    for name, value, default in (("power", power, 1), ("scale", scale, 1), ("shift", shift, 0)):
        if value != default:
            setattr(layer.power_param, name, value)
    return str(layer.top[0])


def product(writer: NetWriter, node: Node, bottoms: list[str], *, last: bool = True) -> str:
    """Add the product of equally shaped blobs; gives the blob."""
    layer = writer.layer(node, Eltwise.TYPE, bottoms, last=last, hint="" if last else "product")
    layer.eltwise_param.operation = layer.eltwise_param.PROD
    return str(layer.top[0])


@importer("HardSigmoid")
def hard_sigmoid(writer: NetWriter, node: Node) -> None:
    """alpha · x + beta, held between 0 and 1."""
    alpha, beta = float(node.attributes.get("alpha", 0.2)), float(node.attributes.get("beta", 0.5))
    add_hard_sigmoid(writer, node, writer.blob(node, node.inputs[0]), alpha=alpha, beta=beta)


def add_hard_sigmoid(writer: NetWriter, node: Node, blob: str, *, alpha: float, beta: float, last: bool = True) -> str:
    """Add alpha · x + beta, held between 0 and 1; gives the blob."""
    if writer.target == "any" and math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return str(writer.layer(node, HSigmoid.TYPE, [blob], last=last, hint="" if last else "gate").top[0])
    return add_clip(writer, node, power(writer, node, blob, scale=alpha, shift=beta, last=False), 0.0, 1.0, last=last)


@importer("HardSwish")
def hard_swish(writer: NetWriter, node: Node) -> None:
    """x · min(max(0, x + 3), 6) / 6."""
    blob = writer.blob(node, node.inputs[0])
    if writer.target == "any":
        writer.layer(node, HSwish.TYPE, [blob])
        return
    product(writer, node, [blob, add_hard_sigmoid(writer, node, blob, alpha=1 / 6, beta=0.5, last=False)])


@importer("Swish")
def swish(writer: NetWriter, node: Node) -> None:
    """x · sigmoid(alpha · x): ONNX's own from opset 24, and a pattern before."""
    blob, alpha = writer.blob(node, node.inputs[0]), float(node.attributes.get("alpha", 1.0))
    if writer.target == "any":
        layer = writer.layer(node, Swish.TYPE, [blob])
        if alpha != 1:
            layer.swish_param.beta = alpha
        return
    scaled = power(writer, node, blob, scale=alpha, last=False) if alpha != 1 else blob
    gate = writer.layer(node, Sigmoid.TYPE, [scaled], last=False, hint="gate").top[0]
    product(writer, node, [blob, gate])


@importer("Mish")
def mish(writer: NetWriter, node: Node) -> None:
    """x · tanh(log(1 + exp(x)))."""
    blob = writer.blob(node, node.inputs[0])
    soft = writer.layer(node, BNLL.TYPE, [blob], last=False, hint="soft").top[0]
    product(writer, node, [blob, writer.layer(node, TanH.TYPE, [soft], last=False, hint="gate").top[0]])


@importer("Selu")
def selu(writer: NetWriter, node: Node) -> None:
    """gamma times an ELU."""
    layer = writer.layer(node, ELU.TYPE, [writer.blob(node, node.inputs[0])], last=False, hint="elu")
    layer.elu_param.alpha = float(node.attributes.get("alpha", 1.6732632423543772))
    power(writer, node, layer.top[0], scale=float(node.attributes.get("gamma", 1.0507009873554805)))


@importer("Celu")
def celu(writer: NetWriter, node: Node) -> None:
    """alpha times an ELU of x / alpha."""
    alpha = float(node.attributes.get("alpha", 1.0))
    scaled = power(writer, node, writer.blob(node, node.inputs[0]), scale=1 / alpha, last=False)
    power(writer, node, writer.layer(node, ELU.TYPE, [scaled], last=False, hint="elu").top[0], scale=alpha)


@importer("ThresholdedRelu")
def thresholded_relu(writer: NetWriter, node: Node) -> None:
    """x where it is above alpha, else 0."""
    blob = writer.blob(node, node.inputs[0])
    gate = writer.layer(node, Threshold.TYPE, [blob], last=False, hint="gate")
    gate.threshold_param.threshold = float(node.attributes.get("alpha", 1.0))
    product(writer, node, [blob, gate.top[0]])


@importer("Softsign")
def softsign(writer: NetWriter, node: Node) -> None:
    """x / (1 + |x|)."""
    blob = writer.blob(node, node.inputs[0])
    size = writer.layer(node, AbsVal.TYPE, [blob], last=False, hint="abs").top[0]
    product(writer, node, [blob, power(writer, node, size, shift=1, power=-1, last=False)])


@importer("Gelu")
def gelu(writer: NetWriter, node: Node) -> None:
    """x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³))), or x / 2 · (1 + erf(x / √2)) = x / 2 + |x| / 2 · erf(|x| / √2)."""
    blob = writer.blob(node, node.inputs[0])
    if str(node.attributes.get("approximate", "none")) == "tanh":
        cube = power(writer, node, power(writer, node, blob, power=3, last=False), scale=0.044715, last=False)
        total = writer.layer(node, Eltwise.TYPE, [blob, cube], last=False, hint="sum").top[0]
        scaled = power(writer, node, total, scale=math.sqrt(2 / math.pi), last=False)
        gate = writer.layer(node, TanH.TYPE, [scaled], last=False, hint="tanh").top[0]
        product(writer, node, [blob, power(writer, node, gate, scale=0.5, shift=0.5, last=False)])
        return
    size = str(writer.layer(node, AbsVal.TYPE, [blob], last=False, hint="abs").top[0])
    curved = product(writer, node, [size, _erf_of_positive(writer, node, size, math.sqrt(0.5))], last=False)
    writer.layer(node, Eltwise.TYPE, [blob, curved]).eltwise_param.coeff.extend([0.5, 0.5])


@importer("Erf")
def erf(writer: NetWriter, node: Node) -> None:
    """erf(max(x, 0)) - erf(max(-x, 0))."""
    blob = writer.blob(node, node.inputs[0])
    sides = [blob, power(writer, node, blob, scale=-1, last=False)]
    ramps = [str(writer.layer(node, ReLU.TYPE, [side], last=False, hint="side").top[0]) for side in sides]
    parts = [_erf_of_positive(writer, node, ramp, 1.0) for ramp in ramps]
    _difference(writer, node, parts[0], parts[1], [1, -1], last=True)


# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: the error is at most 1.5e-7, about a unit in float32's last place.
_ERF_SLOPE = 0.3275911
_ERF_TERMS = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def _erf_of_positive(writer: NetWriter, node: Node, blob: str, scale: float) -> str:
    """Add erf(scale · x) for x >= 0: 1 - (a1 t + … + a5 t⁵) · exp(-(scale · x)²), t = 1 / (1 + p · scale · x); gives the blob."""
    t = power(writer, node, blob, scale=_ERF_SLOPE * scale, shift=1, power=-1, last=False)
    series = power(writer, node, t, scale=_ERF_TERMS[-1], shift=_ERF_TERMS[-2], last=False)
    for term in _ERF_TERMS[-3::-1]:
        series = power(writer, node, product(writer, node, [t, series], last=False), shift=term, last=False)
    square = power(writer, node, blob, scale=scale, power=2, last=False)
    fall = writer.layer(node, Exp.TYPE, [square], last=False, hint="exp")
    fall.exp_param.scale = -1
    rest = product(writer, node, [t, series, fall.top[0]], last=False)
    return power(writer, node, rest, scale=-1, shift=1, last=False)


@importer("Softmax", "LogSoftmax")
def softmax(writer: NetWriter, node: Node) -> None:
    """Softmax along an axis; before opset 13 over all axes from it on."""
    shape = writer.shape(node.inputs[0])
    old = writer.graph.opset < 13
    axis = int(node.attributes.get("axis", 1 if old else -1)) % len(shape)
    blob, logarithm = writer.blob(node, node.inputs[0]), node.op == "LogSoftmax"
    wide = old and math.prod(shape[axis + 1 :]) != 1
    if wide:
        layer = writer.layer(node, Flatten.TYPE, [blob], last=False, hint="flat")
        if axis != 1:
            layer.flatten_param.axis = axis
        blob = layer.top[0]
    last = not logarithm and not wide
    layer = writer.layer(node, Softmax.TYPE, [blob], last=last, hint="" if last else "softmax")
    if axis != 1:
        layer.softmax_param.axis = axis
    if logarithm:
        layer = writer.layer(node, Log.TYPE, [layer.top[0]], last=not wide, hint="log" if wide else "")
    if wide:
        back = writer.layer(node, Reshape.TYPE, [layer.top[0]])
        back.reshape_param.shape.dim.extend([0, *shape[1:]])
