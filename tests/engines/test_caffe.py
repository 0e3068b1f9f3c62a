"""Real Caffe as a process: found, started, listened to, interrupted."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import caffetools.engines.caffe
from caffetools.engines.base import EngineError
from caffetools.engines.caffe import RealCaffe
from caffetools.engines.environments import add_environment
from caffetools.engines.folders import needed_folders
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import parse
from tests.conftest import GOLDEN
from tests.engines.fake_caffe import write_fake_caffe, write_script

LOG = GOLDEN / "logs" / "train.log"
WORKER = Path(caffetools.engines.caffe.__file__).with_name("_train_worker.py")


@pytest.fixture(autouse=True)
def nothing_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Caffe and no docker but those that a test makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CAFFE_ROOT", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_a_caffe_on_path_is_found(tmp_path: Path) -> None:
    binary = write_fake_caffe(tmp_path / "bin" / "caffe", LOG)
    assert RealCaffe.find().command == (str(binary),)


@pytest.mark.parametrize("place", ["build/tools/caffe", "bin/caffe"])
def test_a_caffe_below_caffe_root_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    binary = write_fake_caffe(tmp_path / "caffe" / place, LOG)
    monkeypatch.setenv("CAFFE_ROOT", str(tmp_path / "caffe"))
    assert RealCaffe.find().command == (str(binary),)


def test_the_environment_that_was_added_is_found_last(tmp_path: Path) -> None:
    python = write_script(tmp_path / "python", "#!/bin/sh\n")
    add_environment("caffe", python)
    (found, worker) = RealCaffe.find().command
    assert (found, Path(worker).name) == (str(python), "_train_worker.py")
    binary = write_fake_caffe(tmp_path / "bin" / "caffe", LOG)
    assert RealCaffe.find().command == (str(binary),)


def test_without_any_the_error_names_where_it_looked_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        EngineError, match=r"no real Caffe was found \(looked for caffe on PATH, and CAFFE_ROOT is not set\); .*--engine-image"
    ):
        RealCaffe.find()
    monkeypatch.setenv("CAFFE_ROOT", str(tmp_path))
    with pytest.raises(EngineError, match=r"on PATH and in CAFFE_ROOT \(.*build/tools/caffe"):
        RealCaffe.find()


def test_every_line_comes_as_it_is_and_so_does_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_caffe(tmp_path / "bin" / "caffe", LOG)
    monkeypatch.setenv("FAKE_CODE", "3")
    lines: list[str] = []
    assert RealCaffe.find().run(["train", "--solver=x"], lines.append) == 3
    assert "".join(lines) == LOG.read_text()
    assert json.loads(Path("called.json").read_text())["arguments"] == ["train", "--solver=x"]


def test_what_cannot_be_started_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    with pytest.raises(EngineError, match=r"nothing cannot be started: No such file"):
        RealCaffe((str(tmp_path / "nothing"),)).run([], print)


def interrupting(times: int, number: int = signal.SIGINT, at: str = "Iteration 60") -> tuple[list[str], object]:
    """What listens to Caffe and, at a line, sends this process signals; and what it heard."""
    heard: list[str] = []

    def listen(line: str) -> None:
        heard.append(line)
        if at in line:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return heard, listen


def test_sigint_is_passed_on_and_caffe_ends_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_caffe(tmp_path / "bin" / "caffe", LOG)
    monkeypatch.setenv("FAKE_PAUSE", "Iteration 60")
    before = signal.getsignal(signal.SIGINT)
    heard, listen = interrupting(1)
    assert RealCaffe.find().run(["train"], listen) == 0
    assert heard[-1].endswith("Optimization stopped early.\n")
    assert signal.getsignal(signal.SIGINT) == before


def test_a_hang_up_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_caffe(tmp_path / "bin" / "caffe", LOG)
    monkeypatch.setenv("FAKE_PAUSE", "Iteration 60")
    heard, listen = interrupting(1, signal.SIGHUP)
    assert RealCaffe.find().run(["train"], listen) == 0
    assert "hung up\n" in heard and len(heard) > len(LOG.read_text().splitlines())


def test_a_second_sigint_ends_a_caffe_that_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_caffe(tmp_path / "bin" / "caffe", LOG)
    monkeypatch.setenv("FAKE_PAUSE", "Iteration 60")
    monkeypatch.setenv("FAKE_DEAF", "1")
    _, listen = interrupting(2)
    with pytest.raises(KeyboardInterrupt):
        RealCaffe.find().run(["train"], listen)
    with pytest.raises(ProcessLookupError):
        os.kill(json.loads(Path("called.json").read_text())["pid"], 0)


# As much of a caffe module as training asks for; its first iteration ends when the file "go" is there.
MODULE = """
import pathlib, sys, time
set_mode_cpu = snapshot = lambda *_: None
class Solver:
    net, test_nets = None, []
    def add_callback(self, before, after):
        self.before = before
    def solve(self):
        for _ in range(9):
            self.before()
            print("an iteration", file=sys.stderr, flush=True)
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
get_solver = lambda path: Solver()
"""


def test_a_training_in_another_python_ends_with_the_command_that_was_killed(tmp_path: Path) -> None:
    module = tmp_path / "modules" / "caffe"
    (module / "proto").mkdir(parents=True)
    (module / "__init__.py").write_text(MODULE)
    (module / "proto" / "caffe_pb2.py").write_text("from caffetools.proto.schema import SolverParameter\n")
    Path("solver.prototxt").write_text("base_lr: 0.1\n")
    command = [sys.executable, str(WORKER), "train", "--solver=solver.prototxt"]
    reading, writing = os.pipe()
    started = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command!r})"],
        stderr=writing,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "modules")},
    )
    os.close(writing)
    with os.fdopen(reading) as log:
        assert any("an iteration" in line for line in log)
        started.kill()
        started.wait()
        Path("go").touch()
        # The log ends with the process that trains.
        assert "an iteration" not in log.read()


# ---- docker ----


def test_docker_gets_folders_user_and_gpus(tmp_path: Path) -> None:
    write_script(tmp_path / "bin" / "docker", f"#!{sys.executable}\nimport sys\nprint(*sys.argv[1:], sep='\\n')\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    engine = RealCaffe.in_docker("bvlc/caffe:gpu", [tmp_path, tmp_path / "link"], gpus=True)
    lines: list[str] = []
    assert engine.run(["train", "--solver=s"], lines.append) == 0
    words = [line.rstrip("\n") for line in lines]
    assert words[:3] == ["run", "--rm", "--init"]
    assert words[-4:] == ["bvlc/caffe:gpu", "caffe", "train", "--solver=s"]
    pairs = list(itertools.pairwise(words))
    assert ("--user", f"{os.getuid()}:{os.getgid()}") in pairs
    assert ("--workdir", str(tmp_path)) in pairs
    assert ("--gpus", "all") in pairs
    assert [value for key, value in pairs if key == "--volume"] == [f"{tmp_path}:{tmp_path}", f"{tmp_path / 'data'}:{tmp_path / 'link'}"]


def test_an_image_without_docker_is_refused() -> None:
    with pytest.raises(EngineError, match="the image bvlc/caffe:cpu needs docker, which is not on PATH"):
        RealCaffe.in_docker("bvlc/caffe:cpu", [])


def test_the_folders_of_everything_that_solver_and_net_name_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("work", "nets", "db/train", "means", "pictures", "listed", "out", "weights"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "means" / "mean.binaryproto").touch()
    (tmp_path / "nets" / "list.txt").write_text(f"{tmp_path}/listed/a.png 1\nb.png 0\n")
    net = 'layer { name: "a" type: "Data" top: "a" transform_param { mean_file: "../means/mean.binaryproto" } '
    net += f'data_param {{ source: "{tmp_path}/db/train" }} }}'
    net += 'layer { name: "b" type: "ImageData" top: "b" image_data_param { source: "../nets/list.txt" } }'
    (tmp_path / "nets" / "net.prototxt").write_text(net)
    monkeypatch.chdir(tmp_path / "work")
    solver = parse(f'net: "../nets/net.prototxt" snapshot_prefix: "{tmp_path}/out/run"', SolverParameter)
    found = needed_folders(solver, [tmp_path / "weights" / "a.caffemodel", "solver.prototxt"])
    assert found == [tmp_path / name for name in ("db/train", "listed", "means", "nets", "out", "weights", "work")]


def test_folders_inside_of_others_are_not_named_twice(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    solver = parse('snapshot_prefix: "inner/run"', SolverParameter)
    assert needed_folders(solver, []) == [tmp_path]
