"""``Solver``: Caffe's training loop over a :class:`~caffetools.net.net.Net`."""

from __future__ import annotations

import math
import os
import secrets
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from caffetools.data.layers.batch_source import pause_reading
from caffetools.errors import CaffeToolsError
from caffetools.net.device import float32_products
from caffetools.net.net import Net
from caffetools.net.param_sharing import clear_replaced_gradients
from caffetools.net.weights import LoadReport, load_weights
from caffetools.proto.forks.effects import refused_fields
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import read_solver
from caffetools.proto.unknown import unknown_fields
from caffetools.proto.upgrades.v1 import upgrade_solver
from caffetools.solver.callbacks import Callback, default_callbacks
from caffetools.solver.checkpoints.restore import restore, save
from caffetools.solver.checkpoints.run_state import RunState, capture_run_state
from caffetools.solver.control import Log, Output, Snapshot, TestResult, TrainStats, no_log
from caffetools.solver.debug import DebugInfoRunner, UpdateDiffs
from caffetools.solver.divergence import BatchRecorder, check_loss
from caffetools.solver.early_updates import EarlyUpdates
from caffetools.solver.errors import SolverError, errors_in_file
from caffetools.solver.logs.caffe_log import CaffeLog, log_loaded
from caffetools.solver.nets import Places, share_parameters, test_nets, train_net
from caffetools.solver.paths import find_base, snapshot_prefix
from caffetools.solver.policies import LearningRate
from caffetools.solver.random_streams import RandomStream
from caffetools.solver.rules import make_rule
from caffetools.solver.scores import Scores, read_outputs
from caffetools.solver.training_threads import TrainingThreads

if TYPE_CHECKING:
    from typing_extensions import Self


