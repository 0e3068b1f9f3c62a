"""Seconds per training iteration: caffetools, the same network hand-written in plain PyTorch, and real Caffe, side by side in one run.

    python benchmarks/train.py [--batch 16] [--rounds 7] [--only squeezenet_v1.1] [--sides pytorch caffe] [--quiet-only]

All train on the same random pictures, already in memory, each in a process of its own. Rounds alternate (ours, theirs, ours, …), so
that a machine that slows down slows all; the figures are each one's medians of wall seconds and of CPU seconds (user and system, all
threads; less shaken by others on the machine), and its peak memory. The ratios are theirs / ours (above 1: caffetools is better).
Real Caffe runs where ``caffetools engine add caffe`` has made its environment (its solver is given data by DummyData layers), else
it is left out. "share of sgemm" is 3 x the forward pass's multiply-adds at the rate of a large matrix product, measured in each round, over
our time.

Then a process that computes without end on one core is started next to them: "busy" is a side's iteration meanwhile over its quiet one, with that
process in a session of its own (as from another terminal: Linux shares the cores among sessions first, so of two cores a training gets 1.33) and
in the same session (1.5 of two cores). With two threads, 1.5 and 1.33 would be perfect, and 2 is what one thread alone would take.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# By name → side of the pictures; the PyTorch modules are in plain.py.
NETWORKS = {
    "bvlc_alexnet": 227,
    "bvlc_googlenet": 224,
    "squeezenet_v1.1": 227,
    "resnet10": 224,
    "resnet50": 224,
    "vgg16": 224,
    "mobilenet_v1": 224,
    "mobilenet_v2": 224,
}
Step = Callable[[], object]
# A side next to a busy process is measured for so long at most, and in one iteration at least.
_MOST_BUSY_SECONDS = 4.0


def ours(name: str, batch: int, size: int) -> Step:
    """One iteration of ``caffetools train``: its solver, on pictures that are there already."""
    from caffetools.graph.inputs import data_layers_to_inputs
    from caffetools.net.malloc_tuning import disable_malloc_trim
    from caffetools.proto.schema import SolverParameter
    from caffetools.proto.text import read_net
    from caffetools.solver.solver import Solver
    from caffetools.zoo.networks import prototxt_path

    disable_malloc_trim()  # as the command line does
    net = data_layers_to_inputs(read_net(prototxt_path(name, "train_val")), batch=batch)
    param = SolverParameter(train_net_param=net, base_lr=1e-3, lr_policy="fixed", momentum=0.9, weight_decay=5e-4, max_iter=10**6)
    solver = Solver(param)
    solver.updates_early = True  # as the command line does
    data, label = pictures(batch, size)
    solver.train_inputs = {"data": data, "label": label.float()}
    return lambda: solver.step(1)


def theirs(name: str, batch: int, size: int) -> Step:
    """One iteration in plain eager PyTorch."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from plain import NETWORKS as MODULES

    model: Any = MODULES[name][0]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    data, label = pictures(batch, size)

    def step() -> None:
        optimizer.zero_grad()
        model(data, label).backward()
        optimizer.step()

    return step


def pictures(batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator) * 50, torch.randint(0, 1000, (batch,), generator=generator)


def worker(name: str, batch: int, who: str) -> None:
    """One iteration for each line of standard input; its wall and CPU seconds, and the peak memory so far, as a line of JSON."""
    step = SIDES[who](name, batch, NETWORKS.get(name, 0))
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, peak_of_this_process()]), flush=True)


class Side:
    """A process of its own that computes iterations when asked to: neither sees the other's memory, nor its settings."""

    def __init__(self, name: str, batch: int, who: str, python: str):
        environment = {**os.environ, "GLOG_minloglevel": "3"}
        command = [python, __file__, "--batch", str(batch), "--only", name, "--worker", who]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.last = self.peak = 0.0

    def step(self, *, count: bool = True) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.last, cpu, self.peak = json.loads(self.process.stdout.readline())
        if count:
            self.wall.append(self.last)
            self.cpu.append(cpu)

    def seconds_with(self, rounds: int) -> float:
        """The median of up to ``rounds`` further iterations, which are not counted; fewer where they take long."""
        times: list[float] = []
        while len(times) < rounds and sum(times) < _MOST_BUSY_SECONDS:
            self.step(count=False)
            times.append(self.last)
        return statistics.median(times)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def real_caffe(name: str, batch: int, size: int) -> Step:
    """One step of real Caffe's own solver; ``name`` is here the solver's prototxt."""
    import caffe  # type: ignore[import-not-found]

    caffe.set_mode_cpu()
    solver = caffe.SGDSolver(name)
    return lambda: solver.step(1)


