"""Several processes for tests: real ones that join over gloo, forked from a server that has torch loaded already."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch.distributed as dist

from caffetools.data.databases import new_lmdb, record_key
from caffetools.data.datum import array_to_datum
from tests.children import CONTEXT

SOLVER = """
net: "net.prototxt" base_lr: 0.05 lr_policy: "step" gamma: 0.5 stepsize: 6 momentum: 0.9 weight_decay: 0.001 random_seed: 5
max_iter: 10 display: 5 snapshot: 5 snapshot_prefix: "run" solver_mode: CPU test_iter: 2 test_interval: 5
"""
NET = """
name: "shared"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN } TRANSFORM
  data_param { source: "train_lmdb" backend: LMDB batch_size: BATCH } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST } TRANSFORM
  data_param { source: "train_lmdb" backend: LMDB batch_size: 8 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_size: 3 weight_filler { type: "xavier" } } }
EXTRA
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
PLAIN = "transform_param { mean_value: 100 scale: 0.01 }"
RANDOM = "transform_param { mean_value: 100 scale: 0.01 crop_size: 8 mirror: true }"


def project(folder: Path, *, batch: int, solver: str = "", transform: str = PLAIN, extra: str = "", records: int = 27) -> Path:
    """Write a solver, its net and an LMDB of ``records`` small pictures into ``folder``; fields of ``solver`` replace the usual ones."""
    folder.mkdir(exist_ok=True)
    net = NET.replace("TRANSFORM", transform).replace("BATCH", str(batch)).replace("EXTRA", extra)
    (folder / "net.prototxt").write_text(net)
    text = SOLVER
    for name in re.findall(r"(\w+):", solver):
        text = re.sub(rf"\b{name}: \S+", "", text)
    (folder / "solver.prototxt").write_text(text + solver)
    rng = np.random.default_rng(2)
    with new_lmdb(folder / "train_lmdb") as writer:
        for number in range(records):
            label = int(rng.integers(4))
            pixels = rng.integers(0, 120, (3, 10, 10)).astype(np.uint8)
            pixels[label % 3, 2 * label : 2 * label + 3] += 100
            writer.put(record_key(number, "x"), array_to_datum(pixels, label).SerializeToString())
    return folder


@dataclass
class Ended:
    """How processes ended: their exit codes by rank, and what each wrote to stderr and stdout."""

    codes: list[int]
    errors: list[str]
    outputs: list[str]

    def complaints(self) -> list[str]:
        """The lines that tell of an error, of all processes together."""
        return [line for text in self.errors for line in text.splitlines() if line.startswith("caffetools: error: ")]


class Together:
    """``caffetools train ARGUMENTS`` in ``count`` processes of their own in ``folder``; a context, at whose end none is left."""

    def __init__(self, folder: Path, *arguments: str, count: int = 2, environment: Mapping[str, str] | None = None):
        self.folder = folder
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        self.processes: list[BaseProcess] = []
        for rank in range(count):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, **self._address()}
            variables = {name: str(value) for name, value in numbers.items()} | {"OMP_NUM_THREADS": "1"} | dict(environment or {})
            from tests.solver.worker import work

            process = CONTEXT.Process(target=work, args=(str(folder), rank, variables, ["train", *arguments]))
            process.start()
            self.processes.append(process)

    def _address(self) -> dict[str, object]:
        """As torchrun's agent gives it to its processes: it is the one that has the store."""
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port, "TORCHELASTIC_USE_AGENT_STORE": "True"}

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def wait(self, limit: float = 280.0) -> Ended:
        """Wait for the end of all; longer than ``limit`` seconds counts as a hang."""
        for process in self.processes:
            process.join(limit)
            assert process.exitcode is not None, "a process hangs"
        texts = [[(self.folder / f"{kind}{rank}.txt").read_text() for rank in range(len(self.processes))] for kind in ("stderr", "stdout")]
        return Ended([int(process.exitcode or 0) for process in self.processes], *texts)


def train_together(folder: Path, *arguments: str, count: int = 2) -> Ended:
    """Run to the end."""
    with Together(folder, "solver.prototxt", "--device", "cpu", *arguments, count=count) as run:
        return run.wait()


def environment() -> dict[str, str]:
    """For processes that are started by command."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
