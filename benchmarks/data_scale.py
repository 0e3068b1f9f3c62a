"""Memory and rate of datasets of a million records: a build, one that is killed half-way and resumed, and what reads its database.

    python benchmarks/data_scale.py FOLDER [--pictures 1000000] [--json]

FOLDER gets the pictures (8 x 8 PNGs, all different, 100 classes; made once and kept, about 4 KiB of disk each) and the datasets. Each part
runs in a process of its own, which notes its resident memory and CPU time every tenth of the way. Reported are the resident memory at 10 %, at
100 % of the steps and at its highest, the bytes a record that it grows by in between, and the slowest and fastest tenth in steps per CPU second
(of a build: while it writes records, not while it computes the mean).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from caffetools.data.databases import open_database
from caffetools.data.datasets.build import build_dataset
from caffetools.data.datasets.inspect import inspect_database
from caffetools.data.datasets.verify import verify_database
from caffetools.data.means import compute_mean
from caffetools.events import Event, Progress

_CLASSES = 100


def make_pictures(folder: Path, count: int) -> None:
    """Write ``count`` pictures in a folder for each class; nothing if they are there."""
    done = folder.with_suffix(".done")
    if done.exists() and done.read_text() == str(count):
        return
    rng = np.random.default_rng(0)
    for label in range(_CLASSES):
        (folder / f"class{label:03d}").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        data = cv2.imencode(".png", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1]
        (folder / f"class{number % _CLASSES:03d}" / f"{number:07d}.png").write_bytes(data.tobytes())
    done.write_text(str(count))


class Samples:
    """Notes memory and time every tenth of the way, as lines of JSON on stdout."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.progress(event.done, event.total or 0)

    def progress(self, done: int, total: int) -> None:
        step = max(1, total // 10)
        if done // step > self.done // step:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            rss = pages * resource.getpagesize()
            print(json.dumps({"done": done, "total": total, "rss": rss, "cpu": time.process_time()}), flush=True)
        self.done = done


def run_part(part: str, folder: Path) -> None:
    """Do one part in this process."""
    samples, database = Samples(), folder / "whole" / "train_lmdb"
    match part:
        case "build":
            build_dataset(folder / "pictures", folder / "whole", size=0, force=True, progress=samples.progress)
        case "killed":
            build_dataset(folder / "pictures", folder / "resumed", size=0, force=True, progress=samples.progress)
        case "resume":
            build_dataset(folder / "pictures", folder / "resumed", size=0, force=True, resume=True, progress=samples.progress)
        case "verify":
            assert not verify_database(database, events=samples).faults
        case "inspect":
            inspect_database(database, events=samples)
        case "mean":
            compute_mean(database, events=samples)
    # Not of getrusage, which counts the parent's memory at the fork.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak": 1024 * int(peak.split()[1]), "cpu": time.process_time()}), flush=True)


def measure(part: str, folder: Path, *, kill_at: float = 2.0) -> dict[str, float]:
    """Run one part in a process of its own, kill it after a share of its steps, and return what is reported."""
    rows: list[dict[str, float]] = []
    begin = time.perf_counter()
    command = [sys.executable, __file__, str(folder), "--part", part]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            rows.append(json.loads(line))
            if "done" in rows[-1] and rows[-1]["done"] >= kill_at * rows[-1]["total"]:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode in (0, -signal.SIGKILL), f"{part} failed"
    samples = [row for row in rows if "done" in row]
    pairs = list(itertools.pairwise(samples))
    # A build's last tenths are those of the mean, which is faster by far.
    writing = [(one, two) for one, two in pairs if part not in ("build", "killed", "resume") or two["done"] <= two["total"] / 2]
    rates = [(two["done"] - one["done"]) / max(1e-9, two["cpu"] - one["cpu"]) for one, two in writing]
    first, last = samples[0], samples[-1]
    return {
        "seconds": time.perf_counter() - begin,
        "MB at first tenth": first["rss"] / 1e6,
        "MB at the end": last["rss"] / 1e6,
        "MB at most": max(row.get("peak", row.get("rss", 0)) for row in rows) / 1e6,
        "bytes a step": (last["rss"] - first["rss"]) / max(1, last["done"] - first["done"]),
        "slowest tenth, steps/CPU s": min(rates, default=0),
        "fastest tenth, steps/CPU s": max(rates, default=0),
    }


def digest(database: Path) -> str:
    """Return a checksum of the keys and values."""
    found = hashlib.sha256()
    with closing(open_database(database)) as opened:
        for key, value in opened.records():
            found.update(key + value)
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="*", default=["build", "verify", "inspect", "mean", "killed"])
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.part:
        run_part(options.part, options.folder)
        return
    make_pictures(options.folder / "pictures", options.pictures)
    results: dict[str, dict[str, float]] = {}
    for part in options.parts:
        results[part] = measure(part, options.folder, kill_at=0.3 if part == "killed" else 2.0)
        if part == "killed":
            results["resume"] = measure("resume", options.folder)
            same = digest(options.folder / "whole" / "train_lmdb") == digest(options.folder / "resumed" / "train_lmdb")
            results["resume"]["same records as the whole build"] = same
            shutil.rmtree(options.folder / "resumed")
        if not options.json:
            for name in (part, "resume") if part == "killed" else (part,):
                for what, value in results[name].items():
                    print(f"{name:8} {what:34} {value:14.1f}", flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
