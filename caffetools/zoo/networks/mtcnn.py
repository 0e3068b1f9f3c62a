"""MTCNN's three networks (Zhang et al., "Joint face detection and alignment using multitask cascaded convolutional networks", 2016).

P proposes windows with faces, R refines them, O puts out the box and five landmarks. Only the deploy nets were published. The nets for
training follow the paper: a loss for face or not, and Euclidean losses for box and landmarks, each for the samples that have them.
"""

from __future__ import annotations

from dataclasses import dataclass

from caffetools.proto.schema import TEST, TRAIN, NetParameter, SolverParameter
from caffetools.zoo.networks.builder import (
    WEIGHTS_DECAY,
    Learning,
    accuracy,
    add,
    conv,
    dropout,
    filler,
    inner_product,
    network,
    picture,
    pool,
    softmax_loss,
)


@dataclass(frozen=True)
class Stage:
    """A network.

    Attributes:
        side: of the windows that it sees. convolutions: (outputs, kernel) of each. pools: their kernels, for the first convolutions.
        hidden: the width of the fully connected layer; None where there is none. prelu: what the names of its PReLUs start with.
        landmarks: whether it puts out landmarks. weights: of the losses for box and landmarks, where that for faces is 1.
    """

    name: str
    side: int
    convolutions: tuple[tuple[int, int], ...]
    pools: tuple[int, ...]
    hidden: int | None
    prelu: str
    landmarks: bool
    weights: tuple[float, float]

    @property
    def last(self) -> int:
        """The number in the names of its outputs."""
        return len(self.convolutions) + (1 if self.hidden is None else 2)


PNET = Stage("PNet", 12, ((10, 3), (16, 3), (32, 3)), (2,), None, "PReLU", False, (0.5, 0.5))
RNET = Stage("RNet", 24, ((28, 3), (48, 3), (64, 2)), (3, 3), 128, "prelu", False, (0.5, 0.5))
ONET = Stage("ONet", 48, ((32, 3), (64, 3), (64, 3), (128, 2)), (3, 3, 2), 256, "prelu", True, (0.5, 1.0))


def train_val(stage: Stage) -> NetParameter:
    """Return the net to train on HDF5 files: data (N, 3, side, side), label (1 a face, 0 none, -1 not to be learned), and for the box (and
    the landmarks) the target values, zeros where there are none, and a mask of ones and zeros; all but data and label as the output.
    """
    net = network(stage.name)
    outputs = [("roi", 4), *([("pts", 10)] if stage.landmarks else [])]
    tops = ["data", "label", *(top for name, _ in outputs for top in (name, f"{name}_mask"))]
    for phase, part, batch in ((TRAIN, "train", 384), (TEST, "val", 100)):
        data = {"source": f"data/mtcnn/{stage.name.lower()}_{part}.txt", "batch_size": batch, "shuffle": phase == TRAIN}
        add(net, "HDF5Data", "data", (), tops, hdf5_data_param=data).include.add(phase=phase)
    scores, *others = _body(net, stage, train=True)
    softmax_loss(net, "loss", scores)
    net.layer[-1].loss_param.ignore_label = -1
    accuracy(net, "accuracy", scores, phase=TEST)
    net.layer[-1].accuracy_param.ignore_label = -1
    for (name, _), targets, weight in zip(outputs, others, stage.weights, strict=False):
        masked = f"{name}_masked"
        add(net, "Eltwise", masked, (targets, f"{name}_mask"), eltwise_param={"operation": "PROD"})
        loss = add(net, "EuclideanLoss", f"{name}_loss", (masked, name))
        loss.loss_weight.append(weight)
    return net


def deploy(stage: Stage) -> NetParameter:
    """Return the net to use: data (1, 3, side, side); prob1, then box and landmarks."""
    net = network(stage.name)
    picture(net, 1, 3, stage.side, stage.side)
    add(net, "Softmax", "prob1", (_body(net, stage, train=False)[0],))
    return net


def solver(stage: Stage) -> SolverParameter:
    """200,000 iterations, the rate a tenth after every 75,000; settings of our own, for none were published."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[100],
        test_interval=5000,
        base_lr=0.01,
        lr_policy="step",
        gamma=0.1,
        stepsize=75000,
        display=100,
        max_iter=200000,
        momentum=0.9,
        weight_decay=0.0005,
        snapshot=20000,
        snapshot_prefix=f"mtcnn_{stage.name.lower()}",
    )


def _body(net: NetParameter, stage: Stage, *, train: bool) -> list[str]:
    """From data to the outputs: scores, box, and landmarks where it has them."""
    learning = Learning(filler("xavier"), filler("constant"), WEIGHTS_DECAY) if train else Learning()
    x = "data"
    for index, (outputs, kernel) in enumerate(stage.convolutions, start=1):
        x = _prelu(net, f"{stage.prelu}{index}", conv(net, f"conv{index}", x, outputs, kernel, learning))
        if index <= len(stage.pools):
            x = pool(net, f"pool{index}", x, "MAX", stage.pools[index - 1], 2)
    if stage.hidden is not None:
        index = len(stage.convolutions) + 1
        x = inner_product(net, f"conv{index}", x, stage.hidden, learning)
        if stage.landmarks:
            x = dropout(net, f"drop{index}", x, 0.25)
        x = _prelu(net, f"{stage.prelu}{index}", x)
    made = []
    for index, outputs in enumerate((2, 4, 10) if stage.landmarks else (2, 4), start=1):
        name = f"conv{stage.last}-{index}"
        made.append(conv(net, name, x, outputs, 1, learning) if stage.hidden is None else inner_product(net, name, x, outputs, learning))
    return made


def _prelu(net: NetParameter, name: str, blob: str) -> str:
    add(net, "PReLU", name, (blob,), (blob,))
    return blob
