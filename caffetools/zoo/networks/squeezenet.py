"""SqueezeNet v1.0 and v1.1 (Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", 2016).

v1.1 has a smaller first convolution and pools earlier, so it computes 2.4 times less.
"""

from __future__ import annotations

from dataclasses import dataclass

from caffetools.proto.schema import TEST, TRAIN, NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    IMAGENET_MEAN,
    Learning,
    accuracy,
    concat,
    conv,
    dropout,
    filler,
    global_average,
    imagenet,
    network,
    picture,
    pool,
    prob,
    relu,
    softmax_loss,
)

# The outputs of each fire module's squeeze layer; both of its expand layers have four times as many.
_SQUEEZE = {2: 16, 3: 16, 4: 32, 5: 32, 6: 48, 7: 48, 8: 64, 9: 64}


@dataclass(frozen=True)
class Version:
    """Where the versions differ.

    Attributes:
        outputs, kernel: of conv1. pools: the fire modules that a pooling follows. last_pad: the padding of conv10.
        phased: the loss is for TRAIN only, accuracies for TEST only. old_input: the deploy net names its input the old way.
    """

    outputs: int
    kernel: int
    pools: tuple[int, ...]
    last_pad: int | None
    phased: bool
    old_input: bool


V1_0 = Version(96, 7, (4, 8), 1, True, True)
V1_1 = Version(64, 3, (3, 5), None, False, False)


def train_val(version: Version) -> NetParameter:
    """Return the net to train: batches of 32 (TRAIN) and 25 (TEST) pictures, cut to 3 x 227 x 227, minus the mean of each channel."""
    net = network()
    imagenet(net, (32, 25), mirror=False, crop_size=227, mean_value=IMAGENET_MEAN)
    scores = _body(net, version, Learning(filler("xavier")), Learning(filler("gaussian", mean=0.0, std=0.01)))
    softmax_loss(net, "loss", scores, phase=TRAIN if version.phased else None)
    phase = TEST if version.phased else None
    accuracy(net, "accuracy", scores, phase=phase)
    accuracy(net, "accuracy_top5", scores, top_k=5, phase=phase)
    return net


def deploy(version: Version) -> NetParameter:
    """Return the net to use: data (10, 3, 227, 227), prob (10, 1000, 1, 1)."""
    net = network()
    if version.old_input:
        net = NetParameter(input=["data"])
        net.input_shape.add(dim=(10, 3, 227, 227))
    else:
        picture(net, 10, 3, 227, 227)
    prob(net, _body(net, version, Learning(), Learning()))
    return net


def solver(version: Version) -> SolverParameter:
    """170,000 iterations of 16 batches each, the rate falling in a straight line to 0; the same for both versions."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[2000],
        test_interval=1000,
        test_initialization=False,
        base_lr=0.04,
        lr_policy="poly",
        power=1.0,
        display=40,
        average_loss=40,
        max_iter=170000,
        iter_size=16,
        momentum=0.9,
        weight_decay=0.0002,
        snapshot=1000,
        snapshot_prefix="train",
        random_seed=42,
    )


def _body(net: NetParameter, version: Version, inner: Learning, last: Learning) -> str:
    """From data to the scores."""
    x = relu(net, "relu_conv1", conv(net, "conv1", "data", version.outputs, version.kernel, inner, stride=2))
    x = pool(net, "pool1", x, "MAX", 3, 2)
    for index, squeeze in _SQUEEZE.items():
        x = _fire(net, f"fire{index}", x, squeeze, inner)
        if index in version.pools:
            x = pool(net, f"pool{index}", x, "MAX", 3, 2)
    x = dropout(net, "drop9", x, 0.5)
    x = relu(net, "relu_conv10", conv(net, "conv10", x, 1000, 1, last, pad=version.last_pad))
    return global_average(net, "pool10", x)


def _fire(net: NetParameter, name: str, bottom: str, squeeze: int, learning: Learning) -> str:
    """Add a fire module: squeeze to few channels, then expand with kernels of 1x1 and 3x3 side by side."""

    def step(part: str, x: str, outputs: int, kernel: int, pad: int | None = None) -> str:
        return relu(net, f"{name}/relu_{part}", conv(net, f"{name}/{part}", x, outputs, kernel, learning, pad=pad))

    squeezed = step("squeeze1x1", bottom, squeeze, 1)
    expanded = [step("expand1x1", squeezed, 4 * squeeze, 1), step("expand3x3", squeezed, 4 * squeeze, 3, 1)]
    return concat(net, f"{name}/concat", expanded)
