"""``caffetools verify``, as a person types it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.net.net import Net
from caffetools.net.weights import load_weights, save_weights
from tests.cli.inprocess import error_of, run
from tests.infer.colours import write_net, write_pictures


def test_two_onnx_files_are_compared(tmp_path: Path) -> None:
    net = write_net(tmp_path)
    for name in ("a", "b"):
        assert run("export", *net, "-o", tmp_path / f"{name}.onnx", "--mean", "0")[0] == 0
    code, out, err = run("verify", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert (code, err) == (0, "")
    assert "onnxruntime: a.onnx" in out and "onnxruntime: b.onnx" in out
    code, out, err = run("verify", tmp_path / "a.onnx", "-", tmp_path / "b.onnx", ":".join(map(str, net)))
    assert (code, err) == (0, "")
    assert "torch: " in out
    code, out, err = run("verify", tmp_path / "a.onnx", tmp_path / "c")
    assert code == 2 and "neither an ONNX file, a TensorRT engine nor DEPLOY:WEIGHTS" in err


def test_images_are_prepared_with_the_given_mean_and_scale(tmp_path: Path) -> None:
    net = write_net(tmp_path)
    pictures = [part for picture in write_pictures(tmp_path) for part in ("--images", picture)]
    outputs = []
    for options in (["--mean", "0"], ["--mean", "0", "--scale", "0.001"]):
        code, out, err = run("verify", *net, *pictures, *options, "--json")
        assert (code, err) == (0, "")
        outputs.append(json.loads(out)[0]["scale"])
    assert outputs[0] > outputs[1]


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    _, weights = write_net(tmp_path)
    code, _, err = run("import", weights, "-o", tmp_path / "net")
    assert code == 2
    assert "this is a .caffemodel (weights), and an ONNX model is expected" in err
    assert not (tmp_path / "net").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_the_row_names_what_is_missing(tmp_path: Path) -> None:
    net = write_net(tmp_path)
    (tmp_path / "model.engine").write_bytes(b"\0" * 64)
    code, out, err = run("verify", *net, tmp_path / "model.engine", "--engines", "torch,onnxruntime,tensorrt", "--json")
    assert (code, err) == (0, "")
    rows = {row["candidate"]: row for row in json.loads(out)}
    for name in (f"tensorrt: {net[1].name}", "tensorrt: model.engine"):
        assert "the package tensorrt is not installed here" in rows[name]["reason"]
        assert "pip install tensorrt" in rows[name]["reason"]
    assert not rows[f"onnxruntime: {net[1].name}"]["reason"]
    # As the reference, or alone, it cannot be left out.
    code, _, err = run("verify", tmp_path / "model.engine", ":".join(map(str, net)))
    assert code == 2 and "the package tensorrt is not installed here" in err
    code, _, err = run("classify", *net, *write_pictures(tmp_path), "--engine", "tensorrt")
    assert code == 2 and "the package tensorrt is not installed here" in err


def test_a_model_that_cannot_be_run_is_a_failure_and_an_engine_that_is_not_here_is_none(tmp_path: Path) -> None:
    """A check in a script that passes because its model is missing is none."""
    net = write_net(tmp_path)
    (tmp_path / "damaged.onnx").write_bytes(b"ONNX")
    for name, reason in (("none.onnx", "no such file"), ("damaged.onnx", "damaged.onnx")):
        code, out, err = run("verify", *net, tmp_path / name)
        assert (code, err) == (1, "")
        assert reason in out
    other = tmp_path / "other"
    other.mkdir()
    deploy, weights = write_net(other)
    deploy.write_text(deploy.read_text().replace("dim: 3", "dim: 4", 1))
    assert run("verify", *net, f"{deploy}:{weights}")[0] == 1


def test_a_comparison_with_nothing_and_an_unknown_engine_are_refused(tmp_path: Path) -> None:
    """With one row there is no difference to look at, so a script's check would pass or fail without a reason."""
    net = write_net(tmp_path)
    code, out, err = run("verify", *net, "--engines", "torch")
    assert (code, out) == (2, "") and "name a second engine, or a MODEL" in err
    code, out, err = run("verify", *net, "--engines", "torch,tflite")
    assert (code, out) == (2, "") and "unknown engine 'tflite'; known are torch, " in err


def test_a_row_that_differs_too_much_says_so(tmp_path: Path) -> None:
    net = write_net(tmp_path)
    save_weights(Net.from_file(net[0]), tmp_path / "other.caffemodel")
    code, out, err = run("verify", *net, f"{net[0]}:{tmp_path / 'other.caffemodel'}", "--tolerance", "1e-6")
    assert (code, err) == (1, "")
    assert [line.endswith("differs by more than 1e-06") for line in out.splitlines() if ": " in line] == [False, False, False, True]


