"""The few steps that our networks are built of: each appends one layer to a ``NetParameter`` and gives back its top.

Only what is asked for is set, so that the text reads as a person would write it. Numbers left at None are Caffe's defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caffetools.proto.schema import TEST, TRAIN, ConvolutionParameter, FillerParameter, InnerProductParameter, LayerParameter, NetParameter

# The ImageNet mean of each channel, blue first, that GoogLeNet and SqueezeNet subtract.
IMAGENET_MEAN = (104.0, 117.0, 123.0)

# Weights learn at the base rate and decay; biases learn twice as fast and do not decay.
WEIGHTS_DECAY = ((1.0, 1.0), (2.0, 0.0))


@dataclass(frozen=True)
class Learning:
    """How the parameters of a layer start and learn: fillers, and (lr_mult, decay_mult) for each blob."""

    weights: FillerParameter | None = None
    bias: FillerParameter | None = None
    mults: tuple[tuple[float, ...], ...] = ()


def filler(kind: str, **fields: Any) -> FillerParameter:
    """Return a ``FillerParameter``: ``filler("gaussian", std=0.01)``."""
    return FillerParameter(type=kind, **fields)


def network(name: str = "") -> NetParameter:
    """Return an empty network; without a name the field is unset."""
    return NetParameter(name=name) if name else NetParameter()


def add(
    net: NetParameter, type_name: str, name: str, bottoms: Sequence[str], tops: Sequence[str] | None = None, **params: Any
) -> LayerParameter:
    """Append a layer and return it; its top has the layer's name unless ``tops`` is given."""
    given: dict[str, Any] = {field: {key: value for key, value in fields.items() if value is not None} for field, fields in params.items()}
    net.layer.append(LayerParameter(name=name, type=type_name, bottom=bottoms, top=[name] if tops is None else tops, **given))
    return net.layer[-1]


def lmdb(net: NetParameter, name: str, phase: int, source: str, batch: int, **transform: object) -> None:
    """Add a Data layer with tops data and label, for one phase."""
    data = {"source": source, "batch_size": batch, "backend": "LMDB"}
    layer = add(net, "Data", name, (), ("data", "label"), transform_param=transform, data_param=data)
    layer.include.add(phase=phase)


def imagenet(net: NetParameter, batches: tuple[int, int], *, mirror: bool = True, **transform: Any) -> None:
    """Add the data layers of the two ImageNet databases, with ``batches`` pictures for training and for testing; ``mirror``: flip some in training."""
    for phase, part, batch in ((TRAIN, "train", batches[0]), (TEST, "val", batches[1])):
        flips = {"mirror": phase == TRAIN} if mirror else {}
        lmdb(net, "data", phase, f"examples/imagenet/ilsvrc12_{part}_lmdb", batch, **flips, **transform)


def to_train(
    name: str,
    batches: tuple[int, int],
    body: Callable[[NetParameter], str],
    accuracies: Sequence[str] = ("accuracy/top1", "accuracy/top5"),
    **transform: Any,
) -> NetParameter:
    """Return a net to train on ImageNet: its data, ``body(net)``, which gives the scores' name, a loss, and accuracies of the top 1 and 5."""
    net = network(name)
    imagenet(net, batches, **transform)
    scores = body(net)
    softmax_loss(net, "loss", scores)
    for called, top_k in zip(accuracies, (None, 5), strict=False):
        accuracy(net, called, scores, top_k=top_k, phase=TEST)
    return net


def to_use(name: str, body: Callable[[NetParameter], str], *shape: int) -> NetParameter:
    """Return a net to use: an input called data of ``shape`` (N, C, H, W), ``body(net)``, which gives the scores' name, and prob."""
    net = network(name)
    picture(net, *shape)
    prob(net, body(net))
    return net


def picture(net: NetParameter, *shape: int) -> str:
    """Add an Input layer called data of ``shape`` (N, C, H, W)."""
    add(net, "Input", "data", ()).input_param.shape.add(dim=shape)
    return "data"


def conv(
    net: NetParameter,
    name: str,
    bottom: str,
    outputs: int,
    kernel: int,
    learning: Learning,
    *,
    stride: int | None = None,
    pad: int | None = None,
    group: int | None = None,
    bias: bool | None = None,
    top: str | None = None,
) -> str:
    """Add a Convolution with square kernels; its top has the layer's name unless ``top`` is given."""
    param = {"num_output": outputs, "kernel_size": [kernel], "group": group, "bias_term": bias}
    layer = add(net, "Convolution", name, (bottom,), (top or name,), convolution_param=param)
    if stride is not None:
        layer.convolution_param.stride.append(stride)
    if pad is not None:
        layer.convolution_param.pad.append(pad)
    _learn(layer, layer.convolution_param, learning)
    return top or name


