"""``caffetools verify``, as a person types it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.cli.inprocess import run
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
