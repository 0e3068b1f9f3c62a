"""``Solver``: Caffe's training loop over a :class:`~caffetools.net.net.Net`."""

from __future__ import annotations

import math
import os
import secrets
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caffetools.net.malloc_tuning import disable_malloc_trim
from caffetools.net.net import Net
from caffetools.net.weights import LoadReport, load_weights
from caffetools.proto.text import read_solver
from caffetools.proto.upgrades.v1 import upgrade_solver
from caffetools.solver.callbacks import Observer, Output, Snapshot, TestResult, TrainStats, default_observers
from caffetools.solver.checkpoints.restore import restore, save
from caffetools.solver.checkpoints.run_state import RunState, capture
from caffetools.solver.checkpoints.snapshots import prefix_for
from caffetools.solver.debug import Verbose, watch_updates
from caffetools.solver.divergence import BatchRecorder, check_loss
from caffetools.solver.logs.caffe_log import CaffeLog, Log, log_loaded, no_log
from caffetools.solver.nets import share_parameters, test_nets, train_net
from caffetools.solver.policies import LearningRate
from caffetools.solver.rules import make_rule
from caffetools.solver.scores import Scores, read_outputs


class Solver:
    """Trains a net as its ``SolverParameter`` says, update for update as Caffe does.

    Args:
        param: A ``SolverParameter``; a copy is kept.
        path: The file it came from, for nets beside it and for the snapshot prefix where it names none.
        device: Where to compute.
        observers: Watch the run, after those that the solver itself asks for (testing, display, snapshots).
        log: Takes lines in Caffe's words; see :class:`~caffetools.solver.logs.caffe_log.GlogWriter`.

    Attributes:
        net, test_nets: the nets; test nets hold the very parameters of ``net``.
        iteration: how many updates were made. rate: the last one's learning rate. rule: with the history.
        outputs: the training net's output blobs of the last pass. train_inputs, test_inputs: values for Input blobs, by name, used in
        every pass. saved: the iteration of the last snapshot. stopping: a stop was asked for. losses: those that the smoothed
        loss is the mean of. run_id: a name that this run shares with those it went on from.

    Raises:
        CaffeToolsError: the solver or one of its nets is wrong; nothing has run then.
    """

    def __init__(
        self,
        param: Any,
        *,
        path: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
        observers: Iterable[Observer] = (),
        log: Log = no_log,
    ):
        self.param = type(param)()
        self.param.CopyFrom(upgrade_solver(param))
        self.path = Path(path) if path is not None else None
        self.prefix = prefix_for(self.param.snapshot_prefix, self.path)
        self.log = log
        self.learning_rate = LearningRate(self.param)
        if self.param.random_seed >= 0:
            torch.manual_seed(self.param.random_seed)
        disable_malloc_trim(device)
        self._build_nets(torch.device(device))
        self.rule = make_rule(self.param, self.net.learnable)
        self._verbose = Verbose(log, self.net, self.test_nets) if self.param.debug_info else None
        self._steps, watching = watch_updates(self.param, log)
        self.observers: list[Observer] = [*watching, *default_observers(self.param), CaffeLog(log), *observers]
        self.iteration, self.rate = 0, 0.0
        self.saved: int | None = None
        self.stopping = False
        self.outputs: dict[str, Tensor] = {}
        self.train_inputs: dict[str, Tensor] = {}
        self.test_inputs: dict[str, Tensor] = {}
        self.losses: deque[Tensor] = deque(maxlen=max(1, self.param.average_loss))
        self.run_id = secrets.token_hex(8)
        self._resumed = False
        # The run's state before the tests of this iteration, once they have begun.
        self._before_tests: RunState | None = None
        self._last_batch = BatchRecorder(self.net)
        self.log("solver.cpp:57", "Solver scaffolding done.")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **options: Any) -> Solver:
        """The solver of a prototxt; ``options`` as for the class. Raises :class:`PrototxtError` too."""
        return cls(read_solver(path), path=path, **options)

    # ---- running ----

    def solve(self) -> None:
        """Train up to max_iter, then take a last snapshot and test, as the solver asks for.

        Raises:
            RunFailed: training diverged, or a file could not be written; names the iteration.
        """
        self.stopping = False
        start = self.iteration
        self.tell("started")
        self.step(self.param.max_iter - self.iteration)
        due = self.param.snapshot_after_train or (self.stopping and self.iteration > start)
        if due and self.saved != self.iteration:
            self.snapshot()
        if not self.stopping:
            self._show_the_end()
        self.tell("finished", self.stopping)

    def step(self, iterations: int) -> None:
        """Make that many updates, testing, displaying and saving where due; fewer where :meth:`stop` is called meanwhile."""
        end = self.iteration + iterations
        if not self._resumed:
            self.losses.clear()
        self._resumed = False
        self.tell("stepping")
        while self.iteration < end and not self.stopping:
            self.tell("before_iteration")
            if not self.stopping:
                self._before_tests = None
                self._iterate()

    def stop(self) -> None:
        """Ask the running ``step`` or ``solve`` to end: training after the current update, a test after its current batch."""
        self.stopping = True

    def checkpoint_rng_before_test(self) -> None:
        """Snapshots up to the next update store the run's state as it is now: tests that come before it will be run again."""
        self._before_tests = capture(self)

    def test_all(self) -> list[TestResult]:
        """Run every test net over its test_iter batches; see :meth:`test`."""
        results = [self.test(index) for index in range(len(self.test_nets))]
        return [result for result in results if result is not None]

    def test(self, index: int = 0) -> TestResult | None:
        """Run test net ``index`` over its test_iter batches; None where it was stopped before its end.

        Raises:
            RunFailed: a loss is not finite.
        """
        if self.stopping:
            return None
        start = time.perf_counter()
        net, total = self.test_nets[index], self.param.test_iter[index]
        self.tell("testing", index)
        scores = Scores(net)
        with torch.no_grad():
            for done in range(total):
                scores.add(self._pass(net, self.test_inputs))
                self.tell("test_batch", done + 1, total)
                if self.stopping and done + 1 < total:
                    self.log("solver.cpp:379", "Test interrupted.")
                    return None
        loss = scores.loss() if self.param.test_compute_loss else None
        result = TestResult(index, self.iteration, scores.means(), loss, time.perf_counter() - start)
        for output in result.outputs:
            if output.weight:
                check_loss(output.value, f"the loss '{output.name}' of test net #{index}", self, net, self.test_inputs)
        self.tell("tested", result)
        return result

    # ---- reading ----

    def smoothed_loss(self) -> float:
        """The loss over the last average_loss iterations of this ``step``.

        Raises:
            RunFailed: it is NaN or infinite; names the iteration.
        """
        if not self.losses:
            return math.nan
        loss = float(torch.stack(list(self.losses)).mean())
        self._check(loss)
        return loss

    def read_outputs(self) -> list[Output]:
        """The training net's outputs of the last pass, number by number."""
        return read_outputs(self.net, self.outputs)

    # ---- snapshots and weights ----

    def snapshot(self) -> Snapshot:
        """Write the weights and the state; see :func:`~caffetools.solver.checkpoints.snapshots.write_snapshot`.

        Raises:
            RunFailed: training has diverged, or the files cannot be written. CaffeToolsError: there is no snapshot_prefix.
        """
        if self.losses:
            self.smoothed_loss()
        diffs = self._steps.last if self._steps is not None and self.param.snapshot_diff else None
        snapshot = save(self, self._before_tests or capture(self), diffs)
        self.saved = self.iteration
        self.tell("snapshotted", snapshot)
        return snapshot

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a .solverstate (or .solverstate.h5): weights, history, iteration and step, as after that many updates.

        Random states and the data's places go on too where the snapshot is ours, and begin anew where it is real Caffe's.

        Raises:
            ModelFileError: a file is missing, damaged, or of another net or type of solver. NetError: the weights do not fit.
        """
        self._resumed = restore(self, path)
        self.saved = self.iteration

    def load_weights(self, path: str | os.PathLike[str]) -> LoadReport:
        """Copy the weights of layers whose names fit, and say in the log what was loaded, what is fresh and what was not used.

        Raises:
            ModelFileError: the file is missing or damaged. NetError: a blob's shape differs from the net's.
        """
        report = load_weights(self.net, path)
        for net, own in zip(self.test_nets, self._own_layers, strict=True):
            if own:
                load_weights(net, path)
        log_loaded(self.log, os.fspath(path), report)
        return report

    def tell(self, hook: str, *what: Any) -> None:
        """Call a hook of every observer."""
        for observer in self.observers:
            getattr(observer, hook)(self, *what)

    # ---- inside ----

    def _build_nets(self, device: torch.device) -> None:
        folder = self.path.parent if self.path is not None else None
        self.net = train_net(self.param, folder, self.log).to(device)
        self.test_nets = [net.to(device) for net in test_nets(self.param, folder, self.log)]
        self._own_layers = [share_parameters(net, self.net) for net in self.test_nets]
        for given in self.param.weights:
            for path in given.split(","):
                self.load_weights(path.strip())

    def _iterate(self) -> None:
        loss = self._forward_backward()
        self.losses.append(loss)
        if loss.device.type == "cpu":
            # Nothing has to be waited for; elsewhere the loss is looked at when it is displayed.
            self._check(float(loss))
        self.rate = self.learning_rate.at(self.iteration)
        self.tell("before_update")
        self._update()
        self._clear_gradients()
        self.iteration += 1
        self.tell("after_update")

    def _update(self) -> None:
        self.rule.apply(self.rate, self.iteration)

    def _forward_backward(self) -> Tensor:
        """Accumulate the gradients of iter_size passes; the mean loss, which stays on the device."""
        total = torch.zeros((), device=self.net.device)
        for _ in range(self.param.iter_size):
            loss = self._forward()
            if self._verbose is not None:
                self._verbose.backward()
            elif loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total / int(self.param.iter_size)

    def _forward(self) -> Tensor:
        self.outputs = {}
        blobs = self._pass(self.net, self.train_inputs)
        self.outputs = {name: blobs[name].detach() for name in self.net.outputs}
        loss: Tensor = self.net.total_loss(blobs)
        return loss

    def _pass(self, net: Net, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One forward pass of ``net``: its outputs and losses, by name."""
        if self._verbose is not None:
            return self._verbose.forward(net, inputs)
        result: dict[str, Tensor] = net({name: value for name, value in inputs.items() if name in net.inputs})
        return result

    def _clear_gradients(self) -> None:
        # Let go of, not zeroed: the next backward pass then writes gradients in place of adding to zeros.
        for entry in self.net.learnable:
            entry.parameter.grad = None

    def _show_the_end(self) -> None:
        """Caffe's one more pass and test after the last update, where display and test_interval fall on it."""
        if self.param.display and self.iteration % self.param.display == 0:
            with torch.no_grad():
                self.losses.append(self._forward())
            self.tell("displayed", TrainStats(self.iteration, self.smoothed_loss(), self.read_outputs(), self.rate, last=True))
        if self.param.test_interval and self.iteration % self.param.test_interval == 0:
            self.test_all()

    def _check(self, loss: float) -> None:
        check_loss(loss, "the training loss", self, self.net, {**self.train_inputs, **self._last_batch.blobs})
