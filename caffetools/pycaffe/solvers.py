"""The solvers, as ``caffe.SGDSolver`` and the others: their nets can be read and changed between iterations."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from caffetools.errors import CaffeToolsError
from caffetools.layers.fillers import fill
from caffetools.net.net import Net as TorchNet
from caffetools.net.param_sharing import owner_of
from caffetools.net.stepwise import Stepwise
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import read_solver
from caffetools.proto.upgrades.v1 import upgrade_solver
from caffetools.pycaffe import mode
from caffetools.pycaffe.files import AnyPath, path_of, share
from caffetools.pycaffe.net import Net
from caffetools.pycaffe.vectors import NetVec
from caffetools.solver import solver as engine
from caffetools.solver.callbacks import Callback
from caffetools.solver.control import RunControl, Snapshot, TestResult
from caffetools.solver.debug import UpdateDiffs, log_values


class Solver:
    """Trains the net of a solver prototxt. The update rule is the file's own, or that of the class.

    After :meth:`step` the diffs of the parameters hold the last update, as in Caffe.

    Args:
        solver_file: The solver prototxt.

    Raises:
        PrototxtError, NetError, CaffeToolsError: The solver or one of its nets is wrong.
    """

    _TYPE: str | None = None

    def __init__(self, solver_file: AnyPath):
        solver_file = path_of(solver_file)
        param = upgrade_solver(read_solver(solver_file))
        if self._TYPE is not None:
            param.type = self._TYPE
        self._core = _Engine(param, path=solver_file, device=mode.device(), log=_log)
        self._net = Net._around(self._core.net, self._core.run)
        self._test_nets = NetVec(Net._around(net, run) for net, run in zip(self._core.test_nets, self._core.test_runs, strict=True))

    @property
    def net(self) -> Net:
        """The training net; after :meth:`step` its blobs are those of the last iteration."""
        return self._net

    @property
    def test_nets(self) -> NetVec:
        """The test nets."""
        return self._test_nets

    @property
    def type(self) -> str:
        """The update rule: "SGD", "Adam", …"""
        return str(self._core.param.type)

    @property
    def param(self) -> SolverParameter:
        """The ``SolverParameter``."""
        return self._core.param

    @property
    def iter(self) -> int:
        """How many updates were made."""
        return self._core.iteration

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self._core.learning_rate.at(self._core.iteration)

    @property
    def max_iter(self) -> int:
        """How many updates :meth:`solve` makes, as CTPN's fork has it."""
        return int(self._core.param.max_iter)

    @property
    def snapshot_prefix(self) -> str:
        """What the names of snapshots begin with, as CTPN's fork has it."""
        return str(self._core.param.snapshot_prefix)

    def step(self, iters: int) -> None:
        """Run ``iters`` iterations, with the tests, displays and snapshots that are due."""
        self.net._prepare()
        self._core.step(iters)

    def solve(self, resume_file: AnyPath | None = None) -> None:
        """Train up to max_iter, from ``resume_file`` (a .solverstate) if given."""
        if resume_file:
            self.restore(resume_file)
        self.net._prepare()
        self._core.solve()

    def apply_update(self) -> None:
        """Update the parameters from their diffs, at the present iteration's rate; for scripts that run the net themselves."""
        self.net._prepare()
        self._core.update()

    def increment_iter(self) -> None:
        """Count one more iteration, after :meth:`apply_update`, as in Intel Caffe."""
        self._core.iteration += 1

    def snapshot(self) -> Snapshot:
        """Write a .caffemodel and a .solverstate under the solver's snapshot_prefix."""
        self.net._prepare()
        return self._core.checkpoint()

    def restore(self, state_file: AnyPath) -> None:
        """Resume from a .solverstate."""
        self._core.restore(path_of(state_file))

    def add_callback(self, on_start: Callable[[], Any], on_gradients_ready: Callable[[], Any] | None = None) -> None:
        """Call ``on_start()`` before each iteration, and ``on_gradients_ready()`` before each update."""
        self._core.callbacks.append(_Callbacks(self._core, on_start, on_gradients_ready))

    add_callbacks = add_callback

    def share_weights(self, net: Net) -> None:
        """Let ``net`` use the parameters of this solver's net."""
        share(net._net, self._core.net)

    def test_all(self) -> list[TestResult]:
        """Run every test net over its batches; return the mean outputs."""
        return self._core.test_all()


class SGDSolver(Solver):
    """Stochastic gradient descent with momentum."""

    _TYPE = "SGD"


class NesterovSolver(SGDSolver):
    """Nesterov's accelerated gradient."""

    _TYPE = "Nesterov"


class AdaGradSolver(SGDSolver):
    """AdaGrad."""

    _TYPE = "AdaGrad"


class RMSPropSolver(SGDSolver):
    """RMSProp."""

    _TYPE = "RMSProp"


class AdaDeltaSolver(SGDSolver):
    """AdaDelta."""

    _TYPE = "AdaDelta"


