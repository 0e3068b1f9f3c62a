"""Commands that are killed or interrupted, and started again: nothing half-made is taken for whole, and the result is the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from caffetools.data.databases import open_database
from caffetools.proto.binary import read_caffemodel
from tests.children import Child, run_child, stopped_when
from tests.infer.colours import write_net
from tests.project.shapes import TRAIN_VAL, draw_shapes

CAFFETOOLS = ["-m", "caffetools"]
FINETUNE = ["finetune", "pictures", "-o", "run", "--model", "shapes.prototxt", "--from-scratch", "--batch", "8", "--device", "cpu"]
SHORT = ("--epochs", "12")


def start(folder: Path, *arguments: str, command: list[str] = CAFFETOOLS) -> Child:
    return Child([*command, *arguments], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(folder: Path, *arguments: str, command: list[str] = CAFFETOOLS) -> str:
    """Run to the end, which must be a good one; what it printed."""
    with start(folder, *arguments, command=command) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def records(folder: Path) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    for part in ("train_lmdb", "val_lmdb"):
        database = open_database(folder / part)
        found += list(database.records())
        database.close()
    return found


def size_of(path: Path) -> int:
    """Bytes on the disk: LMDB files are as long as their map from the beginning."""
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def test_a_killed_dataset_build_leaves_nothing_at_its_place_and_the_next_one_makes_the_same_records(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        for number in range(60):
            path = tmp_path / "pictures" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 255, (300, 300, 3), np.uint8))
    build = ("dataset", "build", "pictures")
    finish(tmp_path, *build, "whole", "--size", "200")
    work, draw = tmp_path / ".out.part", random.Random(1)
    least = draw.randrange(1, size_of(tmp_path / "whole" / "train_lmdb" / "data.mdb") // 4)
    moments: list[Callable[[], bool]] = [
        (tmp_path / ".out.caffetools.lock").exists,
        lambda: size_of(work / "train_lmdb" / "data.mdb") >= least,
        (work / "val_lmdb").exists,
    ]
    for moment in moments:
        stopped_when(start(tmp_path, *build, "out", "--size", "200"), moment)
        assert not (tmp_path / "out").exists()
    finish(tmp_path, *build, "out", "--size", "200")
    assert records(tmp_path / "out") == records(tmp_path / "whole")
    for name in ("train.txt", "val.txt", "labels.txt", "mean.binaryproto", "dataset.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "whole", "out"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    draw_shapes(tmp_path / "pictures")
    (tmp_path / "shapes.prototxt").write_text(TRAIN_VAL)
    return tmp_path


def snapshots(folder: Path) -> list[Path]:
    return list((folder / "run" / "net").glob("*.solverstate"))


def blobs_of(folder: Path) -> dict[str, list[Any]]:
    paths = (folder / "run" / "net").glob("*.caffemodel")
    return read_caffemodel(max(paths, key=lambda path: int(path.stem.rpartition("_")[2]))).blobs


def test_a_finetune_that_is_killed_again_and_again_ends_with_the_same_weights(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = tmp_path_factory.mktemp("whole")
    draw_shapes(whole / "pictures")
    (whole / "shapes.prototxt").write_text(TRAIN_VAL)
    expected = json.loads(finish(whole, *FINETUNE, *SHORT, "--json"))
    wanted = random.Random(2).randrange(1, 4)
    moments: list[Callable[[], bool]] = [
        (place / "run" / ".data.part").exists,
        lambda: len(snapshots(place)) >= wanted,
        (place / "run" / "model.onnx").exists,
    ]
    for moment in moments:
        stopped_when(start(place, *FINETUNE, *SHORT), moment)
        assert not (place / "run" / "report.html").exists()
    answer = json.loads(finish(place, *FINETUNE, *SHORT, "--json"))
    assert answer == expected
    ours, theirs = blobs_of(place), blobs_of(whole)
    assert ours.keys() == theirs.keys()
    for name, blobs in theirs.items():
        for blob, other in zip(ours[name], blobs, strict=True):
            np.testing.assert_array_equal(blob, other)


def test_ctrl_c_of_finetune_takes_a_snapshot_and_the_same_command_resumes(place: Path) -> None:
    command = [*FINETUNE, "--epochs", "400"]
    process = start(place, *command)
    out, err = stopped_when(process, lambda: len(snapshots(place)) >= 1, signal.SIGINT)
    assert process.returncode == 130
    last = err.splitlines()[-1]
    assert re.fullmatch(r"caffetools: stopped at iteration \d+, with a snapshot; give the same command again to resume from it", last)
    assert "Traceback" not in err and "Train from scratch" in out
    # A later Ctrl-C, to see that it went on rather than started from scratch.
    before = max(int(path.stem.rpartition("_")[2]) for path in snapshots(place))
    known = len(snapshots(place))
    process = start(place, *command)
    out, err = stopped_when(process, lambda: len(snapshots(place)) > known, signal.SIGINT)
    assert process.returncode == 130 and "already built" in out
    assert max(int(path.stem.rpartition("_")[2]) for path in snapshots(place)) > before
    log = (place / "run" / "net" / "snapshot.log").read_text()
    assert log.count("Starting Optimization") == 2 and "Iteration 0," not in log.split("Starting Optimization")[2]


def test_ctrl_c_while_pictures_are_read_is_one_line(place: Path) -> None:
    process = start(place, *FINETUNE, *SHORT)
    _, err = stopped_when(process, (place / "run" / "run.json").exists, signal.SIGINT)
    assert process.returncode == 130 and err == "caffetools: interrupted\n"


def test_ctrl_c_of_the_demo_is_one_line_and_the_next_one_begins_from_scratch(tmp_path: Path) -> None:
    net = tmp_path / "demo" / "digits-0-4" / "net"
    process = start(tmp_path, "demo", "-o", "demo", "--device", "cpu")
    out, err = stopped_when(process, lambda: any(net.glob("*.solverstate")), signal.SIGINT)
    assert process.returncode == 130
    assert err == "caffetools: stopped; give the same command again to start over\n" and "Train from scratch" in out
    process = start(tmp_path, "demo", "-o", "demo", "--device", "cpu")
    stopped_when(process, lambda: not net.exists())


# The command line, with a card as if a published file were the one of the mirror.
WITH_CARD = """
import dataclasses, sys
import caffetools.zoo.cards as cards
from caffetools.cli.app import main
whole = cards.get_card
def get_card(name):
    card = whole(name)
    return dataclasses.replace(card, weights=cards.Weights("squeezenet_v1.1.caffemodel", 48, ("http://localhost/",), sha1="{digest}"))
