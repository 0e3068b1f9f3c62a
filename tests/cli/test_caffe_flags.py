"""Command lines as users of Caffe type them."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from caffetools.cli.gflags import translate
from caffetools.errors import CaffeToolsError
from caffetools.proto.binary import read_solverstate
from tests.cli.inprocess import Done, error_of, run
from tests.conftest import GOLDEN
from tests.engines.fake_caffe import write_fake_caffe

LOGS = GOLDEN / "logs"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs a command line in a copy of the folder of the tiny net."""
    for name in ("net.prototxt", "solver.prototxt", "train.h5", "test.h5", "train.txt", "test.txt"):
        shutil.copy(LOGS / name, tmp_path)
    for source in LOGS.glob("tiny_iter_1*"):
        shutil.copy(source, tmp_path)
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train -solver s.prototxt", "train --solver s.prototxt"),
        ("train -solver=s.prototxt -weights=a,b", "train --solver=s.prototxt --weights=a,b"),
        ("train --sigint_effect=none -sighup_effect stop", "train --sigint-effect=none --sighup-effect stop"),
        ("train s.prototxt -w a -s b -q --max-iter 3", "train s.prototxt -w a -s b -q --max-iter 3"),
        ("test -model m -iterations 3", "test --model m --iterations 3"),
        ("time -model m -phase TEST", "time --model m --phase TEST"),
        ("device_query -gpu all", "device-query --gpu all"),
        ("extract_features a b c d 1 lmdb", "extract-features a b c d 1 lmdb"),
        ("convert_imageset -gray --resize_width=3 a b c", "convert-imageset --gray --resize-width=3 a b c"),
        ("convert_imageset --gray=false --shuffle=1 --noencoded a b c", "convert-imageset --shuffle a b c"),
        ("compute_image_mean --backend lmdb db m", "compute_image_mean --backend lmdb db m"),
        ("run script.py -solver x", "run script.py -solver x"),
        ("--debug train -gpu 0", "--debug train --gpu 0"),
        ("", ""),
        # gflags takes flags of every action, and before the action.
        ("train -solver s -iterations 5 -phase TRAIN", "train --solver s"),
        ("-solver s -weights=w train", "train --solver s --weights=w"),
        ("--debug -gpu 0 test -model m -snapshot x", "--debug test --gpu 0 --model m"),
        ("time -model m -solver s --sigint_effect=stop", "time --model m"),
        # Empty values are those of variables that a script left empty.
        ("train -solver s --snapshot= --weights= -gpu=", "train --solver s"),
        # glog's flags.
        (
            "train -solver s --logtostderr=1 -alsologtostderr -v=1 -v 0 -nologtostderr -stderrthreshold 2 -max-log-size=3",
            "train --solver s",
        ),
        ("-logtostderr=1 train -solver s -q", "train --solver s -q"),
        ("time -model m --logfile_mode=0644 -timestamp_in_logfile_name=false --tab_completion_columns 80", "time --model m"),
        # gflags' own: flags that may be unknown.
        ("train -solver s --undefok=affinity,numa --affinity=3 -numa", "train --solver s"),
        ("-undefok affinity train -solver s --affinity=3", "train --solver s"),
        ("train -solver s --undefok=weights --weights=w", "train --solver s --weights=w"),
        ("train -solver s --affinity=3", "train --solver s --affinity=3"),
    ],
)
def test_one_dash_and_underscores_are_equivalent(typed: str, meant: str) -> None:
    assert translate(typed.split()) == meant.split()


def test_a_value_that_is_empty_is_dropped_with_its_flag() -> None:
    assert translate(["train", "-solver", "s", "--snapshot", "", "-q"]) == ["train", "--solver", "s", "-q"]


def test_a_flagfile_is_read(tmp_path: Path) -> None:
    (tmp_path / "flags").write_text("# for all runs\n--solver=s.prototxt\n-gpu=0\n")
    assert translate(["train", f"--flagfile={tmp_path / 'flags'}", "-q"]) == ["train", "--solver=s.prototxt", "--gpu=0", "-q"]


