"""Retargeting of detectors with regions: Fast and Faster R-CNN, R-FCN, their nets for training and for testing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caffetools.errors import NetError
from caffetools.project.retargeting import prepare_retarget, write_retarget
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse, read_net
from caffetools.surgery.deploy import deploy_from
from caffetools.surgery.retarget import retarget
from tests.surgery.nets import layer_of, net_of


def python(name: str, bottoms: str, tops: str, param_str: str) -> str:
    wires = "".join(f' bottom: "{blob}"' for blob in bottoms.split()) + "".join(f' top: "{blob}"' for blob in tops.split())
    return f'layer {{ name: "{name}" type: "Python"{wires} python_param {{ module: "m" layer: "L" param_str: "{param_str}" }} }}'


def conv(name: str, bottom: str, outputs: int, more: str = "") -> str:
    filler = 'weight_filler { type: "gaussian" std: 0.01 }'
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" {more}'
        f" convolution_param {{ num_output: {outputs} kernel_size: 1 {filler} }} }}"
    )


def product(name: str, bottom: str, outputs: int, more: str = "") -> str:
    filler = 'weight_filler { type: "gaussian" std: 0.01 }'
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" {more}'
        f" inner_product_param {{ num_output: {outputs} {filler} }} }}"
    )


def loss(name: str, kind: str, *bottoms: str) -> str:
    return f'layer {{ name: "{name}" type: "{kind}"' + "".join(f' bottom: "{blob}"' for blob in bottoms) + f' top: "{name}" }}'


RPN = (
    conv("body", "data", 6)
    + conv("rpn_cls_score", "body", 18)
    + conv("rpn_bbox_pred", "body", 36)
    + 'layer { name: "rpn_reshape" type: "Reshape" bottom: "rpn_cls_score" top: "rpn_reshape"'
    " reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } } }"
)
RPN_LOSSES = (
    python("rpn-data", "rpn_cls_score gt_boxes im_info data", "rpn_labels rpn_targets", "'feat_stride': 16")
    + loss("rpn_loss_cls", "SoftmaxWithLoss", "rpn_reshape", "rpn_labels")
    + loss("rpn_loss_bbox", "SmoothL1Loss", "rpn_bbox_pred", "rpn_targets")
)
PROPOSALS = (
    'layer { name: "rpn_prob" type: "Softmax" bottom: "rpn_reshape" top: "rpn_prob" }'
    'layer { name: "rpn_prob_reshape" type: "Reshape" bottom: "rpn_prob" top: "rpn_prob_reshape"'
    " reshape_param { shape { dim: 0 dim: 18 dim: -1 dim: 0 } } }"
)
POOL = (
    'layer { name: "pool" type: "ROIPooling" bottom: "body" bottom: "rois" top: "pool"'
    " roi_pooling_param { pooled_w: 2 pooled_h: 2 spatial_scale: 0.0625 } }"
)
HEADS = product("fc7", "pool", 5) + product("cls_score", "fc7", 9) + product("bbox_pred", "fc7", 36)
# Nine anchors and nine classes, so that numbers alone do not tell the boxes of anchors from those of classes.
FASTER = (
    python("input-data", "", "data im_info gt_boxes", "'num_classes': 9")
    + RPN
    + RPN_LOSSES
    + PROPOSALS
    + python("proposal", "rpn_prob_reshape rpn_bbox_pred im_info", "rpn_rois", "'feat_stride': 16")
    + python("roi-data", "rpn_rois gt_boxes", "rois labels targets", "{'num_classes': 9, 'bp_all': 1}")
    + POOL
    + HEADS
    + loss("loss_cls", "SoftmaxWithLoss", "cls_score", "labels")
    + loss("loss_bbox", "SmoothL1Loss", "bbox_pred", "targets")
)
INPUTS = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } } }'
    'layer { name: "im_info" type: "Input" top: "im_info" input_param { shape { dim: 1 dim: 3 } } }'
)
TESTED = (
    INPUTS
    + RPN
    + PROPOSALS
    + python("proposal", "rpn_prob_reshape rpn_bbox_pred im_info", "rois", "'feat_stride': 16")
    + POOL
    + HEADS
    + 'layer { name: "cls_prob" type: "Softmax" bottom: "cls_score" top: "cls_prob" }'
)


def outputs(net: Any, name: str) -> int:
    layer = layer_of(net, name)
    return int(layer.inner_product_param.num_output or layer.convolution_param.num_output)


def test_all_that_names_the_classes_of_faster_rcnn_is_changed_and_its_proposals_are_left() -> None:
    made = retarget(net_of(FASTER), 4)
    net = made.train_val
    assert made.renamed == {"cls_score": "cls_score_4", "bbox_pred": "bbox_pred_4"}
    assert (outputs(net, "cls_score_4"), outputs(net, "bbox_pred_4")) == (4, 16)
    assert [outputs(net, name) for name in ("rpn_cls_score", "rpn_bbox_pred", "fc7")] == [18, 36, 5]
    assert layer_of(net, "input-data").python_param.param_str == "'num_classes': 4"
    assert layer_of(net, "roi-data").python_param.param_str == "{'num_classes': 4, 'bp_all': 1}"
    assert layer_of(net, "rpn-data").python_param.param_str == "'feat_stride': 16"
    # Scripts read the boxes by the blob's name.
    assert list(layer_of(net, "bbox_pred_4").top) == ["bbox_pred"]
    assert [spec.lr_mult for spec in layer_of(net, "bbox_pred_4").param] == [10, 10]
    assert not made.notes
    assert "--keep-names" in made.remarks[0]
    assert not retarget(net_of(FASTER), 4, keep_names=True).remarks


def test_regions_of_an_unknown_type_have_boxes_for_each_class_too() -> None:
    text = TESTED.replace('type: "ROIPooling"', 'type: "ROIWarping"').replace("roi_pooling_param", "roi_warping_param")
    assert retarget(net_of(text), 4).renamed == {"cls_score": "cls_score_4", "bbox_pred": "bbox_pred_4"}


def test_boxes_next_to_two_classifiers_change_once() -> None:
    text = FASTER + product("mask_score", "fc7", 9) + loss("loss_mask", "SoftmaxWithLoss", "mask_score", "labels")
    made = retarget(net_of(text), 4)
    assert made.renamed == {"cls_score": "cls_score_4", "bbox_pred": "bbox_pred_4", "mask_score": "mask_score_4"}
    assert outputs(made.train_val, "bbox_pred_4") == 16


def test_region_proposals_alone_have_no_classifier_of_classes() -> None:
    text = python("input-data", "", "data im_info gt_boxes", "'num_classes': 9") + RPN + RPN_LOSSES
    with pytest.raises(
        NetError, match="two scores, object or not, for each of 9 anchors, which do not depend .*; there is no other classifier"
    ):
        retarget(net_of(text), 4)


def test_the_net_for_testing_changes_as_the_one_for_training_does() -> None:
    made = retarget(net_of(TESTED), 4)
    assert made.renamed == {"cls_score": "cls_score_4", "bbox_pred": "bbox_pred_4"}
    assert (outputs(made.train_val, "cls_score_4"), outputs(made.train_val, "bbox_pred_4")) == (4, 16)


def test_of_a_detectors_net_the_files_are_written_that_it_has_content_for(tmp_path: Path) -> None:
    (tmp_path / "train.prototxt").write_text(FASTER)
    (tmp_path / "test.prototxt").write_text(TESTED)
    made = prepare_retarget(tmp_path / "train.prototxt", 4, tmp_path / "out", partial=True)
    assert list(made.missing) == ["deploy.prototxt"] and "is a layer for training" in made.missing["deploy.prototxt"]
    tested = prepare_retarget(tmp_path / "test.prototxt", 4, tmp_path / "out", partial=True)
    assert list(tested.missing) == ["train_val.prototxt", "solver.prototxt"]
    written = write_retarget(made, tmp_path / "out") + write_retarget(tested, tmp_path / "out")
    assert [path.name for path in written] == ["train_val.prototxt", "solver.prototxt", "deploy.prototxt"]
    deploy = read_net(tmp_path / "out" / "deploy.prototxt")
    assert (outputs(deploy, "cls_score_4"), outputs(deploy, "bbox_pred_4")) == (4, 16)
    with pytest.raises(NetError, match="has no loss"):
        prepare_retarget(tmp_path / "test.prototxt", 4, tmp_path / "out")


def rfcn(boxes: int, data: str = "'num_classes': 5", target: str = "'num_classes': 5") -> Any:
    """R-FCN's score maps, of 3 x 3 places, with ``boxes`` boxes for each place."""

    def pooled(name: str, top: str, dim: int) -> str:
        return (
            f'layer {{ name: "ps_{name}" type: "PSROIPooling" bottom: "{name}" bottom: "rois" top: "ps_{name}"'
            f" psroi_pooling_param {{ spatial_scale: 0.0625 output_dim: {dim} group_size: 3 }} }}"
            f'layer {{ name: "ave_{name}" type: "Pooling" bottom: "ps_{name}" top: "{top}" pooling_param {{ pool: AVE kernel_size: 3 }} }}'
        )

    text = python("input-data", "", "data im_info gt_boxes", data) + conv("body", "data", 6)
    text += python("roi-data", "body gt_boxes", "rois labels targets", target)
    text += conv("rfcn_cls", "body", 45) + conv("rfcn_bbox", "body", 4 * boxes * 9)
    text += pooled("rfcn_cls", "cls_score", 5) + pooled("rfcn_bbox", "bbox_pred", 4 * boxes)
    text += python("miner", "cls_score bbox_pred labels", "mined", "")
    text += loss("loss", "SoftmaxWithLoss", "cls_score", "mined") + loss("loss_bbox", "SmoothL1Loss", "bbox_pred", "targets")
    return net_of(text)