cards.get_card = get_card
main()
"""


def test_a_killed_zoo_fetch_resumes_and_ends_with_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(3).bytes(48 << 20)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "squeezenet_v1.1.caffemodel").write_bytes(content)
    script = WITH_CARD.format(digest=hashlib.sha1(content).hexdigest())
    command = ["-c", script]
    monkeypatch.setenv("CAFFETOOLS_ZOO_MIRROR", str(tmp_path / "mirror"))
    fetch = ("zoo", "fetch", "squeezenet_v1.1", "--to", "to")
    draw, target = random.Random(4), tmp_path / "to" / "squeezenet_v1.1.caffemodel"
    for _ in range(3):
        least = draw.randrange(1, len(content) // 2)
        stopped_when(
            start(tmp_path, *fetch, command=command),
            lambda least=least: sum(path.stat().st_size for path in (tmp_path / "to").glob("*")) >= least,  # type: ignore[misc]
        )
        assert not target.exists() or target.read_bytes() == content
    finish(tmp_path, *fetch, command=command)
    assert target.read_bytes() == content


def test_an_interrupt_that_a_library_turns_into_another_error_is_an_interrupt(tmp_path: Path) -> None:
    broken = tmp_path / "libraries"
    broken.mkdir()
    (broken / "onnx.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise RecursionError from None\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "caffetools", "export", *map(str, write_net(tmp_path)), "-o", "net.onnx"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(broken)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "caffetools: interrupted\n")


def test_a_second_interrupt_while_the_process_ends_prints_no_traceback(tmp_path: Path) -> None:
    script = (
        "import atexit, os, signal, sys\nfrom caffetools.cli.app import main\n"
        "interrupt = lambda *_: os.kill(os.getpid(), signal.SIGINT)\natexit.register(interrupt)\n"
        "sys.addaudithook(lambda event, args: event == 'open' and str(args[0]).endswith('.prototxt') and interrupt())\n"
        "sys.argv = ['caffetools', 'inspect', 'net.prototxt']\nmain()\n"
    )
    (tmp_path / "net.prototxt").write_text("name: 'a net'\n")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (130, -signal.SIGINT) and done.stderr == "caffetools: interrupted\n"


@pytest.mark.parametrize("delay", [0, 0.1], ids=["", "busy machine"])
def test_an_interrupt_in_a_destructor_is_an_interrupt(delay: float, tmp_path: Path) -> None:
    """On a busy machine a thread takes long to start; the signal that it sends must not come while it is waited for."""
    script = (
        "import os, signal, sys, threading, time\nfrom caffetools.cli.app import main\nstart = threading.Thread.start\n"
        f"threading.Thread.start = lambda self: (start(self), time.sleep({delay}))\n"
        "class Ending:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "def work(event, args):\n    if event == 'open' and str(args[0]).endswith('.prototxt'):\n        Ending()\n        while True:\n            pass\n"
        "sys.addaudithook(work)\nsys.argv = ['caffetools', 'inspect', 'net.prototxt']\nmain()\n"
    )
    (tmp_path / "net.prototxt").write_text("name: 'a net'\n")
    done = run_child(["-c", script], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "caffetools: interrupted\n")
