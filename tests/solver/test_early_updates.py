"""Large parameters are updated within the backward pass: the same bits as after it, and their gradients do not last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caffetools.layers import native_conv, native_product
from caffetools.proto.text import write_prototxt
from caffetools.solver.callbacks import Callback
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.control import RunControl
from caffetools.solver.distributed import DistributedSolver
from caffetools.solver.run import train
from caffetools.solver.solver import Solver
from caffetools.solver.update import UpdateRule
from tests.solver.tiny import solver_param, weights

INPUT = 'layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 4 dim: 1024 } shape { dim: 4 } } }'
LARGE = """layer { name: "NAME" type: "InnerProduct" bottom: "BELOW" top: "NAME" PARAMS
  inner_product_param { num_output: 1024 weight_filler { type: "xavier" } } }
layer { name: "relu_NAME" type: "ReLU" bottom: "NAME" top: "NAME" }"""
REST = """layer { name: "small" type: "InnerProduct" bottom: "BELOW" top: "small"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "small" bottom: "label" top: "loss" }"""


def net(params: str = "param { lr_mult: 2 decay_mult: 0.5 } param { lr_mult: 1 }") -> str:
    first, second = (
        LARGE.replace("NAME", name).replace("BELOW", below).replace("PARAMS", params) for name, below in (("a", "data"), ("b", "a"))
    )
    return "\n".join((INPUT, first, second, REST.replace("BELOW", "b")))


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"data": torch.randn(4, 1024, generator=generator), "label": torch.arange(4).float()}


def trained(*, early: bool, fields: str = "", text: str = "", compute: ComputeOptions | None = None, **options: Any) -> Solver:
    param = solver_param(fields, text or net())
    solver = Solver(param, **options) if compute is None else DistributedSolver(param, compute=compute, **options)
    solver.updates_early, solver.train_inputs = early, batch()
    solver.step(3)
    return solver


def check_equal(one: Solver, other: Solver) -> None:
    for mine, theirs in zip((*weights(one), *one.rule.history), (*weights(other), *other.rule.history), strict=True):
        assert torch.equal(mine, theirs)


class Gradients(Callback):
    """Keep which parameters have a gradient when the update comes next."""

    def __init__(self) -> None:
        self.seen: list[list[bool]] = []

    def note(self, run: Any) -> None:
        self.seen.append([entry.parameter.grad is not None for entry in run.net.learnable])


class ReadingGradients(Gradients):
    def on_before_update(self, run: RunControl) -> None:
        self.note(run)


def gradients_before_update(monkeypatch: pytest.MonkeyPatch, fields: str = "", text: str = "") -> list[bool]:
    """Which parameters still have their gradients after the backward pass."""
    noted = Gradients()
    update = Solver._update

    def noting(solver: Solver) -> None:
        noted.note(solver)
        update(solver)

    with monkeypatch.context() as patch:
        patch.setattr(Solver, "_update", noting)
        trained(early=True, fields=fields, text=text)
    assert noted.seen == [noted.seen[0]] * 3
    return noted.seen[0]


RULES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows", [64, 320, 1024])
def test_every_rule_gives_the_bits_of_an_update_after_the_pass(rule: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the gradient is used by blocks of rows, of which the last has fewer."""
    monkeypatch.setattr(native_product, "_BLOCK_BYTES", rows * 4 * 1024)
    momentum = 0.0 if rule in ("AdaGrad", "RMSProp") else 0.9
    fields = f'type: "{rule}" momentum: {momentum} base_lr: 0.01 delta: 1e-4 rms_decay: 0.95'
    check_equal(trained(early=True, fields=fields), trained(early=False, fields=fields))
    # The large weights' gradients are gone by then, those of biases and of the small layer are there.
    assert gradients_before_update(monkeypatch, fields) == [False, True, False, True, True, True]


