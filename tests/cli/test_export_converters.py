"""``caffetools export --to`` other runtimes: the file that their converter reads, and its command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import onnx
import pytest
import torch

from tests.cli.inprocess import error_of, run, run_well
from tests.infer.colours import write_net


@pytest.mark.parametrize(
    ("to", "command"),
    [
        ("openvino", ["ovc", "{m}.onnx", "--output_model", "{m}", "--compress_to_fp16=False"]),
        ("ncnn", ["pnnx", "{m}.onnx", "fp16=0"]),
        ("tflite", ["onnx2tf", "-i", "{m}.onnx", "-o", "{m}_tflite", "-kat", "data"]),
    ],
)
def test_an_onnx_file_with_the_converters_command(to: str, command: list[str], tmp_path: Path) -> None:
    net, model = write_net(tmp_path), tmp_path / "a model.onnx"
    answer = json.loads(run_well("export", *net, "--mean", "0", "-o", model, "--to", to, "--json").stdout)
    # As a shell takes it apart.
    assert shlex.split(answer["then"]) == [word.format(m=model.with_suffix("")) for word in command]
    shape = onnx.load(model).graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [1, 3, 6, 8]
    shown = run_well("export", *net, "--mean", "0", "-o", model, "--to", to, "--force").stdout
    assert answer["then"] in shown and "with `pip install " in shown


def test_coreml_gets_torchscript_and_the_shape(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch", reason="the extra onnx2torch is not installed")
    net, model = write_net(tmp_path), tmp_path / "model.pt"
    answer = json.loads(run_well("export", *net, "-o", model, "--to", "coreml", "--json").stdout)
    python, flag, code = shlex.split(answer["then"])
    assert (
        (python, flag) == ("python", "-c") and "name='data', shape=(1, 3, 6, 8)" in code and repr(str(tmp_path / "model.mlpackage")) in code
    )
    compile(code, "command", "exec")
    assert model.read_bytes()[:2] == b"PK"


def test_another_name_is_an_error(tmp_path: Path) -> None:
    assert "openvino, ncnn, tflite, coreml are" in error_of(run("export", *write_net(tmp_path), "-o", tmp_path / "x", "--to", "toaster"))


def test_torchs_files_have_a_module_and_the_batch_that_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch", reason="the extra onnx2torch is not installed")
    net, state = write_net(tmp_path), tmp_path / "model.pt"
    answer = json.loads(run_well("export", *net, "-o", state, "--to", "torch", "--json").stdout)
    assert Path(answer["module"]) == tmp_path / "model.module.pt2"
    module = torch.export.load(answer["module"]).module()
    x = torch.rand(4, 3, 6, 8)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = module(x)[:, 1].mean()
    (-module(x)[:, 1].log().mean()).backward()
    optimizer.step()
    assert module(x)[:, 1].mean() > before
    # The module alone is there already: nothing is replaced.
    state.unlink()
    assert "model.module.pt2: already exists" in error_of(run("export", *net, "-o", state, "--to", "torch"))
    shown = run_well("export", *net, "-o", tmp_path / "fixed.pt2", "--to", "exported-program", "--batch", "4").stdout
    assert "a fixed batch size" in shown
    fixed = torch.export.load(tmp_path / "fixed.pt2").module()
    assert len(fixed(x)) == 4
    with pytest.raises((RuntimeError, AssertionError), match="to be equal to 4"):
        fixed(x[:2])


@pytest.mark.parametrize(
    "options",
    [
        ["--preprocess"],
        ["--opset", "13"],
        ["--lrn", "band"],
        ["--mean", "104,117,123"],
        ["--pictures", "."],
        ["--scale", "0.5"],
        ["--dynamic-axes", "batch,height,width"],
    ],
)
def test_what_only_onnx_can_keep_is_refused_for_torch(options: list[str], tmp_path: Path) -> None:
    message = error_of(run("export", *write_net(tmp_path), "-o", tmp_path / "x.pt", "--to", "torchscript", *options))
    assert f"{options[0]} " in message and "is for ONNX files" in message
    assert not (tmp_path / "x.pt").exists()
