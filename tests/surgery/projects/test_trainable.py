"""From a deploy net back to one that can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caffetools.errors import NetError
from caffetools.graph.inputs import data_layers_to_inputs, data_shape
from caffetools.graph.summary import summarize
from caffetools.net.net import Net
from caffetools.project.trainable import trainable_from
from caffetools.proto.schema import TEST, TRAIN
from caffetools.proto.text import read_net, read_solver, write_prototxt
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.surgery.deploy import deploy_from
from caffetools.zoo.networks import MODELS, build
from tests.cli.test_retarget import run
from tests.surgery.nets import layer_of, net_of
from tests.surgery.test_deploy import numbers, wiring


@pytest.mark.parametrize("model", [model for model in MODELS if model not in ("vgg16", "vgg19") and "mtcnn" not in model])
def test_a_networks_deploy_net_made_trainable_deploys_to_itself_again(model: str) -> None:
    deploy = build(model, "deploy")
    made, _, _ = trainable_from(deploy)
    (shape,) = [tuple(layer.input_param.shape[0].dim) for layer in deploy_inputs(deploy)]
    again = deploy_from(made, input_shape=shape)
    # R-CNN's scores get a prob that its deploy net does not have.
    theirs = [*deploy_inputs(deploy), *(layer for layer in deploy.layer if layer.type != "Input")]
    ours = list(again.layer)[: len(theirs)]
    assert wiring(again)[1 : len(theirs)] == [(x.name, x.type, list(x.bottom), list(x.top)) for x in theirs[1:]]
    assert [numbers(layer) for layer in ours] == [numbers(layer) for layer in theirs]
    assert len(again.layer) - len(theirs) == (model == "bvlc_reference_rcnn_ilsvrc13")


def deploy_inputs(deploy: Any) -> list[Any]:
    return [layer for layer in upgrade_net(deploy).layer if layer.type == "Input"]


@pytest.mark.parametrize("model", ["lenet", "resnet18", "mobilenet_v2"])
def test_what_was_made_trains(model: str) -> None:
    made, changes, _ = trainable_from(build(model, "deploy"))
    shape = (2, 1, 28, 28) if model == "lenet" else (2, 3, 224, 224)
    for phase in (TRAIN, TEST):
        net = Net(data_layers_to_inputs(made, {"": shape}, batch=2), phase, fill=False)
        assert net.blob_shapes["loss"] == ()
        assert ("accuracy" in net.blob_shapes) == (phase == TEST)
    assert any(str(change).endswith("xavier") for change in changes) == (model != "lenet")  # LeNet's deploy net has its fillers
    assert not any(layer.batch_norm_param.use_global_stats for layer in made.layer)


SCORES = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 6 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 3 weight_filler { type: "msra" } } }
"""


def test_scores_without_probabilities_get_a_loss_and_no_accuracy_of_more_places_than_classes() -> None:
    made, changes, notes = trainable_from(net_of(SCORES), sources=("a", "b"), scale=0.5)
    assert [(layer.name, layer.type) for layer in made.layer] == [
        ("data", "Data"),
        ("data", "Data"),
        ("fc", "InnerProduct"),
        ("loss", "SoftmaxWithLoss"),
        ("accuracy", "Accuracy"),
    ]
    train, val = made.layer[:2]
    assert (train.data_param.source, val.data_param.source, train.transform_param.scale) == ("a", "b", 0.5)
    # A crop is square, so none is made of another shape.
    assert not train.transform_param.HasField("crop_size")
    assert layer_of(made, "fc").inner_product_param.weight_filler.type == "msra"
    assert [str(change) for change in changes] == ["data: layer Input → Data of a and b", "loss: layer set to SoftmaxWithLoss"]
    assert notes == ["'fc' is taken for the scores of 3 classes; if it is an embedding, a classifier and a loss must be added after it"]


SIGMOID = SCORES + 'layer { name: "prob" type: "Sigmoid" bottom: "fc" top: "prob" }'


def test_a_sigmoid_becomes_the_loss_for_several_labels_which_hdf5_files_hold() -> None:
    made, _, notes = trainable_from(net_of(SIGMOID))
    assert [layer.type for layer in made.layer] == ["HDF5Data", "HDF5Data", "InnerProduct", "SigmoidCrossEntropyLoss"]
    assert notes == ["each picture needs 3 labels of 0 or 1: they come from HDF5 files, which the sources list"]
    for phase in (TRAIN, TEST):
        assert summarize(made, phase, shapes={"data": (2, 3, 8, 6), "label": (2, 3)}).unknown == []
    made = Net(data_layers_to_inputs(made, {"data": (2, 3, 8, 6), "label": (2, 3)}), TRAIN)
    assert made.blob_shapes["loss"] == ()


def test_grey_pictures_remain_grey_and_are_not_mirrored() -> None:
    made, _, _ = trainable_from(build("lenet", "deploy"))
    assert made.layer[0].transform_param.force_gray and not made.layer[0].transform_param.mirror
    assert data_shape(made.layer[0], 1) == (1, 1, 28, 28)
    colored, _, _ = trainable_from(build("resnet18", "deploy"))
    assert colored.layer[0].transform_param.mirror and not colored.layer[1].transform_param.mirror