@pytest.mark.parametrize("fields", ["iter_size: 2", "clip_gradients: 0.1"])
def test_an_update_that_needs_all_gradients_waits_for_them(fields: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_equal(trained(early=True, fields=fields), trained(early=False, fields=fields))
    assert all(gradients_before_update(monkeypatch, fields))


def test_parameters_of_several_layers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    text = net('param { name: "w" } param { name: "b" }')
    check_equal(trained(early=True, text=text), trained(early=False, text=text))
    assert all(gradients_before_update(monkeypatch, text=text))


def test_a_callback_that_may_read_gradients_finds_all_of_them() -> None:
    callback = ReadingGradients()
    solver = trained(early=True, callbacks=[callback])
    assert callback.seen == [[True] * 6] * 3
    check_equal(solver, trained(early=False))


def test_the_rate_of_a_policy_that_follows_the_loss_is_the_same() -> None:
    fields = 'lr_policy: "plateau" gamma: 0.1 plateau_winsize: 1 display: 1'
    one, other = (trained(early=early, fields=fields) for early in (True, False))
    check_equal(one, other)
    assert one.rate == other.rate and one.losses == other.losses


@pytest.mark.parametrize("compute", [ComputeOptions(checkpoint_memory=True), ComputeOptions(precision="bf16")], ids=["recomputed", "bf16"])
def test_other_ways_to_compute_give_their_own_bits(compute: ComputeOptions) -> None:
    check_equal(trained(early=True, compute=compute), trained(early=False, compute=compute))


def test_training_that_an_exception_interrupts_goes_on_with_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = trained(early=True)
    backward = Tensor.backward

    def interrupted(loss: Tensor) -> None:
        backward(loss)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            solver.step(1)
    solver.updates_early, before = False, weights(solver)
    solver._clear_gradients()
    solver.step(1)
    assert not any(torch.equal(old, new) for old, new in zip(before, weights(solver), strict=True))


def test_a_gradient_that_is_used_by_rows_is_not_there_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native_conv.available():
        pytest.skip("needs the native library")
    monkeypatch.setattr(native_product, "_BLOCK_BYTES", 256 * 4 * 1024)
    seen: list[tuple[slice, tuple[int, ...]]] = []
    apply_rows = UpdateRule.apply_rows

    def noting(rule: UpdateRule, parameter: Tensor, rows: slice, gradient: Tensor, rate: float, iteration: int) -> None:
        seen.append((rows, tuple(gradient.shape)))
        apply_rows(rule, parameter, rows, gradient, rate, iteration)

    monkeypatch.setattr(UpdateRule, "apply_rows", noting)
    trained(early=True)
    assert seen == [(slice(begin, begin + 256), (256, 1024)) for begin in (0, 256, 512, 768)] * 6


def test_a_hook_on_a_weight_gets_its_whole_gradient() -> None:
    shapes: list[tuple[int, ...]] = []
    solver = Solver(solver_param("", net()))
    solver.updates_early, solver.train_inputs = True, batch()
    handle = solver.net.learnable[0].parameter.register_hook(lambda gradient: shapes.append(tuple(gradient.shape)))
    solver.step(3)
    handle.remove()
    assert shapes == [(1024, 1024)] * 3
    check_equal(solver, trained(early=False))


def test_a_loss_that_is_not_finite_changes_no_parameter() -> None:
    solver = trained(early=True)
    before = weights(solver)
    solver.train_inputs["data"] = torch.full((4, 1024), float("nan"))
    with pytest.raises(Exception, match="training has diverged"):
        solver.step(1)
    assert all(torch.equal(old, new) for old, new in zip(before, weights(solver), strict=True))


def test_the_command_updates_early(tmp_path: Path) -> None:
    text = net().replace('type: "Input"', 'type: "DummyData"').replace("input_param", "dummy_data_param")
    param = solver_param("max_iter: 1", text)
    param.snapshot_after_train = False
    write_prototxt(tmp_path / "solver.prototxt", param)
    assert train(tmp_path / "solver.prototxt", device="cpu").solver.updates_early
