"""Learning-rate policies."""

from __future__ import annotations

import math

import pytest

from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import parse
from caffetools.solver.policies import POLICIES, LearningRate


def rates(text: str, iterations: range) -> list[float]:
    rate = LearningRate(parse(text, SolverParameter))
    return [rate.at(iteration) for iteration in iterations]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('base_lr: 0.5 lr_policy: "fixed"', [0.5] * 5),
        ('base_lr: 1 lr_policy: "step" gamma: 0.1 stepsize: 2', [1, 1, 0.1, 0.1, 0.01]),
        ('base_lr: 1 lr_policy: "exp" gamma: 0.5', [1, 0.5, 0.25, 0.125, 0.0625]),
        ('base_lr: 2 lr_policy: "inv" gamma: 1 power: 0.5', [2 / math.sqrt(1 + i) for i in range(5)]),
        ('base_lr: 1 lr_policy: "multistep" gamma: 0.1 stepvalue: 1 stepvalue: 3', [1, 0.1, 0.1, 0.01, 0.01]),
        ('base_lr: 1 lr_policy: "poly" power: 2 max_iter: 4', [1, 0.5625, 0.25, 0.0625, 0]),
        ('base_lr: 1 lr_policy: "sigmoid" gamma: -1 stepsize: 2', [1 / (1 + math.exp(i - 2)) for i in range(5)]),
    ],
    ids=lambda value: value.split('"')[1] if isinstance(value, str) else "",
)
def test_policy_gives_its_formula(text: str, expected: list[float]) -> None:
    assert rates(text, range(5)) == pytest.approx(expected, rel=1e-6)


def test_every_policy_of_caffe_is_there() -> None:
    assert set(POLICIES) == {"fixed", "step", "exp", "inv", "multistep", "plateau", "poly", "sigmoid", "multifixed"}


def test_multistep_takes_one_step_an_iteration_even_where_two_are_due() -> None:
    assert rates('base_lr: 1 lr_policy: "multistep" gamma: 0.5 stepvalue: 1 stepvalue: 1', range(4)) == [1, 0.5, 0.25, 0.25]


def test_a_steep_sigmoid_is_zero_where_it_leaves_the_floats() -> None:
    assert rates('base_lr: 1 lr_policy: "sigmoid" gamma: -10 stepsize: 0', range(1000, 1001)) == [0]


def test_rates_are_float32_as_in_caffe() -> None:
    assert rates('base_lr: 0.1 lr_policy: "fixed"', range(1)) != [0.1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('base_lr: 1 lr_policy: "cosine"', "unknown lr_policy 'cosine'"),
        ("base_lr: 1", "lr_policy is missing"),
        ('lr_policy: "fixed"', "base_lr is missing"),
        ('base_lr: 1 lr_policy: "step" gamma: 0.1', "stepsize above 0"),
        ('base_lr: 1 lr_policy: "poly" power: 1', "max_iter above 0"),
    ],
)
def test_a_policy_without_its_fields_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(CaffeToolsError, match=words):
        LearningRate(parse(text, SolverParameter))


def test_a_rate_that_is_not_a_number_stops_the_run() -> None:
    with pytest.raises(RunFailed, match="iteration 5: lr_policy 'poly' gives the learning rate nan"):
        rates('base_lr: 1 lr_policy: "poly" power: 0.5 max_iter: 4', range(6))
