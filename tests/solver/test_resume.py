"""Nothing is lost: runs killed at any moment end on the very bits of a run that was let alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zlib
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch

from caffetools.data.databases import new_lmdb, record_key
from caffetools.data.datum import array_to_datum
from caffetools.errors import ModelFileError
from caffetools.events import Event, Progress
from caffetools.proto.binary import read_solverstate
from caffetools.solver.callbacks import Callback
from caffetools.solver.checkpoints import run_state
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.checkpoints.run_state import dumps, loads, read_run_state, run_state_path
from caffetools.solver.control import RunControl
from caffetools.solver.logs.training_log import read_log
from caffetools.solver.run import train
from caffetools.solver.solver import Solver
from tests.children import run_child
from tests.solver.tiny import NET, tiny_solver, weights
from tests.solver.together import project

ROOT = Path(__file__).parent.parent.parent

TRUNK = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3
  weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "relu" type: "ReLU" bottom: "bn" top: "bn" }
layer { name: "drop" type: "Dropout" bottom: "bn" top: "drop" dropout_param { dropout_ratio: 0.4 } }
layer { name: "ip" type: "InnerProduct" bottom: "drop" top: "ip" inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
TRANSFORM = "transform_param { crop_size: 6 mirror: true scale: 0.01 mean_value: 100 }"
SOLVER = """
net: "net.prototxt" test_iter: 3 test_interval: 10 base_lr: 0.02 lr_policy: "multistep" gamma: 0.5 stepvalue: 9 stepvalue: 21
weight_decay: 0.001 display: 1 average_loss: 4 max_iter: 30 snapshot: 7 snapshot_prefix: "out/net" solver_mode: CPU random_seed: 5
"""


def lmdb_run(folder: Path) -> None:
    """Random crops and flips of an LMDB (17 records, batches of 5, so no epoch ends with a batch), Dropout, Adam."""
    rng = np.random.default_rng(0)
    with new_lmdb(folder / "db") as writer:
        for number in range(17):
            picture = rng.integers(0, 256, (1, 9, 9), dtype=np.uint8)
            writer.put(record_key(number, "x"), array_to_datum(picture, number % 3).SerializeToString())
    layer = (
        'layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: {phase} }} {transform} data_param {{ {data} }} }}'
    )
    data = 'source: "db" backend: LMDB batch_size: {}'
    net = layer.format(phase="TRAIN", transform=TRANSFORM, data=data.format("5 rand_skip: 4"))
    net += layer.format(phase="TEST", transform=TRANSFORM, data=data.format(4))
    (folder / "net.prototxt").write_text(net + TRUNK)
    (folder / "solver.prototxt").write_text(SOLVER + 'type: "Adam" momentum: 0.9 momentum2: 0.99')


def list_run(folder: Path) -> None:
    """Shuffled pictures plus DummyData's noise, in the test net too, momentum, iter_size; snapshots in HDF5."""
    rng = np.random.default_rng(1)
    lines = []
    for number in range(11):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (8, 8, 1), dtype=np.uint8))
        lines.append(f"{number}.png {number % 3}")
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    param = 'image_data_param { source: "list.txt" batch_size: 4 shuffle: true is_color: false }'
    net = f'layer {{ name: "pictures" type: "ImageData" top: "picture" top: "label" {TRANSFORM} {param} }}'
    net += 'layer { name: "noise" type: "DummyData" top: "noise" dummy_data_param { shape { dim: 4 dim: 1 dim: 6 dim: 6 } '
    net += 'data_filler { type: "gaussian" std: 0.1 } } }'
    net += 'layer { name: "sum" type: "Eltwise" bottom: "picture" bottom: "noise" top: "data" }'
    (folder / "net.prototxt").write_text(net + TRUNK)
    (folder / "solver.prototxt").write_text(SOLVER + "momentum: 0.9 iter_size: 2 snapshot_format: HDF5")


# Moments are counted from each process' start. A snapshot takes six renames (three files into the hidden folder, three out of it).
PLANS = [
    [],
    ["gradients:3"],
    ["update:7", "update:8"],
    ["fsync:1"],
    ["fsync:2", "fsync:3"],
    ["rename:1", "rename:4", "rename:5"],
    ["rename:6"],
    ["rename:10", "rename:11", "gradients:2"],
    ["test:2", "test:5"],
    ["test:8", "update:15"],
    ["clock:90", "clock:130", "clock:210"],
]


