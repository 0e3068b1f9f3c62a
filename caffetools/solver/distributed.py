"""``DistributedSolver``: the solver in several processes, in lower precision, compiled; the training loop itself is the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from caffetools.data.layers.batch_source import ReadingLayer
from caffetools.errors import CaffeToolsError
from caffetools.net.checkpointing import checkpoint_memory
from caffetools.net.net import Net
from caffetools.net.param_sharing import clear_replaced_gradients
from caffetools.net.weights import LoadReport
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import read_solver
from caffetools.solver.callbacks import Callback
from caffetools.solver.checkpoints import per_rank as processes
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.control import Log, Output, Snapshot, TestResult, no_log
from caffetools.solver.errors import SolverError, errors_in_file
from caffetools.solver.precision import Precision, compile_net
from caffetools.solver.solver import Solver
from caffetools.solver.strategy import SingleProcess, Strategy
from caffetools.solver.training_graph import TrainingGraph

if TYPE_CHECKING:
    from typing_extensions import Self


class DistributedSolver(Solver):
    """A :class:`Solver` in several processes, in lower precision or compiled; what it computes is the same but for rounding.

    In several processes, each takes its share of the records at the net's own batch size, and gradients are averaged
    (DistributedDataParallel), as Caffe does with several GPUs. The main process tests and writes snapshots, and all start from its
    weights; losses and outputs that are displayed are means over the processes. BatchNorm's statistics are each process's own, and
    the main one's are saved.

    Args:
        param: A ``SolverParameter``.
        strategy: The processes; each of them builds this solver and calls the same methods. None for one process.
        compute: Precision and compiling.
        path: As for :class:`Solver`.
        device: As for :class:`Solver`.
        callbacks: As for :class:`Solver`.
        log: As for :class:`Solver`.

    Raises:
        CaffeToolsError: As for :class:`Solver`; or debug_info, which needs plain passes.
    """

    def __init__(
        self,
        param: SolverParameter,
        *,
        strategy: Strategy | None = None,
        compute: ComputeOptions = ComputeOptions(),
        path: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
        callbacks: Iterable[Callback] = (),
        log: Log = no_log,
    ):
        self.strategy: Strategy = strategy or SingleProcess()
        self.compute = compute
        mine = type(param)()
        mine.CopyFrom(param)
        if mine.debug_info and not (self.strategy.size == 1 and compute.plain):
            raise SolverError(
                "debug_info needs one process in fp32, not compiled and without --checkpoint-memory; remove it, or those",
                field="debug_info",
            )
        if compute.compiled and compute.checkpoint_memory:
            raise CaffeToolsError("--compile decides itself what is kept for the backward pass; leave out --checkpoint-memory, or it")
        if compute.cuda_graphs and (self.strategy.size > 1 or compute.compiled):
            raise CaffeToolsError(
                "--cuda-graphs records the passes of one process that is not compiled; leave it out, or --processes and --compile"
            )
        if mine.random_seed < 0:
            mine.random_seed = int.from_bytes(os.urandom(4), "little") >> 1
        mine.random_seed = self.strategy.broadcast(mine.random_seed)
        if not self.strategy.is_main:
            # Only the main process tests.
            for name in ("test_iter", "test_net", "test_net_param", "test_state"):
                mine.ClearField(name)
        self._run: torch.nn.Module | None = None
        self._on_main_alone = False
        self._stop_wanted = self._snapshot_wanted = False
        self._stored: processes.States | None = None
        super().__init__(mine, path=path, device=device, callbacks=callbacks, log=log)
        self._threads.in_torch = compute.compiled or compute.precision not in ("fp32", "tf32")

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        strategy: Strategy | None = None,
        compute: ComputeOptions = ComputeOptions(),
        device: str | torch.device = "cpu",
        callbacks: Iterable[Callback] = (),
        log: Log = no_log,
    ) -> Self:
        """Build the solver of a prototxt; arguments as for the class, errors as for :meth:`Solver.from_file`."""
        with errors_in_file(path):
            return cls(read_solver(path), path=path, strategy=strategy, compute=compute, device=device, callbacks=callbacks, log=log)

    # ---- what all processes do together ----

    def solve(self) -> None:
        """Train as :meth:`Solver.solve` does, in every process from where the main one is."""
        self._stop_wanted = self._snapshot_wanted = False
        with self.strategy.connected():
            self._follow_main()
            super().solve()

    def stop(self) -> None:
        """Stop as :meth:`Solver.stop` does; several processes stop together, after the same update."""
        if self.strategy.size == 1 or self._on_main_alone:
            super().stop()
        else:
            self._stop_wanted = True

    def snapshot(self) -> Snapshot | None:
        """Ask for a snapshot as :meth:`Solver.snapshot` does; several processes write it together, after the current update."""
        if self.strategy.size == 1:
            return self.checkpoint()
        self._snapshot_wanted = True
        return None

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Restore as :meth:`Solver.restore` does; only the main process reads the files, the others follow when :meth:`solve` begins."""
        if self.strategy.is_main:
            super().restore(path)
            self._stored = processes.stored(path) if self._resumed else None

    def load_weights(self, path: str | os.PathLike[str]) -> LoadReport:
        """Load weights as :meth:`Solver.load_weights` does; only the main process reads the file."""
        return super().load_weights(path) if self.strategy.is_main else LoadReport()

    def test_all(self) -> list[TestResult]:
        """Test as :meth:`Solver.test_all` does in the main process, while the others wait; they get no results."""
        self._on_main_alone = self.strategy.is_main
        results = self.strategy.run_on_main(super().test_all)
        self._on_main_alone = False
        # A stop that was asked for during the test holds for all.
        self.stopping = bool(self.strategy.broadcast(self.stopping))
        return results or []

    def checkpoint_rng_before_test(self) -> None:
        """Keep random states as :meth:`Solver.checkpoint_rng_before_test` does, with the states of all processes."""
        super().checkpoint_rng_before_test()
        if self._before_tests is not None:
            self._before_tests = processes.with_others(self._before_tests, self.strategy, self.precision.state())

    def checkpoint(self) -> Snapshot:
        """Write a checkpoint as :meth:`Solver.checkpoint` does: the main process writes it, the others wait and get its names."""
        due = self._before_tests is None
        if due:
            self.checkpoint_rng_before_test()
        if self.losses:
            self.smoothed_loss()
        self._on_main_alone = True
        written = self.strategy.run_on_main(super().checkpoint)
        self._on_main_alone = False
        if due:
            self._before_tests = None
        names = self.strategy.broadcast(processes.names(written))
        self.saved = names["iteration"]
        return written or Snapshot(names["iteration"], Path(names["weights"]), Path(names["state"]))

    def smoothed_loss(self) -> float:
        """Return the smoothed loss as :meth:`Solver.smoothed_loss` does, the mean over all processes."""
        loss = super().smoothed_loss()
        if not self._on_main_alone and self.losses:
            (loss,) = self.strategy.all_reduce([loss])
        return loss

    def outputs(self) -> list[Output]:
        """Return the outputs as :meth:`Solver.outputs` does, the means over all processes."""
        outputs = super().outputs()
        means = self.strategy.all_reduce([output.value for output in outputs])
        return [replace(output, value=value) for output, value in zip(outputs, means, strict=True)]

    # ---- inside ----

    def _build_nets(self, device: torch.device) -> None:
        super()._build_nets(device)
        self.precision = Precision(self.compute.precision, device, self.log)
        on_device = device.type == "cuda" if self.compute.device_transform is None else self.compute.device_transform
        if self.compute.checkpoint_memory:
            checkpoint_memory(self.net)
        for net in (self.net, *self.test_nets):
            self.precision.prepare(net)
            if self.compute.compiled:
                compile_net(net, self.log)
            for layer in net.layers:
                if isinstance(layer, ReadingLayer) and on_device:
                    layer.transform_on(device)
        self._graph = self._training_graph(device)
        if self.strategy.size > 1:
            self._join(device)

    def _training_graph(self, device: torch.device) -> TrainingGraph | None:
        wanted = self.compute.cuda_graphs
        if device.type != "cuda":
            if wanted:
                self.log("caffe.cpp:197", "CUDA graphs need a CUDA device; on the CPU this run computes without", "W")
            return None
        possible = self.strategy.size == 1 and not self.compute.compiled and not self.param.debug_info
        if wanted is False or not possible:
            return None
        return TrainingGraph(self.net, self.precision.running, self.precision.backward, self.log if wanted else no_log)

    def _join(self, device: torch.device) -> None:
        """Share the data and the gradients; start from the main process's weights, with an own random stream, as Caffe does."""
        for layer in self.net.layers:
            if isinstance(layer, ReadingLayer):
                layer.shard(self.strategy.rank, self.strategy.size)
        if any(parameter.requires_grad for parameter in self.net.parameters()):
            self._run = self.strategy.wrap(_Losses(self.net), device, find_unused=bool(idle_layers(self.net)))
        if not self.strategy.is_main:
            self.random.reseed(self.param.random_seed + self.strategy.rank)

    def _draws_globally(self) -> bool:
        return self.compute.compiled

    def _follow_main(self) -> None:
        """Take weights, history and position of the main process, which may have resumed a snapshot."""
        if self.strategy.size == 1:
            self._set_process_state(processes.own(self._stored, 0))
            return
        self.strategy.copy_from_main([*self.net.parameters(), *self.rule.history])
        facts = {
            "iteration": self.iteration,
            "saved": self.saved,
            "step": self.learning_rate.current_step,
            "plateau": (self.learning_rate.minimum_loss, self.learning_rate.last_event),
            "resumed": self._resumed,
            "run": self.run_id,
            "losses": [float(loss) for loss in self.losses],
            "layers": processes.layer_states(self.net) if self.strategy.is_main else "",
        }
        facts = self.strategy.broadcast(facts)
        stored = processes.share(self.strategy, self._stored)
        if facts["resumed"] and len(stored) != self.strategy.size:
            before = max(1, len(stored))
            text = f"The snapshot is of {before} process(es), this run has {self.strategy.size}; the data are divided again"
            self.log("caffe.cpp:235", text, "W")
        if not self.strategy.is_main:
            self.rule.load_history([blob.detach().cpu().numpy() for blob in self.rule.history])
            self.iteration, self.saved, self._resumed = facts["iteration"], facts["saved"], facts["resumed"]
            self.learning_rate.current_step, self.run_id = facts["step"], facts["run"]
            self.learning_rate.minimum_loss, self.learning_rate.last_event = facts["plateau"]
            self.losses.clear()
            self.losses.extend(torch.tensor(loss, device=self.net.device) for loss in facts["losses"])
            if self._resumed:
                processes.follow(stored, facts["layers"], self.strategy, self)
        self._set_process_state(processes.own(stored, self.strategy.rank))

    def _set_process_state(self, state: Mapping[str, Any]) -> None:
        self.precision.set_state(state.get("precision", {}))

    def _iterate(self) -> None:
        super()._iterate()
        if self.strategy.size > 1:
            self._agree()

    def _agree(self) -> None:
        """Do in all processes what was asked for in one of them."""
        wanted = self._stop_wanted or self.strategy.launcher_is_gone()
        # Cleared first: what is asked for in the meantime is for the next iteration.
        save, self._snapshot_wanted = self._snapshot_wanted, False
        stop, save = map(bool, self.strategy.all_reduce([wanted, save], "max"))
        if stop:
            # The solver writes the snapshot itself when it stops.
            super().stop()
        elif save and self.saved != self.iteration:
            self.checkpoint()

    def _pass(self, net: Net, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._debug is not None:
            return super()._pass(net, inputs)
        run = self._run if net is self.net and self._run is not None else net
        with self.precision.running():
            result: dict[str, Tensor] = run({name: value for name, value in inputs.items() if name in net.inputs})
        return result

    def _forward_backward(self) -> Tensor:
        if self._debug is not None:
            return super()._forward_backward()
        total = torch.zeros((), device=self.net.device)
        count = int(self.param.iter_size)
        for index in range(count):
            clear_replaced_gradients(self.net.layers)
            # Gradients are exchanged once an update.
            with self._run.no_sync() if isinstance(self._run, DistributedDataParallel) and index + 1 < count else nullcontext():
                total += self._one_pass()
        self.precision.ready([entry.parameter for entry in self.net.learnable])
        return total / count

    def _one_pass(self) -> Tensor:
        """Run forward and backward once; return the loss, on the device."""
        if self._graph is None:
            loss = self._forward()
        else:
            batch = self.net.read_batch({name: value for name, value in self.train_inputs.items() if name in self.net.inputs})
            replayed = self._graph.run(batch)
            if replayed is not None:
                loss, self.output_blobs = replayed
                return loss
            loss = self._forward(batch)
        if loss.requires_grad:
            with self._going_back(loss):
                self.precision.backward(loss)
        return loss.detach()

    def _going_back(self, loss: Tensor) -> AbstractContextManager[None]:
        # Several processes exchange gradients after the pass, and fp16 may leave an update out.
        alone = self.strategy.size == 1 and self.compute.precision != "fp16"
        return super()._going_back(loss) if alone else nullcontext()

    def _update(self) -> None:
        self.precision.update(self.iteration, super()._update)


class _Losses(torch.nn.Module):
    """A net whose losses alone have gradients: DistributedDataParallel waits for the gradients of all that its outputs came from."""

    def __init__(self, net: Net):
        super().__init__()
        self.net = net

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: blob if name in self.net.loss_weights else blob.detach() for name, blob in self.net(batch).items()}


def idle_layers(net: Net) -> list[str]:
    """Return the layers with learnable parameters that no loss depends on: they never get a gradient."""
    needed = set(net.loss_weights)
    idle: list[str] = []
    for layer, needs in zip(reversed(net.layers), reversed(net.gradients), strict=True):
        if needed.isdisjoint(layer.tops):
            if any(blob.requires_grad for blob in layer.blobs):
                idle.append(layer.name)
            continue
        wanted = zip(layer.bottoms, needs, strict=True)
        needed = (needed - set(layer.tops)) | {bottom for bottom, need in wanted if need}
    return idle
