"""``caffetools train`` as a process: what it prints and writes, and what happens to it when it is killed."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from caffetools.proto.binary import read_caffemodel, read_solverstate
from caffetools.solver.logs.caffe_log import read_log
from tests.children import Child, run_child
from tests.cli.inprocess import Done, error_of, run
from tests.conftest import GOLDEN
from tests.solver.tiny import tiny_solver

LOGS = GOLDEN / "logs"
TRAIN = ["-m", "caffetools", "train"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The tiny net, its data and Caffe's snapshots of it."""
    for name in ("net.prototxt", "solver.prototxt", "train.h5", "test.h5", "train.txt", "test.txt"):
        shutil.copy(LOGS / name, tmp_path)
    for source in LOGS.glob("tiny_iter_1*"):
        shutil.copy(source, tmp_path / f"caffe_{source.name}")
    # Caffe's states name their weights as they were called there.
    for source in LOGS.glob("tiny_iter_1*.caffemodel"):
        shutil.copy(source, tmp_path / source.name)
    return tmp_path


@pytest.fixture
def command(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs the command line in this process, in the folder of the tiny net."""
    monkeypatch.chdir(tiny)

    return partial(run, "train")


def process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_child([*TRAIN, *arguments], cwd=folder, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def change(folder: Path, **fields: str) -> None:
    """Set fields of the solver."""
    path = folder / "solver.prototxt"
    text = path.read_text()
    for name, value in fields.items():
        text = re.sub(rf"\b{name}: \S+", "", text) + f"\n{name}: {value}\n"
    path.write_text(text)


def endless(folder: Path, *arguments: str) -> Child:
    """A run that would go on for a long time, started and past its first updates."""
    change(folder, max_iter="100000000", snapshot="50", display="50")
    run = Child([*TRAIN, "solver.prototxt", *arguments], cwd=folder, env=environment())
    read_until(run, "Iteration 100, lr")
    return run


def read_until(process: Child, words: str) -> None:
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the run ended before it said {words!r}")


def test_a_run_logs_what_caffe_logs_and_writes_its_files(tiny: Path) -> None:
    done = process(tiny, "solver.prototxt", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^I\d{4} .* caffe\.cpp:197\] Use CPU\.$", done.stderr, re.MULTILINE)
    assert re.search(r"solver\.cpp:239\] Iteration 140 \(.* iter/s, .*s/20 iters\), loss = 0\.0", done.stderr)
    assert done.stderr.rstrip().endswith("Optimization Done.")
    assert (tiny / "tiny.log").read_text() == done.stderr
    assert "Trained at iteration 150." in done.stdout
    assert "accuracy 1" in done.stdout
    events = [json.loads(line) for line in (tiny / "tiny_log.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events][-1] == "end"
    assert read_solverstate(tiny / "tiny_iter_150.solverstate").learned_net == "tiny_iter_150.caffemodel"
    assert not list(tiny.glob("*.lock")) and not list(tiny.glob(".*"))


def test_quiet_prints_nothing_and_logs_all_the_same(tiny: Path, command: Callable[..., Done]) -> None:
    done = command("solver.prototxt", "--quiet", "--max-iter", "30", "--log", "logs/first.log")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [row.iteration for row in read_log(tiny / "logs" / "first.log").train] == [0, 20]
    assert (tiny / "tiny_iter_30.caffemodel").exists()


def test_weights_and_snapshot_together_are_refused_as_in_caffe(tiny: Path, command: Callable[..., Done]) -> None:
    done = command("solver.prototxt", "--weights", "caffe_tiny_iter_150.caffemodel", "--snapshot", "caffe_tiny_iter_100.solverstate")
    assert done.returncode == 2
    assert done.stderr == "caffetools: error: give either a snapshot to resume from or weights to start from, not both\n"
    assert not list(tiny.glob("tiny*.log"))


def test_fine_tuning_reports_what_was_loaded_and_starts_where_the_weights_are(tiny: Path, command: Callable[..., Done]) -> None:
    done = command("solver.prototxt", "--weights", "caffe_tiny_iter_150.caffemodel", "--max-iter", "10")
    assert done.returncode == 0, done.stderr
    assert "Layers loaded from caffe_tiny_iter_150.caffemodel: conv1, ip" in done.stderr
    assert re.search(r"Test net output #1: loss = 0\.0051735", done.stderr)


def test_weights_of_which_nothing_fits_are_warned_of(tiny: Path, command: Callable[..., Done]) -> None:
    text = (tiny / "net.prototxt").read_text().replace('name: "conv1"', 'name: "c"').replace('name: "ip"', 'name: "i"')
    (tiny / "net.prototxt").write_text(text)
    done = command("solver.prototxt", "--weights", "caffe_tiny_iter_150.caffemodel", "--max-iter", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^W\d{4} .*No layer was loaded from caffe_tiny_iter_150\.caffemodel", done.stderr, re.MULTILINE)


def test_a_snapshot_that_caffe_wrote_is_resumed(tiny: Path, command: Callable[..., Done]) -> None:
    done = command("solver.prototxt", "--snapshot", "caffe_tiny_iter_100.solverstate")
    assert done.returncode == 0, done.stderr
    assert "Resuming from caffe_tiny_iter_100.solverstate" in done.stderr
    theirs, ours = (read_caffemodel(path).blobs for path in (LOGS / "tiny_iter_150.caffemodel", tiny / "tiny_iter_150.caffemodel"))
    for name, arrays in theirs.items():
        for expected, got in zip(arrays, ours[name], strict=True):
            assert got == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "code", "words"),
    [
        ("lr_policy", '"cosine"', 2, "unknown lr_policy 'cosine'"),
        ("net", '"absent.prototxt"', 2, "absent.prototxt: cannot read"),
        ("base_lr", "1e30", 1, "training has diverged"),
        ("snapshot_prefix", '"/proc/tiny"', 1, "cannot write /proc/"),
    ],
)
def test_a_failure_is_one_line(tiny: Path, command: Callable[..., Done], field: str, value: str, code: int, words: str) -> None:
    change(tiny, **{field: value})
    done = command("solver.prototxt")
    errors = [line for line in done.stderr.splitlines() if line.startswith("caffetools: error: ")]
    assert (done.returncode, len(errors)) == (code, 1), done.stderr
    assert words in errors[0]
    assert "Traceback" not in done.stderr


def test_a_device_that_is_not_there_is_refused(command: Callable[..., Done]) -> None:
    done = command("solver.prototxt", "--device", "cuda:99")
    assert done.returncode == 2
    assert "there is no device 'cuda:99' here" in done.stderr


def test_a_second_run_with_the_same_prefix_is_refused(tiny: Path) -> None:
    with endless(tiny) as first:
        log = (tiny / "tiny.log").read_text()
        second = process(tiny, "solver.prototxt")
        assert second.returncode == 2
        assert f"another run (process {first.pid} on " in second.stderr
        assert (tiny / "tiny.log").read_text().startswith(log), "the first run's log is left alone"
        first.kill()


def test_a_killed_run_leaves_whole_snapshots_and_resumes_from_them(tiny: Path) -> None:
    with endless(tiny) as run:
        run.kill()
        run.wait()
    states = sorted(tiny.glob("tiny_iter_*.solverstate"), key=lambda path: int(path.stem.rpartition("_")[2]))
    assert len(states) >= 2
    for state in states:
        assert (tiny / read_solverstate(state).learned_net).exists()
    for model in tiny.glob("tiny_iter_*.caffemodel"):
        assert set(read_caffemodel(model).blobs) == {"conv1", "ip"}
    (tiny / ".tiny_iter_999.caffemodel.abc.part").touch()
    last = int(states[-1].stem.rpartition("_")[2])
    done = process(tiny, "solver.prototxt", "--snapshot", states[-1].name, "--max-iter", str(last + 10))
    assert done.returncode == 0, done.stderr
    assert (tiny / f"tiny_iter_{last + 10}.solverstate").exists()
    assert not list(tiny.glob(".*.part")), "what a killed run left half-written is swept up"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_take_a_snapshot_and_stop(tiny: Path, number: int) -> None:
    with endless(tiny) as run:
        run.send_signal(number)
        read_until(run, "Optimization stopped early.")
        run.communicate()
    assert run.returncode == 0
    events = [json.loads(line) for line in (tiny / "tiny_log.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "end" and events[-1]["stopped"]
    assert read_solverstate(tiny / f"tiny_iter_{events[-1]['iteration']}.solverstate").iter == events[-1]["iteration"]


def test_a_hang_up_takes_a_snapshot_and_continues(tiny: Path) -> None:
    change(tiny, snapshot_prefix='"other"')
    with endless(tiny) as run:
        run.send_signal(signal.SIGHUP)
        snapshots = 0
        assert run.stderr is not None
        for line in run.stderr:
            found = re.search(r"Snapshotting solver state to .*other_iter_(\d+)\.solverstate", line)
            snapshots += bool(found and int(found[1]) % 50)
            if snapshots and "lr = " in line:
                break
        assert snapshots == 1
        assert run.poll() is None
        run.kill()


def test_a_run_outlives_the_reader_of_its_output(tiny: Path) -> None:
    change(tiny, max_iter="400")
    with Child([*TRAIN, "solver.prototxt"], cwd=tiny, env=environment()) as run:
        read_until(run, "Solver scaffolding done.")
        assert run.stderr is not None
        run.stderr.close()
    assert (tiny / "tiny_iter_400.solverstate").exists()


def test_a_run_that_cannot_begin_leaves_the_earlier_log_alone(tiny: Path, command: Callable[..., Done]) -> None:
    (tiny / "tiny.log").write_text("what was before\n")
    change(tiny, lr_policy='"cosine"')
    assert command("solver.prototxt").returncode == 2
    assert (tiny / "tiny.log").read_text() == "what was before\n"
    assert not (tiny / "tiny_log.jsonl").exists()


def test_a_gpu_solver_on_the_cpu_is_warned_of(tiny: Path, command: Callable[..., Done]) -> None:
    change(tiny, solver_mode="GPU")
    done = command("solver.prototxt", "--device", "cpu", "--max-iter", "1")
    assert done.returncode == 0
    assert re.search(r"^W\d{4} .*solver_mode is GPU; this run computes on the CPU$", done.stderr, re.MULTILINE)


def test_the_bar_shows_loss_rate_accuracy_speed_and_what_is_left_on_80_columns(tmp_path: Path) -> None:
    from rich.console import Console

    from caffetools.cli.train_bar import TrainBar
    from caffetools.solver.callbacks import Events

    screen = io.StringIO()
    with TrainBar(Console(file=screen, force_terminal=True, width=80, color_system=None)) as bar:
        solver = tiny_solver("display: 5 test_iter: 1 test_interval: 10", folder=tmp_path, callbacks=[Events(bar)])
        bar.echo("I1124 03:22:05.190337 14691 net.cpp:124] Setting up conv1\n")
        bar.echo("W1124 03:22:05.190337 14691 net.cpp:750] No layer was loaded\n")
        solver.solve()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert all(len(line) <= 80 for line in lines)
    assert "No layer was loaded" in text and "Setting up" not in text
    assert "iteration 20: test net #0: accuracy 1, loss" in text
    assert f"iteration 20: snapshot {tmp_path}" in text.replace("\n", "")
    assert re.search(r"20/20 loss \S+ lr 0\.1 accuracy 100\.0% \S+ it/s 0:00:00", lines[-1])


def test_a_run_killed_from_outside_resumes_to_the_same_bits(tmp_path: Path, tiny: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(tiny, whole)
    for folder in (tiny, whole):
        change(folder, max_iter="150", snapshot="30", display="10")
    assert process(whole, "solver.prototxt", "--quiet").returncode == 0
    with Child([*TRAIN, "solver.prototxt"], cwd=tiny, env=environment()) as run:
        read_until(run, "Iteration 80, lr")
        run.kill()
        run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert not (tiny / "tiny_iter_150.solverstate").exists() or (tiny / "tiny_iter_60.solverstate").exists()
    done = process(tiny, "solver.prototxt", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert re.search(r"Resuming from tiny_iter_\d+\.solverstate", done.stderr)
    for kind in ("caffemodel", "solverstate"):
        name = f"tiny_iter_150.{kind}"
        assert (tiny / name).read_bytes() == (whole / name).read_bytes()


def test_a_missing_tracker_is_named_before_anything_else_is_printed(command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    from caffetools.solver import sinks

    assert command("solver.prototxt", "--max-iter", "100", "--quiet").returncode == 0
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    for option in ("--mlflow", "--wandb", "--tensorboard"):
        # Without a remark on the snapshots of the earlier training.
        assert f"pip install 'caffetools[{option[2:]}]'" in error_of(command("solver.prototxt", option, "x"))