def test_score_maps_of_regions_are_followed_from_the_loss_and_boxes_of_each_class_change_with_them() -> None:
    net = retarget(rfcn(5), 3).train_val
    assert (outputs(net, "rfcn_cls_3"), outputs(net, "rfcn_bbox_3")) == (27, 108)
    assert layer_of(net, "ps_rfcn_cls").psroi_pooling_param.output_dim == 3
    assert layer_of(net, "ps_rfcn_bbox").psroi_pooling_param.output_dim == 12
    assert layer_of(net, "roi-data").python_param.param_str == "'num_classes': 3"


def test_boxes_that_all_classes_share_are_left() -> None:
    made = retarget(rfcn(2, target="'num_classes': 2"), 3)
    assert outputs(made.train_val, "rfcn_bbox") == 72
    assert layer_of(made.train_val, "ps_rfcn_bbox").psroi_pooling_param.output_dim == 8
    assert layer_of(made.train_val, "roi-data").python_param.param_str == "'num_classes': 2"
    assert layer_of(made.train_val, "input-data").python_param.param_str == "'num_classes': 3"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{'num_classes': 21}", "{'num_classes': 7}"),
        ('{"n_classes":21,"k":21}', '{"n_classes":7,"k":21}'),
        ("num_classes=21 seed=21", "num_classes=7 seed=21"),
        ("cls_num: 21", "cls_num: 7"),
        ("'num_classes': 210", "'num_classes': 210"),
        ("'feat_stride': 21", "'feat_stride': 21"),
    ],
)
def test_numbers_of_classes_are_found_in_the_text_for_a_users_layer(before: str, after: str) -> None:
    text = parse(FASTER, NetParameter)
    for layer in text.layer:
        if layer.name == "cls_score":
            layer.inner_product_param.num_output = 21
        if layer.name == "bbox_pred":
            layer.inner_product_param.num_output = 84
    layer_of(text, "roi-data").python_param.param_str = before
    assert layer_of(retarget(text, 7).train_val, "roi-data").python_param.param_str == after


