"""Every solver case against what BVLC Caffe computed: weights, histories and losses, update by update."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caffetools.proto.binary import read_solverstate
from caffetools.solver.checkpoints.snapshots import read_state
from caffetools.solver.solver import Solver
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "solvers"
INDEX: dict[str, list[dict[str, Any]]] = json.loads((FOLDER / "index.json").read_text())
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(autouse=True)
def in_the_golden_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)


def load(case: dict[str, Any]) -> Arrays:
    with np.load(FOLDER / case["npz"]) as file:
        return dict(file)


def make_solver(case: dict[str, Any], arrays: Arrays, device: str = "cpu") -> Solver:
    solver = Solver.from_file(case["solver"], device=device)
    with torch.no_grad():
        for key, array in arrays.items():
            if key.startswith("init:"):
                _, layer, index = key.split(":")
                solver.net.layer(layer).blobs[int(index)].copy_(torch.from_numpy(array))
    solver.train_inputs = {key.removeprefix("in:"): torch.from_numpy(a) for key, a in arrays.items() if key.startswith("in:")}
    return solver


def check(got: NDArray[Any], expected: NDArray[Any], *, updates: int, name: str) -> None:
    assert got.shape == expected.shape, name
    rtol, atol = (1e-4, 1e-5) if updates <= 5 else (1e-3, 1e-4)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol, err_msg=name)


def check_weights(solver: Solver, arrays: Arrays, updates: int) -> None:
    found = False
    for key, expected in arrays.items():
        if key.startswith(f"weights@{updates}:"):
            _, layer, index = key.split(":")
            got = solver.net.layer(layer).blobs[int(index)].detach().cpu().numpy()
            check(got, expected, updates=updates, name=key)
            found = True
    assert found


@pytest.mark.parametrize("case", INDEX["cases"], ids=lambda c: c["name"])
def test_solver_follows_caffe_update_by_update(case: dict[str, Any]) -> None:
    check_updates(case, "cpu")


def check_updates(case: dict[str, Any], device: str) -> None:
    """Train on ``device`` and compare weights, histories and losses with Caffe's."""
    arrays = load(case)
    solver = make_solver(case, arrays, device)
    if not case["name"].startswith("old_enum"):
        assert type(solver.rule).__name__ == case["type"]
    losses = []
    for updates in range(1, 21):
        solver.step(1)
        losses.append([output.value for output in solver.outputs()])
        if updates not in (1, 2, 5, 20):
            continue
        check_weights(solver, arrays, updates)
        assert len(solver.rule.history) == sum(key.startswith(f"history@{updates}:") for key in arrays)
        for index, blob in enumerate(solver.rule.history):
            key = f"history@{updates}:{index}"
            check(blob.cpu().numpy(), arrays[key], updates=updates, name=key)
        assert solver.learning_rate.current_step == arrays[f"current_step@{updates}"]
    np.testing.assert_allclose(np.array(losses), arrays["loss"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", INDEX["resume"], ids=lambda c: c["name"])
def test_a_run_that_caffe_began_is_resumed_from_its_own_snapshot(case: dict[str, Any]) -> None:
    arrays = load(case)
    solver = make_solver(case, arrays)
    solver.restore(case["solverstate"])
    assert solver.iteration == 10
    for key, expected in arrays.items():
        if key.startswith("weights@10:"):
            _, layer, index = key.split(":")
            np.testing.assert_array_equal(solver.net.layer(layer).blobs[int(index)].detach().cpu().numpy(), expected)
    losses = []
    for _ in range(10):
        solver.step(1)
        losses.append([output.value for output in solver.outputs()])
    check_weights(solver, arrays, 20)
    np.testing.assert_allclose(np.array(losses).squeeze(), arrays["loss_after_resume"].squeeze(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", INDEX["resume"], ids=lambda c: c["name"])
def test_what_we_save_is_what_caffe_saved(case: dict[str, Any], tmp_path: Any) -> None:
    """Restored from Caffe's snapshot and saved again: the same iteration, step and history, blob for blob and bit for bit."""
    solver = make_solver(case, load(case))
    solver.restore(case["solverstate"])
    solver.prefix = str(tmp_path / "again")
    files = solver.snapshot()
    theirs, mine = read_state(case["solverstate"]), read_state(files.state)
    assert (mine.iter, mine.current_step, len(mine.history)) == (theirs.iter, theirs.current_step, len(theirs.history))
    for ours, caffes in zip(mine.history, theirs.history, strict=True):
        np.testing.assert_array_equal(ours, caffes)
    assert mine.learned_net == str(files.weights) and files.weights.exists()


def test_the_binary_state_has_caffes_bytes(tmp_path: Any) -> None:
    case = next(c for c in INDEX["resume"] if c["name"] == "resume_adam")
    solver = make_solver(case, load(case))
    solver.restore(case["solverstate"])
    solver.prefix = str(tmp_path / "adam")
    ours, caffes = solver.snapshot().state.read_bytes(), (FOLDER / case["solverstate"]).read_bytes()
    name = read_solverstate(case["solverstate"]).learned_net.encode()
    # The one difference is the path of the weights.
    assert ours == caffes.replace(_field(name), _field(os.fsencode(tmp_path / "adam_iter_10.caffemodel")))


def _field(text: bytes) -> bytes:
    length = bytes([len(text)]) if len(text) < 128 else bytes([len(text) % 128 + 128, len(text) // 128])
    return b"\x12" + length + text
