"""Lower precision, compiling, and transforming on a device: what they change, and what they must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from caffetools.errors import CaffeToolsError
from caffetools.solver.callbacks import History
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.distributed import DistributedSolver
from caffetools.solver.precision import Precision
from caffetools.solver.solver import Solver
from tests.solver.tiny import NET, inputs, solver_param, weights
from tests.solver.together import RANDOM, project

CONV = """
layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 8 dim: 3 dim: 9 dim: 9 } shape { dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "norm" type: "LRN" bottom: "conv" top: "norm" }
layer { name: "bn" type: "BatchNorm" bottom: "norm" top: "bn" }
layer { name: "pool" type: "Pooling" bottom: "bn" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def pictures() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(8) % 4
    data = torch.randn(8, 3, 9, 9, generator=generator)
    data[:, 0] += label.reshape(-1, 1, 1) - 1.5
    return {"data": data, "label": label.float()}


def trained(means: ComputeOptions | None, net: str = CONV, iterations: int = 8, fields: str = "", **options: Any) -> Solver:
    param = solver_param(fields, net)
    solver = Solver(param, **options) if means is None else DistributedSolver(param, compute=means, **options)
    solver.train_inputs = pictures() if net is CONV else inputs()
    solver.step(iterations)
    return solver


def distance(one: Solver, other: Solver) -> float:
    """Of the weights, relative to the larger one's."""
    pairs = zip(weights(one), weights(other), strict=True)
    return max(float((a - b).norm() / a.norm().clamp(min=1e-3)) for a, b in pairs)


def test_without_options_the_bits_are_those_of_the_plain_solver() -> None:
    assert distance(trained(None), trained(ComputeOptions())) == 0.0


@pytest.mark.parametrize(("mode", "dtype", "near"), [("bf16", torch.bfloat16, 0.1), ("fp16", torch.float16, 0.02)])
def test_half_precision_computes_in_it_and_comes_near(mode: str, dtype: torch.dtype, near: float) -> None:
    seen: dict[str, torch.dtype] = {}

    def note(layer: Any, bottoms: Any, tops: Any) -> None:
        seen[layer.name] = (tops[0] if isinstance(tops, tuple) else tops).dtype

    param = solver_param("display: 0", CONV)
    half = DistributedSolver(param, compute=ComputeOptions(mode))
    half.train_inputs = pictures()
    for layer in half.net.layers:
        if not layer.IS_DATA:
            layer.register_forward_hook(note)
    half.step(8)
    assert seen["conv"] == seen["relu"] == seen["ip"] == dtype
    assert seen["norm"] == seen["bn"] == seen["loss"] == torch.float32
    assert all(blob.dtype == torch.float32 for blob in (*weights(half), *half.rule.history))
    # It is another computation than in float32, but not another training.
    assert 0 < distance(trained(None), half) < near


def test_half_precision_learns() -> None:
    history = History()
    solver = DistributedSolver(solver_param("display: 19 max_iter: 20"), compute=ComputeOptions("bf16"), callbacks=[history])
    solver.train_inputs = inputs()
    solver.step(20)
    assert history.train[-1].loss < 0.2 * history.train[0].loss


def test_an_overflow_in_fp16_leaves_out_the_update_and_reports_it() -> None:
    lines: list[str] = []
    param = solver_param("clip_gradients: 1")
    solver = DistributedSolver(
        param, compute=ComputeOptions("fp16"), log=lambda source, text, severity="I": lines.append(f"{severity} {text}")
    )
    solver.train_inputs = inputs()
    solver.step(2)
    before, history = weights(solver), [blob.clone() for blob in solver.rule.history]
    # A scale at which this net's gradients are beyond the range of fp16.
    solver.precision.set_state({**solver.precision.state(), "scale": 2.0**40})
    solver.step(1)
    assert all(map(torch.equal, before, weights(solver)))
    assert all(map(torch.equal, history, solver.rule.history))
    assert lines[-1] == "W Iteration 2: a gradient overflowed in fp16, so there is no update; the loss scale is 5.49756e+11 now"
    assert solver.iteration == 3
    # The scale is halved until the gradients fit again.
    solver.step(40)
    assert not all(map(torch.equal, before, weights(solver)))
    assert all(bool(torch.isfinite(blob).all()) for blob in weights(solver))


def test_gradients_in_fp16_are_those_without_scaling() -> None:
    # Clipping and the display of gradients come after the scale was taken out.
    fields = "clip_gradients: 0.01 display: 0"
    assert distance(trained(None, fields=fields), trained(ComputeOptions("fp16"), fields=fields)) < 0.02


def test_a_resumed_fp16_run_ends_on_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path, batch=4, transform=RANDOM))
    whole = DistributedSolver.from_file("solver.prototxt", compute=ComputeOptions("fp16"))
    whole.precision.set_state({**whole.precision.state(), "scale": 2.0**13, "_growth_tracker": 1995})
    whole.solve()
    assert whole.precision.state()["scale"] == 2.0**14
    resumed = DistributedSolver.from_file("solver.prototxt", compute=ComputeOptions("fp16"))
    resumed.restore("run_iter_5.solverstate")
    resumed.solve()
    assert resumed.precision.state() == whole.precision.state()
    assert all(map(torch.equal, weights(whole), weights(resumed)))


