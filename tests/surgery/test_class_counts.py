"""Classifiers whose number of classes other layers name too: SSD, R-FCN, temporal segment networks, Deconvolution as classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from caffetools.errors import NetError
from caffetools.graph.classifiers import find_heads
from caffetools.graph.summary import summarize
from caffetools.surgery.retarget import retarget
from caffetools.surgery.weights import remap_rows
from tests.surgery.nets import layer_of, net_of

INPUT = (
    'layer { name: "in" type: "Input" top: "data" top: "label" input_param { shape { dim: 2 dim: 3 dim: 16 dim: 16 } shape { dim: 2 } } }'
)


def conv(name: str, bottom: str, outputs: int) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"'
        f' convolution_param {{ num_output: {outputs} kernel_size: 1 weight_filler {{ type: "msra" }} }} }}'
    )


def moved(name: str) -> str:
    return (
        f'layer {{ name: "{name}_perm" type: "Permute" bottom: "{name}" top: "{name}_perm"'
        " permute_param { order: 0 order: 2 order: 3 order: 1 } }"
        f'layer {{ name: "{name}_flat" type: "Flatten" bottom: "{name}_perm" top: "{name}_flat" }}'
    )


def ssd(second: int = 12) -> Any:
    """Two maps of scores, of 3 and of ``second`` / 4 prior boxes for each of 4 classes; both phases."""
    text = INPUT + conv("body", "data", 5) + conv("loc", "body", 12) + conv("conf1", "body", 12) + conv("conf2", "data", second)
    text += "".join(map(moved, ("loc", "conf1", "conf2")))
    text += 'layer { name: "conf" type: "Concat" bottom: "conf1_flat" bottom: "conf2_flat" top: "conf" concat_param { axis: 1 } }'
    text += 'layer { name: "prior" type: "Input" top: "prior" input_param { shape { dim: 1 dim: 2 dim: 6144 } } }'
    text += (
        'layer { name: "loss" type: "MultiBoxLoss" bottom: "loc_flat" bottom: "conf" bottom: "prior" bottom: "label" top: "loss"'
        " include { phase: TRAIN } multibox_loss_param { num_classes: 4 } }"
        'layer { name: "rows" type: "Reshape" bottom: "conf" top: "rows" include { phase: TEST }'
        " reshape_param { shape { dim: 0 dim: -1 dim: 4 } } }"
        'layer { name: "soft" type: "Softmax" bottom: "rows" top: "soft" include { phase: TEST } softmax_param { axis: 2 } }'
        'layer { name: "flat" type: "Flatten" bottom: "soft" top: "flat" include { phase: TEST } }'
        'layer { name: "out" type: "DetectionOutput" bottom: "loc_flat" bottom: "flat" bottom: "prior" top: "out" include { phase: TEST }'
        " detection_output_param { num_classes: 4 } }"
    )
    return net_of(text)


def test_ssds_maps_of_scores_keep_their_boxes_and_all_layers_name_the_new_classes() -> None:
    assert [(head.layer, head.classes, head.outputs_per_class) for head in find_heads(ssd())] == [("conf1", 4, 3), ("conf2", 4, 3)]
    made = retarget(ssd(), 6)
    net = made.train_val
    assert [layer_of(net, name).convolution_param.num_output for name in ("conf1_6", "conf2_6", "loc")] == [18, 18, 12]
    assert layer_of(net, "loss").multibox_loss_param.num_classes == 6
    assert layer_of(net, "out").detection_output_param.num_classes == 6
    assert list(layer_of(net, "rows").reshape_param.shape.dim) == [0, -1, 6]
    assert "loss: num_classes 4 → 6" in map(str, made.changes)


def test_a_rewrite_that_would_leave_such_a_net_inconsistent_is_refused() -> None:
    with pytest.raises(NetError, match="reads the scores of conf2 too.*name all of them"):
        retarget(ssd(), 6, heads=["conf1"])
    with pytest.raises(NetError, match="layer 'conf2': has 10 outputs, but 'loss' names 4 .*changed by hand"):
        retarget(ssd(10), 6)


def test_score_maps_of_regions_have_a_place_of_the_grid_for_each_class() -> None:
    text = INPUT + conv("rfcn_cls", "data", 36)
    text += 'layer { name: "rois" type: "Input" top: "rois" input_param { shape { dim: 3 dim: 5 } } }'
    text += (
        'layer { name: "psroi" type: "PSROIPooling" bottom: "rfcn_cls" bottom: "rois" top: "psroi"'
        " psroi_pooling_param { spatial_scale: 1 output_dim: 4 group_size: 3 } }"
        'layer { name: "vote" type: "Pooling" bottom: "psroi" top: "vote" pooling_param { pool: AVE kernel_size: 3 stride: 3 } }'
        'layer { name: "shape" type: "Reshape" bottom: "vote" top: "scores" reshape_param { shape { dim: -1 dim: 4 } } }'
        'layer { name: "prob" type: "Softmax" bottom: "scores" top: "prob" }'
    )
    made = retarget(net_of(text), 7, heads=["rfcn_cls"])
    assert layer_of(made.train_val, "rfcn_cls_7").convolution_param.num_output == 63
    assert layer_of(made.train_val, "psroi").psroi_pooling_param.output_dim == 7
    assert list(layer_of(made.train_val, "shape").reshape_param.shape.dim) == [-1, 7]
    assert summarize(made.train_val).layers[-1].shapes == [(3, 7)]


CONSENSUS = (
    'layer { name: "segments" type: "Reshape" bottom: "fc" top: "segments" reshape_param { shape { dim: -1 dim: 1 dim: 2 dim: 9 } } }'
    'layer { name: "mean" type: "Pooling" bottom: "segments" top: "mean" pooling_param { pool: AVE kernel_h: 2 kernel_w: WIDE } }'
    'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "mean" bottom: "label" top: "loss" softmax_param { axis: 3 } }'
)


def test_a_consensus_of_segments_has_its_classes_on_the_axis_of_the_loss() -> None:
    fc = 'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 9 } }'
    made = retarget(net_of(INPUT + fc + CONSENSUS.replace("WIDE", "1")), 7)
    assert made.renamed == {"fc": "fc_7"}
    assert list(layer_of(made.train_val, "segments").reshape_param.shape.dim) == [-1, 1, 2, 7]
    # A pooling over the classes mixes them.
    with pytest.raises(NetError, match="come from this Pooling layer"):
        retarget(net_of(INPUT + fc + CONSENSUS.replace("WIDE", "3")), 7)


def averaged(second: int = 4) -> str:
    """Two classifiers of which each has a Softmax, and the mean of the two: an output, next to that of the first alone, as in cascades."""
    text = INPUT + "".join(
        f'layer {{ name: "fc{i}" type: "InnerProduct" bottom: "data" top: "fc{i}" inner_product_param {{ num_output: {outputs} }} }}'
        f'layer {{ name: "prob{i}" type: "Softmax" bottom: "fc{i}" top: "prob{i}" }}'
        for i, outputs in ((1, 4), (2, second))
    )
    text += 'layer { name: "first" type: "Softmax" bottom: "fc1" top: "first" }'
    text += 'layer { name: "mean" type: "Eltwise" bottom: "prob1" bottom: "prob2" top: "mean" eltwise_param { coeff: 0.5 coeff: 0.5 } }'
    return text + 'layer { name: "scaled" type: "Power" bottom: "mean" top: "scaled" power_param { scale: 2 } }'


def test_classifiers_whose_probabilities_are_averaged_are_retargeted_together() -> None:
    made = retarget(net_of(averaged()), 7)
    assert made.renamed == {"fc1": "fc1_7", "fc2": "fc2_7"}
    assert summarize(made.train_val).layers[-1].shapes == [(2, 7)]


def test_a_sum_of_other_than_the_new_number_of_classes_is_refused() -> None:
    with pytest.raises(NetError, match=r"layer 'mean': joins the 7 scores of 'fc1_7' and the 4 of 'fc2'.*name all of them \(--head\)"):
        retarget(net_of(averaged()), 7, heads=["fc1"])


@pytest.mark.parametrize(("old", "reads", "resized"), [(9, "other", True), (3, "other", False), (3, "label", True)])
def test_embeddings_of_the_classes_get_the_new_number_of_rows(old: int, reads: str, resized: bool) -> None:
    text = INPUT + 'layer { name: "more" type: "Input" top: "other" input_param { shape { dim: 2 } } }'
    text += f'layer {{ name: "words" type: "Embed" bottom: "{reads}" top: "words" embed_param {{ input_dim: {old} num_output: 5 }} }}'
    text += f'layer {{ name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param {{ num_output: {old} }} }}'
    made = retarget(net_of(text + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'), 7)
    assert ("words" in made.renamed) == resized
    assert layer_of(made.train_val, "words_7" if resized else "words").embed_param.input_dim == (7 if resized else old)


def test_a_deconvolution_of_features_is_the_classifier_and_keeps_rows_of_known_classes() -> None:
    up = (
        'layer { name: "up" type: "Deconvolution" bottom: "body" top: "up" convolution_param { num_output: 4 kernel_size: 2 stride: 2 } }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "up" bottom: "label" top: "loss" }'
    )
    net = net_of(INPUT + conv("body", "data", 6) + up)
    made = retarget(net, 3)
    assert made.renamed == {"up": "up_3"} and layer_of(made.train_val, "up_3").convolution_param.num_output == 3
    assert layer_of(made.train_val, "body").convolution_param.num_output == 6
    old = [np.arange(6 * 4 * 4, dtype=np.float32).reshape(6, 4, 2, 2), np.arange(4, dtype=np.float32)]
    fresh = [np.full((6, 3, 2, 2), -1, np.float32), np.full(3, -1, np.float32)]
    weights, bias = remap_rows(layer_of(net, "up"), old, [2, None, 0], fresh)
    np.testing.assert_array_equal(weights, np.stack([old[0][:, 2], fresh[0][:, 1], old[0][:, 0]], 1))
    assert bias.tolist() == [2, -1, 0]


def test_the_channels_of_a_video_are_those_of_all_its_segments() -> None:
    def channels(settings: str) -> int:
        data = (
            f'layer {{ name: "data" type: "VideoData" top: "data" top: "label" transform_param {{ crop_size: 8 }}'
            f' video_data_param {{ source: "none" batch_size: 2 {settings} }} }}'
            'layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { pool: AVE global_pooling: true } }'
        )
        shape = summarize(net_of(data)).layers[0].shapes[0]
        assert shape is not None
        return shape[1]

    assert channels("new_length: 5 num_segments: 3 modality: FLOW") == 30
    assert channels("new_length: 1 num_segments: 3 modality: RGB") == 9


def test_maps_of_classifiers_that_are_summed_are_upsampled_together() -> None:
    def up(name: str, bottom: str) -> str:
        return (
            f'layer {{ name: "{name}" type: "Deconvolution" bottom: "{bottom}" top: "{name}" param {{ lr_mult: 0 }}'
            " convolution_param { num_output: 4 bias_term: false kernel_size: 4 stride: 2 pad: 1 } }"
        )

    text = INPUT + conv("deep", "data", 5) + conv("score_fr", "deep", 4) + up("up2", "score_fr") + conv("score_pool", "data", 4)
    text += 'layer { name: "fuse" type: "Eltwise" bottom: "up2" bottom: "score_pool" top: "fuse" }' + up("up4", "fuse")
    text += 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "up4" bottom: "label" top: "loss" }'
    net = retarget(net_of(text), 3).train_val
    assert [layer_of(net, name).convolution_param.num_output for name in ("score_fr_3", "score_pool_3", "up2_3", "up4_3")] == [3] * 4
    assert [layer_of(net, name).convolution_param.group for name in ("up2_3", "up4_3")] == [3, 3]


def test_weights_of_the_old_classes_are_removed_and_an_ignored_label_that_is_a_class_now_is_named() -> None:
    text = INPUT + conv("score", "data", 4)
    text += (
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss"'
        " loss_param { weight_by_label_freqs: true ignore_label: 5"
        " class_weighting: 1 class_weighting: 2 class_weighting: 0.5 class_weighting: 1 } }"
        'layer { name: "acc" type: "Accuracy" bottom: "score" bottom: "label" top: "acc" accuracy_param { ignore_label: 5 } }'
    )
    made = retarget(net_of(text), 3)
    assert not layer_of(made.train_val, "loss").loss_param.class_weighting and not made.notes
    assert not layer_of(made.train_val, "loss").loss_param.weight_by_label_freqs
    assert layer_of(made.train_val, "loss").loss_param.ignore_label == 5
    assert "loss: class_weighting of 4 classes removed" in map(str, made.changes)
    assert len(layer_of(retarget(net_of(text), 4).train_val, "loss").loss_param.class_weighting) == 4
    assert retarget(net_of(text), 6).notes == [
        "layer 'loss' ignores the label 5, which is one of the new classes",
        "layer 'acc' ignores the label 5, which is one of the new classes",
    ]


def test_maps_of_labels_have_the_size_of_their_pictures() -> None:
    text = (
        'layer { name: "data" type: "ImageSegData" top: "data" top: "label" transform_param { crop_size: 33 mean_value: 1 mean_value: 2 mean_value: 3 }'
        ' image_data_param { source: "none" } }'
    )
    text += conv("score", "data", 21)
    for name, bottom in (("small", "score"), ("small_label", "label")):
        text += f'layer {{ name: "{name}" type: "Interp" bottom: "{bottom}" top: "{name}" interp_param {{ shrink_factor: 8 }} }}'
    text += 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "small" bottom: "small_label" top: "loss" }'
    rows = {row.name: row.shapes for row in summarize(net_of(text)).layers}
    assert rows["data"] == [(1, 3, 33, 33), (1, 1, 33, 33)] and rows["small_label"] == [(1, 1, 5, 5)]
    assert retarget(net_of(text), 7).renamed == {"score": "score_7"}


def test_an_unknown_layer_that_names_the_old_number_of_classes_is_named() -> None:
    text = INPUT + conv("score", "data", 63)
    text += (
        'layer { name: "ctc" type: "WarpCTC" bottom: "score" bottom: "label" top: "ctc" loss_weight: 1'
        " warp_ctc_param { blank_label: 62 time_steps: 24 } }"
        'layer { name: "other" type: "Unheard" bottom: "data" top: "other" unheard_param { size: 62 } }'
    )
    assert retarget(net_of(text), 11, heads=["score"]).notes == ["layer 'ctc' has blank_label: 62, and the old classes were 63"]
    assert not retarget(net_of(text), 63, heads=["score"]).notes
