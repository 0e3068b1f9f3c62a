"""Merging and selecting from databases that have no card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from caffetools.cancel import CancelToken
from caffetools.cli.dataset import app
from caffetools.data.databases import new_lmdb
from caffetools.data.datasets.bare import merge_databases, subset_database
from caffetools.data.datum import array_to_datum
from caffetools.errors import CaffeToolsError, Cancelled, DataError
from caffetools.events import Event, Progress
from tests.cli.inprocess import error_of, run
from tests.data.drawing import names, rows


def write(path: Path, labels: list[int], start: int = 0) -> Path:
    with new_lmdb(path) as writer:
        for number, label in enumerate(labels):
            datum = array_to_datum(np.full((1, 2, 2), start + number, np.uint8), label)
            writer.put(f"{number:08d}_dir {label}/{number}.png".encode(), datum.SerializeToString())
    return path


def content(path: Path) -> list[tuple[str, int, int]]:
    """(key, label, value of the pixels) of each record."""
    return [(key, label, int(pixels[0, 0, 0])) for key, label, pixels in rows(path)]


def test_records_follow_each_other_with_their_labels(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", [3, 0, 3]), write(tmp_path / "b", [5, 0], start=50)
    assert merge_databases([one, other], tmp_path / "all").records == 5
    assert content(tmp_path / "all") == [
        ("00000000_dir 3/0.png", 3, 0),
        ("00000001_dir 0/1.png", 0, 1),
        ("00000002_dir 3/2.png", 3, 2),
        ("00000003_dir 5/0.png", 5, 50),
        ("00000004_dir 0/1.png", 0, 51),
    ]
    with pytest.raises(DataError, match="two or more different databases"):
        merge_databases([one, one], tmp_path / "again")
    swapped = error_of(run("dataset", "merge", one, other, tmp_path / "new"))
    assert swapped.endswith(f"new: does not exist; the folder to create comes first: merge {tmp_path / 'new'} {one} {other}")
    assert names(tmp_path) == ["a", "all", "b"]


def test_chosen_labels_count_from_zero_and_others_are_kept(tmp_path: Path) -> None:
    database = write(tmp_path / "a", [7, 2, 7, 4, 2, 7, 7])
    result = subset_database(database, tmp_path / "part", labels=[7, 2])
    assert (result.records, result.labels) == (6, {2: 0, 7: 1})
    assert [(label, value) for _, label, value in content(tmp_path / "part")] == [(1, 0), (0, 1), (1, 2), (0, 4), (1, 5), (1, 6)]
    assert [key[:8] for key, _, _ in content(tmp_path / "part")] == [f"{number:08d}" for number in range(6)]
    few = subset_database(database, tmp_path / "few", per_class=2)
    found = content(tmp_path / "few")
    assert (few.labels, sorted(label for _, label, _ in found)) == ({}, [2, 2, 4, 7, 7])
    assert [value for _, _, value in found] == sorted(value for _, _, value in found)
    subset_database(database, tmp_path / "same", per_class=2)
    assert content(tmp_path / "same") == found


@pytest.mark.parametrize(
    ("options", "reason"), [({"labels": [3]}, "no record has the label 3; the labels are 2 to 7"), ({"per_class": 0}, "1 or more")]
)
def test_what_is_not_there_is_refused(tmp_path: Path, options: dict[str, list[int]], reason: str) -> None:
    database = write(tmp_path / "a", [7, 2])
    with pytest.raises(DataError, match=reason):
        subset_database(database, tmp_path / "part", **options)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("step", [1, 5, 7])
def test_cancelling_leaves_nothing(tmp_path: Path, step: int) -> None:
    database, token = write(tmp_path / "a", [0, 1, 2, 3]), CancelToken()

    def sink(event: Event) -> None:
        if isinstance(event, Progress) and event.done == step:
            token.cancel()

    with pytest.raises(Cancelled):
        subset_database(database, tmp_path / "part", events=sink, cancel=token)
    assert "part" not in names(tmp_path)


def test_the_commands_take_databases(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", [1, 0, 1]), write(tmp_path / "b", [2])
    invoke = CliRunner().invoke
    merged = invoke(app, ["merge", str(tmp_path / "all"), str(one), str(other)])
    path = tmp_path / "all"
    assert merged.exit_code == 0 and merged.output.endswith(f"Wrote 4 records to {path}\nNext: caffetools dataset inspect {path}\n")
    part = invoke(app, ["subset", str(tmp_path / "all"), str(tmp_path / "part"), "--class", "2", "--class", "1", "--json"])
    assert json.loads(part.output) == {"path": str(tmp_path / "part"), "records": 3, "labels": {"1": 0, "2": 1}}
    named = invoke(app, ["subset", str(tmp_path / "all"), str(tmp_path / "p2"), "--class", "cat"])
    assert isinstance(named.exception, CaffeToolsError) and "numbers, not 'cat'" in str(named.exception)
