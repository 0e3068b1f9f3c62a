"""Builds that are killed or cancelled continue where they stopped; the old dataset is whole until then."""

from __future__ import annotations

import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffetools.cancel import CancelToken
from caffetools.data.databases import open_database
from caffetools.data.datasets.build import build_dataset
from caffetools.errors import Cancelled, DataError
from caffetools.events import ArtifactWritten, Event, Finished, Progress, Started
from tests.children import Child
from tests.data.drawing import content, draw_classes, names

# Builds a dataset, and waits for ever at a step.
CHILD = """
import sys, time
from caffetools.data.datasets.build import build_dataset

def step(done, total):
    if done == int(sys.argv[3]):
        print(total, flush=True)
        sys.stdin.read()

build_dataset(sys.argv[1], sys.argv[2], size=8, val=0.1, force=True, resume=len(sys.argv) > 4, progress=step)
"""


def kill_at(pictures: Path, out: Path, step: int, *words: str) -> int:
    """Kill a build at a step, and return the number of its steps."""
    child = Child(["-c", CHILD, pictures, out, step, *words])
    total = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return total


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """1,400 small pictures, more than a transaction holds, with unusable ones among them."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "many" / name).mkdir(parents=True)
        for number in range(700):
            cv2.imwrite(str(tmp_path / "many" / name / f"{number}.png"), rng.integers(0, 256, (5, 6, 3), np.uint8))
        for number in (10, 500):
            (tmp_path / "many" / name / f"{number}.png").write_bytes(b"x")
    return tmp_path / "many"


def records(folder: Path) -> list[tuple[bytes, bytes]]:
    found = []
    for part in ("train", "val"):
        database = open_database(folder / f"{part}_lmdb")
        found += list(database.records())
        database.close()
    return found


def test_a_killed_build_is_continued_and_the_old_dataset_is_whole_until_then(many: Path, tmp_path: Path) -> None:
    build_dataset(many, tmp_path / "plain", size=8, val=0.1)
    out = tmp_path / "out"
    build_dataset(draw_classes(tmp_path / "few", {"x": 2, "y": 2}), out, size=8)
    old = content(out)
    total = kill_at(many, out, 1200)
    assert total == 2 * 1260 + 140 and content(out) == old
    # The first thousand records are there already: their pictures are not read again.
    for line in (tmp_path / "plain" / "train.txt").read_text().splitlines()[:900]:
        (many / line.rpartition(" ")[0]).write_bytes(b"spoiled")
    assert kill_at(many, out, 1330, "resume") == total and content(out) == old
    card = build_dataset(many, out, size=8, val=0.1, force=True, resume=True)
    assert records(out) == records(tmp_path / "plain") and len(card.skipped) == 4
    one, other = content(tmp_path / "plain"), content(out)
    assert {name for name in one if one[name] != other.get(name)} <= {"dataset.json", "train_lmdb/data.mdb", "val_lmdb/data.mdb"}
    assert one.keys() == other.keys() and names(tmp_path) == ["few", "many", "out", "plain"]


def test_a_build_that_is_killed_at_its_mean_reads_no_picture_again(pictures: Path, tmp_path: Path) -> None:
    build_dataset(pictures, tmp_path / "plain", size=8, val=0.1)
    total = 2 * 14 + 4
    assert kill_at(pictures, tmp_path / "out", total) == total
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"spoiled")
    build_dataset(pictures, tmp_path / "out", size=8, val=0.1, force=True, resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "plain")


@pytest.mark.parametrize("change", ["seed", "pictures"])
def test_another_build_is_not_continued(pictures: Path, tmp_path: Path, change: str) -> None:
    kill_at(pictures, tmp_path / "out", 9)
    seed = 2 if change == "seed" else 1
    if change == "pictures":
        draw_classes(pictures, {"zebra": 2})
    with pytest.raises(DataError, match="out: the build to resume had other arguments or pictures; run without --resume"):
        build_dataset(pictures, tmp_path / "out", size=8, val=0.1, seed=seed, resume=True)
    build_dataset(pictures, tmp_path / "out", size=8, val=0.1, seed=seed)
    assert names(tmp_path) == ["out", "pictures"]


def test_resume_without_remains_builds_from_the_start(pictures: Path, tmp_path: Path) -> None:
    build_dataset(pictures, tmp_path / "plain", size=8)
    build_dataset(pictures, tmp_path / "out", size=8, resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "plain")


@pytest.mark.parametrize("step", [1, 15, 17, 18])
def test_a_cancelled_build_leaves_nothing_at_its_place_and_can_be_resumed(pictures: Path, tmp_path: Path, step: int) -> None:
    token, seen = CancelToken(), list[Event]()
    out = tmp_path / "out"

    def sink(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Progress) and event.done == step:
            token.cancel()

    with pytest.raises(Cancelled):
        build_dataset(pictures, out, size=8, events=sink, cancel=token)
    assert isinstance(seen[0], Started) and isinstance(seen[-1], Finished) and seen[-1].status == "cancelled"
    assert not out.exists()
    seen.clear()
    build_dataset(pictures, out, size=8, resume=True, events=seen.append)
    build_dataset(pictures, tmp_path / "plain", size=8)
    assert records(out) == records(tmp_path / "plain")
    progress = [event for event in seen if isinstance(event, Progress)]
    assert [event.done for event in progress] == [*range(1, 19), 32] and {event.unit for event in progress} == {"images"}
    assert [event.path for event in seen if isinstance(event, ArtifactWritten)] == [str(out)]
