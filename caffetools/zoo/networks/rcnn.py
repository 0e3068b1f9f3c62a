"""R-CNN for ILSVRC13 (Girshick et al., "Rich feature hierarchies for accurate object detection and semantic segmentation", 2014).

CaffeNet with another last layer. The published one, ``fc-rcnn``, is made of 200 support vector machines, which no solver of Caffe
trained; the net for training here is the step before: fine-tuning for the 200 classes and the background on windows of pictures.
"""

from __future__ import annotations

from caffetools.proto.schema import TEST, TRAIN, NetParameter, SolverParameter
from caffetools.zoo.networks.alexnet import CAFFENET, body, training
from caffetools.zoo.networks.builder import Learning, accuracy, add, filler, inner_product, network, picture, softmax_loss

CLASSES = 200


def train_val() -> NetParameter:
    """Return the net to fine-tune from CaffeNet: batches of 128 windows, warped to 3 x 227 x 227, a quarter of them on objects."""
    net = network("R-CNN-ilsvrc13")
    for phase, part in ((TRAIN, "train"), (TEST, "val")):
        transform = {"mirror": phase == TRAIN, "crop_size": 227, "mean_file": "data/ilsvrc12/imagenet_mean.binaryproto"}
        windows = {"source": f"examples/ilsvrc13/window_file_{part}.txt", "batch_size": 128}
        windows |= {"fg_threshold": 0.5, "bg_threshold": 0.5, "fg_fraction": 0.25, "context_pad": 16, "crop_mode": "warp"}
        data = add(net, "WindowData", "data", (), ("data", "label"), transform_param=transform, window_data_param=windows)
        data.include.add(phase=phase)
    x = body(net, CAFFENET, training)
    learning = Learning(filler("gaussian", std=0.01), filler("constant"), ((10.0, 1.0), (20.0, 0.0)))
    scores = inner_product(net, "fc8_ilsvrc13", x, CLASSES + 1, learning)
    accuracy(net, "accuracy", scores, phase=TEST)
    softmax_loss(net, "loss", scores)
    return net


def deploy() -> NetParameter:
    """Return the net to use: data (10, 3, 227, 227), fc-rcnn (10, 200), a score for each class, which is not a probability."""
    net = network("R-CNN-ilsvrc13")
    picture(net, 10, 3, 227, 227)
    inner_product(net, "fc-rcnn", body(net, CAFFENET, lambda std, bias: Learning()), CLASSES, Learning())
    return net


def solver() -> SolverParameter:
    """100,000 iterations, the rate a tenth after every 20,000, as in BVLC's example of fine-tuning for detection."""
    return SolverParameter(
        net="train_val.prototxt",
        test_iter=[100],
        test_interval=1000,
        base_lr=0.001,
        lr_policy="step",
        gamma=0.1,
        stepsize=20000,
        display=20,
        max_iter=100000,
        momentum=0.9,
        weight_decay=0.0005,
        snapshot=10000,
        snapshot_prefix="rcnn_ilsvrc13",
    )
