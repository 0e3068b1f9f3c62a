"""Mean, scale, size, channel order and labels go with a net from training to every command that runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import caffetools as ct
from caffetools.infer.sidecar import read_preprocessing, sidecar_path, write_preprocessing
from caffetools.net.weights import save_weights
from caffetools.results import Preprocessing
from tests.cli.inprocess import run

NET = """
name: "brightness"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { crop_size: 6 scale: 0.00390625 }
  data_param { source: "none" batch_size: 4 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { crop_size: 6 scale: 0.00390625 }
  data_param { source: "none" batch_size: 4 backend: LMDB } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 7 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a dataset, and a retargeted net with weights that depend on the mean."""
    root = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(2)
    for name, level in (("dark", 60), ("light", 180)):
        (root / "pictures" / name).mkdir(parents=True)
        for number in range(6):
            cv2.imwrite(str(root / "pictures" / name / f"{number}.png"), rng.normal(level, 15, (8, 8, 3)).clip(0, 255).astype(np.uint8))
    (root / "train_val.prototxt").write_text(NET)
    data = ct.build_dataset(root / "pictures", root / "data", size="8", seed=1)
    result = ct.retarget(root / "train_val.prototxt", dataset=data)
    result.save(root / "net")
    net = result.net()
    for blob in net.layer(result.reinitialized[0]).blobs:
        values = np.zeros(blob.shape, np.float32)
        if values.ndim == 2:
            values[0], values[1] = -0.2, 0.2
        blob.data.copy_(blob.data.new_tensor(values))
    save_weights(net, root / "net" / "w.caffemodel")
    return root


def test_a_retargeted_net_carries_its_preprocessing(trained: Path) -> None:
    how = read_preprocessing(trained / "net" / "deploy.prototxt")
    assert how is not None and how.mean_image is not None
    assert (how.scale, how.resize, how.labels, how.channel_order) == (1 / 256, (8, 8), ("dark", "light"), "BGR")
    assert how.mean_image.shape == (3, 8, 8)
    assert 60 < how.mean_image.mean() < 180


def scores(done: tuple[int, str, str]) -> tuple[int, str, str]:
    """Without the last line, the next command, which has the names of the files."""
    return done[0], done[1].partition("Next:")[0], done[2]


def test_classify_and_export_use_it_and_agree_with_the_explicit_options(trained: Path, tmp_path: Path) -> None:
    net = [trained / "net" / "deploy.prototxt", trained / "net" / "w.caffemodel"]
    image = trained / "pictures" / "dark" / "0.png"
    bare = [tmp_path / "bare.prototxt", net[1]]
    shutil.copy(net[0], bare[0])
    options = ["--mean", trained / "data" / "mean.binaryproto", "--labels", trained / "data" / "labels.txt", "--scale", 1 / 256]
    explicit = scores(run("classify", *bare, image, *options, "--top", 1))
    known = scores(run("classify", *net, image, "--top", 1))
    assert known == explicit
    assert known[0] == 0 and known[2] == "" and known[1].endswith("  dark\n")
    assert run("export", *net, "-o", tmp_path / "m.onnx")[2] == ""
    assert scores(run("classify", tmp_path / "m.onnx", image, "--top", 1)) == known


def test_without_any_mean_it_is_reported_once_and_the_onnx_file_does_not_claim_one(trained: Path, tmp_path: Path) -> None:
    bare = [tmp_path / "bare.prototxt", trained / "net" / "w.caffemodel"]
    shutil.copy(trained / "net" / "deploy.prototxt", bare[0])
    images = [trained / "pictures" / "dark" / f"{number}.png" for number in range(3)]
    code, _, err = run("classify", *bare, *images, "--batch", 1)
    assert code == 0 and err.count("no mean is subtracted") == 1 and err.count("\n") == 1
    assert run("classify", *bare, *images, "--mean", 0)[2] == ""
    assert "no mean" in run("export", *bare, "-o", tmp_path / "m.onnx")[2]
    assert "no mean" in run("classify", tmp_path / "m.onnx", *images)[2]
    run("export", *bare, "-o", tmp_path / "zero.onnx", "--mean", 0)
    assert run("classify", tmp_path / "zero.onnx", *images)[2] == ""


def test_deploy_keeps_it_also_where_the_dataset_has_moved(trained: Path, tmp_path: Path) -> None:
    assert run("deploy", trained / "net" / "train_val.prototxt", "-o", tmp_path / "a" / "deploy.prototxt")[0] == 0
    first = read_preprocessing(tmp_path / "a" / "deploy.prototxt")
    moved = tmp_path / "moved"
    shutil.copytree(trained / "net", moved)
    text = (moved / "train_val.prototxt").read_text().replace(str(trained / "data"), str(tmp_path / "elsewhere"))
    (moved / "train_val.prototxt").write_text(text)
    code, _, err = run("deploy", moved / "train_val.prototxt", "-o", moved / "again.prototxt")
    assert (code, err) == (0, "")
    second = read_preprocessing(moved / "again.prototxt")
    for found in (first, second):
        assert found is not None and found.mean_image is not None
        assert (found.scale, found.resize, found.labels) == (1 / 256, (8, 8), ("dark", "light"))


def test_a_mean_file_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NET.replace("scale: 0.00390625", 'mean_file: "none.binaryproto"'))
    code, _, err = run("deploy", tmp_path / "net.prototxt", "-o", tmp_path / "deploy.prototxt")
    assert code == 0 and "the mean file of" in err and "does not exist here" in err
    how = read_preprocessing(tmp_path / "deploy.prototxt")
    assert how is not None and not how.mean_known


@pytest.mark.parametrize(
    "how",
    [
        Preprocessing(),
        Preprocessing(mean_values=()),
        Preprocessing("RGB", (1.5, 2.0, 3.0), scale=0.5, resize=(9, 7), labels=("ä", "b c")),
        Preprocessing("GRAY", mean_image=np.arange(12, dtype=np.float32).reshape(1, 3, 4)),
    ],
)
def test_the_file_holds_every_value(how: Preprocessing, tmp_path: Path) -> None:
    write_preprocessing(tmp_path / "deploy.prototxt", how)
    read = read_preprocessing(tmp_path / "deploy.prototxt")
    assert read is not None
    same = [getattr(read, name) == getattr(how, name) for name in ("channel_order", "mean_values", "scale", "resize", "labels")]
    assert all(same)
    np.testing.assert_array_equal(read.mean_image, how.mean_image)


@pytest.mark.parametrize(
    "text", ["{", '{"format": 1, "channel_order": "BGR", "mean_values": "x"}', '{"format": 9, "channel_order": "BGR"}']
)
def test_a_damaged_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    sidecar_path(tmp_path / "deploy.prototxt").write_text(text)
    with pytest.raises(ct.errors.DataError, match=r"deploy\.json: damaged"):
        read_preprocessing(tmp_path / "deploy.prototxt")


def test_other_json_files_of_that_name_are_ignored(tmp_path: Path) -> None:
    sidecar_path(tmp_path / "deploy.prototxt").write_text(json.dumps({"name": "other"}))
    assert read_preprocessing(tmp_path / "deploy.prototxt") is None


def test_rgb_nets_get_their_channels_in_that_order() -> None:
    from caffetools.infer.preprocess import Preprocessor

    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0] = 9
    values = Preprocessor((1, 3, 2, 2), Preprocessing("RGB", (0.0, 0.0, 4.0))).centre(image)
    assert values[0, :, 0, 0].tolist() == [0.0, 0.0, 5.0]
