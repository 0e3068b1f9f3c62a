"""Seconds to read and to write a .caffemodel of AlexNet's size (240 MB of random weights, in a temporary folder).

    python benchmarks/read_model.py [--rounds 5] [--json]

Reading: the file is mapped, its messages are walked, and every value is summed up once, so that mapped pages count too; "opened"
is the same without touching the values. The file is in the system's cache. Loading: into a net, layer by layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from caffetools.net.net import Net
from caffetools.net.weights import load_weights, save_weights
from caffetools.proto.binary import read_caffemodel
from caffetools.zoo.networks import prototxt_path


def measured(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {what: [] for what in steps}
    for _ in range(rounds):
        for what, step in steps.items():
            begin = time.perf_counter()
            step()
            times[what].append(time.perf_counter() - begin)
    return {what: statistics.median(values) for what, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    net = Net.from_file(prototxt_path("bvlc_alexnet", "deploy"))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "alexnet.caffemodel"

        def read() -> None:
            for blobs in read_caffemodel(path).blobs.values():
                for blob in blobs:
                    blob.sum()

        steps: dict[str, Callable[[], Any]] = {
            "written (and on the disk)": lambda: save_weights(net, path),
            "opened": lambda: read_caffemodel(path),
            "read": read,
            "loaded into a net": lambda: load_weights(net, path),
        }
        seconds = measured(steps, options.rounds)
        size = path.stat().st_size
    if options.json:
        print(json.dumps({"bytes": size, "seconds": seconds}, indent=2))
        return
    print(f"{size / 1e6:.0f} MB")
    for what, value in seconds.items():
        print(f"{what:28} {value:.3f} s")


if __name__ == "__main__":
    main()
