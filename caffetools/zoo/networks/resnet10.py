"""ResNet-10 of the Computer Vision Group Jena (Simon et al., "ImageNet pre-trained models with batch normalization", 2016).

A small residual network that normalizes before it convolves, the pictures first of all, so that it needs no mean.
"""

from __future__ import annotations

from caffetools.proto.schema import NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    Learning,
    batch_norm,
    conv,
    eltwise_sum,
    filler,
    global_average,
    inner_product,
    pool,
    relu,
    to_train,
    to_use,
)

_MULTS = ((1.0, 1.0), (2.0, 1.0))


def train_val() -> NetParameter:
    """Return the net to train: batches of 16 (TRAIN, sixteen of them an update) and 10 (TEST) pictures, cut to 3 x 224 x 224."""
    return to_train("ResNet10_cvgj", (16, 10), lambda net: _body(net, train=True), ["accuracy"], crop_size=224)


def deploy() -> NetParameter:
    """Return the net to use: data (1, 3, 224, 224), prob (1, 1000)."""
    return to_use("ResNet10_cvgj", lambda net: _body(net, train=False), 1, 3, 224, 224)


def solver() -> SolverParameter:
    """320,000 updates of 256 pictures, the rate falling in a straight line to 0."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[5000],
        test_interval=10000,
        test_initialization=False,
        base_lr=0.1,
        lr_policy="poly",
        power=1.0,
        display=20,
        max_iter=320000,
        iter_size=16,
        momentum=0.9,
        weight_decay=0.0001,
        snapshot=5000,
        snapshot_prefix="resnet10_cvgj",
        random_seed=0,
    )


def _body(net: NetParameter, *, train: bool) -> str:
    """From data to the scores."""
    x = batch_norm(net, "data_bn", "data_scale", "data", top="data_bn")
    fan_out = filler("msra")
    fan_out.variance_norm = fan_out.FAN_OUT
    first = Learning(fan_out, filler("constant"), _MULTS) if train else Learning()
    x = conv(net, "conv1", x, 64, 7, first, stride=2, pad=3)
    x = relu(net, "conv1_relu", batch_norm(net, "conv1_bn", "conv1_scale", x))
    x = _block(net, 64, pool(net, "conv1_pool", x, "MAX", 3, 2), train=train)
    for width in (128, 256, 512):
        x = _block(net, width, x, train=train)
    x = relu(net, "last_relu", batch_norm(net, "last_bn", "last_scale", x))
    classifier = Learning(mults=_MULTS) if train else Learning()
    return inner_product(net, "score", global_average(net, "global_pool", x), 1000, classifier)


def _block(net: NetParameter, width: int, bottom: str, *, train: bool) -> str:
    """Two convolutions and a shortcut, which is a convolution too where the size changes."""
    name = f"layer_{width}_1"
    learning = Learning(filler("msra"), mults=((1.0, 1.0),)) if train else Learning()
    first = width == 64
    stride = 1 if first else 2
    x = bottom
    if not first:
        # The first block reads what was normalized already.
        x = relu(net, f"{name}_relu1", batch_norm(net, f"{name}_bn1", f"{name}_scale1", x, top=f"{name}_bn1"))
    normalized = x
    x = conv(net, f"{name}_conv1", x, width, 3, learning, stride=stride, pad=1, bias=False)
    x = relu(net, f"{name}_relu2", batch_norm(net, f"{name}_bn2", f"{name}_scale2", x))
    x = conv(net, f"{name}_conv2", x, width, 3, learning, stride=1, pad=1, bias=False)
    shortcut = bottom
    if not first:
        shortcut = conv(net, f"{name}_conv_expand", normalized, width, 1, learning, stride=stride, pad=0, bias=False)
    return eltwise_sum(net, f"{name}_sum", (x, shortcut))
