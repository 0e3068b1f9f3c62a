"""What all update rules have in common: clipping, dividing by iter_size, weight decay, and what they remember of each parameter.

All work is done in place on lists of tensors, one list for each pair of multipliers, so that the cost of an update
does not grow with the number of layers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from caffetools.errors import CaffeToolsError
from caffetools.layers.blob_storage import mark_written
from caffetools.net.net import Learnable
from caffetools.proto.blobs import fits_stored
from caffetools.proto.schema import SolverParameter
from caffetools.solver import native_update
from caffetools.solver.errors import SolverError

Tensors = list[Tensor]


@dataclass
class Group:
    """Parameters with the same multipliers, and for each history of the rule its blobs; ``gradients`` are those of one update."""

    lr_mult: float
    decay_mult: float
    weights: Tensors = field(default_factory=list)
    histories: list[Tensors] = field(default_factory=list)
    gradients: Tensors = field(default_factory=list)

    def without(self, ids: Collection[int]) -> Group:
        """Return the group without the parameters of these ids."""
        return self._of([index for index, weight in enumerate(self.weights) if id(weight) not in ids])

    def only(self, parameter: Tensor) -> Group | None:
        """Return the group of ``parameter`` alone; None where it is not in this one."""
        found = [index for index, weight in enumerate(self.weights) if weight is parameter]
        return self._of(found) if found else None

    def rows(self, rows: slice) -> Group:
        """Return these rows of all parameters, as views."""
        histories = [[blob[rows] for blob in known] for known in self.histories]
        return Group(self.lr_mult, self.decay_mult, [weight[rows] for weight in self.weights], histories)

    def _of(self, indices: Sequence[int]) -> Group:
        histories = [[known[index] for index in indices] for known in self.histories]
        return Group(self.lr_mult, self.decay_mult, [self.weights[index] for index in indices], histories)


class UpdateRule:
    """How gradients become new weights.

    Args:
        solver: A ``SolverParameter``; read are momentum, weight_decay, regularization_type, clip_gradients, iter_size and the rule's own.
        learnable: What is updated, in the net's order. A parameter without a gradient (``.grad`` is None) counts as having zeros:
            weight decay and momentum act on it as in Caffe.

    Attributes:
        history: The rule's float32 blobs in the order of a .solverstate: one per parameter, then the second set of rules with two.

    Raises:
        CaffeToolsError: a field makes no sense for this rule.
    """

    # One name for each blob that the rule remembers of a parameter.
    HISTORY: ClassVar[tuple[str, ...]] = ()
    # The history is made of steps, gradient times rate: that of a parameter whose lr_mult is 0 then stays zero.
    REMEMBERS_STEPS: ClassVar[bool] = False

    def __init__(self, solver: SolverParameter, learnable: Sequence[Learnable]):
        self.momentum = float(solver.momentum)
        self.delta = float(solver.delta)
        self.weight_decay = float(solver.weight_decay)
        self.regularization = str(solver.regularization_type)
        self.clip = float(solver.clip_gradients)
        self.iter_size = int(solver.iter_size)
        self.learnable = list(learnable)
        if self.regularization not in ("L1", "L2"):
            raise SolverError(f"unknown regularization_type '{self.regularization}'; it is L1 or L2", field="regularization_type")
        if self.iter_size < 1:
            raise SolverError(f"iter_size must be at least 1, not {self.iter_size}", field="iter_size")
        self._check(solver)
        self.history: Tensors = [torch.zeros_like(p.parameter, requires_grad=False) for _ in self.HISTORY for p in self.learnable]
        self.gradient_norm: Tensor | None = None
        self._groups = self._make_groups()
        # The ids of parameters that were updated before the others.
        self._updated: set[int] = set()

    # ---- what a rule defines ----

    def _check(self, solver: SolverParameter) -> None:
        """Raise :class:`CaffeToolsError` where the solver's fields do not suit the rule."""

    def _update(self, group: Group, rate: float, iteration: int) -> None:
        """Update ``group.weights`` and its histories by torch, given ``rate`` (lr_mult included). Gradients may be overwritten.

        They are ready: clipped, averaged, with the weight decay added.
        """
        raise NotImplementedError

    def _constants(self, rate: float, iteration: int) -> native_update.Constants:
        """Return what the native library's formula of this rule needs besides the gradients' factor and the weight decay."""
        return native_update.Constants(rate=rate, momentum=self.momentum, delta=self.delta)

    # ---- what the solver calls ----

    @torch.no_grad()
    def apply(self, rate: float, iteration: int) -> None:
        """Update every parameter in place from its ``.grad``, at learning rate ``rate``; ``iteration`` counts from 0.

        Those that :meth:`apply_to` has updated since the last call are left as they are.
        """
        groups = [group.without(self._updated) for group in self._groups] if self._updated else self._groups
        self._updated.clear()
        for group in groups:
            group.gradients = [_gradient(weight) for weight in group.weights]
        factor = self._factor([gradient for group in groups for gradient in group.gradients])
        for group in groups:
            self._apply(group, factor, rate, iteration)

    @torch.no_grad()
    def apply_to(self, parameter: Tensor, rate: float, iteration: int) -> None:
        """Update one parameter as :meth:`apply` does, before the gradients of all are there: without a norm to clip them by.

        Args:
            parameter: One of ``learnable``, with its gradient.
            rate: As for :meth:`apply`.
            iteration: As for :meth:`apply`.
        """
        self._updated.add(id(parameter))
        for group in self._groups:
            if (one := group.only(parameter)) is not None:
                one.gradients = [_gradient(parameter)]
                self._apply(one, 1.0 / self.iter_size, rate, iteration)

    @torch.no_grad()
    def apply_rows(self, parameter: Tensor, rows: slice, gradient: Tensor, rate: float, iteration: int) -> None:
        """Update some rows of one parameter as :meth:`apply_to` does all of them.

        Args:
            parameter: As for :meth:`apply_to`; its gradient is not read.
            rows: The rows; of each pass, all of them are given once.
            gradient: Their gradient.
            rate: As for :meth:`apply`.
            iteration: As for :meth:`apply`.
        """
        self._updated.add(id(parameter))
        for group in self._groups:
            if (one := group.only(parameter)) is not None:
                part = one.rows(rows)
                part.gradients = [gradient]
                self._apply(part, 1.0 / self.iter_size, rate, iteration)
        mark_written([parameter])

    def forget_early(self) -> None:
        """Let the next :meth:`apply` update all parameters: the pass in which some were updated has failed."""
        self._updated.clear()

    def _apply(self, group: Group, factor: Tensor | float, rate: float, iteration: int) -> None:
        """Update a group from its gradients, which are to be multiplied by ``factor``."""
        if native_update.takes(group.weights, group.histories):
            constants = self._constants(rate * group.lr_mult, iteration)
            constants.scale, constants.decay = float(factor), self.weight_decay * group.decay_mult
            constants.absolute = self.regularization == "L1"
            native_update.update(type(self).__name__, constants, group.weights, group.gradients, group.histories)
        else:
            torch._foreach_mul_(group.gradients, factor)
            self._regularize(group)
            self._update(group, rate * group.lr_mult, iteration)
        group.gradients = []
        # Fused kernels leave no trace in the version counters; nets that share the weights keep packed copies of them.
        mark_written(group.weights)

    def check_history(self, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        """Raise :class:`CaffeToolsError` where there are more or fewer arrays than this rule keeps for this net, or a shape differs."""
        if len(arrays) != len(self.history):
            raise CaffeToolsError(
                f"holds {len(arrays)} history blobs, but {type(self).__name__} keeps {len(self.history)} for this net: "
                "it comes from another net or another type of solver"
            )
        for index, (mine, array) in enumerate(zip(self.history, arrays, strict=True)):
            if not fits_stored(array.shape, tuple(mine.shape)):
                raise CaffeToolsError(f"its history blob {index} has shape {array.shape}, but this net needs {tuple(mine.shape)}")

    @torch.no_grad()
    def load_history(self, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        """Take the history of a .solverstate, arrays of the parameters' shapes. Raises :class:`CaffeToolsError` as :meth:`check_history` does; nothing is taken then."""
        self.check_history(arrays)
        for mine, array in zip(self.history, arrays, strict=True):
            mine.copy_(torch.from_numpy(np.array(array, np.float32)).reshape(mine.shape))
        self._groups = self._make_groups()

    # ---- the common steps ----

    def _make_groups(self) -> list[Group]:
        """Return the parameters by their multipliers, without those that no update can change, nor their history."""
        groups: dict[tuple[float, float], Group] = {}
        count = len(self.learnable)
        for index, entry in enumerate(self.learnable):
            blobs = self.history[index::count]
            still = self.REMEMBERS_STEPS or entry.decay_mult * self.weight_decay == 0
            if entry.lr_mult == 0 and still and not any(bool(blob.any()) for blob in blobs):
                continue
            key = (entry.lr_mult, entry.decay_mult)
            group = groups.setdefault(key, Group(*key, histories=[[] for _ in self.HISTORY]))
            group.weights.append(entry.parameter)
            for known, blob in zip(group.histories, blobs, strict=True):
                known.append(blob)
        return list(groups.values())

    def _factor(self, gradients: Tensors) -> Tensor | float:
        """Return what clips the gradients by their norm, and averages over iter_size; Caffe clips what is accumulated, before it averages."""
        self.gradient_norm = None
        mean = 1.0 / self.iter_size
        if not gradients or self.clip < 0:
            return mean
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.gradient_norm = norm
        # A tensor, not a number: nothing has to wait for the device.
        return torch.where(norm > self.clip, self.clip / norm, torch.ones_like(norm)) * mean

    def _regularize(self, group: Group) -> None:
        decay = self.weight_decay * group.decay_mult
        if not decay:
            return
        if self.regularization == "L2":
            torch._foreach_add_(group.gradients, group.weights, alpha=decay)
        else:
            torch._foreach_add_(group.gradients, [w.sign() for w in group.weights], alpha=decay)


def _gradient(parameter: Tensor) -> Tensor:
    """Return the parameter's gradient in its own memory layout, which fused kernels rely on; zeros where there is none."""
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter).copy_(gradient)
    return gradient
