from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffetools.errors import CaffeToolsError, NetError
from caffetools.net.net import Net
from caffetools.net.phases import filter_net, make_state
from caffetools.net.weights import load_weights
from caffetools.proto.binary import read_caffemodel, write_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import POOL, TEST, TRAIN, NetParameter, SolverParameter
from caffetools.proto.text import parse, read_net, read_solver
from caffetools.proto.upgrades.v1 import upgrade_caffemodel, upgrade_net, upgrade_solver
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "upgrades"
# What real Caffe made of our own nets in old layouts: (net, phase).
CASES = sorted(tuple(path.name.split(".")[:2]) for path in FOLDER.glob("*.out.prototxt"))
WEIGHTS = sorted(path.name.split(".")[0] for path in FOLDER.glob("*.out.caffemodel"))


def net(text: str) -> Any:
    return parse(text, NetParameter)


def test_there_are_golden_nets_of_both_ages() -> None:
    assert {name[:2] for name, _ in CASES} == {name[:2] for name in WEIGHTS} == {"v0", "v1"}


@pytest.mark.parametrize(("name", "phase"), CASES)
def test_an_old_net_becomes_what_caffe_makes_of_it(name: str, phase: str) -> None:
    old = read_net(FOLDER / f"{name}.prototxt")
    before = old.SerializeToString(deterministic=True)
    upgraded = upgrade_net(old)
    assert filter_net(upgraded, make_state(TRAIN if phase == "train" else TEST)) == read_net(FOLDER / f"{name}.{phase}.out.prototxt")
    assert old.SerializeToString(deterministic=True) == before
    assert upgrade_net(upgraded) is upgraded


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_old_caffemodel_becomes_what_caffe_makes_of_it(tmp_path: Path, name: str) -> None:
    upgraded = upgrade_caffemodel(read_caffemodel(FOLDER / f"{name}.old"))
    expected = read_caffemodel(FOLDER / f"{name}.out.caffemodel")
    assert [(layer.name, layer.type) for layer in upgraded.net.layer] == [(layer.name, layer.type) for layer in expected.net.layer]
    net = Net(upgrade_net(read_net(FOLDER / f"{name}.prototxt")), TRAIN, fill=False)
    assert not load_weights(net, upgraded).fresh
    ours = {layer.name: [blob.detach().numpy() for blob in layer.blobs] for layer in net.layers if len(layer.blobs)}
    for layer, blobs in expected.blobs.items():
        for got, wanted in zip(ours[layer], blobs, strict=True):
            np.testing.assert_array_equal(got, wanted)
    write_caffemodel(tmp_path / "new", read_caffemodel(FOLDER / f"{name}.old"))
    written = read_caffemodel(tmp_path / "new")
    assert written.net == upgraded.net
    assert_same_blobs(written, upgraded)


@pytest.mark.wild
def test_the_files_that_caffe_upgraded_become_what_it_made_of_them(wild_golden: Path) -> None:
    folder = wild_golden / "upgrade"
    for case in json.loads((folder / "index.json").read_text()):
        name = case["name"]
        read, upgrade = (read_solver, upgrade_solver) if name.startswith("solver") else (read_net, upgrade_net)
        assert upgrade(read(folder / f"{name}.in.prototxt")) == read(folder / f"{name}.out.prototxt"), name
        if case.get("binary"):
            upgraded = upgrade_caffemodel(read_caffemodel(folder / f"{name}.in.caffemodel"))
            expected = read_caffemodel(folder / f"{name}.out.caffemodel")
            assert upgraded.net == expected.net, name
            assert_same_blobs(upgraded, expected)


