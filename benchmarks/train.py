"""Seconds per training iteration: caffetools against the same network hand-written in plain PyTorch, side by side in one run.

    python benchmarks/train.py [--batch 16] [--rounds 7] [--only squeezenet_v1.1]

Both train on the same random pictures, already in memory, each in a process of its own. Rounds alternate (ours, theirs, ours, …), so
that a machine that slows down slows both; the figures are each one's medians of wall seconds and of CPU seconds (user and system, all
threads; less shaken by others on the machine), and its peak memory. The ratios are theirs / ours (above 1: caffetools is better).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from plain import NETWORKS

from caffetools.engines.caffe import RealCaffe
from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import read_net, write_prototxt
from caffetools.solver.solver import Solver
from caffetools.zoo.networks import prototxt_path

Step = Callable[[], None]


def ours(name: str, batch: int, size: int) -> Step:
    """One iteration of ``caffetools train``: its solver, on pictures that are there already."""
    net = data_layers_to_inputs(read_net(prototxt_path(name, "train_val")), batch=batch)
    param = SolverParameter(train_net_param=net, base_lr=1e-3, lr_policy="fixed", momentum=0.9, weight_decay=5e-4, max_iter=10**6)
    solver = Solver(param)
    data, label = pictures(batch, size)
    solver.train_inputs = {"data": data, "label": label.float()}
    return lambda: solver.step(1)


def theirs(name: str, batch: int, size: int) -> Step:
    """One iteration in plain eager PyTorch."""
    model: nn.Module = NETWORKS[name][0]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    data, label = pictures(batch, size)

    def step() -> None:
        optimizer.zero_grad()
        model(data, label).backward()
        optimizer.step()

    return step


def pictures(batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator) * 50, torch.randint(0, 1000, (batch,), generator=generator)


def worker(name: str, batch: int, who: str) -> None:
    """One iteration for each line of standard input; its wall and CPU seconds, and the peak memory so far, as a line of JSON."""
    torch.manual_seed(0)
    step = SIDES[who](name, batch, NETWORKS[name][1])
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, peak_of_this_process()]), flush=True)


class Side:
    """A process of its own that computes iterations when asked to: neither sees the other's memory, nor its settings."""

    def __init__(self, name: str, batch: int, who: str):
        command = [sys.executable, __file__, "--batch", str(batch), "--only", name, "--worker", who]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.peak = 0.0

    def step(self, *, count: bool = True) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, cpu, self.peak = json.loads(self.process.stdout.readline())
        if count:
            self.wall.append(wall)
            self.cpu.append(cpu)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(name: str, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    sides = {who: Side(name, batch, who) for who in SIDES}
    for _ in range(2):
        for side in sides.values():
            side.step(count=False)
    for _ in range(rounds):
        for side in sides.values():
            side.step()
    for side in sides.values():
        side.close()
    results = {
        who: {"wall s": statistics.median(side.wall), "CPU s": statistics.median(side.cpu), "GB": side.peak} for who, side in sides.items()
    }
    ours, theirs = results["caffetools"], results["pytorch"]
    if os.environ.get("CAFFE_ROOT"):
        # After the others, so that it takes no core from them; it does less, since it makes no update.
        results["real Caffe, no update"] = caffe = real_caffe(name, batch, rounds)
        results["real Caffe / caffetools"] = {"wall s": caffe["wall s"] / ours["wall s"]}
    return {**results, "PyTorch / caffetools": {what: theirs[what] / ours[what] for what in ours}}


def peak_of_this_process() -> float:
    """GB. Linux keeps the peak of this very program; ru_maxrss would begin with that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def real_caffe(name: str, batch: int, rounds: int) -> dict[str, float]:
    """Wall seconds of a forward and backward pass (no update) in the Caffe that CAFFE_ROOT names, by its own ``caffe time``."""
    net = data_layers_to_inputs(read_net(prototxt_path(name, "train_val")), batch=batch)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "net.prototxt"
        write_prototxt(model, net)
        command = [*RealCaffe.find().command, "time", "-model", str(model), "-iterations", str(rounds)]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = re.search(r"Average Forward-Backward: ([\d.e+]+) ms", log)
    if not found:
        raise SystemExit(f"real Caffe printed no time:\n{log[-2000:]}")
    return {"wall s": float(found[1]) / 1000}


SIDES = {"caffetools": ours, "pytorch": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=list(NETWORKS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.only, options.batch, options.worker)
        return
    results = {}
    for name in [options.only] if options.only else list(NETWORKS):
        result = results[name] = compare(name, options.batch, options.rounds)
        if not options.json:
            print(name)
            for who, figures in result.items():
                print(f"  {who:22}" + "".join(f"{value:10.3f} {what}" for what, value in figures.items()), flush=True)
    if options.json:
        facts = {"batch": options.batch, "threads": torch.get_num_threads(), "torch": torch.__version__}
        print(json.dumps({**facts, "results": results}, indent=2))


if __name__ == "__main__":
    main()
