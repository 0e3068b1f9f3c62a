"""The update rules: SGD, Nesterov, AdaGrad, RMSProp, AdaDelta and Adam, as Caffe's solvers compute them.

A rule is its formula and the names of what it remembers; :mod:`caffetools.solver.update` does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from caffetools.net.net import Learnable
from caffetools.proto.schema import SolverParameter
from caffetools.solver.errors import SolverError
from caffetools.solver.native_update import Constants
from caffetools.solver.update import Group, Tensors, UpdateRule


class SGD(UpdateRule):
    """Momentum, with the rate inside: ``h = momentum * h + rate * g; w -= h``."""

    HISTORY = ("momentum",)
    REMEMBERS_STEPS = True

    def _regularize(self, group: Group) -> None:
        if not self._fused():
            super()._regularize(group)

    def _update(self, group: Group, rate: float, iteration: int) -> None:
        (history,) = group.histories
        if not self._fused():
            torch._foreach_mul_(history, self.momentum)
            torch._foreach_add_(history, group.gradients, alpha=rate)
            torch._foreach_sub_(group.weights, history)
            return
        # One pass over weights, history and gradients. torch adds (1 - dampening) * g to the history and takes lr times the
        # history off the weights; Caffe's rate belongs inside, so it is applied through the dampening.
        torch._fused_sgd_(
            group.weights,
            group.gradients,
            history,
            weight_decay=self.weight_decay * group.decay_mult,
            momentum=self.momentum,
            lr=1.0,
            dampening=1.0 - rate,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    def _fused(self) -> bool:
        # torch's kernel keeps no history without momentum, and knows no L1.
        return self.momentum != 0 and self.regularization == "L2"


class Nesterov(UpdateRule):
    """Nesterov's momentum: ``h' = momentum * h + rate * g; w -= (1 + momentum) * h' - momentum * h``."""

    HISTORY = ("momentum",)
    REMEMBERS_STEPS = True

    def _update(self, group: Group, rate: float, iteration: int) -> None:
        (history,) = group.histories
        torch._foreach_add_(group.weights, history, alpha=self.momentum)
        torch._foreach_mul_(history, self.momentum)
        torch._foreach_add_(history, group.gradients, alpha=rate)
        torch._foreach_sub_(group.weights, history, alpha=1.0 + self.momentum)


class AdaGrad(UpdateRule):
    """``h += g²; w -= rate * g / (sqrt(h) + delta)`` (Duchi, Hazan and Singer, 2011)."""

    HISTORY = ("squares",)

    def _check(self, solver: SolverParameter) -> None:
        _no_momentum(self)

    def _update(self, group: Group, rate: float, iteration: int) -> None:
        (squares,) = group.histories
        torch._foreach_addcmul_(squares, group.gradients, group.gradients)
        _step_over_root(group, squares, rate, self.delta)


class RMSProp(UpdateRule):
    """``h = rms_decay * h + (1 - rms_decay) * g²; w -= rate * g / (sqrt(h) + delta)`` (Tieleman and Hinton, 2012)."""

    HISTORY = ("squares",)

    def _check(self, solver: SolverParameter) -> None:
        _no_momentum(self)
        self.rms_decay = float(solver.rms_decay)
        if not 0 <= self.rms_decay < 1:
            raise SolverError(f"rms_decay must be at least 0 and below 1, not {self.rms_decay:g}", field="rms_decay")

    def _update(self, group: Group, rate: float, iteration: int) -> None:
        (squares,) = group.histories
        _average(squares, self.rms_decay, group.gradients, group.gradients)
        _step_over_root(group, squares, rate, self.delta)

    def _constants(self, rate: float, iteration: int) -> Constants:
        return Constants(rate=rate, momentum=self.rms_decay, delta=self.delta)


class AdaDelta(UpdateRule):
    """Steps in the units of the weights (Zeiler, 2012); the momentum is the decay of both averages, the rate scales the step."""

    HISTORY = ("squares", "steps")

    def _update(self, group: Group, rate: float, iteration: int) -> None:
        squares, steps = group.histories
        _average(squares, self.momentum, group.gradients, group.gradients)
        ratio = list(torch._foreach_add(steps, self.delta))
        torch._foreach_div_(ratio, torch._foreach_add(squares, self.delta))
        torch._foreach_sqrt_(ratio)
        torch._foreach_mul_(ratio, group.gradients)
        _average(steps, self.momentum, ratio, ratio)
        torch._foreach_sub_(group.weights, ratio, alpha=rate)


class Adam(UpdateRule):
    """Adam (Kingma and Ba, 2015) with beta1 = momentum, beta2 = momentum2, and delta outside of the bias correction, as in Caffe."""

    HISTORY = ("means", "squares")

    def _check(self, solver: SolverParameter) -> None:
        self.momentum2 = float(solver.momentum2)
        for name, value in (("momentum", self.momentum), ("momentum2", self.momentum2)):
            if not 0 <= value < 1:
                raise SolverError(f"{name} must be at least 0 and below 1 for Adam, not {value:g}", field=name)

    def _update(self, group: Group, rate: float, iteration: int) -> None:
        means, squares = group.histories
        torch._foreach_lerp_(means, group.gradients, 1.0 - self.momentum)
        _average(squares, self.momentum2, group.gradients, group.gradients)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, self.delta)
        torch._foreach_addcdiv_(group.weights, means, roots, value=-rate * self._correction(iteration))

    def _constants(self, rate: float, iteration: int) -> Constants:
        rate *= self._correction(iteration)
        return Constants(rate=rate, momentum=self.momentum, second=self.momentum2, delta=self.delta)

    def _correction(self, iteration: int) -> float:
        return math.sqrt(1.0 - self.momentum2 ** (iteration + 1)) / (1.0 - self.momentum ** (iteration + 1))


RULES: dict[str, type[UpdateRule]] = {rule.__name__: rule for rule in (SGD, Nesterov, AdaGrad, RMSProp, AdaDelta, Adam)}


def make_rule(solver: SolverParameter, learnable: Sequence[Learnable]) -> UpdateRule:
    """Return the update rule that ``type`` of ``solver`` (a ``SolverParameter``) names. Raises :class:`CaffeToolsError`."""
    if solver.type not in RULES:
        raise SolverError(f"unknown type '{solver.type}'; it is one of {', '.join(RULES)}", field="type")
    if not 0 <= solver.momentum < math.inf:
        raise SolverError(f"momentum must be at least 0, not {solver.momentum:g}", field="momentum")
    return RULES[solver.type](solver, learnable)


def _no_momentum(rule: UpdateRule) -> None:
    if rule.momentum:
        raise SolverError(f"momentum cannot be used with {type(rule).__name__}; remove it", field="momentum")


def _average(mean: Tensors, decay: float, a: Tensors, b: Tensors) -> None:
    """``mean = decay * mean + (1 - decay) * a * b``."""
    torch._foreach_mul_(mean, decay)
    torch._foreach_addcmul_(mean, a, b, value=1.0 - decay)


def _step_over_root(group: Group, squares: Tensors, rate: float, delta: float) -> None:
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, delta)
    torch._foreach_addcdiv_(group.weights, group.gradients, roots, value=-rate)
