"""What of a net for training is scores, and what is truth that nobody has in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caffetools.errors import NetError
from caffetools.graph.graph import phases_present
from caffetools.graph.summary import summarize
from caffetools.net.net import Net
from caffetools.project.retargeting import prepare_retarget
from caffetools.proto.schema import TEST, TRAIN
from caffetools.proto.text import read_net, read_solver, write_prototxt
from caffetools.surgery.deploy import deploy_from, left_out
from caffetools.surgery.retarget import retarget
from tests.cli.inprocess import run
from tests.surgery.nets import TINY, layer_of, net_of
from tests.surgery.test_deploy import wiring

DATA = (
    'layer { name: "data" type: "Data" top: "data" top: "label" transform_param { crop_size: 8 } data_param { source: "x" batch_size: 2 } }'
)
BODY = 'layer { name: "fc5" type: "InnerProduct" bottom: "data" top: "fc5" inner_product_param { num_output: 6 } }'
FC6 = 'layer { name: "fc6" type: "InnerProduct" bottom: "fc5" top: "fc6" inner_product_param { num_output: 10 } }'
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc6" bottom: "label" top: "loss" }'
MARGIN = (
    'layer { name: "fc6" type: "MarginInnerProduct" bottom: "fc5" bottom: "label" top: "fc6" top: "lambda"'
    ' margin_inner_product_param { num_output: 10 type: QUADRUPLE weight_filler { type: "xavier" } } }'
)


def types(net: Any) -> list[str]:
    return [layer.type for layer in net.layer]


def test_a_layer_that_reads_the_label_is_stepped_over_to_the_embedding() -> None:
    made = deploy_from(net_of(DATA + BODY + MARGIN + LOSS))
    assert wiring(made) == [("data", "Input", [], ["data"]), ("fc5", "InnerProduct", ["data"], ["fc5"])]


def test_a_margin_classifier_is_retargeted_and_deployed_without_itself(tmp_path: Path) -> None:
    write_prototxt(tmp_path / "net.prototxt", net_of(DATA + BODY + MARGIN + LOSS))
    made = prepare_retarget(tmp_path / "net.prototxt", 7, tmp_path / "run")
    new = layer_of(made.retargeted.train_val, "fc6_7")
    assert (new.margin_inner_product_param.num_output, [spec.lr_mult for spec in new.param]) == (7, [10])
    assert types(made.deploy) == ["Input", "InnerProduct"]


def test_a_label_deep_inside_of_a_net_is_refused_with_the_layer_that_reads_it() -> None:
    mask = 'layer { name: "mask" type: "Eltwise" bottom: "fc5" bottom: "weights" top: "masked" }'
    weights = 'layer { name: "w" type: "InnerProduct" bottom: "label" top: "weights" inner_product_param { num_output: 6 } }'
    with pytest.raises(NetError, match="layer 'mask': depends on label blob 'weights', which is not available at inference"):
        deploy_from(net_of(DATA + BODY + weights + mask + FC6.replace('bottom: "fc5"', 'bottom: "masked"') + LOSS))
    targets = 'layer { name: "targets" type: "Python" bottom: "fc5" top: "rois" top: "truth" python_param { module: "m" layer: "L" } }'
    with pytest.raises(NetError, match="layer 'targets': produces 'truth' for the loss 'loss', so it is a layer for training"):
        deploy_from(net_of(DATA + BODY + targets + FC6.replace('"fc5"', '"rois"') + LOSS.replace('"label"', '"truth"')))


@pytest.mark.parametrize(
    ("loss", "output"),
    [
        ('type: "CenterLoss" bottom: "fc5" bottom: "label" center_loss_param { num_output: 10 }', "fc5"),
        ('type: "ContrastiveLoss" bottom: "fc5" bottom: "fc5" bottom: "label"', "fc5"),
        ('type: "TripletLoss" bottom: "a" bottom: "p" bottom: "n"', "fc5"),
        ('type: "Python" bottom: "fc5" bottom: "label" loss_weight: 1 python_param { module: "m" layer: "L" }', "fc5"),
        ('type: "WonderLoss" bottom: "fc5" bottom: "label"', "fc5"),
        ('type: "EuclideanLoss" bottom: "label" bottom: "fc5"', "fc5"),
    ],
)
def test_other_losses_leave_their_inputs_and_are_removed(loss: str, output: str) -> None:
    sliced = 'layer { name: "s" type: "Slice" bottom: "fc5" top: "a" top: "p" top: "n" slice_param { axis: 0 } }'
    net = DATA.replace("batch_size: 2", "batch_size: 6") + BODY + (sliced if "Triplet" in loss else "")
    made = deploy_from(net_of(net + f'layer {{ name: "loss" {loss} top: "loss" }}'))
    assert wiring(made) == [("data", "Input", [], ["data"]), ("fc5", "InnerProduct", ["data"], [output])]


def test_a_loss_on_embeddings_next_to_a_classifier_is_left_out_and_reported() -> None:
    center = 'layer { name: "center" type: "CenterLoss" bottom: "fc5" bottom: "label" top: "c" center_loss_param { num_output: 10 } }'
    net = net_of(DATA + BODY + FC6 + LOSS + center)
    assert types(deploy_from(net)) == ["Input", "InnerProduct", "InnerProduct", "Softmax"]
    assert left_out(net) == ["center"]
    made = retarget(net, 7)
    assert made.renamed == {"fc6": "fc6_7", "center": "center_7"}
    assert layer_of(made.train_val, "center_7").center_loss_param.num_output == 7


def test_of_a_pair_the_deploy_net_takes_one_picture() -> None:
    pair = DATA.replace('top: "data"', 'top: "pair"').replace("crop_size: 8", "crop_size: 8 mean_value: 1 mean_value: 2")
    parts = 'layer { name: "parts" type: "Slice" bottom: "pair" top: "data" top: "data_p" slice_param { axis: 1 slice_point: 1 } }'
    twin = BODY.replace('"data"', '"data_p"').replace('"fc5"', '"fc5_p"')
    loss = 'layer { name: "loss" type: "ContrastiveLoss" bottom: "fc5" bottom: "fc5_p" bottom: "label" top: "loss" }'
    made = deploy_from(net_of(pair + parts + BODY + twin + loss))
    assert wiring(made) == [("data", "Input", [], ["data"]), ("fc5", "InnerProduct", ["data"], ["fc5"])]
    assert list(made.layer[0].input_param.shape[0].dim) == [1, 1, 8, 8]


def test_a_file_that_has_its_deploy_net_in_it_keeps_that_ones_outputs() -> None:
    inside = (
        DATA.replace("transform_param", "include { phase: TRAIN } transform_param")
        + 'layer { name: "d" type: "Input" top: "data" include { phase: TEST } input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
        + BODY
        + FC6
        + LOSS.replace("top:", "include { phase: TRAIN } top:")
        + 'layer { name: "boxes" type: "Power" bottom: "fc5" top: "boxes" include { phase: TEST } }'
    )
    made = deploy_from(net_of(inside))
    assert types(made) == ["Input", "InnerProduct", "InnerProduct", "Power"]
    assert left_out(net_of(inside)) == []


ONLY_TRAINED = DATA.replace("transform_param", "include { phase: TRAIN } transform_param") + BODY + FC6 + LOSS


def test_a_net_without_a_test_phase_is_deployed_and_retargeted_and_its_solver_does_not_test(tmp_path: Path) -> None:
    net = net_of(ONLY_TRAINED)
    assert phases_present(net) == [TRAIN]
    assert Net(deploy_from(net), TEST, fill=False).blob_shapes["data"] == (1, 3, 8, 8)
    path = tmp_path / "net.prototxt"
    write_prototxt(path, net)
    assert run("retarget", path, "--classes", 7, "-o", tmp_path / "run")[0] == 0
    solver = read_solver(tmp_path / "run" / "solver.prototxt")
    assert not solver.test_iter and not solver.test_interval
    assert "in the TRAIN phase" in run("inspect", path)[1]
    code, _, err = run("inspect", path, "--phase", "test")
    assert code == 2 and "layer 'fc5': its bottom 'data' is made in another phase or stage only, by layer 'data'" in err


def test_shapes_are_given_by_name_and_those_of_labels_only_guessed(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    hdf5 = DATA.replace('"Data"', '"HDF5Data"').replace("data_param", "hdf5_data_param").replace("transform_param { crop_size: 8 }", "")
    loss = LOSS.replace("SoftmaxWithLoss", "SigmoidCrossEntropyLoss")
    write_prototxt(path, net_of(hdf5 + BODY + FC6 + loss))
    code, out, err = run("inspect", path, "--input-shape", "data=2x5")
    assert (code, err) == (0, "") and "unknown: loss: the shape of 'label' is not known; give --input-shape label=SHAPE" in out
    assert "unknown" not in run("inspect", path, "--input-shape", "data=2x5", "--input-shape", "label=2x10")[1]
    for shape, expected in (("data=1x5", [1, 5]), ("1x5", [1, 5]), ("5", [1, 5]), ("3x8x8", [1, 3, 8, 8])):
        assert run("deploy", path, "-o", tmp_path / "d.prototxt", "--force", "--input-shape", shape)[0] == 0
        assert list(read_net(tmp_path / "d.prototxt").layer[0].input_param.shape[0].dim) == expected
    code, _, err = run("deploy", path, "-o", tmp_path / "e.prototxt", "--input-shape", "dato=1x5")
    assert code == 2 and "has no input 'dato'; its inputs are data, label" in err
    assert run("retarget", path, "--classes", 4, "-o", tmp_path / "run", "--input-shape", "data=1x5", "--input-shape", "label=1x4")[0] == 0


def test_what_is_read_besides_the_picture_needs_a_shape() -> None:
    two = DATA.replace('"Data"', '"Python"').replace('top: "label"', 'top: "rois" top: "label"').split("transform_param")[0] + "}"
    mixed = 'layer { name: "mix" type: "Concat" bottom: "data" bottom: "rois" top: "mix" }'
    net = net_of(two + mixed + BODY.replace('bottom: "data"', 'bottom: "mix"') + FC6 + LOSS)
    with pytest.raises(NetError, match="layer 'data': the shape of its blob 'rois' is not known; give --input-shape rois=SHAPE"):
        deploy_from(net, input_shape=(1, 5))
    made = deploy_from(net, input_shape={"data": (2, 5), "rois": (2, 3)})
    assert [row.shapes for row in summarize(made).layers][:3] == [[(2, 5), (2, 3)], [(2, 8)], [(2, 6)]]


def test_retarget_deploys_the_classifier_that_it_retargeted(tmp_path: Path) -> None:
    boxes = (
        'layer { name: "boxes" type: "InnerProduct" bottom: "fc5" top: "boxes" inner_product_param { num_output: 1 } }'
        'layer { name: "b" type: "EuclideanLoss" bottom: "boxes" bottom: "label" top: "b" loss_weight: 2 }'
    )
    write_prototxt(tmp_path / "net.prototxt", net_of(DATA + BODY + FC6 + LOSS + boxes))
    made = prepare_retarget(tmp_path / "net.prototxt", 7, tmp_path / "run", input_shape={"data": (1, 3, 8, 8)})
    assert [layer.name for layer in made.deploy.layer] == ["data", "fc5", "fc6_7", "prob"]


def test_what_else_depends_on_the_number_of_classes_is_reported() -> None:
    boxes = 'layer { name: "boxes" type: "InnerProduct" bottom: "fc5" top: "boxes" inner_product_param { num_output: 40 } }'
    reported = (
        'layer { name: "p" type: "Python" bottom: "fc5" top: "p" python_param { module: "m" layer: "L" param_str: "classes of 10" } }'
    )
    assert retarget(net_of(DATA + BODY + FC6 + LOSS + boxes + reported), 7).notes == [
        "layer 'boxes' has 40 outputs, 4 for each of the 10 old classes",
        "layer 'p' has the parameters 'classes of 10'",
    ]
    assert retarget(net_of(TINY), 7).notes == []


def test_the_fork_layers_that_keep_classes_and_enlarged_maps_are_followed() -> None:
    def with_between(between: str) -> Any:
        conv = 'layer { name: "score" type: "Convolution" bottom: "data" top: "score" convolution_param { num_output: 10 kernel_size: 1 } }'
        return net_of(DATA + conv + between + LOSS.replace('"fc6"', '"y"'))

    for kind in ("ReLU6", "HSwish", "Interp", "Upsample"):
        made = retarget(with_between(f'layer {{ name: "l" type: "{kind}" bottom: "score" top: "y" }}'), 7)
        assert made.renamed == {"score": "score_7"}, kind
    up = (
        'layer { name: "up" type: "Deconvolution" bottom: "score" top: "y" param { lr_mult: 0 }'
        " convolution_param { num_output: 10 kernel_size: 4 stride: 2 bias_term: false } }"
    )
    made = retarget(with_between(up), 7)
    assert made.renamed == {"score": "score_7", "up": "up_7"}
    param = layer_of(made.train_val, "up_7").convolution_param
    assert (param.num_output, param.group, param.weight_filler.type) == (7, 7, "bilinear")
    assert [spec.lr_mult for spec in layer_of(made.train_val, "up_7").param] == [0]
    # With other maps than the convolution below, the Deconvolution itself gives the scores.
    made = retarget(with_between(up.replace("num_output: 10", "num_output: 5")), 7)
    assert made.renamed == {"up": "up_7"} and layer_of(made.train_val, "up_7").convolution_param.num_output == 7


def test_a_layer_below_the_classifier_is_none_though_it_is_named() -> None:
    with pytest.raises(NetError, match="layer 'fc5': is not a classifier: 'fc6' is, and reads what is made from it"):
        retarget(net_of(DATA + BODY + FC6 + LOSS), 7, heads=["fc5"])
    with pytest.raises(NetError, match="has no layer 'fc'; did you mean 'fc6'"):
        retarget(net_of(DATA + BODY + FC6 + LOSS), 7, heads=["fc"])


def test_infogain_is_a_loss_on_classes_whose_matrix_is_reported() -> None:
    made = retarget(net_of(DATA + BODY + FC6 + LOSS.replace("SoftmaxWithLoss", "InfogainLoss")), 7)
    assert made.renamed == {"fc6": "fc6_7"}
    assert made.notes == ["layer 'loss' reads an infogain matrix of 10 classes"]


def test_a_net_is_shown_and_deployed_in_a_stage(tmp_path: Path) -> None:
    """As DIGITS writes them: one file, whose stages are training, validation and use."""
    rules = {stage: f'include {{ stage: "{stage}" }} transform_param' for stage in ("train", "val")}
    data = DATA.replace("transform_param", rules["train"]) + DATA.replace("transform_param", rules["val"])
    loss = LOSS.replace('top: "loss"', 'top: "loss" exclude { stage: "deploy" }')
    answer = 'layer { name: "answer" type: "Softmax" bottom: "fc6" top: "answer" include { stage: "deploy" } }'
    picture = (
        'layer { name: "data" type: "Input" top: "data" include { stage: "deploy" } input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
    )
    path = tmp_path / "net.prototxt"
    write_prototxt(path, net_of(data + picture + BODY + FC6 + loss + answer))
    shown = run("inspect", path, "--stage", "deploy")[1]
    assert "answer" in shown and "SoftmaxWithLoss" not in shown
    assert "SoftmaxWithLoss" in run("inspect", path, "--stage", "val")[1]
    assert run("deploy", path, "-o", tmp_path / "deploy.prototxt", "--stage", "deploy")[0] == 0
    assert types(read_net(tmp_path / "deploy.prototxt")) == ["Input", "InnerProduct", "InnerProduct", "Softmax"]
    assert read_net(tmp_path / "deploy.prototxt").layer[-1].name == "answer"
    code, _, err = run("inspect", path, "--phase", "test")
    assert code == 0 and "shown in the stages train, val; choose others by --stage" in err


def test_a_label_that_comes_before_the_picture_is_a_label_all_the_same() -> None:
    swapped = (
        DATA.replace('"Data"', '"HDF5Data"').replace('top: "data" top: "label"', 'top: "label" top: "data"').split("transform_param")[0]
        + "}"
    )
    made = deploy_from(net_of(swapped + BODY + FC6 + LOSS), input_shape={"data": (1, 5)})
    assert wiring(made)[0] == ("data", "Input", [], ["data"])
    assert summarize(made).layers[0].shapes == [(1, 5)]


def test_a_stage_that_no_rule_names_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    write_prototxt(path, net_of(DATA.replace("transform_param", 'include { stage: "train" } transform_param') + BODY + FC6 + LOSS))
    code, _, err = run("inspect", path, "--stage", "trian")
    assert code == 2 and "has no stage 'trian'; did you mean 'train'? (--stage)" in err