def solver_of_real_caffe(name: str, batch: int, folder: Path) -> str:
    """Write the net of ``name``, its pictures and labels from DummyData, and a solver; return the solver's path."""
    from caffetools.graph.inputs import data_layers_to_inputs
    from caffetools.proto.schema import SolverParameter
    from caffetools.proto.text import read_net, write_prototxt
    from caffetools.zoo.networks import prototxt_path

    net = data_layers_to_inputs(read_net(prototxt_path(name, "train_val")), batch=batch)
    for layer in net.layer:
        if layer.type == "Input":
            layer.type = "DummyData"
            layer.dummy_data_param.shape.extend(layer.input_param.shape)
            layer.dummy_data_param.data_filler.add(type="constant", value=1)
            layer.ClearField("input_param")
    write_prototxt(folder / "net.prototxt", net)
    fields: dict[str, Any] = {"base_lr": 1e-3, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 5e-4, "max_iter": 10**6}
    solver = SolverParameter(net=str(folder / "net.prototxt"), solver_mode="CPU", snapshot_prefix=str(folder / "s"), **fields)
    write_prototxt(folder / "solver.prototxt", solver)
    return str(folder / "solver.prototxt")


def macs_of(name: str, batch: int) -> int:
    from caffetools.graph.inputs import data_layers_to_inputs
    from caffetools.net.net import Net
    from caffetools.proto.schema import TRAIN
    from caffetools.proto.text import read_net
    from caffetools.zoo.networks import prototxt_path

    net = Net(data_layers_to_inputs(read_net(prototxt_path(name, "train_val")), batch=batch), TRAIN, fill=False)
    return sum(layer.macs() for layer in net.layers)


def compare(name: str, batch: int, rounds: int, opponents: Collection[str], *, busy_too: bool = True) -> dict[str, dict[str, float]]:
    from plain import sgemm_seconds

    from caffetools.engines.environments import find_environment
    from caffetools.errors import CaffeToolsError

    with tempfile.TemporaryDirectory() as place:
        sides = {
            who: Side(name, batch, who, sys.executable) for who in ("caffetools", "pytorch") if who == "caffetools" or who in opponents
        }
        if "caffe" in opponents:
            try:
                python = str(find_environment("caffe").python)
                sides["caffe"] = Side(solver_of_real_caffe(name, batch, Path(place)), batch, "caffe", python)
            except CaffeToolsError as error:
                print(f"left out: {error}")
        macs = macs_of(name, batch)
        products = []
        for _ in range(2):
            for side in sides.values():
                side.step(count=False)
        for _ in range(rounds):
            for side in sides.values():
                side.step()
            products.append(3 * sgemm_seconds(macs, tries=2))
            time.sleep(0.05)  # until the product's threads sleep
        peaks = {who: side.peak for who, side in sides.items()}
        busy: dict[str, dict[str, float]] = {}
        for session, other in (("own session", True), ("same session", False)) if busy_too else ():
            with busy_process(other_session=other):
                times = {who: side.seconds_with(rounds) for who, side in sides.items()}
            busy[f"busy, {session}"] = {who: times[who] / statistics.median(side.wall) for who, side in sides.items()}
        for side in sides.values():
            side.close()
    results = {
        who: {"wall s": statistics.median(side.wall), "CPU s": statistics.median(side.cpu), "GB": peaks[who]} for who, side in sides.items()
    }
    ours = dict(results["caffetools"])
    for who in [who for who in results if who != "caffetools"]:
        results[f"{who} / caffetools"] = {what: results[who][what] / ours[what] for what in ours}
    results["share of sgemm"] = {"": statistics.median(products) / ours["wall s"]}
    return {**results, **busy}


@contextmanager
def busy_process(*, other_session: bool) -> Iterator[None]:
    """A process that computes without end on one core, and has begun to."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=other_session)
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def peak_of_this_process() -> float:
    """GB. Linux keeps the peak of this very program; ru_maxrss would begin with that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


SIDES = {"caffetools": ours, "pytorch": theirs, "caffe": real_caffe}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", metavar="NET")
    parser.add_argument("--sides", nargs="*", default=["pytorch", "caffe"], choices=["pytorch", "caffe"], help="opponents (default: both)")
    parser.add_argument("--quiet-only", action="store_true", help="without the busy process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        # The folder of this script holds nothing that a worker may import by accident.
        sys.path.pop(0)
        worker(options.only, options.batch, options.worker)
        return
    results = {}
    for name in [options.only] if options.only else list(NETWORKS):
        result = results[name] = compare(name, options.batch, options.rounds, options.sides, busy_too=not options.quiet_only)
        if not options.json:
            print(name)
            for who, figures in result.items():
                print(f"  {who:22}" + "".join(f"{value:10.3f} {what}" for what, value in figures.items()), flush=True)
    if options.json:
        import torch

        facts = {"batch": options.batch, "threads": torch.get_num_threads(), "torch": torch.__version__}
        print(json.dumps({**facts, "results": results}, indent=2))


if __name__ == "__main__":
    main()
