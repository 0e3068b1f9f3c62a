"""DenseNet-121 (Huang et al., "Densely connected convolutional networks", 2016), as Shicai Yang published its converted weights.

Every step reads all that the steps before it in its stage made. Only the deploy net was published; the one for training follows the paper.
"""

from __future__ import annotations

from caffetools.proto.schema import NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    WEIGHTS_DECAY,
    Learning,
    batch_norm,
    concat,
    conv,
    filler,
    global_average,
    pool,
    relu,
    to_train,
    to_use,
)
from caffetools.zoo.networks.mobilenet import MEAN, SCALE

_STEPS = {2: 6, 3: 12, 4: 24, 5: 16}
_GROWTH = 32
_EPOCH = 5005  # updates of 256 pictures


def train_val() -> NetParameter:
    """Return the net to train: batches of 32 (TRAIN, eight of them an update) and 25 (TEST) pictures of 3 x 224 x 224, times 0.017."""
    return to_train("DENSENET_121", (32, 25), lambda net: _body(net, train=True), crop_size=224, mean_value=MEAN, scale=SCALE)


def deploy() -> NetParameter:
    """Return the net to use: data (1, 3, 224, 224), prob (1, 1000, 1, 1)."""
    return to_use("DENSENET_121", lambda net: _body(net, train=False), 1, 3, 224, 224)


def solver() -> SolverParameter:
    """90 passes over ImageNet by Nesterov's method, the rate a tenth after 30 and after 60."""
    return SolverParameter(
        net="train_val.prototxt",
        type="Nesterov",
        test_iter=[2000],
        test_interval=_EPOCH,
        test_initialization=False,
        base_lr=0.1,
        lr_policy="step",
        gamma=0.1,
        stepsize=30 * _EPOCH,
        display=20,
        max_iter=90 * _EPOCH,
        iter_size=8,
        momentum=0.9,
        weight_decay=0.0001,
        snapshot=_EPOCH,
        snapshot_prefix="densenet121",
    )


def _body(net: NetParameter, *, train: bool) -> str:
    """From data to the scores."""
    msra = Learning(filler("msra") if train else None)
    channels = 64
    x = _norm(net, "conv1", "relu1", conv(net, "conv1", "data", channels, 7, msra, stride=2, pad=3, bias=False))
    x = pool(net, "pool1", x, "MAX", 3, 2, pad=1)
    # The weights were made where pooled sizes are rounded down.
    net.layer[-1].pooling_param.round_mode = net.layer[-1].pooling_param.FLOOR
    for stage, steps in _STEPS.items():
        for step in range(1, steps + 1):
            x = concat(net, f"concat_{stage}_{step}", (x, _step(net, f"{stage}_{step}", x, msra)))
        channels = (channels + steps * _GROWTH) // 2
        x = _norm(net, f"conv{stage}_blk", f"relu{stage}_blk", x)
        if stage < 5:
            x = conv(net, f"conv{stage}_blk", x, channels, 1, msra, bias=False)
            x = pool(net, f"pool{stage}", x, "AVE", 2, 2)
    learning = Learning(filler("xavier"), filler("constant"), WEIGHTS_DECAY) if train else Learning()
    return conv(net, "fc6", global_average(net, "pool5", x), 1000, 1, learning)


def _step(net: NetParameter, which: str, bottom: str, learning: Learning) -> str:
    """Add a step of 32 maps, by way of a 1x1 convolution that narrows."""
    x = _norm(net, f"conv{which}/x1", f"relu{which}/x1", bottom)
    x = conv(net, f"conv{which}/x1", x, 4 * _GROWTH, 1, learning, bias=False)
    x = _norm(net, f"conv{which}/x2", f"relu{which}/x2", x)
    return conv(net, f"conv{which}/x2", x, _GROWTH, 3, learning, pad=1, bias=False)


def _norm(net: NetParameter, name: str, activation: str, bottom: str) -> str:
    return relu(net, activation, batch_norm(net, f"{name}/bn", f"{name}/scale", bottom, top=f"{name}/bn", fields={"eps": 1e-5}))
