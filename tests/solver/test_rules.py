"""Update rules beyond the golden runs: the common steps, fused against plain, and bad settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from caffetools.errors import CaffeToolsError
from caffetools.layers import native
from caffetools.net.net import Learnable
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import parse
from caffetools.solver.rules import RULES, make_rule
from caffetools.solver.update import UpdateRule


def entries(*mults: tuple[float, float], seed: int = 0) -> list[Learnable]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, (lr_mult, decay_mult) in enumerate(mults):
        data = torch.randn(4, 3, 5, 5, generator=generator).contiguous(memory_format=torch.channels_last)
        made.append(Learnable(nn.Parameter(data, requires_grad=lr_mult != 0), lr_mult, decay_mult, f"layer{index}", 0))
    return made


def give_gradients(learnable: list[Learnable], seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for entry in learnable:
        if entry.parameter.requires_grad:
            entry.parameter.grad = torch.randn(entry.parameter.shape, generator=generator).contiguous(memory_format=torch.channels_last)


def rule(text: str, learnable: list[Learnable]) -> UpdateRule:
    return make_rule(parse(text, SolverParameter), learnable)


def test_the_fused_sgd_gives_the_formulas_numbers() -> None:
    learnable = entries((1, 1), (2, 0), (0.5, 3))
    sgd = rule('type: "SGD" momentum: 0.9 weight_decay: 0.01', learnable)
    expected = [(e.parameter.detach().double(), torch.zeros(4, 3, 5, 5, dtype=torch.float64)) for e in learnable]
    for iteration, rate in enumerate((0.1, 1e-6, 0.05, 2.0)):
        give_gradients(learnable, seed=iteration)
        for index, (entry, (w, h)) in enumerate(zip(learnable, expected, strict=True)):
            assert entry.parameter.grad is not None
            g = entry.parameter.grad.double() + 0.01 * entry.decay_mult * w
            h = 0.9 * h + rate * entry.lr_mult * g
            expected[index] = (w - h, h)
        sgd.apply(rate, iteration)
    for entry, history, (w, h) in zip(learnable, sgd.history, expected, strict=True):
        torch.testing.assert_close(entry.parameter.detach().double(), w, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(history.double(), h, rtol=1e-5, atol=1e-6)


def test_sgd_without_momentum_remembers_its_last_step_as_caffe_does() -> None:
    learnable = entries((1, 1))
    give_gradients(learnable)
    gradient = learnable[0].parameter.grad
    assert gradient is not None
    expected = 0.5 * gradient.clone()
    sgd = rule('type: "SGD"', learnable)
    sgd.apply(0.5, 0)
    torch.testing.assert_close(sgd.history[0], expected)


@pytest.mark.parametrize("kind", RULES)
def test_a_gradient_in_another_memory_layout_gives_the_same_update(kind: str) -> None:
    results = []
    for layout in (torch.channels_last, torch.contiguous_format):
        learnable = entries((1, 1))
        give_gradients(learnable)
        parameter = learnable[0].parameter
        assert parameter.grad is not None
        gradient = parameter.grad.contiguous(memory_format=layout)
        parameter.grad = None
        parameter.grad = gradient
        momentum = "" if kind in ("AdaGrad", "RMSProp") else "momentum: 0.9"
        rule(f'type: "{kind}" {momentum} weight_decay: 0.01', learnable).apply(0.1, 0)
        results.append(parameter.detach().clone())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", RULES)
def test_a_parameter_without_a_gradient_still_decays(kind: str) -> None:
    learnable = entries((1, 1))
    before = learnable[0].parameter.detach().clone()
    momentum = "" if kind in ("AdaGrad", "RMSProp") else "momentum: 0.9"
    rule(f'type: "{kind}" {momentum} weight_decay: 0.1 delta: 1e-6', learnable).apply(0.01, 0)
    step = learnable[0].parameter.detach() - before
    assert bool((step * before < 0).all()), "every weight moves towards zero"


def test_a_frozen_parameter_is_unchanged_but_adam_remembers_its_decay() -> None:
    learnable = entries((0, 1), (0, 0))
    before = [e.parameter.detach().clone() for e in learnable]
    adam = rule('type: "Adam" momentum: 0.9 weight_decay: 0.1', learnable)
    adam.apply(0.01, 0)
    for entry, old in zip(learnable, before, strict=True):
        assert torch.equal(entry.parameter.detach(), old)
    torch.testing.assert_close(adam.history[0], 0.1 * 0.1 * before[0])
    assert not adam.history[1].any()


def test_a_frozen_parameter_with_a_history_from_elsewhere_moves_on_as_in_caffe() -> None:
    learnable = entries((0, 1))
    before = learnable[0].parameter.detach().clone()
    sgd = rule('type: "SGD" momentum: 0.5', learnable)
    sgd.load_history([np.ones((4, 3, 5, 5), np.float32)])
    sgd.apply(0.1, 0)
    torch.testing.assert_close(learnable[0].parameter.detach(), before - 0.5)


def test_clipping_bounds_the_norm_over_all_parameters() -> None:
    learnable = entries((1, 1), (1, 1))
    give_gradients(learnable)
    gradients = [e.parameter.grad.clone() for e in learnable if e.parameter.grad is not None]
    norm = torch.sqrt(sum((g**2).sum() for g in gradients))
    sgd = rule('type: "SGD" clip_gradients: 2', learnable)
    sgd.apply(1.0, 0)
    torch.testing.assert_close(sgd.history[1], gradients[1] * (2 / norm))
    give_gradients(learnable)
    wide = rule('type: "SGD" clip_gradients: 1000', learnable)
    wide.apply(1.0, 0)
    assert torch.equal(wide.history[0], gradients[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('type: "Lion"', "unknown type 'Lion'; it is one of SGD, Nesterov"),
        ('type: "SGD" regularization_type: "L3"', "unknown regularization_type 'L3'"),
        ('type: "SGD" iter_size: 0', "iter_size must be at least 1"),
        ('type: "AdaGrad" momentum: 0.9', "momentum cannot be used with AdaGrad"),
        ('type: "RMSProp" momentum: 0.9', "momentum cannot be used with RMSProp"),
        ('type: "RMSProp" rms_decay: 1', "rms_decay must be"),
        ('type: "Adam" momentum: 1', "momentum must be"),
        ('type: "Adam" momentum2: 1', "momentum2 must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(CaffeToolsError, match=words):
        rule(text, entries((1, 1)))


def test_a_history_that_does_not_fit_is_refused_whole() -> None:
    sgd = rule('type: "SGD" momentum: 0.9', entries((1, 1), (1, 1)))
    good = np.ones((4, 3, 5, 5), np.float32)
    with pytest.raises(CaffeToolsError, match="holds 4 history blobs, but SGD keeps 2"):
        sgd.load_history([good] * 4)
    with pytest.raises(CaffeToolsError, match=r"history blob 1 has shape \(4, 3, 5\)"):
        sgd.load_history([good, good[..., 0]])
    assert not any(blob.any() for blob in sgd.history)


@pytest.mark.skipif(not native.enabled(), reason="no native library")
@pytest.mark.parametrize("iter_size", [1, 3])
@pytest.mark.parametrize("regularization", ["L1", "L2"])
@pytest.mark.parametrize("clip", [-1.0, 3.0])
@pytest.mark.parametrize("kind", list(RULES))
def test_the_native_update_gives_torchs_numbers(
    kind: str, clip: float, regularization: str, iter_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    momentum = 0 if kind in ("AdaGrad", "RMSProp") else 0.9
    text = (
        f'type: "{kind}" momentum: {momentum} weight_decay: 0.01 delta: 1e-6 clip_gradients: {clip} '
        f'regularization_type: "{regularization}" iter_size: {iter_size}'
    )
    found = []
    for in_torch in (False, True):
        monkeypatch.setenv("CAFFETOOLS_NATIVE", "0" if in_torch else "1")
        learnable = entries((1, 1), (2, 0), (0.5, 3))
        # More than a thread's block, and not a multiple of a vector.
        data = torch.randn(40003, generator=torch.Generator().manual_seed(9))
        learnable.append(Learnable(nn.Parameter(data), 1, 1, "large", 0))
        mine = rule(text, learnable)
        for iteration in range(5):
            give_gradients(learnable[:3], seed=iteration)
            learnable[3].parameter.grad = torch.randn(40003, generator=torch.Generator().manual_seed(iteration))
            mine.apply(0.01, iteration)
        found.append([*(e.parameter.detach() for e in learnable), *mine.history])
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)
