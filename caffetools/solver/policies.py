"""Learning-rate policies: the rate at an iteration, as Caffe's SGDSolver::GetLearningRate gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from caffetools.errors import RunFailed
from caffetools.proto.schema import SolverParameter
from caffetools.solver.errors import SolverError


def fixed(solver: SolverParameter, iteration: int, step: int) -> float:
    """Always ``base_lr``."""
    return float(solver.base_lr)


def step(solver: SolverParameter, iteration: int, step: int) -> float:
    """Return ``base_lr`` times ``gamma`` for every ``stepsize`` iterations done."""
    return float(solver.base_lr) * _power(solver.gamma, step)


def exp(solver: SolverParameter, iteration: int, step: int) -> float:
    """Return ``base_lr * gamma ** iteration``."""
    return float(solver.base_lr) * _power(solver.gamma, iteration)


def inv(solver: SolverParameter, iteration: int, step: int) -> float:
    """Return ``base_lr * (1 + gamma * iteration) ** -power``."""
    return float(solver.base_lr) * _power(1.0 + solver.gamma * iteration, -solver.power)


def multistep(solver: SolverParameter, iteration: int, step: int) -> float:
    """Return ``base_lr`` times ``gamma`` for every ``stepvalue`` passed; ``step`` counts them."""
    return float(solver.base_lr) * _power(solver.gamma, step)


def plateau(solver: SolverParameter, iteration: int, step: int) -> float:
    """Return ``base_lr`` times ``gamma`` for every window without a smaller loss (SSD, NVCaffe, Intel); ``step`` counts them."""
    return float(solver.base_lr) * _power(solver.gamma, step)


def poly(solver: SolverParameter, iteration: int, step: int) -> float:
    """Return ``(base_lr - min_lr) * (1 - iteration / max_iter) ** power + min_lr``: ``min_lr`` (NVCaffe; 0 in Caffe) at ``max_iter``."""
    floor = float(solver.min_lr)
    return (float(solver.base_lr) - floor) * _power(1.0 - iteration / solver.max_iter, solver.power) + floor


def sigmoid(solver: SolverParameter, iteration: int, step: int) -> float:
    """Return ``base_lr / (1 + e ** (-gamma * (iteration - stepsize)))``."""
    # Where e ** x leaves the range of floats, the rate is 0 as in Caffe, not an error.
    exponent = min(-solver.gamma * (iteration - solver.stepsize), 700.0)
    return float(solver.base_lr) / (1.0 + math.exp(exponent))


def multifixed(solver: SolverParameter, iteration: int, step: int) -> float:
    """Return ``stagelr`` of the first stage whose ``stageiter`` is not passed, else of the last (Intel, YOLO)."""
    stage = next((index for index, last in enumerate(solver.stageiter) if iteration <= last), len(solver.stageiter) - 1)
    return float(solver.stagelr[stage])


POLICIES: dict[str, Callable[[Any, int, int], float]] = {
    "fixed": fixed,
    "step": step,
    "exp": exp,
    "inv": inv,
    "multistep": multistep,
    "plateau": plateau,
    "poly": poly,
    "sigmoid": sigmoid,
    "multifixed": multifixed,
}


class LearningRate:
    """The learning rate of a ``SolverParameter`` along a run.

    Attributes:
        current_step: How many steps have been taken; stored in a snapshot, since ``multistep`` and ``plateau`` count on from it.
        minimum_loss: For ``plateau``: the smallest smoothed loss; stored in a snapshot.
        last_event: For ``plateau``: the iteration of that loss or of the last step; stored in a snapshot.

    Raises:
        CaffeToolsError: The policy is unknown, or a field that it needs is missing or makes no sense.
    """

    def __init__(self, solver: SolverParameter):
        check_policy(solver)
        self._solver = solver
        self._rate = POLICIES[solver.lr_policy]
        self.current_step = 0
        self.minimum_loss = math.inf
        self.last_event = 0

    def at(self, iteration: int, loss: Callable[[], float] | None = None) -> float:
        """Return the rate for the update of ``iteration``, rounded to float32; to be asked once for each iteration in turn.

        ``multistep`` takes at most one step per call, as Caffe does: two equal step values act on two iterations.

        Args:
            iteration: Iterations completed.
            loss: Gives the smoothed loss of this iteration; called for ``plateau`` alone.

        Raises:
            RunFailed: The policy gives no finite rate there (``poly`` beyond ``max_iter``, a ``gamma`` that blows up).
            SolverError: ``plateau`` without ``loss``.
        """
        solver = self._solver
        if solver.lr_policy == "step":
            self.current_step = iteration // solver.stepsize
        elif solver.lr_policy == "multistep":
            # NVCaffe takes no step within its ramp, and those that fell into it one by one behind it.
            counts = iteration >= solver.rampup_interval
            due = counts and self.current_step < len(solver.stepvalue) and iteration >= solver.stepvalue[self.current_step]
            self.current_step += due
        elif solver.lr_policy == "plateau":
            self._follow_loss(iteration, loss)
        rate = _started(solver, iteration, self._rate(solver, iteration, self.current_step))
        rate = float(np.float32(max(rate, solver.min_lr) if solver.HasField("min_lr") else rate))
        if not math.isfinite(rate):
            raise RunFailed(f"iteration {iteration}: lr_policy '{solver.lr_policy}' gives the learning rate {rate}; check its fields")
        return rate

    def _follow_loss(self, iteration: int, loss: Callable[[], float] | None) -> None:
        """Take the next step of ``plateau`` where its window has passed without a smaller loss and without a step."""
        if loss is None:
            raise SolverError("lr_policy 'plateau' follows the loss of a training, which is not known here", field="lr_policy")
        smoothed = float(np.float32(loss()))
        if smoothed < self.minimum_loss:
            self.minimum_loss, self.last_event = smoothed, iteration
        windows = self._solver.plateau_winsize
        if self.current_step < len(windows) and iteration >= self.last_event + windows[self.current_step]:
            self.current_step, self.last_event = self.current_step + 1, iteration


def _started(solver: SolverParameter, iteration: int, rate: float) -> float:
    """Return the rate of an iteration in the warm-up of Intel's Caffe or in the ramp of NVCaffe; ``rate`` after it."""
    if iteration < solver.warmup_iter:
        done = iteration / solver.warmup_iter
        return float(done * solver.base_lr + (1.0 - done) * solver.warmup_start_lr)
    if iteration < solver.rampup_interval:
        done = iteration / solver.rampup_interval
        return float(solver.rampup_lr + (solver.base_lr - solver.rampup_lr) * done * done)
    return rate