def test_onnxruntime_runs_a_net_of_a_fixed_batch_size(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    text = deploy.read_text()
    shape = Net.from_file(deploy).blob_shapes["prob"]
    numbers = " ".join(f"dim: {size}" for size in shape)
    deploy.write_text(
        f'{text}\nlayer {{ name: "fixed" type: "Reshape" bottom: "prob" top: "fixed" reshape_param {{ shape {{ {numbers} }} }} }}'
    )
    code, out, err = run("verify", deploy, weights, "--json")
    assert (code, err) == (0, "")
    assert not json.loads(out)[1]["reason"]


def test_all_pictures_are_compared_in_batches(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    (tmp_path / "after").mkdir()
    after = tmp_path / "after" / "after.caffemodel"
    net = Net.from_file(deploy)
    load_weights(net, weights)
    with torch.no_grad():
        # Red pictures become green.
        net.layer("score").blobs[0].copy_(torch.tensor([[1, 0, 0], [0, 1, 2], [0, 0, 1]]) * 0.01)
    save_weights(net, after)
    (tmp_path / "pictures").mkdir()
    colours = dict(zip(("blue", "green", "red"), write_pictures(tmp_path), strict=True))
    for number in range(40):
        shutil.copy(colours["red" if number >= 35 else "blue"], tmp_path / "pictures" / f"{number:02}.png")
    command = ("verify", deploy, weights, f"{deploy}:{after}", "--images", tmp_path / "pictures", "--mean", "0", "--engines", "torch")
    done = run(*command, "--tolerance", "2")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "On 40 pictures:")
    [row] = [row for row in json.loads(run(*command, "--json").stdout) if row["candidate"] == "torch: after.caffemodel"]
    pictures = [np.full((1, 3, 6, 8), 20, np.float32) for _ in range(40)]
    for number, picture in enumerate(pictures):
        picture[:, 2 if number >= 35 else 0] = 250
    outputs = []
    for file in (weights, after):
        load_weights(net, file)
        outputs.append(net({"data": torch.from_numpy(np.concatenate(pictures))})["prob"].detach().double().numpy())
    a, b = outputs
    assert row["top1"] == 35 / 40
    assert row["largest"] == pytest.approx(np.abs(a - b).max()) and row["scale"] == pytest.approx(a.max())
    assert row["mean"] == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
    assert row["cosine"] == pytest.approx((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), rel=1e-6)
    some = run(*command, "--most", "8", "--tolerance", "2")
    assert some.stdout.startswith("On 8 of 40 pictures:") and "87.5%" in some.stdout  # 0, 5, ... 35


def test_an_onnx_file_runs_in_the_engines_that_are_asked_for(tmp_path: Path) -> None:
    net = write_net(tmp_path)
    assert run("export", *net, "-o", tmp_path / "a.onnx", "--mean", "0")[0] == 0
    done = run("verify", tmp_path / "a.onnx", "-", tmp_path / "a.onnx", "--engines", "onnxruntime,opencv", "--json")
    rows = json.loads(done.stdout)
    assert [row["candidate"] for row in rows] == ["onnxruntime: a.onnx", "opencv: a.onnx", "onnxruntime: a.onnx"]
    assert rows[1]["reason"] and not rows[2]["reason"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("verify", "NET", "--mean", "0"), "--mean is for --images"),
        (("verify", "NET", "--most", "500"), "--most is for --images"),
        (("verify", "NET", "--images", "PICTURE", "--seed", "0"), "--seed is for random inputs"),
        (("bundle", "check", "b", "--mean", "0"), "--mean is for writing a bundle"),
        (("bundle", "check", "b", "--force"), "--force is for writing a bundle"),
        (("bundle", "NET", "-o", "b", "--engine", "auto"), "--engine is for bundle check"),
        (("bundle", "NET", "-o", "b", "--target", "opencv", "--mean", "0", "--calibration", "c"), "a bundle for opencv does not use"),
        (("bundle", "NET", "PICTURE", "-o", "b"), "quote a pattern of pictures"),
        (("quantize", "NET", "-o", "q.onnx", "-c", "p", "--precision", "fp16", "--tables", "none"), "--tables is for int8"),
        (("quantize", "NET", "-o", "q.onnx", "-c", "p", "--percentile", "99"), "--percentile is for --method percentile"),
        (("export", "NET", "-o", "m.pt", "--to", "torch", "--opset", "17"), "--opset is for ONNX files"),
        (("import", "PROGRAM", "-o", "d", "--input-shape", "x=1,3,8,8"), "has the shapes of its inputs"),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "m.pt2").touch()
    places = {"NET": write_net(tmp_path), "PICTURE": (write_pictures(tmp_path)[0],), "PROGRAM": (tmp_path / "m.pt2",)}
    assert message in error_of(run(*(part for word in words for part in places.get(word, (word,)))))