def test_weights_that_the_file_keeps_from_learning_learn_again() -> None:
    frozen = SCORES.replace('top: "fc"', 'top: "fc" param { lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 }')
    made, changes, _ = trainable_from(net_of(frozen))
    assert [(spec.lr_mult, spec.decay_mult) for spec in layer_of(made, "fc").param] == [(1, 1), (2, 0)]
    assert "fc: lr_mult 0 / 0 → 1 / 2" in map(str, changes)
    # A bias that does not learn beside weights that do is meant so.
    made, changes, _ = trainable_from(net_of(frozen.replace("lr_mult: 0", "lr_mult: 1", 1)))
    assert [spec.lr_mult for spec in layer_of(made, "fc").param] == [1, 0]


def test_outputs_that_no_loss_will_read_are_reported() -> None:
    boxes = 'layer { name: "boxes" type: "InnerProduct" bottom: "data" top: "boxes" inner_product_param { num_output: 4 } }'
    prob = 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }'
    _, _, notes = trainable_from(net_of(SCORES + boxes + prob))
    assert notes == ["boxes: no loss reads them, so what makes them learns nothing; add losses for them by hand"]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (SCORES + 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "fc" bottom: "data" }', "has a loss, so it can be trained as it is"),
        (SCORES + 'layer { name: "i" type: "Input" top: "i" }', "the inputs of '' are data, i"),
        (SCORES + 'layer { name: "f" type: "InnerProduct" bottom: "data" top: "f" }', "its outputs are fc, f; one Softmax is expected"),
        ('layer { name: "i" type: "Input" top: "i" }', "layer 'i': has no shape; add input_param"),
        ('layer { name: "i" type: "Input" top: "i" input_param { shape { dim: 1 dim: 2 } } }', "its outputs are i"),
        (
            SCORES.replace("InnerProduct", "Convolution").replace("inner_product_param {", "convolution_param { kernel_size: 3 "),
            "layer 'fc': gives a map of scores, 1 x 3 x 6 x 4, where one score a class is expected",
        ),
    ],
)
def test_a_net_of_which_it_is_not_clear_what_to_learn_is_an_error(net: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        trainable_from(net_of(net))


def test_several_labels_a_picture_have_no_place_in_a_dataset_folder(tmp_path: Path) -> None:
    write_prototxt(tmp_path / "deploy.prototxt", net_of(SIGMOID))
    code, out, err = run("trainable", tmp_path / "deploy.prototxt", "-o", tmp_path / "run", "--mean", "7")
    assert (code, out) == (2, "") and "each picture has several labels, which only HDF5 files hold" in err
    code, out, err = run("trainable", tmp_path / "deploy.prototxt", "-o", tmp_path / "run", "--train-source", "train.txt")
    assert (
        code == 0 and "note: " in err and read_net(tmp_path / "run" / "train_val.prototxt").layer[0].hdf5_data_param.source == "train.txt"
    )


def test_the_command_writes_a_net_and_a_solver(tmp_path: Path) -> None:
    write_prototxt(tmp_path / "deploy.prototxt", build("lenet", "deploy"))
    out = tmp_path / "run"
    code, text, err = run("trainable", tmp_path / "deploy.prototxt", "-o", out, "--mean", "7", "--train-source", "a", "--seed", 3)
    assert (code, err) == (0, "")
    assert f"Next: caffetools train {out / 'solver.prototxt'}" in text
    net, solver = read_net(out / "train_val.prototxt"), read_solver(out / "solver.prototxt")
    assert (net.layer[0].data_param.source, list(net.layer[0].transform_param.mean_value)) == ("a", [7])
    assert (solver.net, solver.random_seed) == (str(out / "train_val.prototxt"), 3)
    code, _, err = run("trainable", tmp_path / "deploy.prototxt", "-o", out)
    assert code == 2 and "train_val.prototxt: already exists; give another folder, or --force" in err
    assert run("retarget", out / "train_val.prototxt", "--classes", 4, "-o", tmp_path / "more")[0] == 0
    code, _, err = run("trainable", out / "train_val.prototxt", "-o", tmp_path / "x")
    assert code == 2 and "train_val.prototxt: the net 'LeNet' has a loss" in err and not (tmp_path / "x").exists()


def test_a_reshape_that_names_the_deployed_batch_follows_the_one_of_training() -> None:
    reshape = 'layer { name: "r" type: "Reshape" bottom: "fc" top: "r" reshape_param { shape { dim: 1 dim: 3 } } }'
    prob = 'layer { name: "prob" type: "Softmax" bottom: "r" top: "prob" }'
    made, changes, _ = trainable_from(net_of(SCORES + reshape + prob))
    assert list(layer_of(made, "r").reshape_param.shape.dim) == [0, 3]
    assert "r: dim 1 → 0 (as many pictures as there are)" in map(str, changes)


def test_a_net_that_cannot_take_the_batch_of_training_is_refused() -> None:
    dummy = 'layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1 dim: 3 } } }'
    both = 'layer { name: "sum" type: "Eltwise" bottom: "fc" bottom: "d" top: "sum" }'
    both += 'layer { name: "p" type: "Softmax" bottom: "sum" top: "p" }'
    with pytest.raises(NetError, match="layer 'sum': .*bottoms must have one shape: 'fc' is 32 x 3, 'd' is 1 x 3"):
        trainable_from(net_of(SCORES + dummy + both))


def test_scales_that_the_file_keeps_from_learning_learn_again_too() -> None:
    scale = (
        'layer { name: "s" type: "Scale" bottom: "fc" top: "s" param { lr_mult: 0 } param { lr_mult: 0 } scale_param { bias_term: true } }'
    )
    made, _, _ = trainable_from(net_of(SCORES + scale + 'layer { name: "p" type: "Softmax" bottom: "s" top: "p" }'))
    assert [spec.lr_mult for spec in layer_of(made, "s").param] == [1, 1]