def test_flags_are_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGS_gpu", "1")
    assert translate(["train", "-solver", "s", "--fromenv=gpu", "--tryfromenv", "weights"]) == ["train", "--solver", "s", "--gpu=1"]
    with pytest.raises(CaffeToolsError, match="FLAGS_weights is not in the environment"):
        translate(["train", "-solver", "s", "--fromenv=gpu,weights"])


def test_glogs_level_and_folder_hold_as_flags_and_in_the_environment(command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOG_minloglevel", "GLOG_log_dir"):
        monkeypatch.setenv(name, "")
    start = ["train", "-solver", "solver.prototxt", "--max-iter", "1", "--device", "cpu"]
    done = command(*start, "-minloglevel=2", "-log_dir", "logs")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "Optimization Done." in Path("logs/solver.log").read_text() and not Path("tiny.log").exists()
    monkeypatch.setenv("GLOG_minloglevel", "1")
    monkeypatch.setenv("GLOG_log_dir", "")
    done = command(*start)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and Path("tiny.log").exists()


@pytest.mark.parametrize("flags", [["-solver", "solver.prototxt"], ["--solver=solver.prototxt"], ["solver.prototxt"]])
def test_train_takes_the_solver_in_every_form(flags: list[str], command: Callable[..., Done]) -> None:
    done = command("train", *flags, "--max-iter", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert read_solverstate("tiny_iter_2.solverstate").iter == 2


def test_train_takes_snapshots_and_weights(command: Callable[..., Done]) -> None:
    done = command("train", "-solver=solver.prototxt", "-snapshot=tiny_iter_100.solverstate", "--max-iter=101")
    assert done.returncode == 0, done.stderr
    assert read_solverstate("tiny_iter_101.solverstate").iter == 101
    done = command("train", "-solver=solver.prototxt", "-weights=tiny_iter_100.caffemodel,tiny_iter_150.caffemodel", "--max-iter=0")
    assert "Finetuning from tiny_iter_100.caffemodel" in done.stderr and "Finetuning from tiny_iter_150.caffemodel" in done.stderr


def test_stage_and_level_reach_the_training_net(command: Callable[..., Done]) -> None:
    text = Path("net.prototxt").read_text()
    Path("net.prototxt").write_text(text.replace('top: "conv1" }', 'top: "conv1" include { stage: "relu" min_level: 2 } }', 1))
    assert 'stage: "relu"' in Path("net.prototxt").read_text()
    for flags, there in ((["-stage=relu,other", "-level=2"], True), (["-stage=relu"], False), ([], False)):
        done = command("train", "-solver=solver.prototxt", "--max-iter=0", *flags)
        assert done.returncode == 0, done.stderr
        training = done.stderr.partition("Creating test net")[0]
        assert ("Setting up relu1" in training) == there


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "solver.prototxt", "-solver", "solver.prototxt"], "give the solver's prototxt once"),
        (["train", "solver.prototxt", "-gpu", "7"], "there is no CUDA device 7 here"),
        (["train", "solver.prototxt", "-gpu", "x"], "give numbers with commas between, or all"),
        (["train", "solver.prototxt", "-gpu", "0", "--device", "cpu"], "CUDA device 0|give the device once"),
        (["train", "solver.prototxt", "-sigint_effect=explode"], "unknown sigint_effect 'explode'; it is one of stop, snapshot, none"),
        (["train", "solver.prototxt", "--resume", "auto", "--snapshot", "x"], "give either --snapshot or --resume, not both"),
        (["train", "solver.prototxt", "--resume", "absent.solverstate"], r"absent\.solverstate: cannot read"),
        (["train", "solver.prototxt", "--engine", "torch"], "unknown engine 'torch'; it is caffetools or caffe"),
        (["train", "solver.prototxt", "--engine", "caffe", "--precision", "bf16"], "--precision: real Caffe has no such option"),
        (["train", "solver.prototxt", "--engine-image", "x"], "give that too"),
        (["time", "net.prototxt", "-phase", "DEPLOY"], "--phase is TRAIN or TEST, not 'DEPLOY'"),
        (["time", "net.prototxt", "-n", "0"], "iterations must be at least 1"),
        (["test", "net.prototxt", "-weights", "tiny_iter_150.caffemodel", "-gpu", "0,1"], "no CUDA device|names 2 devices"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(arguments: list[str], words: str, command: Callable[..., Done]) -> None:
    done = command(*arguments)
    assert done.returncode == 2, done.stderr
    assert re.search(words, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert not Path("tiny.log").exists()


# ---- resuming ----


def test_resume_auto_starts_then_resumes(command: Callable[..., Done]) -> None:
    for path in Path().glob("tiny_iter_*"):
        path.unlink()
    first = command("train", "solver.prototxt", "--resume", "auto", "--max-iter", "3")
    assert "There is no snapshot tiny_iter_… to resume from; training starts from the beginning" in first.stderr
    second = command("train", "solver.prototxt", "--resume", "auto", "--max-iter", "5")
    assert "Resuming from tiny_iter_3.solverstate" in second.stderr
    assert "Trained at iteration 5." in second.stdout
    third = command("train", "solver.prototxt", "--resume", "tiny_iter_3.solverstate", "--max-iter", "4")
    assert "Resuming from tiny_iter_3.solverstate" in third.stderr


# ---- the engine ----


def test_engine_caffe_runs_the_users_caffe(command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_caffe(tmp_path / "bin" / "caffe", LOGS / "train.log")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    done = command("train", "-solver", "solver.prototxt", "--engine", "caffe", "-gpu", "0", "-stage", "a", "--sigint_effect=snapshot")
    assert done.returncode == 0, done.stderr
    words = ["train", "--solver=solver.prototxt", "--gpu=0", "--stage=a", "--sigint_effect=snapshot"]
    assert json.loads(Path("called.json").read_text())["arguments"] == words
    assert done.stderr == (LOGS / "train.log").read_text() == Path("tiny.log").read_text()
    assert "Real Caffe has ended at iteration 150." in done.stdout
    assert "test net #0 at iteration 150: accuracy 1, loss" in done.stdout
    answer = json.loads(command("train", "solver.prototxt", "--engine", "caffe", "--json").stdout)
    assert (answer["iteration"], answer["stopped"], answer["log"]) == (150, False, "tiny.log")
    assert answer["tests"][0]["outputs"]["accuracy"] == 1


def test_engine_caffe_without_one_is_one_line(command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CAFFE_ROOT", raising=False)
    done = command("train", "solver.prototxt", "--engine", "caffe")
    assert done.returncode == 2
    assert done.stderr.startswith("caffetools: error: no real Caffe was found") and done.stderr.count("\n") == 1


def test_the_bar_follows_real_caffe(command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from caffetools.cli.train_bar import TrainBar
    from caffetools.solver.caffe_process import train_with_caffe

    write_fake_caffe(tmp_path / "bin" / "caffe", LOGS / "train.log")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    screen = io.StringIO()
    with TrainBar(Console(file=screen, force_terminal=True, width=80, color_system=None)) as bar:
        train_with_caffe("solver.prototxt", echo=bar.echo, events=bar)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "iteration 100: snapshot tiny_iter_100.caffemodel" in text
    assert "iteration 150: test net #0: accuracy 1, loss 0.007433" in text
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert re.search(r"150/150 loss 0\.0\d+ lr 0\.0025 accuracy 100\.0%", lines[-1])


@pytest.mark.parametrize("line", ["train solver.prototxt --weights", "train solver.prototxt -snapshot", "test net.prototxt --weights"])
def test_a_flag_without_its_value_is_an_error_and_no_training(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, *_, flag = line.split()
    message = error_of(run(*line.split()))
    assert message.startswith(f"{name}: option '--{flag.lstrip('-')}' requires an argument; example: caffetools {name} ")
