"""AlexNet (Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012) and CaffeNet, its variant.

CaffeNet pools before it normalizes, and starts more of its biases at 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from caffetools.proto.schema import TEST, NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    WEIGHTS_DECAY,
    Learning,
    accuracy,
    conv,
    dropout,
    filler,
    imagenet,
    inner_product,
    lrn,
    network,
    picture,
    pool,
    prob,
    relu,
    softmax_loss,
)


@dataclass(frozen=True)
class Variant:
    """Where AlexNet and CaffeNet differ.

    Attributes:
        bias: where the biases of the grouped and the fully connected layers start. snapshot: the start of snapshots' names.
        deployed_mults: whether the published deploy net still has the learning rates.
    """

    name: str
    pool_first: bool
    bias: float
    deployed_mults: bool
    snapshot: str


ALEXNET = Variant("AlexNet", False, 0.1, True, "caffe_alexnet_train")
CAFFENET = Variant("CaffeNet", True, 1.0, False, "caffenet_train")

_Learn = Callable[[float, float], Learning]


def train_val(variant: Variant) -> NetParameter:
    """Return the net to train: batches of 256 (TRAIN) and 50 (TEST) pictures, cut to 3 x 227 x 227, minus the mean picture."""
    net = network(variant.name)
    imagenet(net, (256, 50), crop_size=227, mean_file="data/ilsvrc12/imagenet_mean.binaryproto")
    scores = inner_product(net, "fc8", body(net, variant, training), 1000, training(0.01, 0.0))
    accuracy(net, "accuracy", scores, phase=TEST)
    softmax_loss(net, "loss", scores)
    return net


def deploy(variant: Variant) -> NetParameter:
    """Return the net to use: data (10, 3, 227, 227), prob (10, 1000)."""
    net = network(variant.name)
    picture(net, 10, 3, 227, 227)
    learning = Learning(mults=WEIGHTS_DECAY if variant.deployed_mults else ())
    prob(net, inner_product(net, "fc8", body(net, variant, lambda std, bias: learning), 1000, learning))
    return net


def solver(variant: Variant) -> SolverParameter:
    """450,000 iterations, the rate a tenth after every 100,000."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[1000],
        test_interval=1000,
        base_lr=0.01,
        lr_policy="step",
        gamma=0.1,
        stepsize=100000,
        display=20,
        max_iter=450000,
        momentum=0.9,
        weight_decay=0.0005,
        snapshot=10000,
        snapshot_prefix=variant.snapshot,
    )


def training(std: float, bias: float) -> Learning:
    """Return how a layer that is trained starts and learns."""
    return Learning(filler("gaussian", std=std), filler("constant", value=bias), WEIGHTS_DECAY)


def body(net: NetParameter, variant: Variant, learn: _Learn) -> str:
    """From data to what the classifier reads; ``learn(std, bias)`` gives the fillers of a layer's weights and biases."""
    x = relu(net, "relu1", conv(net, "conv1", "data", 96, 11, learn(0.01, 0.0), stride=4))
    x = _pool_and_norm(net, variant, 1, x)
    x = relu(net, "relu2", conv(net, "conv2", x, 256, 5, learn(0.01, variant.bias), pad=2, group=2))
    x = _pool_and_norm(net, variant, 2, x)
    x = relu(net, "relu3", conv(net, "conv3", x, 384, 3, learn(0.01, 0.0), pad=1))
    x = relu(net, "relu4", conv(net, "conv4", x, 384, 3, learn(0.01, variant.bias), pad=1, group=2))
    x = relu(net, "relu5", conv(net, "conv5", x, 256, 3, learn(0.01, variant.bias), pad=1, group=2))
    x = pool(net, "pool5", x, "MAX", 3, 2)
    for index in (6, 7):
        x = relu(net, f"relu{index}", inner_product(net, f"fc{index}", x, 4096, learn(0.005, variant.bias)))
        x = dropout(net, f"drop{index}", x, 0.5)
    return x


def _pool_and_norm(net: NetParameter, variant: Variant, index: int, x: str) -> str:
    if variant.pool_first:
        return lrn(net, f"norm{index}", pool(net, f"pool{index}", x, "MAX", 3, 2))
    return pool(net, f"pool{index}", lrn(net, f"norm{index}", x), "MAX", 3, 2)
