"""Quantization-aware training: what is computed, what is learned, what snapshots hold, and how a run resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import caffetools as ct
from caffetools.engines.torch import TorchEngine
from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse
from caffetools.quant.aware import QuantizationAware
from caffetools.quant.fake import quantized_activation, quantized_weight
from caffetools.solver.run import train
from tests.cli.inprocess import error_of, run, run_well
from tests.quant.conftest import BODY, DEPLOY, Digits

SOLVER = """\
net: "train.prototxt" test_iter: 2 test_interval: 4 base_lr: 0.05 momentum: 0.9 lr_policy: "fixed" max_iter: 8 display: 0
snapshot: 4 snapshot_prefix: "run/digits" random_seed: 3 solver_mode: CPU
"""


@pytest.fixture
def folder(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a solver for the digits."""
    source = f'data_param {{ source: "{digits.database}" batch_size: 20 backend: LMDB }}'
    transform = "transform_param { scale: 0.00390625 mean_value: 128 }"
    data = f'layer {{ name: "data" type: "Data" top: "data" top: "label" {transform} {source} }}\n'
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }\n'
    score = 'layer { name: "score" type: "Accuracy" bottom: "ip" bottom: "label" top: "score" include { phase: TEST } }\n'
    (tmp_path / "train.prototxt").write_text(f'name: "digits"\n{data}{BODY}{loss}{score}')
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(path: Path) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    (path.parent / "deploy.prototxt").write_text(DEPLOY)
    net = TorchEngine.load(path.parent / "deploy.prototxt", path).net
    return [p.detach().numpy() for p in net.parameters()]


def test_a_run_learns_and_its_snapshots_are_ordinary(folder: Path) -> None:
    done = train("solver.prototxt", device="cpu", max_iter=60, callbacks=[QuantizationAware()])
    scores = [output.value for result in done.history.test for output in result.outputs if output.name == "score"]
    assert np.mean(scores[-4:]) > 0.9 > scores[0]
    assert done.snapshot is not None
    values = weights(done.snapshot.weights)[0]
    assert len(np.unique(values)) > 150  # not rounded to 8 bits
    ranges = json.loads(done.snapshot.state.with_suffix(".ranges.json").read_text())
    assert list(ranges) == ["conv1", "conv2", "conv3", "ip"]
    assert ranges["conv2"][0] == 0 < ranges["conv2"][1]


def test_simulated_int8_differs_from_float_and_is_the_rounded_computation(folder: Path) -> None:
    exact = train("solver.prototxt", device="cpu", max_iter=1)
    rounded = train("solver.prototxt", device="cpu", max_iter=1, callbacks=[aware := QuantizationAware()])
    assert exact.history.test[0].outputs != rounded.history.test[0].outputs
    net = rounded.solver.net
    layer, x = net.layer("conv1"), torch.rand(2, 1, 16, 16) - 0.5
    low, high = aware.ranges["conv1"]
    weight = layer.array(0)
    scale = np.abs(weight).reshape(8, -1).max(axis=1).reshape(-1, 1, 1, 1) / 127
    assert np.allclose(quantized_weight(layer).detach().numpy(), np.round(weight / scale) * scale, atol=1e-6)
    step = (high - low) / 255
    zero = np.round(-low / step)
    expected = (np.clip(np.round(x.numpy() / step) + zero, 0, 255) - zero) * step
    assert np.allclose(quantized_activation(x, low, high).numpy(), expected, atol=1e-6)


def test_gradients_pass_straight_through_inside_the_range_only() -> None:
    x = torch.tensor([-2.0, -0.3, 0.2, 0.9, 3.0], requires_grad=True)
    quantized_activation(x, -1.0, 1.0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]
    layer = Net(parse(DEPLOY, NetParameter), TRAIN).layer("conv1")
    quantized_weight(layer).sum().backward()
    assert layer.blobs[0].grad is not None and bool((layer.blobs[0].grad == 1).all())


def test_a_resumed_run_gives_the_weights_of_one_that_ran_through(folder: Path) -> None:
    whole = train("solver.prototxt", device="cpu", callbacks=[QuantizationAware()])
    assert whole.snapshot is not None
    expected = weights(whole.snapshot.weights)
    train("solver.prototxt", device="cpu", max_iter=4, callbacks=[QuantizationAware()])
    resumed = train("solver.prototxt", device="cpu", snapshot="run/digits_iter_4.solverstate", callbacks=[QuantizationAware()])
    assert resumed.snapshot is not None
    for a, b in zip(expected, weights(resumed.snapshot.weights), strict=True):
        assert np.array_equal(a, b)


def test_ranges_follow_activations_that_grow_while_a_net_begins_to_learn(folder: Path) -> None:
    done = train("solver.prototxt", device="cpu", max_iter=40, callbacks=[QuantizationAware()])
    assert done.snapshot is not None
    ranges = json.loads(done.snapshot.state.with_suffix(".ranges.json").read_text())
    with torch.inference_mode():
        largest = {name: float(done.solver.net(keep=[name])[name].max()) for name in ("conv1", "conv2")}
    # The inputs of the layers behind them; the first ReLUs gave about a third of it.
    assert ranges["conv2"][1] > 0.6 * largest["conv1"] and ranges["conv3"][1] > 0.6 * largest["conv2"]


def test_the_nets_compute_in_float_again_after_the_run(folder: Path) -> None:
    done = train("solver.prototxt", device="cpu", max_iter=1, callbacks=[QuantizationAware()])
    for net in (done.solver.net, *done.solver.test_nets):
        assert all(isinstance(layer.blobs[0], torch.nn.Parameter) for layer in net.layers if len(layer.blobs))
        layer, x = net.layer("conv1"), torch.rand(20, 1, 16, 16)
        expected = torch.nn.functional.conv2d(x, *layer.blobs)
        assert torch.allclose(layer(x)[0], expected, atol=1e-6)


def test_the_command_trains_and_refuses_what_it_cannot_do(folder: Path) -> None:
    run_well("train", "solver.prototxt", "--quantize", "int8", "--max-iter", 2, "--quiet", "--device", "cpu")
    assert Path("run/digits_iter_2.ranges.json").exists()
    assert "int4" in error_of(run("train", "solver.prototxt", "--quantize", "int4"))
    assert "one process" in error_of(run("train", "solver.prototxt", "--quantize", "int8", "-n", 2))
    assert "float32" in error_of(run("train", "solver.prototxt", "--quantize", "int8", "--precision", "bf16"))
    assert json.loads(Path("run/digits_iter_2.ranges.json").read_text()).keys() == {"conv1", "conv2", "conv3", "ip"}
    done = ct.train("solver.prototxt", device="cpu", max_iter=2, quantize="int8")
    assert done.snapshot is not None and json.loads(Path("run/digits_iter_2.ranges.json").read_text())
    with pytest.raises(ct.CaffeToolsError, match="int4"):
        ct.train("solver.prototxt", quantize="int4")
    Path("run/digits_iter_2.ranges.json").write_text("{")
    resumed = run(
        "train", "solver.prototxt", "--quantize", "int8", "--snapshot", "run/digits_iter_2.solverstate", "--quiet", "--device", "cpu"
    )
    assert "damaged" in error_of(resumed)
