"""SE-ResNet-50 (Hu et al., "Squeeze-and-excitation networks", 2017): a residual network that weighs its channels.

The published net weighs and adds in one layer, Axpy, which is not BVLC Caffe's. Here a Scale and an Eltwise do the same, so that it
runs everywhere; layers with weights have their published names. Only the deploy net was published.
"""

from __future__ import annotations

from caffetools.proto.schema import NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    IMAGENET_MEAN,
    WEIGHTS_DECAY,
    Learning,
    add,
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

_BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
_EPOCH = 5005  # updates of 256 pictures


def train_val() -> NetParameter:
    """Return the net to train: batches of 32 (TRAIN, eight of them an update) and 25 (TEST) pictures, cut to 3 x 224 x 224."""
    return to_train("SE-ResNet-50", (32, 25), lambda net: _body(net, train=True), crop_size=224, mean_value=IMAGENET_MEAN)


def deploy() -> NetParameter:
    """Return the net to use: data (1, 3, 224, 224), prob (1, 1000)."""
    return to_use("SE-ResNet-50", lambda net: _body(net, train=False), 1, 3, 224, 224)


def solver() -> SolverParameter:
    """100 passes over ImageNet with updates of 256 pictures, the rate a tenth after every 30."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[2000],
        test_interval=_EPOCH,
        test_initialization=False,
        base_lr=0.1,
        lr_policy="step",
        gamma=0.1,
        stepsize=30 * _EPOCH,
        display=20,
        max_iter=100 * _EPOCH,
        iter_size=8,
        momentum=0.9,
        weight_decay=0.0001,
        snapshot=_EPOCH,
        snapshot_prefix="se_resnet50",
    )


def _body(net: NetParameter, *, train: bool) -> str:
    """From data to the scores."""
    x = _conv(net, "conv1/7x7_s2", "data", 64, 7, train=train, stride=2)
    x = pool(net, "pool1/3x3_s2", relu(net, "conv1/relu_7x7_s2", x), "MAX", 3, 2)
    for stage, blocks in _BLOCKS.items():
        for block in range(1, blocks + 1):
            x = _block(net, f"conv{stage}_{block}", x, 32 << (stage - 1), 2 if stage > 2 and block == 1 else 1, train=train)
    learning = Learning(filler("xavier"), filler("constant"), WEIGHTS_DECAY) if train else Learning()
    return inner_product(net, "classifier", pool(net, "pool5/7x7_s1", x, "AVE", 7, 1), 1000, learning)


def _block(net: NetParameter, name: str, bottom: str, width: int, stride: int, *, train: bool) -> str:
    """Add a bottleneck whose channels are weighted by a function of their means, and added to what it reads."""
    x = _conv(net, f"{name}_1x1_reduce", bottom, width, 1, train=train, stride=stride)
    x = _conv(net, f"{name}_3x3", relu(net, f"{name}_1x1_reduce/relu", x), width, 3, train=train)
    x = _conv(net, f"{name}_1x1_increase", relu(net, f"{name}_3x3/relu", x), 4 * width, 1, train=train)
    weights = _excite(net, name, x, 4 * width, train=train)
    shortcut = bottom
    if name.endswith("_1"):
        shortcut = _conv(net, f"{name}_1x1_proj", bottom, 4 * width, 1, train=train, stride=stride)
    add(net, "Reshape", f"{name}_prob_reshape", (weights,), reshape_param={"shape": {"dim": [0, 0]}})
    add(net, "Scale", f"{name}_scale", (x, f"{name}_prob_reshape"), scale_param={"axis": 0, "bias_term": False})
    return relu(net, f"{name}/relu", eltwise_sum(net, name, (f"{name}_scale", shortcut)))


def _excite(net: NetParameter, name: str, x: str, channels: int, *, train: bool) -> str:
    """Add a number from 0 to 1 for each channel, (N, C, 1, 1)."""
    learning = Learning(filler("msra"), filler("constant"), WEIGHTS_DECAY) if train else Learning()
    squeezed = global_average(net, f"{name}_global_pool", x)
    down = conv(net, f"{name}_1x1_down", squeezed, channels // 16, 1, learning, stride=1)
    up = conv(net, f"{name}_1x1_up", relu(net, f"{name}_1x1_down/relu", down), channels, 1, learning, stride=1)
    add(net, "Sigmoid", f"{name}_prob", (up,), (up,))
    return up


def _conv(net: NetParameter, name: str, bottom: str, outputs: int, kernel: int, *, train: bool, stride: int = 1) -> str:
    msra = Learning(filler("msra") if train else None)
    x = conv(net, name, bottom, outputs, kernel, msra, stride=stride, pad=kernel // 2 or None, bias=False)
    return batch_norm(net, f"{name}/bn", f"{name}/bn/scale", x, fields={} if train else {"use_global_stats": True})
