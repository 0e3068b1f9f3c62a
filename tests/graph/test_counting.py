"""The table of layer types that the project's face-recognition study printed, from our own networks."""

from __future__ import annotations

from caffetools.graph.counting import count_global_poolings, count_types, type_table
from caffetools.zoo.networks import build
from tests.surgery.nets import TINY, net_of

KINDS = ("Convolution", "InnerProduct", "Pooling", "ReLU", "LRN", "Dropout", "BatchNorm", "Scale", "Eltwise")
# As the study has them. It counts poolings over a whole channel apart for SqueezeNet (3 and 1), and among the others for ResNet-10.
# Its ResNet-10 is that of cvjena/cnn-models, as ours is; its R-CNN has the layers of BVLC's, and ours the same kinds and numbers
# although its last layer is another one in training (see its card).
STUDY = {
    "bvlc_alexnet": (5, 3, 3, 7, 2, 2, 0, 0, 0),
    "bvlc_googlenet": (59, 5, 16, 61, 2, 3, 0, 0, 0),
    "bvlc_reference_caffenet": (5, 3, 3, 7, 2, 2, 0, 0, 0),
    "squeezenet_v1.0": (26, 0, 3 + 1, 26, 0, 1, 0, 0, 0),
    "resnet10": (12, 1, 2, 9, 0, 0, 10, 10, 4),
    "vgg16": (13, 3, 5, 15, 0, 2, 0, 0, 0),
    "bvlc_reference_rcnn_ilsvrc13": (5, 3, 3, 7, 2, 2, 0, 0, 0),
}


def test_the_table_of_the_study_is_reproduced_from_our_networks_for_training() -> None:
    for model, numbers in STUDY.items():
        counts = count_types(build(model))
        assert tuple(counts.get(kind, 0) for kind in KINDS) == numbers, model
    assert {model: count_global_poolings(build(model)) for model in STUDY if count_global_poolings(build(model))} == {
        "squeezenet_v1.0": 1,
        "resnet10": 1,
    }
    # SqueezeNet v1.1 has the same numbers of layers.
    assert count_types(build("squeezenet_v1.1")) == count_types(build("squeezenet_v1.0"))


def test_the_table_has_a_column_a_net_and_a_row_a_type() -> None:
    rows = {row[0]: row[1:] for row in type_table({model: build(model) for model in ("squeezenet_v1.0", "resnet10", "bvlc_alexnet")})}
    assert list(rows)[:6] == ["Convolution", "InnerProduct", "Pooling", "ReLU", "LRN", "Dropout"]
    assert rows["Convolution"] == ("26", "12", "5")
    assert rows["InnerProduct"] == ("-", "1", "3")
    assert rows["Pooling"] == ("3 (+1 global)", "1 (+1 global)", "3")
    assert rows["BatchNorm"] == ("-", "10", "-")


def test_layers_of_both_phases_count_once_in_any_form_of_the_file() -> None:
    assert count_types(net_of(TINY)) == {"Data": 1, "Convolution": 1, "ReLU": 1, "InnerProduct": 1, "SoftmaxWithLoss": 1, "Accuracy": 2}
    old = 'layers { name: "a" type: CONVOLUTION } layers { name: "b" type: INNER_PRODUCT }'
    assert count_types(net_of(old)) == {"Convolution": 1, "InnerProduct": 1}
