"""The two networks for CIFAR-10 of Caffe's examples: a quick one, and a full one with normalization that does better."""

from __future__ import annotations

from dataclasses import dataclass

from caffetools.proto.schema import TEST, TRAIN, NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    Learning,
    accuracy,
    add,
    conv,
    filler,
    inner_product,
    lmdb,
    network,
    picture,
    pool,
    prob,
    relu,
    softmax_loss,
)

_MULTS = ((1.0,), (2.0,))


@dataclass(frozen=True)
class Variant:
    """Where the two differ; ``deploy_name``: what the deploy net is called. full: with normalization, and one layer behind it."""

    name: str
    deploy_name: str
    full: bool


QUICK = Variant("CIFAR10_quick", "CIFAR10_quick_test", False)
FULL = Variant("CIFAR10_full", "CIFAR10_full_deploy", True)


def train_val(variant: Variant) -> NetParameter:
    """Return the net to train: batches of 100 pictures of 3 x 32 x 32, minus the mean picture."""
    net = network(variant.name)
    for phase, part in ((TRAIN, "train"), (TEST, "test")):
        lmdb(net, "cifar", phase, f"examples/cifar10/cifar10_{part}_lmdb", 100, mean_file="examples/cifar10/mean.binaryproto")
    scores = _body(net, variant, train=True)
    accuracy(net, "accuracy", scores, phase=TEST)
    softmax_loss(net, "loss", scores)
    return net


def deploy(variant: Variant) -> NetParameter:
    """Return the net to use: data (1, 3, 32, 32), prob (1, 10)."""
    net = network(variant.deploy_name)
    picture(net, 1, 3, 32, 32)
    prob(net, _body(net, variant, train=False))
    return net


def solver(variant: Variant) -> SolverParameter:
    """4,000 iterations of the quick one, 60,000 of the full one, at one rate."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[100],
        test_interval=1000 if variant.full else 500,
        base_lr=0.001,
        momentum=0.9,
        weight_decay=0.004,
        lr_policy="fixed",
        display=200 if variant.full else 100,
        max_iter=60000 if variant.full else 4000,
        snapshot=10000 if variant.full else 4000,
        snapshot_prefix="cifar10_full" if variant.full else "cifar10_quick",
    )


def _learning(std: float, mults: tuple[tuple[float, ...], ...], *, train: bool) -> Learning:
    return Learning(filler("gaussian", std=std), filler("constant"), mults) if train else Learning(mults=mults)


def _body(net: NetParameter, variant: Variant, *, train: bool) -> str:
    """From data to the scores."""
    x = conv(net, "conv1", "data", 32, 5, _learning(0.0001, _MULTS, train=train), pad=2, stride=1)
    x = relu(net, "relu1", pool(net, "pool1", x, "MAX", 3, 2))
    for index, outputs in ((2, 32), (3, 64)):
        x = _within(net, f"norm{index - 1}", x) if variant.full else x
        # The full net's third convolution learns its biases as fast as its weights.
        mults = () if variant.full and index == 3 else _MULTS
        x = relu(net, f"relu{index}", conv(net, f"conv{index}", x, outputs, 5, _learning(0.01, mults, train=train), pad=2, stride=1))
        x = pool(net, f"pool{index}", x, "AVE", 3, 2)
    if variant.full:
        return inner_product(net, "ip1", x, 10, _learning(0.01, ((1.0, 250.0), (2.0, 0.0)), train=train))
    x = inner_product(net, "ip1", x, 64, _learning(0.1, _MULTS, train=train))
    return inner_product(net, "ip2", x, 10, _learning(0.1, _MULTS, train=train))


def _within(net: NetParameter, name: str, bottom: str) -> str:
    param = {"local_size": 3, "alpha": 5e-05, "beta": 0.75, "norm_region": "WITHIN_CHANNEL"}
    add(net, "LRN", name, (bottom,), lrn_param=param)
    return name