def inner_product(net: NetParameter, name: str, bottom: str, outputs: int, learning: Learning) -> str:
    """Add an InnerProduct: every output sees the whole of ``bottom``."""
    layer = add(net, "InnerProduct", name, (bottom,), inner_product_param={"num_output": outputs})
    _learn(layer, layer.inner_product_param, learning)
    return name


def relu(net: NetParameter, name: str, blob: str) -> str:
    """Add a ReLU in place."""
    add(net, "ReLU", name, (blob,), (blob,))
    return blob


def batch_norm(
    net: NetParameter, name: str, scale: str, bottom: str, *, top: str | None = None, fields: Mapping[str, float] | None = None
) -> str:
    """BatchNorm with ``fields`` and the Scale with a bias that Caffe needs behind it; in place unless ``top`` is given."""
    add(net, "BatchNorm", name, (bottom,), (top or bottom,), **({"batch_norm_param": fields} if fields else {}))
    add(net, "Scale", scale, (top or bottom,), (top or bottom,), scale_param={"bias_term": True})
    return top or bottom


def eltwise_sum(net: NetParameter, name: str, bottoms: Sequence[str]) -> str:
    """Add the sum of blobs of one shape."""
    add(net, "Eltwise", name, bottoms)
    return name


def dropout(net: NetParameter, name: str, blob: str, ratio: float) -> str:
    """Dropout in place."""
    add(net, "Dropout", name, (blob,), (blob,), dropout_param={"dropout_ratio": ratio})
    return blob


def pool(net: NetParameter, name: str, bottom: str, method: str, kernel: int, stride: int, *, pad: int | None = None) -> str:
    """Pooling over square windows; ``method`` is MAX or AVE."""
    add(net, "Pooling", name, (bottom,), pooling_param={"pool": method, "kernel_size": kernel, "stride": stride, "pad": pad})
    return name


def global_average(net: NetParameter, name: str, bottom: str) -> str:
    """Add the mean of each channel: (N, C, 1, 1)."""
    add(net, "Pooling", name, (bottom,), pooling_param={"pool": "AVE", "global_pooling": True})
    return name


def lrn(net: NetParameter, name: str, bottom: str) -> str:
    """Local response normalization with AlexNet's numbers, which GoogLeNet kept."""
    add(net, "LRN", name, (bottom,), lrn_param={"local_size": 5, "alpha": 0.0001, "beta": 0.75})
    return name


def concat(net: NetParameter, name: str, bottoms: Sequence[str]) -> str:
    """Concat along the channels."""
    add(net, "Concat", name, bottoms)
    return name


def accuracy(net: NetParameter, name: str, scores: str, *, top_k: int | None = None, phase: int | None = None) -> None:
    """Accuracy of ``scores`` against label; in ``phase`` only, when given."""
    layer = add(net, "Accuracy", name, (scores, "label"))
    if top_k is not None:
        layer.accuracy_param.top_k = top_k
    if phase is not None:
        layer.include.add(phase=phase)


def softmax_loss(
    net: NetParameter, name: str, scores: str, *, top: str = "", weight: float | None = None, phase: int | None = None
) -> None:
    """SoftmaxWithLoss of ``scores`` against label."""
    layer = add(net, "SoftmaxWithLoss", name, (scores, "label"), (top or name,))
    if weight is not None:
        layer.loss_weight.append(weight)
    if phase is not None:
        layer.include.add(phase=phase)


def prob(net: NetParameter, scores: str) -> None:
    """Add the Softmax called prob that a deployed net ends in."""
    add(net, "Softmax", "prob", (scores,))


def _learn(layer: LayerParameter, param: ConvolutionParameter | InnerProductParameter, learning: Learning) -> None:
    if learning.weights is not None:
        param.weight_filler.CopyFrom(learning.weights)
    if learning.bias is not None:
        param.bias_filler.CopyFrom(learning.bias)
    for mults in learning.mults:
        layer.param.add(**dict(zip(("lr_mult", "decay_mult"), mults, strict=False)))
