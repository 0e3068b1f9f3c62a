"""Nets for plain torch, and back: files of torch's own kinds, and a step of torch.optim that becomes a caffemodel."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import caffetools as ct
from caffetools.infer.import_model import torch_to_onnx
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.onnx.importer import import_model
from tests.infer.colours import write_net


def outputs_of(deploy: Path, weights: Path, x: torch.Tensor) -> torch.Tensor:
    net = ct.load_net(deploy, weights)
    with torch.no_grad():
        return net({net.inputs[0]: x})[net.outputs[0]]


def test_files_of_torch_give_the_numbers_of_the_net(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch", reason="the extra onnx2torch is not installed")
    from caffetools.infer.torch_export import export_torch, to_torch

    deploy, weights = write_net(tmp_path)
    net = ct.load_net(deploy, weights)
    x = torch.from_numpy(np.random.RandomState(0).rand(3, *net.blob_shapes[net.inputs[0]][1:]).astype(np.float32))
    expected = outputs_of(deploy, weights, x)
    for kind in ("torch", "torchscript", "exported-program"):
        assert export_torch(deploy, weights, tmp_path / kind, kind) < 1e-5
    with warnings.catch_warnings():
        # Newer releases of torch advise against it.
        warnings.simplefilter("ignore", FutureWarning)
        script = torch.jit.load(str(tmp_path / "torchscript"))
    program = torch.export.load(tmp_path / "exported-program").module()
    module = to_torch(net)
    module.load_state_dict(torch.load(tmp_path / "torch", weights_only=True))
    # What torch alone loads: the module of the state_dict.
    alone = torch.export.load(tmp_path / "torch.module.pt2").module()
    alone.load_state_dict(torch.load(tmp_path / "torch", weights_only=True))
    for function in (script, program, module, alone):
        torch.testing.assert_close(function(x), expected, rtol=1e-5, atol=1e-6)


def test_average_pooling_that_rounds_up_becomes_torchs(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch", reason="the extra onnx2torch is not installed")
    from caffetools.infer.torch_export import to_torch

    deploy = tmp_path / "deploy.prototxt"
    deploy.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 8 dim: 9 } } }\n'
        'layer { name: "a" type: "Pooling" bottom: "data" top: "a" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }\n'
        'layer { name: "b" type: "Pooling" bottom: "a" top: "b" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }\n'
    )
    net = Net.from_file(deploy)
    x = torch.from_numpy(np.random.RandomState(0).rand(3, 2, 8, 9).astype(np.float32))
    with torch.no_grad():
        torch.testing.assert_close(to_torch(net)(x), net({"data": x})["b"], rtol=1e-5, atol=1e-6)


def test_values_held_from_above_become_torchs(tmp_path: Path) -> None:
    """As ReLU6 and HardSwish come out of an import."""
    pytest.importorskip("onnx2torch", reason="the extra onnx2torch is not installed")
    from caffetools.infer.torch_export import export_torch

    class Held(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # A factor for each map is a Scale with a second bottom, whose shape is a constant.
            return torch.nn.functional.hardswish(x) + torch.clamp(x, max=0.5) * x.mean((2, 3), keepdim=True)

    deploy, weights = import_model(torch_to_onnx(Held(), {"data": (1, 3, 4, 5)})).write(tmp_path)
    for kind in ("torch", "torchscript", "exported-program"):
        assert export_torch(deploy, weights, tmp_path / kind, kind) < 1e-5


def test_a_step_of_plain_torch_becomes_a_caffemodel(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    net = ct.load_net(deploy, weights)
    x = torch.from_numpy(np.random.RandomState(0).rand(4, *net.blob_shapes[net.inputs[0]][1:]).astype(np.float32))
    before = outputs_of(deploy, weights, x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = -torch.log(net({net.inputs[0]: x})[net.outputs[0]][:, 1]).mean()
    loss.backward()
    optimizer.step()
    save_weights(net, tmp_path / "tuned.caffemodel")
    after = outputs_of(deploy, tmp_path / "tuned.caffemodel", x)
    with torch.no_grad():
        torch.testing.assert_close(after, net({net.inputs[0]: x})[net.outputs[0]])
    assert after[:, 1].mean() > before[:, 1].mean()
