"""Seconds per training iteration: caffetools against the same network hand-written in plain PyTorch, side by side in one run.

    python benchmarks/train.py [--batch 16] [--rounds 5] [--only squeezenet_v1.1]

Both train on the same random pictures, already in memory. Rounds alternate (ours, theirs, ours, …), so that a machine that slows
down slows both; the figure is each one's median, the ratio is theirs / ours (above 1: caffetools is faster). Peak memory is
measured in a process of its own for each.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from plain import NETWORKS

from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, SolverParameter
from caffetools.proto.text import read_net
from caffetools.solver.rules import make_rule
from caffetools.surgery.inputs import data_layers_to_inputs
from caffetools.zoo.networks import prototxt_path

Step = Callable[[], None]


def ours(name: str, batch: int, size: int) -> Step:
    """One iteration as ``caffetools train`` does it: forward, backward, SGD with Caffe's semantics."""
    param = data_layers_to_inputs(read_net(prototxt_path(name, "train_val")), batch=batch)
    net = Net(param, TRAIN)
    rule = make_rule(SolverParameter(type="SGD", momentum=0.9, weight_decay=5e-4, base_lr=1e-3), net.learnable)
    data, label = pictures(batch, size)

    def step() -> None:
        blobs = net({"data": data, "label": label.float()})
        net.total_loss(blobs).backward()
        rule.update(1e-3)

    return step


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


def compare(name: str, batch: int, rounds: int) -> dict[str, float]:
    size = NETWORKS[name][1]
    torch.manual_seed(0)
    steps = {"caffetools": ours(name, batch, size), "pytorch": theirs(name, batch, size)}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {who: [] for who in steps}
    for _ in range(rounds):
        for who, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[who].append(time.perf_counter() - begin)
    medians = {who: statistics.median(values) for who, values in seconds.items()}
    return {**medians, "ratio": medians["pytorch"] / medians["caffetools"]}


def peak_memory(name: str, batch: int, who: str) -> float:
    """The peak resident memory in GB of a fresh process that does two iterations."""
    command = [sys.executable, __file__, "--batch", str(batch), "--only", name, "--memory-of", who]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(NETWORKS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=["caffetools", "pytorch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        step = (ours if options.memory_of == "caffetools" else theirs)(options.only, options.batch, NETWORKS[options.only][1])
        step()
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        return
    results = {}
    for name in [options.only] if options.only else list(NETWORKS):
        result = compare(name, options.batch, options.rounds)
        for who in ("caffetools", "pytorch"):
            result[f"{who} GB"] = peak_memory(name, options.batch, who)
        results[name] = result
        if not options.json:
            print(
                f"{name:16} caffetools {result['caffetools']:.3f} s/iter {result['caffetools GB']:.2f} GB   "
                f"PyTorch {result['pytorch']:.3f} s/iter {result['pytorch GB']:.2f} GB   PyTorch / caffetools = {result['ratio']:.2f}"
            )
    if options.json:
        print(json.dumps({"batch": options.batch, "threads": torch.get_num_threads(), "torch": torch.__version__, "results": results}, indent=2))


if __name__ == "__main__":
    main()
