"""Learning-rate policies: the rate at an iteration, as Caffe's SGDSolver::GetLearningRate gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from caffetools.errors import CaffeToolsError, RunFailed


def fixed(solver: Any, iteration: int, step: int) -> float:
    """Always ``base_lr``."""
    return float(solver.base_lr)


def step(solver: Any, iteration: int, step: int) -> float:
    """``base_lr`` times ``gamma`` for every ``stepsize`` iterations done."""
    return float(solver.base_lr) * _power(solver.gamma, step)


def exp(solver: Any, iteration: int, step: int) -> float:
    """``base_lr * gamma ** iteration``."""
    return float(solver.base_lr) * _power(solver.gamma, iteration)


def inv(solver: Any, iteration: int, step: int) -> float:
    """``base_lr * (1 + gamma * iteration) ** -power``."""
    return float(solver.base_lr) * _power(1.0 + solver.gamma * iteration, -solver.power)


def multistep(solver: Any, iteration: int, step: int) -> float:
    """``base_lr`` times ``gamma`` for every ``stepvalue`` passed; ``step`` counts them."""
    return float(solver.base_lr) * _power(solver.gamma, step)


def poly(solver: Any, iteration: int, step: int) -> float:
    """``base_lr * (1 - iteration / max_iter) ** power``: zero at ``max_iter``."""
    return float(solver.base_lr) * _power(1.0 - iteration / solver.max_iter, solver.power)


def sigmoid(solver: Any, iteration: int, step: int) -> float:
    """``base_lr / (1 + e ** (-gamma * (iteration - stepsize)))``."""
    # Where e ** x leaves the range of floats, the rate is 0 as in Caffe, not an error.
    exponent = min(-solver.gamma * (iteration - solver.stepsize), 700.0)
    return float(solver.base_lr) / (1.0 + math.exp(exponent))


POLICIES: dict[str, Callable[[Any, int, int], float]] = {
    "fixed": fixed,
    "step": step,
    "exp": exp,
    "inv": inv,
    "multistep": multistep,
    "poly": poly,
    "sigmoid": sigmoid,
}


class LearningRate:
    """The learning rate of a ``SolverParameter`` along a run.

    Attributes:
        current_step: how many steps have been taken; stored in a snapshot, since ``multistep`` counts on from it.

    Raises:
        CaffeToolsError: the policy is unknown, or a field that it needs is missing or makes no sense.
    """

    def __init__(self, solver: Any):
        check_policy(solver)
        self._solver = solver
        self._rate = POLICIES[solver.lr_policy]
        self.current_step = 0

    def at(self, iteration: int) -> float:
        """The rate for the update of ``iteration``, rounded to float32; to be asked once for each iteration in turn.

        ``multistep`` takes at most one step per call, as Caffe does: two equal step values act on two iterations.

        Raises:
            RunFailed: the policy gives no finite rate there (``poly`` beyond ``max_iter``, a ``gamma`` that blows up).
        """
        solver = self._solver
        if solver.lr_policy == "step":
            self.current_step = iteration // solver.stepsize
        elif solver.lr_policy == "multistep":
            due = self.current_step < len(solver.stepvalue) and iteration >= solver.stepvalue[self.current_step]
            self.current_step += due
        rate = float(np.float32(self._rate(solver, iteration, self.current_step)))
        if not math.isfinite(rate):
            raise RunFailed(f"iteration {iteration}: lr_policy '{solver.lr_policy}' gives the learning rate {rate}; check its fields")
        return rate


def check_policy(solver: Any) -> None:
    """Hold the fields that the policy of ``solver`` needs against sense. Raises :class:`CaffeToolsError` naming the field."""
    policy = solver.lr_policy
    if policy not in POLICIES:
        what = f"unknown lr_policy '{policy}'" if policy else "lr_policy is missing"
        raise CaffeToolsError(f"solver: {what}; it is one of {', '.join(POLICIES)}")
    if not solver.HasField("base_lr"):
        raise CaffeToolsError("solver: base_lr is missing")
    if not 0 <= solver.base_lr < math.inf:
        raise CaffeToolsError(f"solver: base_lr must be at least 0, not {solver.base_lr:g}")
    if policy == "step" and solver.stepsize <= 0:
        raise CaffeToolsError("solver: lr_policy 'step' needs a stepsize above 0")
    if policy == "poly" and solver.max_iter <= 0:
        raise CaffeToolsError("solver: lr_policy 'poly' needs a max_iter above 0")


def _power(base: float, exponent: float) -> float:
    """``base ** exponent`` as C's pow has it: nan and inf where Python would raise or go complex."""
    with np.errstate(all="ignore"):
        return float(np.power(np.float64(base), np.float64(exponent)))