def test_a_users_layer_that_counts_without_the_background_is_named() -> None:
    made = retarget(net_of(FASTER.replace("'bp_all': 1", "'classes': 8")), 4)
    assert made.notes == ["layer 'roi-data' has the parameters \"{'num_classes': 4, 'classes': 8}\""]


def test_layers_that_share_a_classifiers_parameters_change_with_it() -> None:
    shared = [f'param {{ name: "{name}_w" }} param {{ name: "{name}_b" }}' for name in ("cls", "box")]
    text = (
        python("data", "", "data rois", "'num_classes': 9")
        + conv("body", "data", 6)
        + POOL
        + product("fc7", "pool", 5)
        + product("cls_readonly", "fc7", 9, shared[0])
        + product("box_readonly", "fc7", 36, shared[1])
        + python("mining", "cls_readonly box_readonly", "pool2 labels targets", "'num_classes': 9")
        + product("fc7_2", "pool2", 5)
        + product("cls_score", "fc7_2", 9, shared[0])
        + product("bbox_pred", "fc7_2", 36, shared[1])
        + loss("loss_cls", "SoftmaxWithLoss", "cls_score", "labels")
        + loss("loss_bbox", "SmoothL1Loss", "bbox_pred", "targets")
    )
    net = retarget(net_of(text), 4).train_val
    found = [outputs(net, name) for name in ("cls_readonly_4", "cls_score_4", "box_readonly_4", "bbox_pred_4")]
    assert found == [4, 4, 16, 16]


