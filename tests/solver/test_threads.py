"""Several trainings in one process: each gives the numbers that it gives alone, and global states come back."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import caffetools as ct
from caffetools import pycaffe
from caffetools.events import Event, Progress
from caffetools.solver.run import train
from caffetools.solver.solver import Solver
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


def by_pycaffe(folder: Path) -> list[bytes]:
    solver = pycaffe.SGDSolver(str(folder / "solver.prototxt"))
    solver.solve()
    return results(folder)


def by_train(folder: Path) -> list[bytes]:
    train(folder / "solver.prototxt", device="cpu")
    return results(folder)


def test_trainings_of_all_kinds_while_nets_are_built_and_used_give_the_bits_of_each_alone(projects: list[Path], tmp_path: Path) -> None:
    kinds: list[tuple[Callable[[Path], list[bytes]], Path]] = [(by_train, projects[0]), (by_pycaffe, projects[1])]
    alone = [make(folder) for make, folder in kinds]
    net = tmp_path / "net.prototxt"
    net.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
        'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }'
        'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }'
    )
    ct.save_weights(ct.load_net(net), tmp_path / "w.caffemodel")
    picture = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    expected = ct.classify(picture, net, tmp_path / "w.caffemodel", mean=[0])[0]
    over = threading.Event()

    def classify(number: int) -> bool:
        same = True
        while not over.is_set():
            # Filled from the process's random state, as is what a training module of somebody else's drops.
            ct.load_net(net)
            torch.nn.functional.dropout(torch.ones(3))
            np.random.rand()
            random.random()
            same = same and ct.classify(picture, net, tmp_path / "w.caffemodel", mean=[0])[0] == expected
        return same

    with ThreadPoolExecutor(12) as pool:
        threads = [pool.submit(classify, number) for number in range(10)]
        try:
            together = list(pool.map(lambda kind: kind[0](kind[1]), kinds))
        finally:
            over.set()
        assert all(thread.result() for thread in threads)
    assert together == alone


def test_a_solver_draws_from_a_stream_of_its_own(projects: list[Path]) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Solver(projects[0] / "solver.prototxt").step(2)
    assert torch.equal(torch.rand(3), expected)


def test_a_solver_without_a_seed_follows_torchs(projects: list[Path]) -> None:
    path = projects[0] / "solver.prototxt"
    path.write_text(path.read_text().replace("random_seed: 11", ""))
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn += [Solver(path).net.layer("conv").blobs[0].detach() for _ in range(2)]
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[4])


def test_pycaffes_seed_reaches_the_solvers_that_there_are(projects: list[Path]) -> None:
    solver = pycaffe.SGDSolver(str(projects[0] / "solver.prototxt"))
    drawn = []
    for _ in range(2):
        pycaffe.set_random_seed(4)
        for batch in solver.net.blobs.values():
            batch.data[...] = 1
        solver.net.forward(start="drop")
        drawn.append(solver.net.blobs["conv"].data.copy())
    assert np.array_equal(*drawn)
    assert len(np.unique(drawn[0])) > 1


def reading_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "caffetools-prefetch"}


def test_a_closed_solver_has_no_threads_and_continues_with_the_next_batch(projects: list[Path]) -> None:
    path, before = projects[0] / "solver.prototxt", reading_threads()
    whole = Solver(path)
    whole.step(7)
    whole.close()
    with Solver(path) as parted:
        parted.step(3)
        assert reading_threads() - before
    assert not reading_threads() - before
    parted.step(4)
    parted.close()
    assert not reading_threads() - before
    pairs = zip(whole.net.learnable, parted.net.learnable, strict=True)
    assert all(torch.equal(one.parameter, other.parameter) for one, other in pairs)


def test_training_and_testing_leave_no_thread_and_no_file_open(projects: list[Path]) -> None:
    before = reading_threads()
    result = train(projects[0] / "solver.prototxt", device="cpu")
    assert not reading_threads() - before
    net = ct.load_net(projects[0] / "net.prototxt", projects[0] / "run_iter_10.caffemodel")
    first = ct.test(net, iterations=2)
    assert not reading_threads() - before
    # The 27 records follow one another: the second test begins where the first one ended.
    assert ct.test(net, iterations=2) != first
    assert not [link for link in Path("/proc/self/fd").iterdir() if str(projects[0]) in os.path.realpath(link)] or os.name == "nt"
    assert result.solver.iteration == 10


def test_a_test_of_weights_that_lack_a_layer_leaves_the_random_state_alone_and_repeats(projects: list[Path]) -> None:
    folder = projects[0]
    train(folder / "solver.prototxt", device="cpu")
    net = folder / "net.prototxt"
    net.write_text(net.read_text().replace('name: "ip"', 'name: "other"'))
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.rand(1)
        torch.manual_seed(seed)
        scores.append(ct.test(net, folder / "run_iter_10.caffemodel", iterations=2))
        assert torch.equal(torch.rand(1), expected)
    assert scores[0] == scores[1]