class AdamSolver(SGDSolver):
    """Adam."""

    _TYPE = "Adam"


_CLASSES = {cls._TYPE: cls for cls in (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)}


def get_solver(solver_file: AnyPath) -> Solver:
    """Return the solver of the type that the file names. Raises :class:`CaffeToolsError` for an unknown one."""
    path = path_of(solver_file)
    kind = upgrade_solver(read_solver(path)).type
    if kind not in _CLASSES:
        raise CaffeToolsError(f"{os.fspath(path)}: unknown solver type '{kind}'; it is one of {', '.join(_CLASSES)}")
    return _CLASSES[kind](path)


class _Engine(engine.Solver):
    """The solver, running its nets layer by layer so that every blob and diff can be read, and clearing diffs when Caffe does.

    Attributes:
        gradients_ready: Whether an iteration has computed the gradients that an update is about to use.
    """

    gradients_ready = False

    def _build_nets(self, device: torch.device) -> None:
        super()._build_nets(device)
        mode.solver_streams.add(self.random)
        for net in (self.net, *self.test_nets):
            for parameter in net.parameters():
                # As arrays show them. The solver's history takes the same order, and fused updates rely on it.
                parameter.data = parameter.data.contiguous()
        self.run = Stepwise(self.net)
        self.test_runs = [Stepwise(net) for net in self.test_nets]
        if self.param.debug_info:
            for run in (self.run, *self.test_runs):
                log_values(run, self.log)

    def _give_parameters(self, test_net: TorchNet) -> list[str]:
        """Fill a test net's parameters: as in Caffe they are its own until its first test."""
        seed = int(self.param.random_seed)
        generator = torch.Generator()
        generator.manual_seed(seed) if seed >= 0 else generator.seed()
        layers = [layer for layer in test_net.layers if len(layer.blobs)]
        with torch.no_grad():
            for parameter, spec in ((p, s) for layer in layers for p, s in zip(layer.blobs, layer.specs, strict=True)):
                if owner_of(parameter) is parameter:
                    fill(parameter, spec.filler, generator)
        return [layer.name for layer in layers]

    def test(self, index: int = 0) -> TestResult | None:
        """Score test net ``index`` with the weights of the training net, which it shares from then on; see the base class."""
        self.test_runs[index].settle()
        share(self.test_nets[index], self.net)
        return super().test(index)

    def update(self) -> None:
        """Make one update from the present diffs."""
        self.rate = self.learning_rate.at(self.iteration)
        self.notify("on_before_update")
        for run in self.test_runs:
            run.settle()
        diffs = UpdateDiffs(self.net, self.rule)
        diffs.on_before_update(self)
        self.rule.apply(self.rate, self.iteration)
        diffs.on_iteration_end(self)
        self._leave_updates_in_diffs(diffs)
        self.iteration += 1
        self.notify("on_iteration_end")

    def _leave_updates_in_diffs(self, diffs: UpdateDiffs) -> None:
        """Put what the update subtracted from each parameter into its diff, as Caffe's ComputeUpdateValue does."""
        with torch.no_grad():
            for entry in self.net.learnable:
                update = diffs.last[id(entry.parameter)]
                if entry.parameter.grad is not None:
                    entry.parameter.grad.copy_(update)
                elif entry.lr_mult:
                    # No loss depends on it; weight decay and the history change it.
                    entry.parameter.grad = update

    def _iterate(self) -> None:
        # Diffs can be read until the next iteration begins.
        self.run.clear_param_diffs()
        self.losses.append(self._forward_backward())
        self.gradients_ready = True
        try:
            self.update()
        finally:
            self.gradients_ready = False

    def _forward_backward(self) -> Tensor:
        total = torch.zeros(())
        for _ in range(self.param.iter_size):
            total += self._forward()
            self.run.backward()
        return total / int(self.param.iter_size)

    def _forward(self, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
        loss = self.run.forward()
        self.output_blobs = {name: self.run.blobs[name].data.value() for name in self.net.outputs}
        return torch.tensor(loss)

    def _pass(self, net: TorchNet, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        run = next(run for run in self.test_runs if run.net is net)
        run.forward(record=False)
        return {name: run.blobs[name].data.value() for name in {*net.outputs, *net.loss_weights}}


class _Callbacks(Callback):
    def __init__(self, solver: _Engine, on_start: Callable[[], Any], on_gradients_ready: Callable[[], Any] | None):
        self.solver, self.on_start, self.on_gradients_ready = solver, on_start, on_gradients_ready

    def on_iteration_begin(self, run: RunControl) -> None:
        self.on_start()

    def on_before_update(self, run: RunControl) -> None:
        # As in Caffe an update by hand calls none.
        if self.on_gradients_ready is not None and self.solver.gradients_ready:
            self.on_gradients_ready()


def _log(place: str, message: str, severity: str = "I") -> None:
    mode.logger.log({"W": logging.WARNING, "E": logging.ERROR}.get(severity, logging.INFO), "%s] %s", place, message)
