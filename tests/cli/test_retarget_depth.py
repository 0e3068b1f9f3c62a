"""``caffetools retarget --drop-after`` and ``--add-layer``: nets of other depth, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.data.databases import new_lmdb
from caffetools.data.datum import array_to_datum
from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, save_weights
from caffetools.proto.binary import read_caffemodel
from caffetools.proto.schema import TEST
from caffetools.proto.text import read_net, write_prototxt
from caffetools.zoo.networks import build
from tests.cli.inprocess import run
from tests.surgery.nets import TINY, net_of

DEEPER = ["--drop-after", "conv", "--add-layer", "InnerProduct:5", "--add-layer", "ReLU"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    hidden = 'layer { name: "hidden" type: "InnerProduct" bottom: "conv" top: "hidden" inner_product_param { num_output: 4 } }'
    text = TINY.replace('bottom: "conv" top: "fc"', 'bottom: "hidden" top: "fc"').replace(
        'layer { name: "fc"', f'{hidden} layer {{ name: "fc"'
    )
    write_prototxt(tmp_path / "tiny.prototxt", net_of(text))
    return tmp_path / "tiny.prototxt"


def weights_of(net: Path, to: Path) -> Path:
    save_weights(Net(data_layers_to_inputs(read_net(net)), TEST), to)
    return to


def test_a_googlenet_is_cut_after_a_module_and_gets_a_layer(tmp_path: Path) -> None:
    options = ["--drop-after", "inception_4a/output", "--add-layer", "InnerProduct:64", "--add-layer", "Dropout:0.2"]
    code, out, err = run("retarget", "--model", "bvlc_googlenet", "--classes", 9, "-o", tmp_path / "run", *options)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["pool5/7x7_s1", "kernel", "7", "x", "7", "global"] in lines
    assert ["fc_new", "layer", "InnerProduct,", "before", "loss3/classifier_9"] in lines
    assert ["inception_5b/output", "layer", "Concat"] in lines
    deployed = Net.from_file(tmp_path / "run" / "deploy.prototxt", TEST, fill=False)
    shapes = deployed.blob_shapes
    assert (shapes["pool5/7x7_s1"], shapes["fc_new"], shapes["prob"]) == ((1, 512, 1, 1), (1, 64), (1, 9))
    assert not any(name.startswith(("inception_4b", "loss1", "loss2")) for name in shapes)


def test_kept_layers_give_what_they_gave_with_the_old_weights(tmp_path: Path, tiny: Path) -> None:
    weights = weights_of(tiny, tmp_path / "tiny.caffemodel")
    code, out, err = run("retarget", tiny, "--classes", 3, "-o", tmp_path / "run", "--weights", weights, "--write-weights", *DEEPER)
    assert (code, err) == (0, "")
    assert "1 layer takes its weights from the file; 2 are reinitialized: fc_new, fc_3" in out
    assert "The file also has hidden, fc, which the net has no more." in out
    written = tmp_path / "run" / "weights.caffemodel"
    assert list(read_caffemodel(written).blobs) == ["conv"]
    picture = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32))
    old, new = (Net(data_layers_to_inputs(read_net(path)), TEST) for path in (tiny, tmp_path / "run" / "train_val.prototxt"))
    load_weights(old, weights)
    load_weights(new, written)
    batch = {"data": picture, "label": torch.zeros(2)}
    assert torch.equal(old(batch, keep=["conv"])["conv"], new(batch, keep=["conv"])["conv"])


def test_the_new_net_learns_in_caffetools_train(tmp_path: Path, tiny: Path) -> None:
    random = np.random.default_rng(1)
    with new_lmdb(tmp_path / "lmdb") as database:
        for i in range(8):
            picture = random.integers(0, 256, (3, 9, 9), np.uint8)
            database.put(f"{i:08d}".encode(), array_to_datum(picture, i % 3).SerializeToString())
    data = ["--train-source", tmp_path / "lmdb", "--val-source", tmp_path / "lmdb", "--mean", "1,2,3", "--epochs", 2, "--seed", 1]
    weights = weights_of(tiny, tmp_path / "tiny.caffemodel")
    assert run("retarget", tiny, "--classes", 3, "-o", tmp_path / "run", "--weights", weights, *data, *DEEPER)[0] == 0
    assert run("train", tmp_path / "run" / "solver.prototxt", "--weights", weights)[0] == 0
    trained = max((tmp_path / "run").glob("*.caffemodel"))
    assert {name: [blob.shape for blob in blobs] for name, blobs in read_caffemodel(trained).blobs.items()} == {
        "conv": [(6, 3, 3, 3), (6,)],
        "fc_new": [(5, 216), (5,)],
        "fc_3": [(3, 5), (3,)],
    }


def test_new_layers_are_reinitialized_and_learn_as_fast_as_the_classifier(tmp_path: Path, tiny: Path) -> None:
    options = ["--head-lr-mult", 4, "--lr-mult", 0.5, "--filler", "msra", "--add-layer", "conv=Convolution:6:1"]
    answer = json.loads(run("retarget", tiny, "--classes", 3, "-o", tmp_path / "run", "--json", *options)[1])
    assert {"layer": "conv_new", "what": "layer", "before": "", "after": "Convolution, after conv"} in answer["changes"]
    layers = {layer.name: layer for layer in read_net(tmp_path / "run" / "train_val.prototxt").layer}
    assert [[spec.lr_mult for spec in layers[name].param] for name in ("conv", "conv_new", "fc_3")] == [[0.5, 1], [4, 8], [4, 8]]
    assert layers["conv_new"].convolution_param.weight_filler.type == "msra"
    code, _, err = run("retarget", tiny, "--classes", 3, "-o", tmp_path / "other", "--freeze", "conv_new", *options)
    assert code == 2 and "layer 'conv_new': is reinitialized, so it cannot be frozen; give a layer before it (--freeze)" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drop-after", "con"], "has no layer 'con'; did you mean 'conv'? (--drop-after)"),
        (["--drop-after", "hidden"], "layer 'hidden': there are no layers between it and the classifier 'fc'"),
        (
            ["--add-layer", "Convolution:3"],
            "'Convolution:3' does not give the numbers that a Convolution layer needs; write InnerProduct:256",
        ),
        (["--add-layer", "Pooling:AVE"], "layer 'pool_new': (Pooling) bottom 'hidden' must have 4 axes"),
        (["--add-layer", 'type: "ReLU" relu_param { slope: 1 '], "--add-layer:1:"),
        (["--add-layer", "Eltwise"], "layer 'eltwise_new': (Eltwise)"),
        (["--grow-from", "old", "--labels", "new", "--add-layer", "ReLU"], "--add-layer changes that; give one of the two"),
        (["--grow-from", "old", "--labels", "new", "--drop-after", "conv"], "--drop-after changes that; give one of the two"),
    ],
)
def test_what_cannot_be_done_is_reported_and_nothing_is_written(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").write_text("a\nb\n")
    (tmp_path / "new").write_text("a\nb\nc\n")
    extra = ["--weights", weights_of(tiny, tmp_path / "tiny.caffemodel")] if "--grow-from" in options else []
    code, out, err = run("retarget", tiny, "--classes", 3, "-o", tmp_path / "run", *options, *extra)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_zoo_network_can_be_cut_by_its_deployed_input_alone(tmp_path: Path) -> None:
    assert build("lenet").layer[0].transform_param.crop_size == 0
    assert run("retarget", "--model", "lenet", "--classes", 5, "--drop-after", "pool1", "-o", tmp_path / "run")[0] == 0
    deployed = Net.from_file(tmp_path / "run" / "deploy.prototxt", TEST, fill=False)
    assert (deployed.blob_shapes["pool1"], deployed.blob_shapes["prob"]) == ((1, 20, 12, 12), (1, 5))
