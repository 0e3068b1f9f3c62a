"""``caffetools retarget``, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffetools.data.databases import new_lmdb
from caffetools.data.datasets.card import DatasetCard, save_card
from caffetools.data.datum import array_to_datum
from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, save_weights
from caffetools.proto.binary import read_caffemodel, write_binaryproto
from caffetools.proto.schema import TEST
from caffetools.proto.text import read_net, read_solver, write_prototxt
from caffetools.zoo.networks import build, prototxt_path
from tests.cli.inprocess import run
from tests.surgery.nets import TINY, net_of


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_prototxt(tmp_path / "tiny.prototxt", net_of(TINY))
    return tmp_path / "tiny.prototxt"


def test_three_files_are_written_and_the_changes_are_shown(tmp_path: Path) -> None:
    code, out, err = run("retarget", "--model", "squeezenet_v1.1", "--classes", 3, "-o", tmp_path / "run")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["Layer", "What", "Was", "Is"]
    assert ["conv10_3", "num_output", "1000", "3"] in lines
    assert ["conv10_3", "lr_mult", "1", "/", "1", "10", "/", "10"] in lines
    assert "accuracy_top5  layer       Accuracy of the top 5" in out
    assert f"caffetools train {tmp_path / 'run' / 'solver.prototxt'}" in out
    assert read_solver(tmp_path / "run" / "solver.prototxt").net == str(tmp_path / "run" / "train_val.prototxt")
    deployed = Net.from_file(tmp_path / "run" / "deploy.prototxt", TEST, fill=False)
    assert (deployed.blob_shapes["data"], deployed.blob_shapes["prob"]) == ((1, 3, 227, 227), (1, 3, 1, 1))


def test_lenet_is_deployed_for_digits_although_its_data_layer_has_no_size(tmp_path: Path) -> None:
    assert run("retarget", "--model", "lenet", "--classes", 5, "-o", tmp_path)[0] == 0
    assert list(read_net(tmp_path / "deploy.prototxt").layer[0].input_param.shape[0].dim) == [1, 1, 28, 28]


def test_data_options_reach_the_data_layers(tmp_path: Path, tiny: Path) -> None:
    options = ["--train-source", "a", "--val-source", "b", "--mean", "1,2,3", "--train-batch", 16, "--val-batch", 5, "--head-lr-mult", 4]
    assert run("retarget", tiny, "--classes", 7, "-o", tmp_path / "run", *options)[0] == 0
    train, val, *rest = read_net(tmp_path / "run" / "train_val.prototxt").layer
    assert (train.data_param.source, train.data_param.batch_size, list(train.transform_param.mean_value)) == ("a", 16, [1, 2, 3])
    assert (val.data_param.source, val.data_param.batch_size, val.transform_param.mean_file) == ("b", 5, "")
    assert [spec.lr_mult for spec in rest[2].param] == [4, 8]


def test_weights_are_listed_as_loaded_or_reinitialized(tmp_path: Path, tiny: Path) -> None:
    weights = tmp_path / "tiny.caffemodel"
    save_weights(Net(data_layers_to_inputs(net_of(TINY)), TEST), weights)
    code, out, _ = run("retarget", tiny, "--classes", 7, "-o", tmp_path / "run", "--weights", weights)
    assert code == 0
    assert "1 layer takes its weights from the file; 1 is reinitialized: fc_7" in out
    assert "The file also has fc, which the net has no more." in out
    assert f"--weights {weights}" in out
    answer = json.loads(run("retarget", tiny, "--classes", 7, "-o", tmp_path / "run", "--weights", weights, "--force", "--json")[1])
    assert answer["weights"] == {"loaded": ["conv"], "fresh": ["fc_7"], "unused": ["fc"]}
    assert answer["renamed"] == {"fc": "fc_7"}
    assert {"layer": "fc_7", "what": "num_output", "before": "10", "after": "7"} in answer["changes"]
    assert [Path(file).name for file in answer["files"]] == ["train_val.prototxt", "solver.prototxt", "deploy.prototxt"]


def test_weights_of_another_net_are_refused(tmp_path: Path, tiny: Path) -> None:
    other = net_of(TINY.replace("num_output: 6", "num_output: 8"))
    save_weights(Net(data_layers_to_inputs(other), TEST), tmp_path / "other.caffemodel")
    code, _, err = run("retarget", tiny, "--classes", 7, "-o", tmp_path / "run", "--weights", tmp_path / "other.caffemodel")
    assert code == 2
    assert "layer 'conv': its parameters are 6 x 3 x 3 x 3, 6, but" in err and "8 x 3 x 3 x 3, 8: weights of another net" in err
    assert not (tmp_path / "run").exists()


def test_files_that_exist_are_kept_unless_forced(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "solver.prototxt").write_text("mine")
    code, _, err = run("retarget", tiny, "--classes", 7, "-o", tmp_path)
    assert (code, (tmp_path / "solver.prototxt").read_text()) == (2, "mine")
    assert f"{tmp_path / 'solver.prototxt'}: already exists; give another folder, or --force" in err
    assert not (tmp_path / "train_val.prototxt").exists()
    assert run("retarget", tiny, "--classes", 7, "-o", tmp_path, "--force")[0] == 0
    assert (tmp_path / "solver.prototxt").read_text() != "mine"


def test_a_retargeted_net_can_be_retargeted_again(tmp_path: Path, tiny: Path) -> None:
    assert run("retarget", tiny, "--classes", 5, "-o", tmp_path / "a")[0] == 0
    answer = json.loads(run("retarget", tmp_path / "a" / "train_val.prototxt", "--classes", 5, "-o", tmp_path / "b", "--json")[1])
    assert answer["renamed"] == {"fc_5": "fc_5_2"}
    assert not any(change["what"] == "lr_mult" for change in answer["changes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lenet", "--classes", 0], "0 class(es) are too few: a classifier needs at least 2 (--classes)"),
        (["--model", "lenet", "--classes", 1], "1 class(es) are too few"),
        (["--model", "lenet", "--classes", -3], "-3 class(es) are too few"),
        (["--model", "lenett", "--classes", 3], "the zoo has no model 'lenett'; did you mean 'lenet'?"),
        (["--classes", 3], "no net for training is in this folder; give the prototxt of a NET, or the name of a network"),
        (["none.prototxt", "--classes", 3], "none.prototxt: cannot read: No such file or directory"),
        ([prototxt_path("lenet", "deploy"), "--classes", 3], "has no loss, so it cannot be trained; give its train_val prototxt"),
        ([prototxt_path("lenet"), "--classes", 3], "give --input-shape"),
        ([prototxt_path("lenet"), "--classes", 3, "--input-shape", "1x1xa"], "'1x1xa' is not a shape"),
        (["--model", "lenet", "--classes", 3, "--head", "pool1"], "layer 'pool1': is a Pooling layer; a classifier is"),
        (["--model", "lenet", "--classes", 3, "--mean", "no.binaryproto"], "no.binaryproto: no such mean file"),
        (["--model", "lenet", "--classes", 3, "--weights", "no.caffemodel"], "no.caffemodel: cannot read"),
    ],
)
def test_what_cannot_be_done_is_reported_and_nothing_is_written(tmp_path: Path, arguments: list[object], message: str) -> None:
    code, out, err = run("retarget", *arguments, "-o", tmp_path / "run")
    assert (code, out) == (2, "")
    assert message in err
    assert err.endswith("\n") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_net_without_a_classifier_is_named_with_its_line(tmp_path: Path) -> None:
    net = build("lenet")
    next(layer for layer in net.layer if layer.name == "ip2").type = "Reshape"
    write_prototxt(tmp_path / "net.prototxt", net)
    line = (tmp_path / "net.prototxt").read_text().splitlines().index('  name: "ip2"')
    code, _, err = run("retarget", tmp_path / "net.prototxt", "--classes", 3, "-o", tmp_path / "run")
    assert code == 2
    assert f"net.prototxt:{line}: layer 'ip2': no classifier was found above SoftmaxWithLoss 'loss'" in err


def weights_of(net: Any, path: Path) -> Path:
    save_weights(Net(data_layers_to_inputs(net), TEST), path)
    return path


def test_rates_freezing_dropout_and_fillers_are_set_and_reported(tmp_path: Path) -> None:
    options = ["--freeze", "pool5", "--lr-mult", 0.5, "--head-lr-mult", 4, "--dropout", 0.3, "--filler", "msra"]
    code, out, _ = run("retarget", "--model", "bvlc_alexnet", "--classes", 7, "-o", tmp_path / "run", *options)
    assert code == 0
    assert ["conv5", "lr_mult", "0.5", "/", "1", "0", "/", "0"] in [line.split() for line in out.splitlines()]
    layers = {layer.name: layer for layer in read_net(tmp_path / "run" / "train_val.prototxt").layer}
    assert [spec.lr_mult for name in ("conv1", "fc6", "fc8_7") for spec in layers[name].param] == [0, 0, 0.5, 1, 4, 8]
    assert round(layers["drop7"].dropout_param.dropout_ratio, 6) == 0.3
    assert layers["fc8_7"].inner_product_param.weight_filler.type == "msra"


def test_weights_without_the_old_classifier_are_written(tmp_path: Path, tiny: Path) -> None:
    weights = weights_of(net_of(TINY), tmp_path / "tiny.caffemodel")
    options = ["--classes", 7, "-o", tmp_path / "run", "--weights", weights, "--keep-names"]
    code, _, err = run("retarget", tiny, *options)
    assert code == 2 and "let its weights be taken out of the file (--write-weights)" in err
    code, out, _ = run("retarget", tiny, *options, "--write-weights")
    written = tmp_path / "run" / "weights.caffemodel"
    assert code == 0 and f"--weights {written}" in out and "1 is reinitialized: fc" in out
    assert list(read_caffemodel(written).blobs) == ["conv"]
    net = Net(data_layers_to_inputs(read_net(tmp_path / "run" / "train_val.prototxt")), TEST)
    assert load_weights(net, written).fresh == ["fc"]


def test_known_classes_keep_their_rows(tmp_path: Path, tiny: Path) -> None:
    weights = weights_of(net_of(TINY), tmp_path / "tiny.caffemodel")
    (tmp_path / "old.txt").write_text("".join(f"p{i}\n" for i in range(10)))
    (tmp_path / "new.txt").write_text("p4\nnew\np9\n")
    options = ["-o", tmp_path / "run", "--weights", weights, "--grow-from", tmp_path / "old.txt", "--labels", tmp_path / "new.txt"]
    code, out, _ = run("retarget", tiny, *options)
    assert code == 0 and "2 of the 3 classes are known and keep what was learned of them." in out
    assert "fc_3 takes those of the classes in it." in out and "reinitialized" not in out
    old, new = (read_caffemodel(path).blobs for path in (weights, tmp_path / "run" / "weights.caffemodel"))
    assert (new["fc_3"][0][[0, 2]] == old["fc"][0][[4, 9]]).all()
    for wrong, message in (
        (["--classes", 4], "the new labels are 3 classes, but --classes has 4"),
        (["--labels", tmp_path / "none.txt"], "none.txt: cannot read the names of classes"),
    ):
        assert message in run("retarget", tiny, *options, *wrong, "--force")[2]


def test_a_dataset_gives_classes_sources_mean_and_batches(tmp_path: Path, tiny: Path) -> None:
    folder = tmp_path / "data"
    for name in ("train_lmdb", "val_lmdb"):
        with new_lmdb(folder / name) as database:
            for i in range(3 if name == "train_lmdb" else 5):
                database.put(f"{i:08d}".encode(), array_to_datum(np.zeros((3, 10, 10), np.uint8), i % 2).SerializeToString())
    write_binaryproto(folder / "mean.binaryproto", np.zeros((1, 3, 10, 10), np.float32))
    save_card(DatasetCard(folder, ["cat", "dog"], [2, 1], [3, 2], 10, 10, 3, [0.0, 0.0, 0.0], 1, 0.5), folder)
    code, _, err = run("retarget", tiny, "--dataset", folder, "-o", tmp_path / "run", "--epochs", 2)
    assert (code, err) == (0, "")
    train, val, *rest = read_net(tmp_path / "run" / "train_val.prototxt").layer
    assert (train.data_param.source, train.data_param.batch_size) == (str(folder / "train_lmdb"), 3)
    assert (val.data_param.source, val.data_param.batch_size) == (str(folder / "val_lmdb"), 1)
    assert train.transform_param.mean_file == val.transform_param.mean_file == str(folder / "mean.binaryproto")
    assert rest[2].inner_product_param.num_output == 2
    solver = read_solver(tmp_path / "run" / "solver.prototxt")
    assert (list(solver.test_iter), solver.max_iter) == ([5], 2)
    assert not solver.HasField("train_state")
    # A network of the zoo that crops nothing takes the dataset's size, and says that it was made for another.
    code, _, err = run("retarget", "--model", "cifar10_quick", "--dataset", folder, "-o", tmp_path / "cifar")
    assert code == 0 and "takes pictures of 3 x 10 x 10, and cifar10_quick is made for 3 x 32 x 32" in err and "--size 32" in err
    for wrong, message in (
        (["--classes", 3], "3 classes are asked for, but the dataset"),
        (["--crop", 11], "layer 'data' crops 11 x 11, but the pictures of"),
    ):
        code, _, err = run("retarget", tiny, "--dataset", folder, "-o", tmp_path / "other", *wrong)
        assert code == 2 and message in err
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "how many classes are there to be? Give --classes, or a dataset by --dataset"),
        (["--classes", 3, "--write-weights"], "--write-weights takes from the file of --weights"),
        (["--classes", 3, "--labels", "x"], "--labels names the new classes for --grow-from"),
        (["--classes", 3, "--grow-from", "x"], "--grow-from keeps what --weights knows"),
        (["--classes", 3, "--grow-from", "x", "--weights", "y"], "--grow-from needs the names of the new classes"),
        (["--classes", 3, "--freeze", "no"], "has no layer 'no' to freeze up to"),
        (["--classes", 3, "--dropout", 0.5], "has no Dropout layer"),
        (["--classes", 3, "--filler", "no"], "'no' is not a filler"),
        (["--dataset", "none"], "none/dataset.json: cannot read"),
    ],
)
def test_options_that_make_no_sense_are_reported(tmp_path: Path, tiny: Path, options: list[object], message: str) -> None:
    code, out, err = run("retarget", tiny, *options, "-o", tmp_path / "run")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "run").exists()


def test_another_input_size_reaches_training_and_use_and_weights_that_need_the_old_one_are_refused(tmp_path: Path, tiny: Path) -> None:
    assert run("retarget", "--model", "squeezenet_v1.1", "--classes", 7, "--input-size", 160, "-o", tmp_path / "small")[0] == 0
    train = read_net(tmp_path / "small" / "train_val.prototxt").layer[0]
    deploy = Net.from_file(tmp_path / "small" / "deploy.prototxt", TEST, fill=False)
    assert (train.transform_param.crop_size, deploy.blob_shapes["data"]) == (160, (1, 3, 160, 160))
    hidden = 'layer { name: "hidden" type: "InnerProduct" bottom: "conv" top: "hidden" inner_product_param { num_output: 4 } }'
    more = TINY.replace('bottom: "conv" top: "fc"', 'bottom: "hidden" top: "fc"').replace(
        'layer { name: "fc"', hidden + ' layer { name: "fc"'
    )
    write_prototxt(tmp_path / "more.prototxt", net_of(more))
    weights = weights_of(net_of(more), tmp_path / "more.caffemodel")
    options = ["retarget", tmp_path / "more.prototxt", "--classes", 3, "--crop", 9, "-o", tmp_path / "run"]
    code, _, err = run(*options, "--weights", weights)
    assert code == 2 and "layer 'hidden': its parameters are 4 x 294, 4, but" in err
    assert "4 x 216, 4, which it needs for pictures of the net's own size; give a --crop that keeps it" in err
    assert run(*options)[0] == 0
