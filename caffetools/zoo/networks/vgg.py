"""VGG with 16 and with 19 layers (Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014).

The deploy nets have the published layers; the publisher gives no nets for training, so those here follow the paper.
"""

from __future__ import annotations

from caffetools.proto.schema import NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    WEIGHTS_DECAY,
    Learning,
    conv,
    dropout,
    filler,
    inner_product,
    pool,
    relu,
    to_train,
    to_use,
)

# The published mean of each channel, blue first.
MEAN = (103.939, 116.779, 123.68)

# Convolutions and their outputs in each of the five stages that a pooling ends: configurations D and E of the paper.
_OUTPUTS = (64, 128, 256, 512, 512)
VGG16, VGG19 = 16, 19
_DEPTHS = {VGG16: (2, 2, 3, 3, 3), VGG19: (2, 2, 4, 4, 4)}
_TRAINING = Learning(filler("gaussian", std=0.01), filler("constant"), WEIGHTS_DECAY)


def train_val(depth: int) -> NetParameter:
    """Return the net to train: batches of 32 (TRAIN, eight of them an update) and 25 (TEST) pictures, cut to 3 x 224 x 224."""
    return to_train(f"VGG_ILSVRC_{depth}_layers", (32, 25), lambda net: _body(net, depth, _TRAINING), crop_size=224, mean_value=MEAN)


def deploy(depth: int) -> NetParameter:
    """Return the net to use: data (10, 3, 224, 224), prob (10, 1000)."""
    return to_use(f"VGG_ILSVRC_{depth}_layers", lambda net: _body(net, depth, Learning()), 10, 3, 224, 224)


def solver(depth: int) -> SolverParameter:
    """370,000 updates of 256 pictures, the rate a tenth after every 100,000, as the paper has it."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[2000],
        test_interval=5000,
        test_initialization=False,
        base_lr=0.01,
        lr_policy="step",
        gamma=0.1,
        stepsize=100000,
        display=20,
        max_iter=370000,
        iter_size=8,
        momentum=0.9,
        weight_decay=0.0005,
        snapshot=10000,
        snapshot_prefix=f"vgg{depth}",
    )


def _body(net: NetParameter, depth: int, learning: Learning) -> str:
    """From data to the scores."""
    x = "data"
    for stage, (outputs, convolutions) in enumerate(zip(_OUTPUTS, _DEPTHS[depth], strict=True), start=1):
        for index in range(1, convolutions + 1):
            x = relu(net, f"relu{stage}_{index}", conv(net, f"conv{stage}_{index}", x, outputs, 3, learning, pad=1))
        x = pool(net, f"pool{stage}", x, "MAX", 2, 2)
    for index in (6, 7):
        x = relu(net, f"relu{index}", inner_product(net, f"fc{index}", x, 4096, learning))
        x = dropout(net, f"drop{index}", x, 0.5)
    return inner_product(net, "fc8", x, 1000, learning)
