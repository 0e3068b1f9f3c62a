"""``caffetools infer``: blobs of pictures and arrays in files, whole and tiled."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from caffetools.errors import WriteFailed
from caffetools.infer.blobs import BlobOptions, BlobReader, new_arrays, write_png
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, save_weights
from caffetools.proto.schema import TEST
from tests.cli.inprocess import run

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "score" type: "Convolution" bottom: "c1" top: "score"
  convolution_param { num_output: 3 kernel_size: 3 pad: 1 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "fc" type: "InnerProduct" bottom: "score" top: "fc" inner_product_param { num_output: 2 } }
"""


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path, Path]:
    deploy, weights, picture = tmp_path / "deploy.prototxt", tmp_path / "w.caffemodel", tmp_path / "photo.png"
    deploy.write_text(NET)
    torch.manual_seed(0)
    save_weights(Net.from_file(deploy, TEST), weights)
    deploy.with_suffix(".json").write_text(
        json.dumps({"format": 1, "channel_order": "BGR", "mean_values": [10, 20, 30], "scale": 0.5, "resize": None, "labels": []})
    )
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (90, 131, 3), dtype=np.uint8))
    return deploy, weights, picture


def test_pictures_are_prepared_as_the_deploy_net_states(model: tuple[Path, Path, Path], tmp_path: Path) -> None:
    deploy, weights, picture = model
    done = run("infer", deploy, weights, picture, "--outputs", "c1,fc", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    image = cv2.resize(cv2.imread(str(picture)), (32, 32)).astype(np.float32)
    given = ((image - np.array([10, 20, 30], np.float32)) * np.float32(0.5)).transpose(2, 0, 1)[np.newaxis]
    net = Net.from_file(deploy, TEST)
    load_weights(net, weights)
    with torch.inference_mode():
        blobs = net({"data": torch.from_numpy(np.ascontiguousarray(given))}, keep=["c1"])
    for name in ("c1", "fc"):
        np.testing.assert_allclose(np.load(tmp_path / "out" / f"photo.{name}.npy"), blobs[name].numpy(), rtol=1e-5, atol=1e-5)
    np.save(tmp_path / "array.npy", given[0])
    assert run("infer", deploy, weights, tmp_path / "array.npy", "--npz", "-o", tmp_path / "out").returncode == 0
    with np.load(tmp_path / "out" / "array.npz") as stored:
        np.testing.assert_allclose(stored["fc"], blobs["fc"].numpy(), rtol=1e-5, atol=1e-5)


def test_tiles_write_what_one_pass_writes_and_a_label_map(model: tuple[Path, Path, Path], tmp_path: Path) -> None:
    deploy, weights, picture = model
    common = ("infer", deploy, weights, picture, "--outputs", "score")
    assert run(*common, "--own-size", "-o", tmp_path / "whole").returncode == 0
    done = run(*common, "--tile", 48, "--png", "--json", "-o", tmp_path / "tiles")
    assert done.returncode == 0, done.stderr
    whole, tiled = (np.load(tmp_path / folder / "photo.score.npy") for folder in ("whole", "tiles"))
    assert whole.shape == (1, 3, 45, 66)
    np.testing.assert_allclose(tiled, whole, rtol=1e-5, atol=1e-5)
    labels = cv2.imread(str(tmp_path / "tiles" / "photo.score.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(labels, tiled[0].argmax(0))
    assert json.loads(done.stdout)[0]["shape"] == [1, 3, 45, 66]


def test_layer_over_the_whole_picture_is_refused_and_nothing_is_written(model: tuple[Path, Path, Path], tmp_path: Path) -> None:
    deploy, weights, picture = model
    done = run("infer", deploy, weights, picture, "--tile", 48, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "'fc'" in done.stderr
    assert "--outputs" in done.stderr
    assert not (tmp_path / "out").exists()


def test_inputs_of_one_name_unknown_blobs_and_files_that_exist_are_errors(model: tuple[Path, Path, Path], tmp_path: Path) -> None:
    deploy, weights, picture = model
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "photo.png"
    twin.write_bytes(picture.read_bytes())
    for arguments, text in (
        ((picture, twin, "-o", tmp_path / "out"), "would both be"),
        ((picture, "--outputs", "nothing", "-o", tmp_path / "out"), "nothing"),
        ((picture, "-o", tmp_path), "exists"),
    ):
        (tmp_path / "photo.fc.npy").touch()
        done = run("infer", deploy, weights, *arguments)
        assert done.returncode == 2, done.stdout
        assert text in done.stderr


def test_peak_memory_of_tiles_does_not_grow_with_the_picture(model: tuple[Path, Path, Path]) -> None:
    deploy, weights, _ = model
    reader = BlobReader(deploy, weights, what=BlobOptions(("score",), tile=64))
    largest = []
    for side in (256, 512):
        sizes: list[int] = []
        hook = reader.net.layers[1].register_forward_hook(lambda _layer, given, _made, sizes=sizes: sizes.append(given[0].numel()))
        reader.run(np.zeros((3, side, side), np.float32))
        hook.remove()
        assert len(sizes) > 1
        largest.append(max(sizes))
    assert largest[0] == largest[1] <= 3 * 64 * 64


def test_png_of_one_channel_keeps_labels_and_scales_other_values(tmp_path: Path) -> None:
    labels = np.arange(300 * 4, dtype=np.float32).reshape(1, 1, 300, 4)
    assert write_png(tmp_path / "labels.png", labels) == "values as they are"
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED), labels[0, 0])
    write_png(tmp_path / "depth.png", labels / 1199 - 0.5)
    depth = cv2.imread(str(tmp_path / "depth.png"), cv2.IMREAD_UNCHANGED)
    assert (depth.dtype, depth.min(), depth.max()) == (np.uint8, 0, 255)


def test_a_file_has_its_blocks_before_it_is_written_through_a_mapping(tmp_path: Path) -> None:
    # Otherwise a full disk ends the process by a signal, with no error.
    with new_arrays({"fc": tmp_path / "new" / "fc.npy"}) as make:
        make("fc", (1 << 18,))
        (part,) = (tmp_path / "new").iterdir()
        assert part.stat().st_blocks * 512 >= part.stat().st_size > 1 << 20


def test_a_full_disk_leaves_no_file_and_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WriteFailed, match="No space left"), new_arrays({"fc": tmp_path / "new" / "folder" / "fc.npy"}) as make:
        make("fc", (4,))
    assert not list(tmp_path.iterdir())