class Solver:
    """Train a net as its ``SolverParameter`` describes, update for update as Caffe does.

    Args:
        param: The solver's prototxt, or a ``SolverParameter``, of which a copy is kept.
        path: The file that a message came from. Nets are also looked for in its folder, and it names the snapshots where no prefix is given.
        device: Where to compute.
        callbacks: Called after those that the solver's own fields ask for (tests, displays, snapshots).
        log: Receives lines in Caffe's words; see :class:`~caffetools.solver.logs.caffe_log.GlogWriter`.

    Attributes:
        net: The training net.
        test_nets: The test nets; they hold the very parameters of ``net``.
        iteration: Iterations completed.
        rate: Learning rate of the last update.
        random: The random stream that its nets draw from.
        rule: The update rule with its history.
        output_blobs: Output blobs of the training net's last pass, by name.
        train_inputs: Values for Input blobs of the training net, by name, used in every pass.
        test_inputs: The same for the test nets.
        saved: Iteration of the last snapshot.
        stopping: Whether a stop was asked for.
        updates_early: Whether large parameters may be updated within the backward pass, for less memory: the same weights, but an iteration that
            an exception interrupts leaves some of them updated. :func:`~caffetools.solver.run.train` sets it, since its signals wait for the iteration's end.
        losses: The last ``average_loss`` losses.
        run_id: Identifier shared by a run and those that resume it.
        resumed_from: Path of the .solverstate that was resumed; empty if none.

    Raises:
        CaffeToolsError: The solver or one of its nets is wrong; nothing has run then.
    """

    def __init__(
        self,
        param: SolverParameter | str | os.PathLike[str],
        *,
        path: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
        callbacks: Iterable[Callback] = (),
        log: Log = no_log,
    ):
        if isinstance(param, str | os.PathLike):
            with errors_in_file(param):
                self._build(read_solver(param), param, device, callbacks, log)
        elif hasattr(param, "CopyFrom"):
            self._build(param, path, device, callbacks, log)
        else:
            raise CaffeToolsError(f"a solver prototxt's path or a SolverParameter is expected, not {type(param).__name__}")

    def _build(
        self,
        param: SolverParameter,
        path: str | os.PathLike[str] | None,
        device: str | torch.device,
        callbacks: Iterable[Callback],
        log: Log,
    ) -> None:
        self.param = type(param)()
        try:
            self.param.CopyFrom(upgrade_solver(param))
        except CaffeToolsError as error:
            raise SolverError(error.message, field="solver_type") from None
        self.path = Path(path) if path is not None else None
        self.prefix = snapshot_prefix(self.param, self.path)
        self.log = log
        check_fork_fields(self.param)
        self.learning_rate = LearningRate(self.param)
        self.random = RandomStream(torch.device(device), self.param.random_seed, uses_globals=self._draws_globally())
        self._build_nets(torch.device(device))
        self._threads = TrainingThreads(self.net)
        self.rule = make_rule(self.param, self.net.learnable)
        self.iteration, self.rate = 0, 0.0
        self._debug = DebugInfoRunner(log, self.net, self.test_nets) if self.param.debug_info else None
        self._diffs = UpdateDiffs(self.net, self.rule) if self.param.snapshot_diff else None
        writer = CaffeLog(log, self.param, self.learning_rate)
        own = [self._diffs] if self._diffs is not None else []
        self.callbacks: list[Callback] = [*own, *default_callbacks(self), writer, *callbacks]
        self.saved: int | None = None
        self.stopping = self.updates_early = self._is_loss_noted = False
        self.output_blobs: dict[str, Tensor] = {}
        self.train_inputs: dict[str, Tensor] = {}
        self.test_inputs: dict[str, Tensor] = {}
        self.losses: deque[Tensor] = deque(maxlen=max(1, self.param.average_loss))
        self.run_id = secrets.token_hex(8)
        self.resumed_from = ""
        self._resumed = False
        # The run's state before the tests of this iteration, once they have begun.
        self._before_tests: RunState | None = None
        self._last_batch = BatchRecorder(self.net)
        self.log("solver.cpp:57", "Solver scaffolding done.")

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        callbacks: Iterable[Callback] = (),
        log: Log = no_log,
    ) -> Self:
        """Build the solver of a prototxt.

        Args:
            path: The solver's prototxt.
            device: As for the class.
            callbacks: As for the class.
            log: As for the class.

        Raises:
            PrototxtError: The solver or a net cannot be read.
            CaffeToolsError: The solver or one of its nets is wrong.
        """
        with errors_in_file(path):
            return cls(read_solver(path), path=path, device=device, callbacks=callbacks, log=log)

    @property
    def max_iter(self) -> int:
        """Iterations after which ``solve`` ends."""
        return int(self.param.max_iter)

    @property
    def net_name(self) -> str:
        """Name of the training net."""
        return str(self.net.name)

    @property
    def solver_type(self) -> str:
        """Type of the update rule: ``SGD``, ``Adam``…"""
        return type(self.rule).__name__

    # ---- running ----

    def solve(self) -> None:
        """Train up to max_iter, then write a last snapshot and test, as the solver's fields ask for.

        Raises:
            RunFailed: Training diverged, or a file could not be written; names the iteration.
        """
        self.stopping = False
        start = self.iteration
        self.notify("on_train_begin")
        self.step(self.max_iter - self.iteration)
        due = self.param.snapshot_after_train or (self.stopping and self.iteration > start)
        if due and self.saved != self.iteration:
            self.checkpoint()
        if not self.stopping:
            self._display_and_test_at_end()
        self.notify("on_train_end", self.stopping)

    def step(self, iterations: int) -> None:
        """Make that many updates, with the tests, displays and snapshots that are due; fewer if :meth:`stop` is called meanwhile.

        Args:
            iterations: How many updates to make.

        Raises:
            RunFailed: Training diverged, or a snapshot could not be written; names the iteration.
        """
        end = self.iteration + iterations
        if not self._resumed:
            self.losses.clear()
        self._resumed = False
        with float32_products(self.net.device, tf32=self.net.allow_tf32, autotune=True):
            self.notify("on_step_begin")
            while self.iteration < end and not self.stopping:
                self.notify("on_iteration_begin")
                if not self.stopping:
                    self._before_tests = None
                    self._iterate()

    def stop(self) -> None:
        """Ask the running ``step`` or ``solve`` to end after the current update; a test ends after its current batch."""
        self.stopping = True

    def checkpoint_rng_before_test(self) -> None:
        """Make snapshots up to the next update store the run state as it is now: a resumed run repeats the tests before that update."""
        self._before_tests = capture_run_state(self)

    def test_all(self) -> list[TestResult]:
        """Score every test net over its test_iter batches; see :meth:`test`."""
        results = [self.test(index) for index in range(len(self.test_nets))]
        return [result for result in results if result is not None]

    def test(self, index: int = 0) -> TestResult | None:
        """Score test net ``index`` over its test_iter batches; return None if it was stopped before its end.

        Raises:
            RunFailed: A loss is not finite.
        """
        if self.stopping:
            return None
        start = time.perf_counter()
        net, total = self.test_nets[index], self.param.test_iter[index]
        self.notify("on_test_begin", index)
        scores = Scores(net)
        with torch.no_grad():
            for done in range(total):
                with self.random.active():
                    scores.add(self._pass(net, self.test_inputs))
                self.notify("on_test_batch_end", done + 1, total)
                if self.stopping and done + 1 < total:
                    self.log("solver.cpp:379", "Test interrupted.")
                    return None
        loss = scores.loss() if self.param.test_compute_loss else None
        result = TestResult(index, self.iteration, scores.means(), loss, time.perf_counter() - start)
        for output in result.outputs:
            if output.weight:
                check_loss(output.value, f"the loss '{output.name}' of test net #{index}", self, net, self.test_inputs)
        self.notify("on_test_end", result)
        return result

    # ---- reading ----

    def smoothed_loss(self) -> float:
        """Return the mean loss over the last average_loss iterations of this ``step``.

        Raises:
            RunFailed: It is NaN or infinite; names the iteration.
        """
        if not self.losses:
            return math.nan
        loss = float(torch.stack(list(self.losses)).mean())
        self._check(loss)
        return loss

    def outputs(self) -> list[Output]:
        """Return the training net's outputs of the last pass, number by number."""
        return read_outputs(self.net, self.output_blobs)

    # ---- snapshots and weights ----

    def snapshot(self) -> Snapshot | None:
        """Write a snapshot now: the same as :meth:`checkpoint` (several processes write it after the current iteration)."""
        return self.checkpoint()

    def checkpoint(self) -> Snapshot:
        """Write the weights and the state; see :func:`~caffetools.solver.checkpoints.snapshots.write_snapshot`.

        Raises:
            RunFailed: Training has diverged, or the files cannot be written.
            CaffeToolsError: There is no snapshot_prefix.
        """
        if self.losses:
            self.smoothed_loss()
        diffs = self._diffs.last if self._diffs is not None else None
        run = self._before_tests or capture_run_state(self)
        snapshot = save(self, run, diffs)
        self.saved = self.iteration
        self.notify("on_checkpoint", snapshot)
        return snapshot

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Resume from a .solverstate (or .solverstate.h5): weights, history, iteration and step, as after that many updates.

        Random states and the positions in the data are restored where the snapshot is ours, and start over where it is real Caffe's.

        Raises:
            ModelFileError: A file is missing, damaged, or of another net or type of solver.
            NetError: The weights do not fit.
        """
        self._resumed = restore(self, path)
        self.resumed_from = os.fspath(path)
        self.saved = self.iteration

    def load_weights(self, path: str | os.PathLike[str]) -> LoadReport:
        """Copy the weights of layers whose names match, and log which layers were loaded, which start fresh and which are unused.

        Raises:
            ModelFileError: The file is missing or damaged.
            NetError: A blob's shape differs from the net's.
        """
        report = load_weights(self.net, path)
        for net, own in zip(self.test_nets, self._own_layers, strict=True):
            if own:
                load_weights(net, path)
        log_loaded(self.log, os.fspath(path), report)
        return report

    def release_random_states(self) -> None:
        """Give the random states of torch, NumPy and Python back as they were, where layers of this solver draw from them."""
        self.random.release()

    def close(self) -> None:
        """Stop the threads that read data ahead, close the data's files, and give the global random states back where layers draw from them.

        A later ``step`` opens them again and continues with the next batch. A ``with`` block of a solver closes it at its end.
        """
        for net in (self.net, *self.test_nets):
            pause_reading(net.layers)
        self.release_random_states()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def notify(self, hook: str, *arguments: object) -> None:
        """Call a hook of every callback, in order.

        Args:
            hook: Name of a method of :class:`~caffetools.solver.callbacks.Callback`.
            arguments: What the hook takes besides the run.
        """
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    # ---- inside ----

    def _give_parameters(self, test_net: Net) -> list[str]:
        """Let a test net, whose parameters are unset, hold those of ``net``; return its layers that ``net`` does not have."""
        return share_parameters(test_net, self.net)

    def _build_nets(self, device: torch.device) -> None:
        places = Places(self.path, find_base(self.param, self.path))
        self.net = train_net(self.param, places, self.log, self.random.building).to(device)
        self.test_nets = [net.to(device) for net in test_nets(self.param, places, self.log, self.random.building)]
        self._own_layers = [self._give_parameters(net) for net in self.test_nets]
        for given in self.param.weights:
            for path in given.split(","):
                self.load_weights(path.strip())

    def _draws_globally(self) -> bool:
        """Return whether something besides layers draws from the process's random states."""
        return False

    def _iterate(self) -> None:
        if self._debug is not None:
            self._debug.active = bool(self.param.display) and self.iteration % self.param.display == 0
        self._is_loss_noted = False
        with self.random.active(), self._threads.used():
            loss = self._forward_backward()
        if not self._is_loss_noted:
            self._note(loss)
        self.notify("on_before_update")
        with self._threads.used():
            self._update()
        self._clear_gradients()
        self.iteration += 1
        self.notify("on_iteration_end")

    def _note(self, loss: Tensor) -> None:
        """Keep the loss of this iteration, and take the learning rate of its update."""
        self.losses.append(loss)
        if loss.device.type == "cpu":
            # On other devices reading the loss would wait for the device: there it is checked when it is displayed.
            self._check(float(loss))
        self.rate = self.learning_rate.at(self.iteration, self.smoothed_loss)
        self._is_loss_noted = True

    def _going_back(self, loss: Tensor) -> AbstractContextManager[None]:
        """Return the context of a backward pass from ``loss``."""
        early = EarlyUpdates(self.net, self.rule)
        if not (self.updates_early and self._debug is None and early.are_exact(self.callbacks)):
            return nullcontext()
        # A loss that is not finite must not reach the weights, and the update needs its rate.
        self._note(loss.detach())
        return early.made(self.rate, self.iteration)

    def _update(self) -> None:
        self.rule.apply(self.rate, self.iteration)

    def _forward_backward(self) -> Tensor:
        """Accumulate the gradients of iter_size passes; return the mean loss, on the device."""
        total = torch.zeros((), device=self.net.device)
        for _ in range(self.param.iter_size):
            clear_replaced_gradients(self.net.layers)
            loss = self._forward()
            if self._debug is not None and self._debug.active:
                self._debug.backward()
            elif loss.requires_grad:
                with self._going_back(loss):
                    loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total / int(self.param.iter_size)

    def _forward(self, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
        self.output_blobs = {}
        blobs = self._pass(self.net, self.train_inputs if inputs is None else inputs)
        self.output_blobs = {name: blobs[name].detach() for name in self.net.outputs}
        loss: Tensor = self.net.total_loss(blobs)
        return loss

    def _pass(self, net: Net, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run ``net`` forward once; return its outputs and losses by name."""
        if self._debug is not None and self._debug.logs(net):
            return self._debug.forward(net, inputs)
        result: dict[str, Tensor] = net({name: value for name, value in inputs.items() if name in net.inputs})
        return result

    def _clear_gradients(self) -> None:
        # Released, not zeroed: the next backward pass then writes gradients instead of adding to zeros.
        for entry in self.net.learnable:
            entry.parameter.grad = None

    def _display_and_test_at_end(self) -> None:
        """Do Caffe's additional pass and test after the last update, if display and test_interval are due."""
        if self.param.display and self.iteration % self.param.display == 0:
            with self.random.active(), torch.no_grad():
                self.losses.append(self._forward())
            self.notify("on_log", TrainStats(self.iteration, self.smoothed_loss(), self.outputs(), self.rate, last=True))
        if self.param.test_interval and self.iteration % self.param.test_interval == 0:
            self.test_all()

    def _check(self, loss: float) -> None:
        check_loss(loss, "the training loss", self, self.net, {**self.train_inputs, **self._last_batch.blobs})


def check_fork_fields(param: SolverParameter) -> None:
    """Raise :class:`SolverError` for a field of a fork that would change numbers and is not computed, or that is not known here."""
    for name in unknown_fields(param):
        raise SolverError(
            f"{name} is a field that is not known here, so what it changes isn't either; remove it to train without it", field=name
        )
    for name, effect in refused_fields(param).items():
        if name == "eval_type" and not param.test_iter:
            continue
        hint = f"set it to {effect.unless} or remove it" if effect.unless else "remove it"
        raise SolverError(f"{name} is a field of a Caffe fork that is not supported ({effect.reason}); {hint}", field=name)