def test_test_nets_compute_in_the_same_precision() -> None:
    solver = DistributedSolver(solver_param("test_iter: 1 test_interval: 5 test_initialization: false"), compute=ComputeOptions("bf16"))
    solver.train_inputs = solver.test_inputs = inputs()
    seen = []
    solver.test_nets[0].layer("ip2").register_forward_hook(lambda layer, bottoms, top: seen.append(top.dtype))
    (tested,) = solver.test_all()
    assert seen == [torch.bfloat16]
    assert [output.name for output in tested.outputs] == ["accuracy", "loss"]


def test_tf32_on_the_cpu_is_fp32_and_reports_it() -> None:
    lines: list[str] = []
    solver = trained(ComputeOptions("tf32"), log=lambda source, text, severity="I": lines.append(text))
    assert distance(trained(None), solver) == 0.0
    assert "tf32 is a format of CUDA devices; on the CPU this run computes in float32" in lines


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(CaffeToolsError, match="unknown precision 'fp8'; it is one of fp32, tf32, bf16, fp16"):
        Precision("fp8", torch.device("cpu"), lambda *text: None)


def test_debug_info_is_refused_where_passes_are_not_plain() -> None:
    with pytest.raises(CaffeToolsError, match="debug_info needs one process in fp32"):
        trained(ComputeOptions("bf16"), fields="debug_info: true")
    lines: list[str] = []
    trained(ComputeOptions(), fields="debug_info: true display: 1", iterations=1, log=lambda source, text, severity="I": lines.append(text))
    assert any("[Forward] Layer conv, top blob conv data" in line for line in lines)


def test_pictures_that_the_device_transforms_train_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path, batch=4, transform=RANDOM))
    usual = DistributedSolver.from_file("solver.prototxt")
    usual.solve()
    other = DistributedSolver.from_file("solver.prototxt", compute=ComputeOptions(device_transform=True))
    other.solve()
    assert all(map(torch.equal, weights(usual), weights(other)))


# ---- compiling ----


def test_a_compiled_net_follows_the_plain_one() -> None:
    import torch._inductor.config as inductor

    lines: list[str] = []
    torch._dynamo.reset()
    # What the processor reports of its instructions is not tried out by compiling a file for each of them.
    with inductor.patch({"cpp.vec_isa_ok": True}):
        solver = trained(
            ComputeOptions(compiled=True), NET, iterations=4, log=lambda source, text, severity="I": lines.append(f"{severity} {text}")
        )
    assert not [line for line in lines if line.startswith("W")], "it was not compiled"
    assert distance(trained(None, NET, iterations=4), solver) < 1e-5


def test_a_net_that_cannot_be_compiled_runs_as_it_is() -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    lines: list[str] = []
    with inductor.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True}):
        solver = trained(
            ComputeOptions(compiled=True), NET, iterations=2, log=lambda source, text, severity="I": lines.append(f"{severity} {text}")
        )
    (line,) = [line for line in lines if line.startswith("W")]
    assert line.startswith("W The net cannot be compiled here, so it runs as it is: ") and "\n" not in line
    assert distance(trained(None, NET, iterations=2), solver) == 0.0