def test_the_labels_and_the_evaluation_of_a_detector_name_its_classes() -> None:
    text = (
        'layer { name: "data" type: "DetectionData" top: "data" top: "gt" }'
        + conv("body", "data", 6)
        + 'layer { name: "targets" type: "ProposalTarget" bottom: "gt" top: "rois" top: "labels" top: "boxes"'
        " proposal_target_param { cls_num: 9 } }"
        + POOL
        + HEADS
        + loss("loss", "SoftmaxWithLoss", "cls_score", "labels")
        + loss("loss_bbox", "SmoothL1Loss", "bbox_pred", "boxes")
        + 'layer { name: "detect" type: "FrcnnOutput" bottom: "cls_score" bottom: "bbox_pred" top: "detections" }'
        + 'layer { name: "eval" type: "DetectionEvaluate" bottom: "detections" bottom: "gt" top: "eval"'
        " detection_evaluate_param { num_classes: 9 } }"
    )
    net = retarget(net_of(text), 4).train_val
    assert layer_of(net, "targets").proposal_target_param.cls_num == 4
    assert layer_of(net, "eval").detection_evaluate_param.num_classes == 4
    assert outputs(net, "bbox_pred_4") == 16


def test_a_classifier_with_settings_that_are_not_computed_here_is_retargeted() -> None:
    text = (
        'layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 1 dim: 3 } shape { dim: 1 } } }'
        'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 9 }'
        " quantization_param { bw_layer_in: 8 } }" + loss("loss", "SoftmaxWithLoss", "fc", "label")
    )
    layer = layer_of(retarget(net_of(text), 4).train_val, "fc_4")
    assert layer.inner_product_param.num_output == 4


BOXES = (
    'layer {{ name: "data" type: "Input" top: "data" top: "label" input_param {{ shape {{ dim: 2 dim: 3 dim: 4 dim: 4 }}'
    " shape {{ dim: 2 dim: 6 }} }} }} {}{}"
)


def test_each_box_of_yolo_has_five_numbers_and_a_score_for_each_class() -> None:
    maps = conv("near", "data", 3 * (5 + 4)) + conv("far", "data", 2 * (5 + 4))
    found = (
        'layer { name: "out" type: "Yolov3DetectionOutput" bottom: "near" bottom: "far" top: "out"'
        " yolov3_detection_output_param { num_classes: 4 } }"
    )
    made = retarget(net_of(BOXES.format(maps, found)), 7)
    assert [outputs(made.train_val, name) for name in ("near_7", "far_7")] == [36, 24]
    assert layer_of(made.train_val, "out").yolov3_detection_output_param.num_classes == 7
    trained = "".join(
        f'layer {{ name: "loss_{name}" type: "{kind}" bottom: "{name}" bottom: "label" top: "loss_{name}" {settings} }}'
        for name, kind, settings in (
            ("near", "Yolov3", "yolov3_param { num_class: 4 }"),
            ("far", "RegionLoss", "region_loss_param { num_class: 4 }"),
        )
    )
    made = retarget(net_of(BOXES.format(maps, trained)), 2)
    assert [outputs(made.train_val, name) for name in ("near_2", "far_2")] == [21, 14]
    assert layer_of(made.train_val, "loss_near").yolov3_param.num_class == 2
    assert layer_of(made.train_val, "loss_far").region_loss_param.num_class == 2
    measured = (
        'layer { name: "eval" type: "EvalDetection" bottom: "near" bottom: "label" top: "eval" eval_detection_param { num_class: 4 } }'
    )
    made = retarget(net_of(BOXES.format(maps, trained + measured)), 2)
    assert layer_of(made.train_val, "eval").eval_detection_param.num_class == 2
    with pytest.raises(NetError, match="has 28 outputs, but 'out' names 4 classes, which does not fit"):
        retarget(net_of(BOXES.format(maps.replace("27", "28"), found)), 7)