@pytest.mark.parametrize(("make", "plans"), [(lmdb_run, PLANS), (list_run, PLANS[::3])])
def test_runs_killed_at_any_moment_end_on_the_same_bits(tmp_path: Path, make: Any, plans: list[list[str]]) -> None:
    (tmp_path / "run").mkdir()
    make(tmp_path / "run")
    command = ["-m", "tests.solver.crashing", tmp_path / "run", json.dumps(plans)]
    done = run_child(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    for plan, signals in zip(plans, ends, strict=True):
        for moment, number in zip(plan, signals, strict=True):
            assert number == signal.SIGKILL or moment.startswith("clock"), f"{plan}: not killed at {moment}"
    tail = ".h5" if make is list_run else ""
    whole = tmp_path / "run_0" / "out"
    history = read_log(whole / "net_log.jsonl")
    for number, plan in enumerate(plans):
        out = tmp_path / f"run_{number}" / "out"
        for kind in ("caffemodel", "solverstate"):
            name = f"net_iter_30.{kind}{tail}"
            assert (out / name).read_bytes() == (whole / name).read_bytes(), f"{plan}: {name}"
        # Smoothed losses and tests, too, are those of the run that was let alone.
        log = read_log(out / "net_log.jsonl")
        assert [(r.iteration, r.loss, r.outputs) for r in log.train] == [(r.iteration, r.loss, r.outputs) for r in history.train], plan
        assert [(r.iteration, r.outputs) for r in log.test] == [(r.iteration, r.outputs) for r in history.test], plan
        assert not list(out.glob(".*")), f"{plan}: something unfinished is left"


class StopAt(Callback):
    """Asks the solver to stop at a batch of a test, as Ctrl-C may."""

    def __init__(self, batch: int):
        self.left = batch

    def on_test_batch_end(self, run: RunControl, done: int, total: int) -> None:
        self.left -= 1
        if not self.left:
            run.stop()


@pytest.mark.parametrize("batch", [4, 5, 6])
def test_a_run_stopped_in_the_middle_of_a_test_does_the_test_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        list_run(tmp_path / name)
    monkeypatch.chdir(tmp_path / "whole")
    train("solver.prototxt", device="cpu")
    monkeypatch.chdir(tmp_path / "stopped")
    first = train("solver.prototxt", device="cpu", callbacks=[StopAt(batch)])
    assert first.stopped and first.solver.iteration == 10
    train("solver.prototxt", device="cpu", resume=True)
    name = "out/net_iter_30.caffemodel.h5"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_snapshot_at_the_end_of_the_data_resumes_at_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lmdb_run(tmp_path)
    text = (tmp_path / "net.prototxt").read_text()
    (tmp_path / "net.prototxt").write_text(text.replace("batch_size: 5 rand_skip: 4", "batch_size: 17"))
    train("solver.prototxt", device="cpu", max_iter=18)
    whole = Path("out/net_iter_18.caffemodel").read_bytes()
    # Resumed twice: the place that the second one starts from is one that the first has counted.
    for path in Path("out").glob("net_iter_1[48].*"):
        path.unlink()
    train("solver.prototxt", device="cpu", max_iter=14, resume=True)
    train("solver.prototxt", device="cpu", max_iter=18, resume=True)
    assert Path("out/net_iter_18.caffemodel").read_bytes() == whole


# ---- which snapshot ----


def run_to(folder: Path, *iterations: int, **options: Any) -> Solver:
    """A solver with snapshots at these iterations."""
    solver = tiny_solver(folder=folder, **options)
    for iteration in iterations:
        solver.step(iteration - solver.iteration)
        solver.snapshot()
    return solver


def test_the_newest_whole_snapshot_is_taken_and_torn_ones_are_reported(tmp_path: Path) -> None:
    run_to(tmp_path, 2, 4, 6, 8)
    for name in ("tiny_iter_8.solverstate", "tiny_iter_6.caffemodel"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-30])
    (tmp_path / "tiny_iter_99.caffemodel").write_bytes(b"weights without a state")
    notes: list[str] = []
    found = newest_snapshot(tmp_path / "tiny", notes.append)
    assert found is not None and found.state == tmp_path / "tiny_iter_4.solverstate"
    assert [("tiny_iter_8.solverstate" in note, "tiny_iter_6.caffemodel" in note) for note in notes] == [(True, False), (False, True)]
    assert all("is not whole and is passed over" in note for note in notes)