def check_policy(solver: SolverParameter) -> None:
    """Hold the fields that the policy of ``solver`` needs against sense. Raises :class:`CaffeToolsError` naming the field."""
    policy = solver.lr_policy
    if policy not in POLICIES:
        what = f"unknown lr_policy '{policy}'" if policy else "lr_policy is missing"
        raise SolverError(f"{what}; it is one of {', '.join(POLICIES)}", field="lr_policy")
    if policy == "multifixed":
        if not solver.stageiter or len(solver.stageiter) != len(solver.stagelr):
            raise SolverError("lr_policy 'multifixed' needs as many stagelr as stageiter, at least one", field="lr_policy")
        return
    if not solver.HasField("base_lr"):
        raise SolverError("base_lr is missing")
    if not 0 <= solver.base_lr < math.inf:
        raise SolverError(f"base_lr must be at least 0, not {solver.base_lr:g}", field="base_lr")
    if policy == "step" and solver.stepsize <= 0:
        raise SolverError("lr_policy 'step' needs a stepsize above 0", field="stepsize")
    if policy == "plateau" and (not solver.plateau_winsize or min(solver.plateau_winsize) < 1):
        raise SolverError("lr_policy 'plateau' needs plateau_winsize above 0, one for each step", field="plateau_winsize")
    if policy == "poly" and solver.max_iter <= 0:
        raise SolverError("lr_policy 'poly' needs a max_iter above 0", field="max_iter")


def _power(base: float, exponent: float) -> float:
    """Return ``base ** exponent`` as C's pow has it: nan and inf where Python would raise or go complex."""
    with np.errstate(all="ignore"):
        return float(np.power(np.float64(base), np.float64(exponent)))