def test_the_deploy_net_of_a_net_whose_detections_are_only_evaluated_ends_in_the_detections() -> None:
    evaluated = (
        'layer { name: "out" type: "Yolov3DetectionOutput" bottom: "near" top: "out" yolov3_detection_output_param { num_classes: 4 } }'
        'layer { name: "eval" type: "DetectionEvaluate" bottom: "out" bottom: "label" top: "eval"'
        " detection_evaluate_param { num_classes: 4 } }"
    )
    net = net_of(BOXES.format(conv("near", "data", 27), evaluated))
    assert [layer.name for layer in deploy_from(net).layer] == ["data", "near", "out"]
    made = retarget(net, 7).train_val
    assert layer_of(made, "eval").detection_evaluate_param.num_classes == 7


def test_regions_that_the_train_phase_alone_makes_leave_no_deploy_net(tmp_path: Path) -> None:
    made = (
        'layer { name: "data" type: "DetectionData" top: "data" top: "gt" include { phase: TRAIN } }'
        + conv("body", "data", 6)
        + 'layer { name: "targets" type: "ProposalTarget" bottom: "gt" top: "rois" top: "labels" top: "boxes"'
        " include { phase: TRAIN } proposal_target_param { cls_num: 9 } }" + POOL + HEADS
    )
    path = tmp_path / "train.prototxt"
    path.write_text(made + loss("loss", "SoftmaxWithLoss", "cls_score", "labels") + loss("loss_bbox", "SmoothL1Loss", "bbox_pred", "boxes"))
    missing = prepare_retarget(path, 4, tmp_path, partial=True, input_shape={"data": (1, 3, 32, 32), "gt": (1, 5)}).missing
    assert "bottom 'rois' is made in another phase" in missing["deploy.prototxt"]


# ---- MSCNN ----


def proposals(objects: str = "") -> str:
    """A proposal network of MSCNN's kind: a map with the scores of 4 classes and 4 numbers of a box, its loss and its accuracy."""
    net = 'layer { name: "data" type: "ImageGtData" top: "data" top: "gt" }' + conv("body", "data", 6) + conv("lfcn", "body", 8)
    for kind, settings in (("DetectionLoss", "detection_loss_param"), ("DetectionAccuracy", "detection_accuracy_param")):
        net += f'layer {{ name: "{kind}" type: "{kind}" bottom: "lfcn" bottom: "gt" top: "{kind}" {settings} {{ cls_num: 4 {objects} }} }}'
    return net


def second_stage(objects: str = "") -> str:
    net = proposals(objects) + 'layer { name: "boxes" type: "BoxOutput" bottom: "lfcn" top: "rois" box_output_param { fg_thr: -5 } }'
    return net + product("cls_pred", "rois", 4) + loss("loss_cls", "SoftmaxWithLoss", "cls_pred", "gt")


@pytest.mark.parametrize("text", [proposals(), second_stage()])
def test_a_proposal_network_with_scores_of_classes_gets_the_new_number_too(text: str) -> None:
    made = retarget(net_of(text), 7).train_val
    assert layer_of(made, "lfcn_7").convolution_param.num_output == 11
    assert layer_of(made, "DetectionLoss").detection_loss_param.cls_num == 7
    assert layer_of(made, "DetectionAccuracy").detection_accuracy_param.cls_num == 7
    assert [layer.bottom[0] for layer in made.layer if "Box" in layer.type or "Detection" in layer.type].count("lfcn_7") in (2, 3)


def test_the_proposals_of_a_net_for_testing_follow_its_classifier() -> None:
    net = 'layer { name: "data" type: "Input" top: "data" }' + conv("lfcn", "data", 8) + conv("other", "data", 6)
    net += 'layer { name: "boxes" type: "BoxOutput" bottom: "lfcn" bottom: "other" top: "rois" }' + product("cls_pred", "rois", 4)
    made = retarget(net_of(net + 'layer { name: "prob" type: "Softmax" bottom: "cls_pred" top: "prob" }'), 7)
    assert made.renamed == {"cls_pred": "cls_pred_7", "lfcn": "lfcn_7"}
    assert layer_of(made.train_val, "lfcn_7").convolution_param.num_output == 11


def test_a_proposal_network_that_only_finds_objects_is_left_as_it_is() -> None:
    assert retarget(net_of(second_stage("objectness: true")), 7).renamed == {"cls_pred": "cls_pred_7"}
    with pytest.raises(NetError, match="no classifier was found"):
        retarget(net_of(proposals("objectness: true")), 7)