def test_a_snapshot_whose_weights_are_missing_is_passed_over(tmp_path: Path) -> None:
    run_to(tmp_path, 2, 4)
    (tmp_path / "tiny_iter_4.caffemodel").unlink()
    found = newest_snapshot(tmp_path / "tiny")
    assert found is not None and found.iteration == 2


def test_no_snapshot_is_none(tmp_path: Path) -> None:
    (tmp_path / "tiny_iter_x.solverstate").touch()
    assert newest_snapshot(tmp_path / "tiny") is None
    assert newest_snapshot(tmp_path / "absent" / "tiny") is None


def test_what_an_earlier_run_left_at_higher_iterations_is_not_taken_for_newer(tmp_path: Path) -> None:
    run_to(tmp_path, 6, 10)
    run_to(tmp_path, 3, 4)
    found = newest_snapshot(tmp_path / "tiny")
    assert found is not None and found.iteration == 4


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    first = run_to(tmp_path, 3)
    second = tiny_solver(folder=tmp_path)
    second.restore(tmp_path / "tiny_iter_3.solverstate")
    assert second.run_id == first.run_id


# ---- the run's state ----


def test_a_snapshot_of_real_caffe_resumes_without_a_runs_state(tmp_path: Path) -> None:
    first = run_to(tmp_path, 5)
    run_state_path(tmp_path / "tiny_iter_5.solverstate").unlink()
    lines: list[str] = []
    second = tiny_solver("random_seed: 9", log=lambda source, text, severity="I": lines.append(f"{severity} {text}"))
    second.restore(tmp_path / "tiny_iter_5.solverstate")
    assert all(map(torch.equal, weights(first), weights(second)))
    assert any(line.startswith("I The snapshot has no data and random states") for line in lines)


@pytest.mark.parametrize("damage", ["torn", "other", "later", "nothing", "flipped", "torch", "numpy", "python", "losses", "nets"])
def test_a_runs_state_that_cannot_be_used_is_warned_of_and_the_weights_are_used(tmp_path: Path, damage: str) -> None:
    first = run_to(tmp_path, 5)
    side = run_state_path(tmp_path / "tiny_iter_5.solverstate")
    if damage == "torn":
        side.write_text(side.read_text()[:-100])
    elif damage == "later":
        side.write_text(side.read_text().replace('"format": 1', '"format": 2'))
    elif damage == "flipped":
        # A character in the base64 of a random state: the JSON and the state can still be read.
        text = side.read_text()
        place = text.index('"base64": "') + 410
        side.write_text(text[:place] + ("B" if text[place] == "A" else "A") + text[place + 1 :])
    elif damage == "nothing":
        side.write_text("[]")
    elif damage != "other":
        run = loads(side.read_text())
        states: dict[str, Any] = {
            "torch": {"torch": run["random"]["torch"][:-4]},
            "numpy": {"numpy": {**run["random"]["numpy"], "bit_generator": "PCG64"}},
            "python": {"python": [3, run["random"]["python"][1][:-1], None]},
        }
        run["random"].update(states.get(damage, {}))
        broken: dict[str, Any] = {"losses": ["high"], "nets": [3]}
        run.update({damage: broken[damage]} if damage in broken else {})
        side.write_text(dumps(run))
    else:
        # As real Caffe does: another snapshot under the same name, without a run state.
        first = run_to(tmp_path / "elsewhere", 5, net=NET.replace("xavier", "msra"))
        for name in ("tiny_iter_5.caffemodel", "tiny_iter_5.solverstate"):
            (tmp_path / "elsewhere" / name).replace(tmp_path / name)
    lines: list[str] = []
    second = tiny_solver("random_seed: 9", log=lambda source, text, severity="I": lines.append(f"{severity} {text}"))
    second.restore(tmp_path / "tiny_iter_5.solverstate")
    assert second.iteration == 5
    assert all(map(torch.equal, weights(first), weights(second)))
    assert sum(line.startswith("W ") and "data and random states start over" in line for line in lines) == 1


