"""The engines behind one interface: inputs, outputs, batches, devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from caffetools.engines.base import Engine, EngineError
from caffetools.engines.onnxruntime import OnnxRuntimeEngine, newest_opset, open_session
from caffetools.engines.torch import TorchEngine
from caffetools.errors import ModelFileError
from caffetools.net.net import Net
from caffetools.onnx.export import export
from tests.infer.colours import write_net


def engines(folder: Path) -> list[Engine]:
    deploy, weights = write_net(folder)
    torch_engine = TorchEngine.load(deploy, weights)
    export(torch_engine.net, folder / "a.onnx")
    return [torch_engine, OnnxRuntimeEngine.load(folder / "a.onnx")]


def test_engines_agree_on_names_shapes_and_numbers(tmp_path: Path) -> None:
    ours, theirs = engines(tmp_path)
    assert (ours.name, theirs.name) == ("torch", "onnxruntime")
    assert ours.inputs == theirs.inputs == {"data": (1, 3, 6, 8)}
    assert ours.outputs == theirs.outputs == ["prob"]
    assert ours.batch is theirs.batch is None
    for size in (1, 5, 2):
        batch = {"data": np.random.RandomState(size).rand(size, 3, 6, 8).astype(np.float32) * 255}
        a, b = ours.predict(batch)["prob"], theirs.predict(batch)["prob"]
        assert a.shape == b.shape == (size, 3)
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_predicting_leaves_the_batch_alone(tmp_path: Path) -> None:
    deploy = tmp_path / "relu.prototxt"
    deploy.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 } } }\n'
        'layer { name: "r" type: "ReLU" bottom: "data" top: "data" }'
    )
    batch = np.array([[-1, 2, -3, 4]], np.float32)
    got = TorchEngine.load(deploy).predict({"data": batch})
    np.testing.assert_array_equal(got["data"], [[0, 2, 0, 4]])
    np.testing.assert_array_equal(batch, [[-1, 2, -3, 4]])


def test_a_fixed_batch_is_reported_and_another_is_refused(tmp_path: Path) -> None:
    deploy, _ = write_net(tmp_path)
    export(Net.from_file(deploy), tmp_path / "one.onnx", dynamic_axes=())
    engine = OnnxRuntimeEngine.load(tmp_path / "one.onnx")
    assert engine.batch == 1
    with pytest.raises(EngineError, match="onnxruntime cannot run the model"):
        engine.predict({"data": np.zeros((2, 3, 6, 8), np.float32)})


def test_a_model_of_no_fixed_picture_size_is_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    shape = ["N", 3, "H", "W"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "free",
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value("y", onnx.TensorProto.FLOAT, shape)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
    onnx.save(model, tmp_path / "free.onnx")
    with pytest.raises(EngineError, match="input 'x' of the ONNX model leaves more than the batch size free"):
        OnnxRuntimeEngine.load(tmp_path / "free.onnx")


def test_a_model_whose_metadata_are_not_utf8_is_damaged(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.helper.set_model_props(model, {"caffetools.source": "net.prototxt"})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString().replace(b"caffetools.source", b"caffetools.sourc\xff"))
    with pytest.raises(ModelFileError, match=r"m\.onnx: damaged: its metadata or names are not UTF-8; fetch or copy the file again"):
        OnnxRuntimeEngine.load(tmp_path / "m.onnx")


def test_a_model_whose_names_are_not_utf8_is_damaged_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    node = onnx.helper.make_node("Relu", ["input"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("input", "y")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]), ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString().replace(b"input", b"inp\xfft"))
    with pytest.raises(ModelFileError, match=r"m\.onnx: "):
        OnnxRuntimeEngine.load(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


def test_tensorrt_gives_the_same_numbers_where_it_is(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    if not torch.cuda.is_available():
        pytest.skip("TensorRT needs a GPU")
    from caffetools.engines.tensorrt import TensorRTEngine

    ours, _ = engines(tmp_path)
    theirs = TensorRTEngine.load(tmp_path / "a.onnx")
    assert (ours.inputs, ours.outputs, theirs.batch) == (theirs.inputs, theirs.outputs, None)
    for size in (1, 5):
        batch = {"data": np.random.RandomState(size).rand(size, 3, 6, 8).astype(np.float32) * 255}
        np.testing.assert_allclose(ours.predict(batch)["prob"], theirs.predict(batch)["prob"], rtol=1e-4, atol=1e-6)
    (tmp_path / "bad.engine").write_bytes(b"\0" * 64)
    with pytest.raises(ModelFileError, match=r"bad\.engine: TensorRT cannot load it"):
        TensorRTEngine.load(tmp_path / "bad.engine")


def test_a_model_of_an_opset_that_onnxruntime_does_not_run_is_named_as_that() -> None:
    newest = newest_opset()
    assert newest >= 21
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    open_session(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", newest)], ir_version=8))
    future = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 99)], ir_version=8)
    with pytest.raises(ModelFileError, match=rf"has opset 99, and onnxruntime .* runs opsets up to {newest}; take a lower --opset"):
        open_session(future)


def test_onnxruntime_leaves_nothing_in_the_home_and_the_environment_as_it_was(tmp_path: Path) -> None:
    """Its telemetry, which a process that runs it would leave there, is off; only while it is imported does a variable say so."""
    engines(tmp_path)
    script = (
        "import os; before = dict(os.environ); from caffetools.engines.onnxruntime import OnnxRuntimeEngine;"
        f"OnnxRuntimeEngine.load({str(tmp_path / 'a.onnx')!r}); assert dict(os.environ) == before"
    )
    home = tmp_path / "home"
    home.mkdir()
    switches = ("CI", "ORT_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in switches} | {"HOME": str(home)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert not list(home.rglob("*"))
