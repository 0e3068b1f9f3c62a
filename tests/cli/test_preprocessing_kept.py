"""Mean, scale, size and labels of a net in every file that one command makes from another's: none is lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffetools.infer.sidecar import read_preprocessing, write_preprocessing
from caffetools.project.project import Project
from caffetools.proto.text import read_net
from caffetools.results import Preprocessing
from tests.cli.inprocess import run

DEPLOY = """
name: "net"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""
TRAIN_VAL = """
name: "net"
layer {
  name: "data" type: "Data" top: "data" top: "label" transform_param { crop_size: 8 scale: 0.5 mean_value: 104 }
  data_param { source: "gone_lmdb" batch_size: 2 }
}
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
VALUES = Preprocessing("BGR", mean_values=(104.5, 117.0, 123.0), scale=0.017, resize=(12, 10), labels=("a", "b", "c"))
IMAGE = Preprocessing(
    "BGR", mean_image=np.arange(3 * 10 * 12, dtype=np.float32).reshape(3, 10, 12), resize=(12, 10), labels=("a", "b", "c")
)


def stored(path: Path, how: Preprocessing) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(DEPLOY)
    write_preprocessing(path, how)
    return path


def same(found: Preprocessing | None, expected: Preprocessing) -> bool:
    return found is not None and found.to_properties() == expected.to_properties()


@pytest.mark.parametrize("how", [VALUES, IMAGE], ids=["values", "image"])
@pytest.mark.parametrize("command", ["deploy {0} -o {1}", "deploy {0} -o {1} --drop-dropout --batch 4", "upgrade {0} {1}"])
def test_a_deploy_net_made_from_a_deploy_net_keeps_its_preprocessing(tmp_path: Path, command: str, how: Preprocessing) -> None:
    source, out = stored(tmp_path / "old" / "deploy.prototxt", how), tmp_path / "new.prototxt"
    code, _, err = run(*command.format(source, out).split())
    assert code == 0, err
    assert same(read_preprocessing(out), how)


def test_an_upgrade_in_place_leaves_the_preprocessing(tmp_path: Path) -> None:
    source = stored(tmp_path / "deploy.prototxt", IMAGE)
    assert run("upgrade", source, source, "--force")[0] == 0
    assert same(read_preprocessing(source), IMAGE)


def test_a_net_made_trainable_subtracts_the_mean_and_scales_as_before(tmp_path: Path) -> None:
    source = stored(tmp_path / "old" / "deploy.prototxt", VALUES)
    assert run("trainable", source, "-o", tmp_path / "net")[0] == 0
    for layer in read_net(tmp_path / "net" / "train_val.prototxt").layer[:2]:
        assert (list(layer.transform_param.mean_value), layer.transform_param.scale) == ([104.5, 117, 123], pytest.approx(0.017))
    # What is given counts instead.
    assert run("trainable", source, "-o", tmp_path / "given", "--mean", "100", "--scale", "1")[0] == 0
    given = read_net(tmp_path / "given" / "train_val.prototxt").layer[0].transform_param
    assert (list(given.mean_value), given.scale) == ([100], 1)


def test_a_net_made_trainable_keeps_its_mean_image_and_a_model_of_the_zoo_its_cards_mean(tmp_path: Path) -> None:
    source = stored(tmp_path / "old" / "deploy.prototxt", IMAGE)
    assert run("trainable", source, "-o", tmp_path / "net")[0] == 0
    (transform, _) = (layer.transform_param for layer in read_net(tmp_path / "net" / "train_val.prototxt").layer[:2])
    assert Path(transform.mean_file) == source.with_suffix(".mean.binaryproto")
    assert run("trainable", "mobilenet_v1", "-o", tmp_path / "zoo")[0] == 0
    transform = read_net(tmp_path / "zoo" / "train_val.prototxt").layer[0].transform_param
    assert (list(transform.mean_value), transform.scale) == (pytest.approx([103.94, 116.78, 123.68]), pytest.approx(0.017))


def test_a_net_of_rgb_made_trainable_reports_that_data_layers_give_bgr(tmp_path: Path) -> None:
    source = stored(tmp_path / "old" / "deploy.prototxt", Preprocessing("RGB", mean_values=(1.0, 2.0, 3.0)))
    code, _, err = run("trainable", source, "-o", tmp_path / "net")
    assert (code, "the net takes RGB, but Caffe's data layers give BGR" in err) == (0, True)


def test_a_deploy_net_written_again_after_the_dataset_moved_keeps_labels_and_size_or_reports_that_it_lacks_them(tmp_path: Path) -> None:
    (tmp_path / "train_val.prototxt").write_text(TRAIN_VAL)
    code, _, err = run("deploy", tmp_path / "train_val.prototxt", "-o", tmp_path / "first.prototxt")
    assert code == 0
    lacks = (
        "gone_lmdb is not here, so deploy.json lacks the pictures' size before the crop and the labels; give classify --resize and --labels"
    )
    assert err.count(lacks) == 1
    stored(tmp_path / "deploy.prototxt", VALUES)
    (tmp_path / "solver.prototxt").write_text('net: "train_val.prototxt" base_lr: 0.1 lr_policy: "fixed"')
    Project.open(tmp_path).deploy()
    found = read_preprocessing(tmp_path / "deploy.prototxt")
    assert found is not None
    # The net for training states mean and scale itself.
    assert (found.mean_values, found.scale, found.resize, found.labels) == ((104.0,), 0.5, (12, 10), ("a", "b", "c"))