@pytest.mark.parametrize(("kind", "place"), [("caffemodel", -3), ("solverstate", 150), ("solverstate", 1), ("solverstate", 6)])
def test_a_file_that_changed_since_it_was_written_is_refused_and_auto_takes_the_one_before(tmp_path: Path, kind: str, place: int) -> None:
    run_to(tmp_path, 3, 5)
    path = tmp_path / f"tiny_iter_5.{kind}"
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40  # in the numbers of a blob, the iteration, or the name of the weights: the file can still be read
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"{path}: damaged or changed since it was written.*remove .*tiny_iter_5\.runstate\.json"):
        tiny_solver().restore(tmp_path / "tiny_iter_5.solverstate")
    found = newest_snapshot(tmp_path / "tiny")
    assert found is not None and found.iteration == 3


def test_a_moved_snapshot_finds_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    first = run_to(Path("snaps"), 5)
    shutil.copytree("snaps", tmp_path / "kept")
    run_to(Path("snaps"), 5, net=NET.replace("xavier", "msra"))
    second = tiny_solver()
    second.restore(tmp_path / "kept" / "tiny_iter_5.solverstate")
    assert all(map(torch.equal, weights(first), weights(second)))


def test_an_older_run_under_the_same_prefix_is_never_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path, batch=4))
    train("solver.prototxt", device="cpu")
    first = Path("run_iter_10.caffemodel").read_bytes()
    text = Path("solver.prototxt").read_text()
    Path("solver.prototxt").write_text(text.replace("random_seed: 5", "random_seed: 6"))

    def die(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("solver.prototxt", device="cpu", events=die)
    lines: list[str] = []
    done = train("solver.prototxt", device="cpu", resume=True, echo=lines.append)
    assert any("2 snapshot(s) under run are of an older run" in line for line in lines)
    assert [row.iteration for row in done.history.train] == [0, 5, 10], "it began at the beginning"
    assert Path("run_iter_10.caffemodel").read_bytes() != first


def test_a_run_that_wrote_no_line_has_no_snapshots(tmp_path: Path) -> None:
    run_to(tmp_path, 5)
    (tmp_path / "tiny_log.jsonl").touch()
    assert newest_snapshot(tmp_path / "tiny") is None


def test_a_snapshot_of_real_caffe_that_was_resumed_counts_until_there_is_one_of_the_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project(tmp_path, batch=4, solver="max_iter: 5"))
    train("solver.prototxt", device="cpu")
    Path("run_iter_5.runstate.json").unlink()
    Path("run_log.jsonl").unlink()
    train("solver.prototxt", device="cpu", resume=True, max_iter=7)
    for name in ("run_iter_7.solverstate", "run_iter_7.caffemodel"):
        Path(name).unlink()
    found = newest_snapshot("run")
    assert found is not None and found.iteration == 5


NOISE = """
import random
import caffe, numpy as np, torch

class Noise(caffe.Layer):
    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data * (np.random.rand() + random.random() + torch.rand(1).item())

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = top[0].diff
"""
NOISY = (
    NET.replace(
        'bottom: "data" top: "ip1"',
        'bottom: "noise" top: "ip1"',
    )
    .replace(
        'layer { name: "relu1"',
        """layer { name: "drop" type: "Dropout" bottom: "ip1" top: "ip1" }
layer { name: "relu1\"""",
    )
    .replace(
        'layer { name: "ip1"',
        """layer { name: "noise" type: "Python" bottom: "data" top: "noise" python_param { module: "resumed_noise" layer: "Noise" } }
layer { name: "ip1\"""",
    )
)


def test_what_python_layers_and_ours_draw_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resumed_noise.py").write_text(NOISE)
    monkeypatch.syspath_prepend(tmp_path)
    whole = tiny_solver(net=NOISY, folder=tmp_path)
    whole.step(5)
    whole.snapshot()
    whole.step(5)
    whole.release_random_states()
    second = tiny_solver("random_seed: 9", net=NOISY)
    second.restore(tmp_path / "tiny_iter_5.solverstate")
    second.step(5)
    second.release_random_states()
    assert all(map(torch.equal, weights(whole), weights(second)))


