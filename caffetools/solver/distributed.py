"""``DistributedSolver``: the solver in several processes, in lower precision, compiled; the training loop itself is the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from caffetools.data.layers.batch_source import ReadingLayer
from caffetools.net.net import Net
from caffetools.net.weights import LoadReport
from caffetools.solver.checkpoints import per_rank as processes
from caffetools.solver.control import Output, Snapshot, TestResult
from caffetools.solver.errors import SolverError
from caffetools.solver.parallel import World
from caffetools.solver.precision import Precision, compile_net
from caffetools.solver.solver import Solver


@dataclass(frozen=True)
class ComputeOptions:
    """What a run may use besides one process in float32.

    Attributes:
        precision: fp32, tf32, bf16 or fp16. compiled: run the nets through torch.compile. device_transform: send pictures to the device
            as bytes and transform them there; None does so on CUDA.
    """

    precision: str = "fp32"
    compiled: bool = False
    device_transform: bool | None = None

    @property
    def plain(self) -> bool:
        """Whether passes are those of a plain solver."""
        return self.precision in ("fp32", "tf32") and not self.compiled


class DistributedSolver(Solver):
    """A :class:`Solver` with other means; what it computes is the same but for rounding.

    In several processes, each takes its share of the records at the net's own batch size, and gradients are averaged
    (DistributedDataParallel), as Caffe does with several GPUs. The root tests and takes snapshots, and its weights are what all
    start from; losses and outputs that are displayed are means over the processes. BatchNorm's statistics are each process' own, and
    the root's are those that are saved.

    Args:
        world: The processes; every one of them builds this solver and calls the same methods.
        compute: How to compute. The rest as for :class:`Solver`.

    Raises:
        CaffeToolsError: as for :class:`Solver`, or debug_info, which needs plain passes.
    """

    def __init__(self, param: Any, *, world: World | None = None, compute: ComputeOptions = ComputeOptions(), **options: Any):
        self.world, self.compute = world or World(), compute
        mine = type(param)()
        mine.CopyFrom(param)
        if mine.debug_info and not (self.world.alone and compute.plain):
            raise SolverError("debug_info needs one process in fp32 that is not compiled; remove it, or those", field="debug_info")
        if mine.random_seed < 0:
            mine.random_seed = int.from_bytes(os.urandom(4), "little") >> 1
        mine.random_seed = self.world.share(mine.random_seed)
        if not self.world.root:
            # Only the root tests.
            for name in ("test_iter", "test_net", "test_net_param", "test_state"):
                mine.ClearField(name)
        self._run: torch.nn.Module | None = None
        self._others_wait = False
        self._stored: processes.States | None = None
        super().__init__(mine, **options)

    # ---- what all processes do together ----

    def solve(self) -> None:
        """As :meth:`Solver.solve`, in every process from where the root stands."""
        with self.world.guarded():
            self._follow_root()
            super().solve()

    def restore(self, path: str | os.PathLike[str]) -> None:
        """As :meth:`Solver.restore`; only the root reads the files, the others follow when :meth:`solve` begins."""
        if self.world.root:
            super().restore(path)
            self._stored = processes.stored(path) if self._resumed else None

    def load_weights(self, path: str | os.PathLike[str]) -> LoadReport:
        """As :meth:`Solver.load_weights`; only the root reads the file."""
        return super().load_weights(path) if self.world.root else LoadReport()

    def test_all(self) -> list[TestResult]:
        """As :meth:`Solver.test_all` in the root, while the others wait; they get no results."""
        results = self.world.run_on_main(super().test_all)
        # A stop that was asked for during the test is everyone's.
        self.stopping = bool(self.world.share(self.stopping))
        return results or []

    def checkpoint_rng_before_test(self) -> None:
        """As :meth:`Solver.checkpoint_rng_before_test`, with the states of all processes."""
        super().checkpoint_rng_before_test()
        if self._before_tests is not None:
            self._before_tests = processes.with_others(self._before_tests, self.world, self.precision.state())

    def checkpoint(self) -> Snapshot:
        """As :meth:`Solver.checkpoint`: the root writes it, the others wait and know its names."""
        due = self._before_tests is None
        if due:
            self.checkpoint_rng_before_test()
        if self.losses:
            self.smoothed_loss()
        self._others_wait = True
        written = self.world.run_on_main(super().checkpoint)
        self._others_wait = False
        if due:
            self._before_tests = None
        names = self.world.share(processes.names(written))
        self.saved = names["iteration"]
        return written or Snapshot(names["iteration"], Path(names["weights"]), Path(names["state"]))

    def smoothed_loss(self) -> float:
        """As :meth:`Solver.smoothed_loss`, the mean over all processes."""
        loss = super().smoothed_loss()
        if not self._others_wait and self.losses:
            (loss,) = self.world.mean([loss])
        return loss

    def outputs(self) -> list[Output]:
        """As :meth:`Solver.outputs`, the means over all processes."""
        outputs = super().outputs()
        means = self.world.mean([output.value for output in outputs])
        return [replace(output, value=value) for output, value in zip(outputs, means, strict=True)]

    # ---- inside ----

    def _build_nets(self, device: torch.device) -> None:
        super()._build_nets(device)
        self.precision = Precision(self.compute.precision, device, self.log)
        on_device = device.type == "cuda" if self.compute.device_transform is None else self.compute.device_transform
        for net in (self.net, *self.test_nets):
            self.precision.prepare(net)
            if self.compute.compiled:
                compile_net(net, self.log)
            for layer in net.layers:
                if isinstance(layer, ReadingLayer) and on_device:
                    layer.transform_on(device)
        if not self.world.alone:
            self._join(device)

    def _join(self, device: torch.device) -> None:
        """Share the data and the gradients; start from the root's weights, with a random stream of one's own, as Caffe does."""
        for layer in self.net.layers:
            if isinstance(layer, ReadingLayer):
                layer.shard(self.world.rank, self.world.size)
        if any(parameter.requires_grad for parameter in self.net.parameters()):
            self._run = DistributedDataParallel(
                _Losses(self.net),
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                find_unused_parameters=bool(idle_layers(self.net)),
            )
        if not self.world.root:
            torch.manual_seed(self.param.random_seed + self.world.rank)

    def _follow_root(self) -> None:
        """Take weights, history and place of the root, which may have resumed a snapshot."""
        if self.world.alone:
            self._set_process_state(processes.own(self._stored, 0))
            return
        self.world.copy_from_root([*self.net.parameters(), *self.rule.history])
        facts = {
            "iteration": self.iteration,
            "saved": self.saved,
            "step": self.learning_rate.current_step,
            "resumed": self._resumed,
            "run": self.run_id,
            "losses": [float(loss) for loss in self.losses],
            "layers": processes.layer_states(self.net) if self.world.root else "",
        }
        facts = self.world.share(facts)
        stored = processes.share(self.world, self._stored)
        if facts["resumed"] and len(stored) != self.world.size:
            before = max(1, len(stored))
            text = f"The snapshot is of {before} process(es), this run has {self.world.size}; the data are shared out anew"
            self.log("caffe.cpp:235", text, "W")
        if not self.world.root:
            self.rule.load_history([blob.detach().cpu().numpy() for blob in self.rule.history])
            self.iteration, self.saved, self._resumed = facts["iteration"], facts["saved"], facts["resumed"]
            self.learning_rate.current_step, self.run_id = facts["step"], facts["run"]
            self.losses.clear()
            self.losses.extend(torch.tensor(loss, device=self.net.device) for loss in facts["losses"])
            if self._resumed:
                processes.follow(stored, facts["layers"], self.world, self.net, self.log)
        self._set_process_state(processes.own(stored, self.world.rank))

    def _set_process_state(self, state: Mapping[str, Any]) -> None:
        self.precision.set_state(state.get("precision", {}))

    def step(self, iterations: int) -> None:
        """As :meth:`Solver.step`, with torch's settings for the precision."""
        with self.precision.settings():
            super().step(iterations)

    def _display_and_test_at_end(self) -> None:
        with self.precision.settings():
            super()._display_and_test_at_end()

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
            # Gradients are exchanged once an update.
            with self._run.no_sync() if isinstance(self._run, DistributedDataParallel) and index + 1 < count else nullcontext():
                loss = self._forward()
                if loss.requires_grad:
                    self.precision.backward(loss)
            total += loss.detach()
        self.precision.ready([entry.parameter for entry in self.net.learnable])
        return total / count

    def _update(self) -> None:
        self.precision.update(self.iteration, super()._update)


class _Losses(torch.nn.Module):
    """A net of which only the losses lead back: DistributedDataParallel waits for the gradients of all that its outputs came from."""

    def __init__(self, net: Net):
        super().__init__()
        self.net = net

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: blob if name in self.net.loss_weights else blob.detach() for name, blob in self.net(batch).items()}


def idle_layers(net: Net) -> list[str]:
    """The layers with something to learn from which no way leads to a loss: their parameters never get a gradient."""
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
