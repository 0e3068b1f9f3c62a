"""``caffetools export --to`` other runtimes: the file that their converter reads, and its command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import onnx
import pytest

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
