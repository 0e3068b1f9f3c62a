"""LeNet for handwritten digits (LeCun et al., "Gradient-based learning applied to document recognition", 1998), as Caffe ships it."""

from __future__ import annotations

from caffetools.proto.schema import TEST, TRAIN, NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    Learning,
    accuracy,
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

_LEARNING = Learning(filler("xavier"), filler("constant"), ((1.0,), (2.0,)))


def train_val() -> NetParameter:
    """Return the net to train: batches of 64 (TRAIN) and 100 (TEST) digits of 1 x 28 x 28 with values in [0, 1)."""
    net = network("LeNet")
    for phase, part, batch in ((TRAIN, "train", 64), (TEST, "test", 100)):
        lmdb(net, "mnist", phase, f"examples/mnist/mnist_{part}_lmdb", batch, scale=1 / 256)
    scores = _body(net)
    accuracy(net, "accuracy", scores, phase=TEST)
    softmax_loss(net, "loss", scores)
    return net


def deploy() -> NetParameter:
    """Return the net to use: data (64, 1, 28, 28), prob (64, 10)."""
    net = network("LeNet")
    picture(net, 64, 1, 28, 28)
    prob(net, _body(net))
    return net


def solver() -> SolverParameter:
    """10,000 iterations, the rate falling with the inverse of the iteration."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[100],
        test_interval=500,
        base_lr=0.01,
        momentum=0.9,
        weight_decay=0.0005,
        lr_policy="inv",
        gamma=0.0001,
        power=0.75,
        display=100,
        max_iter=10000,
        snapshot=5000,
        snapshot_prefix="lenet",
    )


def _body(net: NetParameter) -> str:
    """From data to the scores."""
    x = "data"
    for index, outputs in ((1, 20), (2, 50)):
        x = conv(net, f"conv{index}", x, outputs, 5, _LEARNING, stride=1)
        x = pool(net, f"pool{index}", x, "MAX", 2, 2)
    x = relu(net, "relu1", inner_product(net, "ip1", x, 500, _LEARNING))
    return inner_product(net, "ip2", x, 10, _LEARNING)