def test_a_recurrent_layers_state_is_resumed(tmp_path: Path) -> None:
    net = """
    layer { name: "data" type: "Input" top: "x" top: "cont" top: "y" input_param { shape { dim: 3 dim: 2 dim: 4 } shape { dim: 3 dim: 2 }
      shape { dim: 3 dim: 2 dim: 5 } } }
    layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "h" recurrent_param { num_output: 5
      weight_filler { type: "uniform" min: -0.3 max: 0.3 } } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "h" bottom: "y" top: "loss" }
    """
    given = {"x": torch.ones(3, 2, 4), "cont": torch.ones(3, 2), "y": torch.full((3, 2, 5), 0.5)}
    whole = tiny_solver(net=net, folder=tmp_path)
    whole.train_inputs = given
    whole.step(5)
    whole.snapshot()
    whole.step(5)
    second = tiny_solver("random_seed: 9", net=net)
    second.train_inputs = given
    second.restore(tmp_path / "tiny_iter_5.solverstate")
    second.step(5)
    assert all(map(torch.equal, weights(whole), weights(second)))


def test_an_output_file_continues_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "out.h5"
    net = NET + f'layer {{ name: "keep" type: "HDF5Output" bottom: "ip1" bottom: "label" hdf5_output_param {{ file_name: "{file}" }} }}'
    whole = tiny_solver(net=net, folder=tmp_path)
    whole.step(2)
    whole.snapshot()
    whole.step(3)
    with h5py.File(file) as stored:
        expected = np.asarray(stored["data"])
    assert expected.shape == (5 * 8, 10, 1, 1)
    second = tiny_solver("random_seed: 9", net=net)
    second.restore(tmp_path / "tiny_iter_2.solverstate")
    second.step(3)
    with h5py.File(file) as stored:
        np.testing.assert_array_equal(np.asarray(stored["data"]), expected)


def test_layers_that_were_not_there_are_reset_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lmdb_run(tmp_path)
    train("solver.prototxt", device="cpu", max_iter=3)
    text = (tmp_path / "net.prototxt").read_text()
    (tmp_path / "net.prototxt").write_text(text.replace('name: "data"', 'name: "records"'))
    lines: list[str] = []
    train("solver.prototxt", device="cpu", max_iter=5, resume=True, echo=lines.append)
    assert sum("layer 'records' was not there when the snapshot was taken, so it starts over" in line for line in lines) == 2


def test_the_state_names_the_weights_and_the_side_file_the_iteration(tmp_path: Path) -> None:
    run_to(tmp_path, 5)
    assert read_solverstate(tmp_path / "tiny_iter_5.solverstate").learned_net == str(tmp_path / "tiny_iter_5.caffemodel")
    assert read_run_state(tmp_path / "tiny_iter_5.runstate.json")["iteration"] == 5


# ---- resuming a run that has more to say ----


def test_weights_are_for_the_beginning_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So one command line, with weights and --resume auto, serves for the first start and every later one."""
    monkeypatch.chdir(tmp_path)
    lmdb_run(tmp_path)
    train("solver.prototxt", device="cpu", max_iter=2)
    (tmp_path / "out" / "net_iter_2.caffemodel").rename(tmp_path / "start.caffemodel")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    lines: list[str] = []
    for iterations in (4, 6):
        train("solver.prototxt", weights=["start.caffemodel"], resume=True, max_iter=iterations, device="cpu", echo=lines.append)
    text = "".join(lines)
    assert text.count("There is no snapshot out/net_iter_… to resume from; training starts from the beginning") == 1
    assert text.count("Layers loaded from start.caffemodel") == 1
    assert text.count("Resuming with the weights out/net_iter_4.caffemodel, not start.caffemodel") == 1


def test_a_file_that_has_not_changed_is_read_once_for_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.caffemodel"
    read: list[int] = []
    crc32 = zlib.crc32

    def counted(data: bytes, start: int) -> int:
        read.append(len(data))
        return crc32(data, start)

    path.write_bytes(b"weights")
    first = run_state.checksum(path)
    path.write_bytes(b"Weights")
    assert run_state.checksum(path) == crc32(b"Weights") != first, "it changed within the clock's step"
    monkeypatch.setattr(run_state, "_SETTLED_NS", -1)
    monkeypatch.setattr(zlib, "crc32", counted)
    assert [run_state.checksum(path) for _ in range(3)] == [crc32(b"Weights")] * 3 and read == [7]
    path.write_bytes(b"other weights")
    assert run_state.checksum(path) == crc32(b"other weights")
