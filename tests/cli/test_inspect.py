"""``caffetools inspect``, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.schema import TEST
from caffetools.proto.text import write_prototxt
from caffetools.zoo.networks import prototxt_path
from tests.cli.inprocess import run
from tests.surgery.nets import TINY, net_of


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_prototxt(tmp_path / "tiny.prototxt", net_of(TINY))
    return tmp_path / "tiny.prototxt"


def test_each_layer_has_a_line_and_the_totals_come_last() -> None:
    code, out, err = run("inspect", prototxt_path("squeezenet_v1.1", "deploy"), "--input-shape", "1x3x227x227")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].split() == ["Layer", "Type", "Output", "Parameters", "MACs", "Memory"]
    assert lines[3].split() == ["conv1", "Convolution", "1x64x113x113", "1,792", "22.1", "M", "3.3", "MB"]
    assert lines[4].split() == ["relu_conv1", "ReLU", "1x64x113x113"]
    assert lines[-1] == "67 layers, 1,235,496 parameters (4.9 MB), 387.7 M multiply–accumulates, blobs 19.3 MB"


def test_the_work_of_a_batch_is_given_for_one_picture_too() -> None:
    batch, one = (run("inspect", "lenet", "--input-shape", shape)[1].splitlines()[-1] for shape in ("64x1x28x28", "1x1x28x28"))
    assert "146.8 M multiply–accumulates for a batch of 64 (2.3 M each)," in batch
    assert "2.3 M multiply–accumulates, blobs" in one


def test_a_train_val_net_needs_neither_its_databases_nor_its_mean(tiny: Path) -> None:
    train, test = (run("inspect", tiny, "--phase", phase)[1] for phase in ("train", "test"))
    assert "tiny in the TRAIN phase" in train and "4x3x8x8, 4" in train and "top-5" not in train
    assert "tiny in the TEST phase" in test and "2x3x8x8, 2" in test and "top-5" in test


def test_unknown_layers_and_sizes_are_shown_as_such(tmp_path: Path) -> None:
    write_prototxt(tmp_path / "net.prototxt", net_of(TINY.replace('"ReLU"', '"Sorcery"')))
    code, out, _ = run("inspect", tmp_path / "net.prototxt")
    assert code == 0
    assert ["relu", "Sorcery", "?", "?"] in [line.split() for line in out.splitlines()]
    assert out.splitlines()[-1] == "unknown: relu: the type Sorcery is not known here"
    assert "of what is known: 168 parameters" in out
    assert "unknown: mnist: the size of its data is not known" in run("inspect", prototxt_path("lenet"))[1]


def test_weights_are_compared_and_described(tmp_path: Path, tiny: Path) -> None:
    weights = tmp_path / "tiny.caffemodel"
    save_weights(Net(data_layers_to_inputs(net_of(TINY)), TEST), weights)
    code, out, _ = run("inspect", tiny, weights)
    assert code == 0
    assert "2 fits" in out and "6x3x3x3" in out
    write_prototxt(tmp_path / "other.prototxt", net_of(TINY.replace("num_output: 10", "num_output: 11").replace('"conv"', '"first"')))
    code, out, _ = run("inspect", tmp_path / "other.prototxt", weights)
    assert code == 0
    assert "differs: the net has 11x216, 11" in out
    assert "1 fresh, 1 differs, 1 not in the net" in out
    assert out.splitlines()[-1] == "not in the net: conv"


def test_json_gives_a_script_everything(tmp_path: Path, tiny: Path) -> None:
    weights = tmp_path / "tiny.caffemodel"
    save_weights(Net(data_layers_to_inputs(net_of(TINY)), TEST), weights)
    answer = json.loads(run("inspect", tiny, weights, "--json")[1])
    conv = next(layer for layer in answer["layers"] if layer["name"] == "conv")
    assert (conv["type_name"], conv["shapes"], conv["parameters"]) == ("Convolution", [[2, 6, 6, 6]], [[6, 3, 3, 3], [6]])
    assert (conv["parameter_count"], conv["macs"]) == (168, 2 * 36 * 162)
    assert answer["parameters"] == 168 + 2170
    assert [layer["status"] for layer in answer["weights"]["layers"]] == ["fits", "fits"]
    assert answer["weights"]["layers"][1]["blobs"][1] == {"shape": [10], "mean": 0.5, "std": 0.0, "absmax": 0.5}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("kernel_size: 3", "kernel_size: 30"), [], "tiny.prototxt:{line}: layer 'conv': (Convolution) kernel 30"),
        (('bottom: "conv"', 'bottom: "cnv"'), [], "made by no layer before it; did you mean 'conv'?"),
        (("kernel_size", "kernel_sise"), [], "ConvolutionParameter has no field 'kernel_sise'; did you mean 'kernel_size'?"),
        (("", ""), ["--input-shape", "dota=1x2"], "has no input 'dota'; its inputs are data, label"),
        (("", ""), ["--input-shape", "3 by 4"], "'3 by 4' is not a shape"),
        (("", ""), ["none.caffemodel"], "none.caffemodel: cannot read"),
        (("", ""), ["--phase", "fast"], "'fast' is neither train nor test"),
    ],
)
def test_errors_name_their_place(tmp_path: Path, change: tuple[str, str], options: list[str], message: str) -> None:
    path = tmp_path / "tiny.prototxt"
    path.write_text(TINY.replace(*change) if change[0] else TINY)
    line = TINY[: TINY.index('layer { name: "conv"')].count("\n") + 1
    code, out, err = run("inspect", path, *options)
    assert (code, out) == (2, "")
    assert message.format(line=line) in err


def test_a_table_counts_the_layers_of_several_nets(tiny: Path) -> None:
    code, out, err = run("inspect", "--table", tiny, "--model", "resnet10")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["Type", "resnet10", "tiny"]
    assert lines[1] == ["Convolution", "12", "1"]
    assert ["BatchNorm", "10", "-"] in lines
    answer = json.loads(run("inspect", "--table", "--model", "resnet10", "--json")[1])
    assert answer["resnet10"]["layers"]["Eltwise"] == 4 and answer["resnet10"]["global_poolings"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table"], "give the nets to count"),
        (["a", "b", "c"], "give one NET"),
        (["--table", "none.prototxt"], "none.prototxt: cannot read"),
        (["--table", "--model", "lenett"], "did you mean 'lenet'?"),
    ],
)
def test_what_cannot_be_shown_is_reported(arguments: list[str], message: str) -> None:
    code, out, err = run("inspect", *arguments)
    assert (code, out) == (2, "")
    assert message in err