def assert_same_blobs(one: Caffemodel, other: Caffemodel) -> None:
    assert list(one.blobs) == list(other.blobs) and one.blobs
    for name in one.blobs:
        for a, b in zip(one.blobs[name], other.blobs[name], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.shape == b.shape


@pytest.mark.wild
def test_every_net_and_solver_from_the_wild_is_upgraded(wild: Path) -> None:
    old = 0
    for line in (wild / "bvlc_parse.tsv").read_text().splitlines()[1:]:
        file, kind, *_ = line.split("\t")
        if kind == "solver":
            solver = upgrade_solver(read_solver(wild / "prototxt" / file))
            assert not solver.HasField("solver_type"), file
        elif kind == "net":
            written = read_net(wild / "prototxt" / file)
            upgraded = upgrade_net(written)
            assert upgraded.layer and not (upgraded.layers or upgraded.input or upgraded.input_dim or upgraded.input_shape), file
            assert len(upgraded.layer) >= len(written.layers), file
            assert upgrade_net(upgraded) is upgraded, file
            old += upgraded is not written
    assert old > 50


def test_a_net_of_today_is_given_back_as_it_is() -> None:
    param = net('name: "n" layer { name: "bn" type: "BatchNorm" bottom: "x" top: "y" }')
    assert upgrade_net(param) is param
    model = Caffemodel(param, {})
    assert upgrade_caffemodel(model) is model
    solver = SolverParameter(type="Adam")
    assert upgrade_solver(solver) is solver


def test_every_v1_layer_type_has_its_name_of_today() -> None:
    names = """ABSVAL AbsVal, ACCURACY Accuracy, ARGMAX ArgMax, BNLL BNLL, CONCAT Concat, CONTRASTIVE_LOSS ContrastiveLoss,
        CONVOLUTION Convolution, DATA Data, DECONVOLUTION Deconvolution, DROPOUT Dropout, DUMMY_DATA DummyData, ELTWISE Eltwise,
        EUCLIDEAN_LOSS EuclideanLoss, EXP Exp, FLATTEN Flatten, HDF5_DATA HDF5Data, HDF5_OUTPUT HDF5Output, HINGE_LOSS HingeLoss,
        IM2COL Im2col, IMAGE_DATA ImageData, INFOGAIN_LOSS InfogainLoss, INNER_PRODUCT InnerProduct, LRN LRN, MEMORY_DATA MemoryData,
        MULTINOMIAL_LOGISTIC_LOSS MultinomialLogisticLoss, MVN MVN, POOLING Pooling, POWER Power, RELU ReLU, SIGMOID Sigmoid,
        SIGMOID_CROSS_ENTROPY_LOSS SigmoidCrossEntropyLoss, SILENCE Silence, SLICE Slice, SOFTMAX Softmax, SOFTMAX_LOSS SoftmaxWithLoss,
        SPLIT Split, TANH TanH, THRESHOLD Threshold, WINDOW_DATA WindowData, RELU6 ReLU6, UNPOOLING Unpooling"""
    pairs = [pair.split() for pair in names.split(",")]
    known = {value.name for value in POOL.FindEnumTypeByName("caffe.V1LayerParameter.LayerType").values}
    assert {old for old, _ in pairs} == known - {"NONE"}
    for old, new in pairs:
        assert upgrade_net(net(f"layers {{ type: {old} }}")).layer[0].type == new
    assert upgrade_net(net("layers { type: NONE }")).layer[0].type == ""


def test_v1_parameters_become_param_blocks() -> None:
    upgraded = upgrade_net(
        net("""layers { name: "c" type: CONVOLUTION bottom: "x" top: "y" blobs_lr: 1 blobs_lr: 2 weight_decay: 0.5
            param: "w" param: "b" blob_share_mode: PERMISSIVE loss_weight: 3 include { phase: TRAIN } exclude { stage: "s" }
            convolution_param { num_output: 4 } loss_param { ignore_label: 5 } }""")
    )
    assert upgraded == net("""layer { name: "c" type: "Convolution" bottom: "x" top: "y"
        param { name: "w" share_mode: PERMISSIVE lr_mult: 1 decay_mult: 0.5 } param { name: "b" lr_mult: 2 }
        loss_weight: 3 include { phase: TRAIN } exclude { stage: "s" }
        convolution_param { num_output: 4 } loss_param { ignore_label: 5 } }""")


def test_old_transformation_fields_move_to_transform_param() -> None:
    fields = 'scale: 0.5 mean_file: "m" crop_size: 7 mirror: true'
    upgraded = upgrade_net(
        net(f"""layers {{ type: DATA data_param {{ source: "s" {fields} }} }}
            layers {{ type: IMAGE_DATA image_data_param {{ source: "s" {fields} }} transform_param {{ mean_value: 1 }} }}
            layers {{ type: WINDOW_DATA window_data_param {{ source: "s" {fields} }} }}""")
    )
    transform = net(f"layer {{ transform_param {{ {fields} }} }}").layer[0].transform_param
    for layer, param in zip(upgraded.layer, ("data_param", "image_data_param", "window_data_param"), strict=True):
        assert [field.name for field, _ in getattr(layer, param).ListFields()] == ["source"]
        del layer.transform_param.mean_value[:]
        assert layer.transform_param == transform


V0_HEAD = 'input: "x" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8 '
V0_PADDING = 'layers { layer { name: "p" type: "padding" pad: 2 } bottom: "x" top: "p" } '


def test_a_v0_padding_layer_is_merged_into_the_convolution_or_pooling_that_reads_it() -> None:
    upgraded = upgrade_net(
        net(
            V0_HEAD
            + V0_PADDING
            + """
            layers { layer { name: "c" type: "conv" num_output: 4 kernelsize: 3 stride: 2 biasterm: false blobs_lr: 1 }
                bottom: "p" top: "c" }
            layers { layer { name: "q" type: "pool" pool: AVE kernelsize: 3 } bottom: "p" top: "q" }"""
        )
    )
    assert upgraded == net("""
        layer { name: "input" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
        layer { name: "c" type: "Convolution" bottom: "x" top: "c" param { lr_mult: 1 }
          convolution_param { num_output: 4 bias_term: false kernel_size: 3 stride: 2 pad: 2 } }
        layer { name: "q" type: "Pooling" bottom: "x" top: "q" pooling_param { pool: AVE kernel_size: 3 pad: 2 } }""")


def test_v0_fields_go_to_the_messages_of_their_layer_types() -> None:
    upgraded = upgrade_net(
        net("""
        layers { layer { name: "i" type: "images" source: "l" batchsize: 2 rand_skip: 3 shuffle_images: true new_height: 4 new_width: 5
                 scale: 0.5 meanfile: "m" cropsize: 6 mirror: true } top: "a" }
        layers { layer { name: "w" type: "window_data" source: "l" det_fg_threshold: 0.1 det_bg_threshold: 0.2 det_fg_fraction: 0.3
                 det_context_pad: 4 det_crop_mode: "square" } top: "b" }
        layers { layer { name: "n" type: "lrn" local_size: 3 alpha: 2 beta: 0.5 k: 4 num_output: 9 } bottom: "a" top: "n" }
        layers { layer { name: "d" type: "dropout" dropout_ratio: 0.25 } bottom: "n" top: "d" }
        layers { layer { name: "k" type: "concat" concat_dim: 0 } bottom: "d" bottom: "b" top: "k" }
        layers { layer { name: "f" type: "innerproduct" num_output: 2 weight_filler { type: "xavier" } bias_filler { value: 1 } }
                 bottom: "k" top: "f" }
        layers { layer { name: "o" type: "hdf5_output" hdf5_output_param { file_name: "h" } } bottom: "f" }""")
    )
    assert upgraded == net("""
        layer { name: "i" type: "ImageData" top: "a" transform_param { scale: 0.5 mean_file: "m" crop_size: 6 mirror: true }
          image_data_param { source: "l" batch_size: 2 rand_skip: 3 shuffle: true new_height: 4 new_width: 5 } }
        layer { name: "w" type: "WindowData" top: "b" window_data_param { source: "l" fg_threshold: 0.1 bg_threshold: 0.2 fg_fraction: 0.3
          context_pad: 4 crop_mode: "square" } }
        layer { name: "n" type: "LRN" bottom: "a" top: "n" lrn_param { local_size: 3 alpha: 2 beta: 0.5 k: 4 } }
        layer { name: "d" type: "Dropout" bottom: "n" top: "d" dropout_param { dropout_ratio: 0.25 } }
        layer { name: "k" type: "Concat" bottom: "d" bottom: "b" top: "k" concat_param { concat_dim: 0 } }
        layer { name: "f" type: "InnerProduct" bottom: "k" top: "f"
          inner_product_param { num_output: 2 weight_filler { type: "xavier" } bias_filler { value: 1 } } }
        layer { name: "o" type: "HDF5Output" bottom: "f" hdf5_output_param { file_name: "h" } }""")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('layers { layer { name: "a" type: "warp" } }', "layer 'a': its old layer type 'warp' is unknown"),
        (V0_HEAD + V0_PADDING + 'layers { layer { name: "r" type: "relu" } bottom: "p" }', "layer 'r': reads the padding layer 'p'"),
        (
            V0_HEAD + V0_PADDING + 'layers { layer { name: "c" type: "conv" } bottom: "p" bottom: "x" }',
            "must read one blob and write one",
        ),
        ('layers { layer { name: "a" type: "relu" } } layers { name: "b" type: RELU }', "mixes"),
        ('layers { name: "a" type: RELU } layer { name: "b" type: "ReLU" }', "both 'layer' and 'layers'"),
        ('input: "x" input_dim: 1 input_dim: 2', r"1 input\(s\) need 4 input_dim values or 1 input_shape blocks, not 2"),
        ('input: "x" input: "y" input_shape { dim: 1 }', r"2 input\(s\) but 1 input_shape block\(s\)"),
        ('input: "x" layer { name: "r" type: "ReLU" bottom: "x" top: "x2" }', "layer 'r': the input 'x' has no shape"),
    ],
)
def test_a_net_that_cannot_be_upgraded_is_an_error_that_gives_the_reason(text: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        upgrade_net(net(text))


def test_net_level_inputs_become_an_input_layer_that_comes_first() -> None:
    upgraded = upgrade_net(
        net("""name: "n" force_backward: true input: "x" input: "y" input_shape { dim: 1 dim: 2 } input_shape { dim: 3 }
            layer { name: "r" type: "ReLU" }""")
    )
    assert upgraded == net("""name: "n" force_backward: true
        layer { name: "input" type: "Input" top: "x" top: "y" input_param { shape { dim: 1 dim: 2 } shape { dim: 3 } } }
        layer { name: "r" type: "ReLU" }""")


def test_an_input_without_shape_is_left_out_where_a_layer_makes_it() -> None:
    layer = (
        'layer { name: "d" type: "Input" top: "x" input_param { shape { dim: 1 } } } layer { name: "r" type: "ReLU" bottom: "x" top: "y" }'
    )
    assert upgrade_net(net('input: "x" ' + layer)) == net(layer)


def test_a_caffemodel_may_name_its_inputs_without_shapes() -> None:
    layers = 'layers { name: "f" type: RELU bottom: "x" top: "y" }'
    upgraded = upgrade_caffemodel(Caffemodel(net('input: "x" ' + layers), {}))
    assert upgraded.net == net('layer { name: "f" type: "ReLU" bottom: "x" top: "y" }')


def test_batch_norm_statistics_are_kept_from_the_solver() -> None:
    text = 'layer { name: "b" type: "BatchNorm" bottom: "x" top: "y" %s }'
    upgraded = upgrade_net(net(text % 'param { lr_mult: 1 name: "n" } param { } param { decay_mult: 1 }'))
    zero = "lr_mult: 0 decay_mult: 0"
    assert upgraded == net(text % f'param {{ {zero} name: "n" }} param {{ {zero} }} param {{ {zero} }}')
    assert upgrade_net(upgraded) is upgraded
    for kept in ("", "param { lr_mult: 1 }"):
        param = net(text % kept)
        assert upgrade_net(param) is param


@pytest.mark.parametrize(
    ("old", "new"),
    [("SGD", "SGD"), ("NESTEROV", "Nesterov"), ("ADAGRAD", "AdaGrad"), ("RMSPROP", "RMSProp"), ("ADADELTA", "AdaDelta"), ("ADAM", "Adam")],
)
def test_the_solver_type_becomes_its_name(old: str, new: str) -> None:
    solver = parse(f'net: "n" solver_type: {old}', SolverParameter)
    assert upgrade_solver(solver) == parse(f'net: "n" type: "{new}"', SolverParameter)
    assert solver.HasField("solver_type")


def test_a_solver_with_both_kinds_of_type_is_an_error() -> None:
    with pytest.raises(CaffeToolsError, match=r"both solver_type and type \('Adam'\)"):
        upgrade_solver(parse('solver_type: SGD type: "Adam"', SolverParameter))
