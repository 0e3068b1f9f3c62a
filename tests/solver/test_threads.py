"""Several trainings in one process: each gives the numbers that it gives alone, and global states come back."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.events import Event, Progress
from caffetools.solver.run import train
from tests.solver.together import RANDOM, project

DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.3 } }'


@pytest.fixture
def projects(tmp_path: Path) -> list[Path]:
    """Two solvers with absolute names, random crops and flips, dropout, fillers, and different seeds."""
    folders = []
    for index in range(2):
        folder = project(tmp_path / f"p{index}", batch=4, transform=RANDOM, extra=DROPOUT, solver=f"random_seed: {11 + index}")
        for name in ("solver.prototxt", "net.prototxt"):
            text = (folder / name).read_text()
            for word in ("net.prototxt", "train_lmdb", "run"):
                text = text.replace(f'"{word}"', f'"{folder / word}"')
            (folder / name).write_text(text)
        folders.append(folder)
    return folders


def results(folder: Path) -> list[bytes]:
    return [(folder / f"run_iter_{n}.{kind}").read_bytes() for n in (5, 10) for kind in ("caffemodel", "solverstate")]


def test_two_trainings_in_threads_give_the_bits_of_each_alone(projects: list[Path]) -> None:
    alone = []
    for folder in projects:
        train(folder / "solver.prototxt", device="cpu")
        alone.append(results(folder))
    assert alone[0] != alone[1]
    # Each waits for the other at every iteration, so that they alternate.
    barrier = threading.Barrier(2, timeout=60)

    def sink(event: Event) -> None:
        if isinstance(event, Progress):
            barrier.wait()

    errors: list[BaseException] = []

    def run(folder: Path) -> None:
        try:
            train(folder / "solver.prototxt", device="cpu", events=sink)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(folder,)) for folder in projects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    assert [results(folder) for folder in projects] == alone


def test_a_training_within_an_event_of_another_one_changes_nothing(projects: list[Path]) -> None:
    train(projects[0] / "solver.prototxt", device="cpu")
    alone = results(projects[0])

    def sink(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 3:
            train(projects[1] / "solver.prototxt", device="cpu")

    train(projects[0] / "solver.prototxt", device="cpu", events=sink)
    assert results(projects[0]) == alone


def test_the_random_states_come_back_after_a_training(projects: list[Path]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    train(projects[0] / "solver.prototxt", device="cpu")
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
