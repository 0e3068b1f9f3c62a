"""Network in Network for ImageNet (Lin et al., "Network in network", 2013): small perceptrons instead of filters, no large layers."""

from __future__ import annotations

from caffetools.proto.schema import TEST, TRAIN, NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    WEIGHTS_DECAY,
    Learning,
    accuracy,
    conv,
    dropout,
    filler,
    imagenet,
    network,
    picture,
    pool,
    prob,
    relu,
    softmax_loss,
)

# Each block: its convolution (name, outputs, kernel, stride, padding), and the numbers of its three ReLUs, as published.
_BLOCKS = (
    ("conv1", 96, 11, 4, None, (0, 1, 2)),
    ("conv2", 256, 5, 1, 2, (3, 5, 6)),
    ("conv3", 384, 3, 1, 1, (7, 8, 9)),
    ("conv4-1024", 1024, 3, 1, 1, (10, 11, 12)),
)
_POOLS = ("pool0", "pool2", "pool3")
# These start wider or narrower than the others, whose standard deviation is 0.05.
_STD = {"conv1": 0.01, "conv3": 0.01, "cccp8-1024": 0.01}


def train_val() -> NetParameter:
    """Return the net to train: batches of 64 (TRAIN) and 89 (TEST) pictures, cut to 3 x 224 x 224, minus the mean picture."""
    net = network("nin_imagenet")
    imagenet(net, (64, 89), crop_size=224, mean_file="data/ilsvrc12/imagenet_mean.binaryproto")
    scores = _body(net, train=True)
    accuracy(net, "accuracy", scores, phase=TEST)
    softmax_loss(net, "loss", scores, phase=TRAIN)
    return net


def deploy() -> NetParameter:
    """Return the net to use: data (10, 3, 224, 224), prob (10, 1000, 1, 1)."""
    net = network("nin_imagenet")
    picture(net, 10, 3, 224, 224)
    prob(net, _body(net, train=False))
    return net


def solver() -> SolverParameter:
    """450,000 iterations, the rate a tenth after every 200,000."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[1000],
        test_interval=1000,
        base_lr=0.01,
        lr_policy="step",
        gamma=0.1,
        stepsize=200000,
        display=20,
        max_iter=450000,
        momentum=0.9,
        weight_decay=0.0005,
        snapshot=10000,
        snapshot_prefix="nin_imagenet_train",
    )


def _body(net: NetParameter, *, train: bool) -> str:
    """From data to the scores, which are the means of a thousand maps."""

    def step(name: str, x: str, outputs: int, kernel: int, number: int, *, stride: int = 1, pad: int | None = None) -> str:
        learning = Learning(filler("gaussian", std=_STD.get(name, 0.05)), filler("constant"), WEIGHTS_DECAY) if train else Learning()
        # Blobs are called as the layers, but for the width that the last ones have in their names.
        top = name.removesuffix("-1024")
        return relu(net, f"relu{number}", conv(net, name, x, outputs, kernel, learning, stride=stride, pad=pad, top=top))

    x = "data"
    for block, (name, outputs, kernel, stride, pad, numbers) in enumerate(_BLOCKS):
        last = block == len(_BLOCKS) - 1
        end = "-1024" if last else ""
        x = step(name, x, outputs, kernel, numbers[0], stride=stride, pad=pad)
        x = step(f"cccp{2 * block + 1}{end}", x, outputs, 1, numbers[1])
        x = step(f"cccp{2 * block + 2}{end}", x, 1000 if last else outputs, 1, numbers[2])
        if not last:
            x = pool(net, _POOLS[block], x, "MAX", 3, 2)
        if block == 2:
            x = dropout(net, "drop", x, 0.5)
    return pool(net, "pool4", x, "AVE", 6, 1)
