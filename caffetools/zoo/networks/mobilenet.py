"""MobileNet v1 (Howard et al., 2017) and v2 (Sandler et al., "Inverted residuals and linear bottlenecks", 2018).

A filter for each channel (a Convolution with as many groups, which every Caffe has), then 1x1 convolutions that mix the channels.
Layers are those of Shicai Yang's weights. Only the deploy nets were published; those for training follow the publisher's description.
"""

from __future__ import annotations

from dataclasses import dataclass

from caffetools.proto.schema import NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    WEIGHTS_DECAY,
    Learning,
    batch_norm,
    conv,
    eltwise_sum,
    filler,
    global_average,
    relu,
    to_train,
    to_use,
)

# Subtracted from each channel, blue first, before all is scaled.
MEAN, SCALE = (103.94, 116.78, 123.68), 0.017


@dataclass(frozen=True)
class Version:
    """A version. in_place: whether BatchNorm works in place, or makes a blob of its own called as itself."""

    name: str
    in_place: bool
    snapshot: str


V1 = Version("MOBILENET", True, "mobilenet_v1")
V2 = Version("MOBILENET_V2", False, "mobilenet_v2")

# v1: the outputs of each pair of convolutions, by stage; those that halve the size come last in their stage.
_PAIRS = {2: (64, 128), 3: (128, 256), 4: (256, 512), 5: (512, 512, 512, 512, 512, 1024)}
# v2: the outputs of each block, by stage, and the blocks that halve the size.
_BLOCKS = {2: (16, 24), 3: (24, 32), 4: (32, 32, 64, 64, 64, 64, 96), 5: (96, 96, 160), 6: (160, 160, 320)}
_HALVING = ("2_2", "3_2", "4_7", "5_3")

_EPOCH = 13346  # updates of 96 pictures


def train_val(version: Version) -> NetParameter:
    """Return the net to train: batches of 96 (TRAIN) and 50 (TEST) pictures, cut to 3 x 224 x 224, minus the mean, times 0.017."""
    transform = {"crop_size": 224, "mean_value": MEAN, "scale": SCALE}
    return to_train(version.name, (96, 50), lambda net: _body(net, version, train=True), ("top1/acc", "top5/acc"), **transform)


def deploy(version: Version) -> NetParameter:
    """Return the net to use: data (1, 3, 224, 224), prob (1, 1000, 1, 1)."""
    return to_use(version.name, lambda net: _body(net, version, train=False), 1, 3, 224, 224)


def solver(version: Version) -> SolverParameter:
    """300 passes over ImageNet, the rate 2 % less after each, as the paper of v2 has it."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[1000],
        test_interval=_EPOCH,
        test_initialization=False,
        base_lr=0.045,
        lr_policy="step",
        gamma=0.98,
        stepsize=_EPOCH,
        display=100,
        max_iter=300 * _EPOCH,
        momentum=0.9,
        weight_decay=0.00004,
        snapshot=_EPOCH,
        snapshot_prefix=version.snapshot,
    )


def _body(net: NetParameter, version: Version, *, train: bool) -> str:
    """From data to the scores."""
    x = _conv(net, version, "conv1", "relu1", "data", 32, 3, train=train, stride=2)
    x = (_pairs if version.in_place else _blocks)(net, version, x, train=train)
    learning = Learning(filler("msra"), filler("constant"), WEIGHTS_DECAY) if train else Learning()
    return conv(net, "fc7", global_average(net, "pool6", x), 1000, 1, learning)


def _pairs(net: NetParameter, version: Version, x: str, *, train: bool) -> str:
    """Add the middle of v1."""
    pairs = [(f"{stage}_{i}", outputs, 2 if i == len(all_) else 1) for stage, all_ in _PAIRS.items() for i, outputs in enumerate(all_, 1)]
    channels = 32
    for which, outputs, stride in [*pairs, ("6", 1024, 1)]:
        x = _conv(net, version, f"conv{which}/dw", f"relu{which}/dw", x, channels, 3, train=train, stride=stride, group=channels)
        x = _conv(net, version, f"conv{which}/sep", f"relu{which}/sep", x, outputs, 1, train=train)
        channels = outputs
    return x


def _blocks(net: NetParameter, version: Version, x: str, *, train: bool) -> str:
    """Add the middle of v2: blocks that widen, filter and narrow, with a sum around them where the sizes let it be."""
    channels = 32
    for stage, all_outputs in _BLOCKS.items():
        for index, outputs in enumerate(all_outputs, start=1):
            which = f"{stage}_{index}"
            wide = channels * (1 if which == "2_1" else 6)
            stride = 2 if which in _HALVING else 1
            shortcut = x
            x = _conv(net, version, f"conv{which}/expand", f"relu{which}/expand", x, wide, 1, train=train)
            x = _conv(net, version, f"conv{which}/dwise", f"relu{which}/dwise", x, wide, 3, train=train, stride=stride, group=wide)
            x = _conv(net, version, f"conv{which}/linear", "", x, outputs, 1, train=train)
            if stride == 1 and outputs == channels:
                x = eltwise_sum(net, f"block_{which}", (shortcut, x))
            channels = outputs
    return _conv(net, version, "conv6_4", "relu6_4", x, 1280, 1, train=train)


def _conv(
    net: NetParameter,
    version: Version,
    name: str,
    activation: str,
    bottom: str,
    outputs: int,
    kernel: int,
    *,
    train: bool,
    stride: int = 1,
    group: int | None = None,
) -> str:
    """Add a convolution, its normalization, and a ReLU called ``activation`` unless that is empty."""
    learning = Learning(filler("msra"), mults=((1.0, 1.0),)) if train else Learning()
    x = conv(net, name, bottom, outputs, kernel, learning, stride=stride, pad=kernel // 2 or None, group=group, bias=False)
    # In training the statistics are the batch's, in use those that were gathered: Caffe's default.
    fields = {"eps": 1e-5} if train else {"eps": 1e-5, "use_global_stats": True}
    x = batch_norm(net, f"{name}/bn", f"{name}/scale", x, top=None if version.in_place else f"{name}/bn", fields=fields)
    return relu(net, activation, x) if activation else x
