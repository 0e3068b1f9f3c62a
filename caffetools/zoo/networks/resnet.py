"""Residual networks of 18, 50, 101 and 152 layers (He et al., "Deep residual learning for image recognition", 2015), in Caffe's form:
BatchNorm, and a Scale for what it learns.

Names and layers are those of the published weights. Only the one of 18 layers was published with a net for training; the others'
nets for training follow the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from caffetools.proto.schema import NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    IMAGENET_MEAN,
    Learning,
    batch_norm,
    conv,
    eltwise_sum,
    filler,
    inner_product,
    pool,
    relu,
    to_train,
    to_use,
)


@dataclass(frozen=True)
class Variant:
    """Where they differ.

    Attributes:
        blocks: how many in each of the four stages. bottleneck: a block is 1x1, 3x3, 1x1 instead of 3x3, 3x3.
        numbered: the stages whose blocks are called a, b1, b2 … instead of a, b, c. first_bias: whether conv1 has a bias.
        statistics: BatchNorm's fields in the deploy net. training_statistics: in the net for training.
    """

    depth: int
    blocks: tuple[int, ...]
    bottleneck: bool = True
    numbered: tuple[int, ...] = ()
    first_bias: bool = False
    statistics: tuple[tuple[str, float], ...] = (("use_global_stats", True),)
    training_statistics: tuple[tuple[str, float], ...] = ()


_FRACTION = (("moving_average_fraction", 0.9),)
RESNET18 = Variant(18, (2, 2, 2, 2), bottleneck=False, statistics=_FRACTION, training_statistics=_FRACTION)
RESNET50 = Variant(50, (3, 4, 6, 3), first_bias=True)
RESNET101 = Variant(101, (3, 4, 23, 3), numbered=(3, 4))
RESNET152 = Variant(152, (3, 8, 36, 3), numbered=(3, 4))

_CLASSIFIER = Learning(filler("xavier"), filler("constant"), ((1.0, 1.0), (2.0, 1.0)))


def train_val(variant: Variant) -> NetParameter:
    """Return the net to train: batches of 128 (18 layers) or 32 pictures (TRAIN) and 50 or 25 (TEST), cut to 3 x 224 x 224."""
    batches = (32, 25) if variant.bottleneck else (128, 50)
    accuracies = ("acc/top-1", "acc/top-5")
    transform = {"crop_size": 224, "mean_value": IMAGENET_MEAN}
    return to_train(f"ResNet-{variant.depth}", batches, lambda net: _body(net, variant, train=True), accuracies, **transform)


def deploy(variant: Variant) -> NetParameter:
    """Return the net to use: data (1, 3, 224, 224), prob (1, 1000)."""
    return to_use(f"ResNet-{variant.depth}", lambda net: _body(net, variant, train=False), 1, 3, 224, 224)


def solver(variant: Variant) -> SolverParameter:
    """600,000 updates of 256 pictures, the rate a tenth after every 200,000; the one of 18 layers as it was published."""
    common: dict[str, Any] = {
        "net": "train_val.prototxt",
        "test_interval": 5000,
        "test_initialization": False,
        "display": 20,
        "momentum": 0.9,
        "snapshot": 5000,
        "snapshot_prefix": f"resnet-{variant.depth}",
    }
    if not variant.bottleneck:
        rates: dict[str, Any] = {
            "base_lr": 0.05,
            "lr_policy": "poly",
            "power": 1.0,
            "max_iter": 650000,
            "weight_decay": 0.0005,
            "random_seed": 0,
        }
        return SolverParameter(test_iter=[5000], **common, **rates)
    rates = {"base_lr": 0.1, "lr_policy": "step", "gamma": 0.1, "stepsize": 200000, "max_iter": 600000, "weight_decay": 0.0001}
    return SolverParameter(test_iter=[2000], iter_size=8, **common, **rates)


def _body(net: NetParameter, variant: Variant, *, train: bool) -> str:
    """From data to the scores."""
    msra = Learning(filler("msra") if train else None)
    bias = None if variant.first_bias else False
    x = conv(net, "conv1", "data", 64, 7, msra, stride=2, pad=3, bias=bias)
    x = relu(net, "conv1_relu", _norm(net, "conv1", "_conv1", variant, train=train))
    x = pool(net, "pool1", x, "MAX", 3, 2)
    for stage, blocks in enumerate(variant.blocks, start=2):
        for block in range(blocks):
            letter = "abcdefgh"[block] if stage not in variant.numbered else f"b{block}" if block else "a"
            x = _block(net, f"{stage}{letter}", x, 32 << (stage - 1), 2 if stage > 2 and block == 0 else 1, variant, train=train)
    x = pool(net, "pool5", x, "AVE", 7, 1)
    return inner_product(net, "fc1000", x, 1000, _CLASSIFIER if train else Learning())


def _block(net: NetParameter, which: str, bottom: str, width: int, stride: int, variant: Variant, *, train: bool) -> str:
    """Add a residual block: what its convolutions make is added to what it reads (through a 1x1 convolution where sizes change)."""
    msra = Learning(filler("msra") if train else None)

    def step(branch: str, x: str, outputs: int, kernel: int, stride: int) -> str:
        name = f"res{which}_branch{branch}"
        x = conv(net, name, x, outputs, kernel, msra, stride=stride, pad=kernel // 2, bias=False)
        return _norm(net, x, f"{which}_branch{branch}", variant, train=train)

    kernels = (1, 3, 1) if variant.bottleneck else (3, 3)
    outputs = (width, width, 4 * width) if variant.bottleneck else (width, width)
    shortcut = step("1", bottom, outputs[-1], 1, stride) if which.endswith("a") else bottom
    x = bottom
    for index, (kernel, size) in enumerate(zip(kernels, outputs, strict=True)):
        x = step(f"2{'abc'[index]}", x, size, kernel, stride if index == 0 else 1)
        if index < len(kernels) - 1:
            x = relu(net, f"{x}_relu", x)
    return relu(net, f"res{which}_relu", eltwise_sum(net, f"res{which}", (shortcut, x)))


def _norm(net: NetParameter, blob: str, suffix: str, variant: Variant, *, train: bool) -> str:
    fields = dict(variant.training_statistics if train else variant.statistics)
    return batch_norm(net, f"bn{suffix}", f"scale{suffix}", blob, fields=fields)
