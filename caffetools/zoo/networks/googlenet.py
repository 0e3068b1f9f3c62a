"""GoogLeNet (Szegedy et al., "Going deeper with convolutions", 2014), as the BVLC zoo has it: three losses in training, one in use."""

from __future__ import annotations

from caffetools.proto.schema import TEST, NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    IMAGENET_MEAN,
    WEIGHTS_DECAY,
    Learning,
    accuracy,
    concat,
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

# Outputs of each inception module: 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj.
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# The poolings and the losses that come after a module.
_POOLS = {"3b": "pool3/3x3_s2", "4e": "pool4/3x3_s2"}
_LOSSES = {"4a": "loss1", "4d": "loss2"}

# The published deploy net keeps a std with every xavier filler, which xavier does not use; by the end of the layer's name.
_DEPLOYED_STD = {
    "7x7_s2": 0.1,
    "1x1": 0.03,
    "3x3_reduce": 0.09,
    "3x3": 0.03,
    "5x5_reduce": 0.2,
    "5x5": 0.03,
    "pool_proj": 0.1,
}


def train_val() -> NetParameter:
    """Return the net to train: batches of 32 (TRAIN) and 50 (TEST) pictures, cut to 3 x 224 x 224, minus the mean of each channel."""
    net = network("GoogleNet")
    imagenet(net, (32, 50), crop_size=224, mean_value=IMAGENET_MEAN)
    x = _body(net, train=True)
    scores = inner_product(net, "loss3/classifier", x, 1000, _learning(bias=0.0))
    _classifier_loss(net, "loss3", scores, loss="loss3", weight=1.0)
    return net


def deploy() -> NetParameter:
    """Return the net to use: data (10, 3, 224, 224), prob (10, 1000)."""
    net = network("GoogleNet")
    picture(net, 10, 3, 224, 224)
    x = _body(net, train=False)
    prob(net, inner_product(net, "loss3/classifier", x, 1000, _learning(bias=0.0)))
    return net


def solver() -> SolverParameter:
    """Return the quick solver: 2,400,000 iterations, the rate falling with the square root of what is left."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[1000],
        test_interval=4000,
        test_initialization=False,
        display=40,
        average_loss=40,
        base_lr=0.01,
        lr_policy="poly",
        power=0.5,
        max_iter=2400000,
        momentum=0.9,
        weight_decay=0.0002,
        snapshot=40000,
        snapshot_prefix="bvlc_googlenet_quick",
    )


def _learning(name: str = "", *, train: bool = True, bias: float = 0.2) -> Learning:
    # The first reduction of the deployed net is the one exception to the table.
    std = 0.1 if name == "conv2/3x3_reduce" else _DEPLOYED_STD.get(name.rpartition("/")[2])
    weights = filler("xavier") if train or std is None else filler("xavier", std=std)
    return Learning(weights, filler("constant", value=bias), WEIGHTS_DECAY)


def _conv(net: NetParameter, name: str, bottom: str, outputs: int, kernel: int, *, train: bool, stride: int | None = None) -> str:
    """Add a convolution that keeps the size (or halves it, with stride 2), and its ReLU."""
    pad = kernel // 2 or None
    x = conv(net, name, bottom, outputs, kernel, _learning(name, train=train), stride=stride, pad=pad)
    module, _, part = name.rpartition("/")
    return relu(net, f"{module}/relu_{part.removesuffix('_s2')}", x)


def _body(net: NetParameter, *, train: bool) -> str:
    """From data to what the last classifier reads; ``train`` adds the two losses on the way."""
    x = _conv(net, "conv1/7x7_s2", "data", 64, 7, train=train, stride=2)
    x = lrn(net, "pool1/norm1", pool(net, "pool1/3x3_s2", x, "MAX", 3, 2))
    x = _conv(net, "conv2/3x3_reduce", x, 64, 1, train=train)
    x = _conv(net, "conv2/3x3", x, 192, 3, train=train)
    x = pool(net, "pool2/3x3_s2", lrn(net, "conv2/norm2", x), "MAX", 3, 2)
    for which, outputs in _INCEPTIONS.items():
        x = _inception(net, f"inception_{which}", x, outputs, train=train)
        if train and which in _LOSSES:
            _side_loss(net, _LOSSES[which], x)
        if which in _POOLS:
            x = pool(net, _POOLS[which], x, "MAX", 3, 2)
    x = pool(net, "pool5/7x7_s1", x, "AVE", 7, 1)
    return dropout(net, "pool5/drop_7x7_s1", x, 0.4)


def _inception(net: NetParameter, name: str, bottom: str, outputs: tuple[int, ...], *, train: bool) -> str:
    """Kernels of 1x1, 3x3 and 5x5 and a pooling side by side, the larger ones over fewer channels."""
    one, reduce3, three, reduce5, five, projection = outputs
    branches = [_conv(net, f"{name}/1x1", bottom, one, 1, train=train)]
    x = _conv(net, f"{name}/3x3_reduce", bottom, reduce3, 1, train=train)
    branches.append(_conv(net, f"{name}/3x3", x, three, 3, train=train))
    x = _conv(net, f"{name}/5x5_reduce", bottom, reduce5, 1, train=train)
    branches.append(_conv(net, f"{name}/5x5", x, five, 5, train=train))
    x = pool(net, f"{name}/pool", bottom, "MAX", 3, 1, pad=1)
    branches.append(_conv(net, f"{name}/pool_proj", x, projection, 1, train=train))
    return concat(net, f"{name}/output", branches)


def _side_loss(net: NetParameter, name: str, bottom: str) -> None:
    """A small classifier on the way, which helps the gradient down; its loss counts 0.3."""
    x = pool(net, f"{name}/ave_pool", bottom, "AVE", 5, 3)
    x = _conv(net, f"{name}/conv", x, 128, 1, train=True)
    x = relu(net, f"{name}/relu_fc", inner_product(net, f"{name}/fc", x, 1024, _learning()))
    x = dropout(net, f"{name}/drop_fc", x, 0.7)
    scores = inner_product(net, f"{name}/classifier", x, 1000, _learning(bias=0.0))
    _classifier_loss(net, name, scores, loss="loss", weight=0.3)


def _classifier_loss(net: NetParameter, name: str, scores: str, *, loss: str, weight: float) -> None:
    softmax_loss(net, f"{name}/{loss}", scores, top=f"{name}/{name}", weight=weight)
    accuracy(net, f"{name}/top-1", scores, phase=TEST)
    accuracy(net, f"{name}/top-5", scores, top_k=5, phase=TEST)
