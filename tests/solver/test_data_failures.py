"""Data that goes wrong while a run reads it: one clear error, and what was saved stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from caffetools.errors import CaffeToolsError, DataError
from caffetools.solver.callbacks import Callback
from caffetools.solver.run import train
from tests.solver.test_resume import list_run, lmdb_run


class After(Callback):
    """Does something after an update."""

    def __init__(self, iteration: int, action: Callable[[], Any]):
        self.iteration, self.action = iteration, action

    def on_iteration_end(self, solver: Any) -> None:
        if solver.iteration == self.iteration:
            self.action()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_corrupt_record_is_named_with_layer_and_iteration(work: Path) -> None:
    lmdb_run(work)
    with lmdb.open("db") as environment, environment.begin(write=True) as transaction:
        transaction.put(b"00000016_x", b"\xff\xff no datum")
    with pytest.raises(DataError, match=r"^iteration \d+: layer 'data': db: record '00000016_x': the record is damaged"):
        train("solver.prototxt", device="cpu")
    log = Path("out/net.log").read_text()
    assert "record '00000016_x'" in log.splitlines()[-1] and log.splitlines()[-1].startswith("E")


def test_a_picture_that_vanishes_is_named_and_snapshots_are_kept(work: Path) -> None:
    list_run(work)
    with pytest.raises(DataError, match=r"^iteration \d+: layer 'pictures': 5\.png: "):
        train("solver.prototxt", device="cpu", callbacks=[After(8, lambda: Path("5.png").unlink())])
    assert Path("out/net_iter_7.solverstate.h5").exists()


def test_a_database_that_is_missing_ends_a_resumed_run_before_it_begins(work: Path) -> None:
    lmdb_run(work)
    train("solver.prototxt", device="cpu", max_iter=8)
    before = Path("out/net.log").read_text()
    shutil.rmtree("db")
    with pytest.raises(CaffeToolsError, match=r"layer 'data': db: no such database"):
        train("solver.prototxt", device="cpu", resume=True)
    assert Path("out/net.log").read_text() == before


def test_a_database_that_is_removed_while_it_is_read_is_read_to_the_end(work: Path) -> None:
    """LMDB has it mapped; the system keeps the pages until the run ends."""
    lmdb_run(work)
    done = train("solver.prototxt", device="cpu", max_iter=12, callbacks=[After(3, lambda: shutil.rmtree("db"))])
    assert done.solver.iteration == 12


def test_a_database_that_is_truncated_while_it_is_read_is_one_error(work: Path) -> None:
    lmdb_run(work)
    before: list[int] = []

    def truncate() -> None:
        path = Path("db/data.mdb")
        before.append(path.stat().st_size)
        with path.open("r+b") as file:
            file.truncate(before[0] // 2)

    with pytest.raises(DataError, match=r"layer 'data': db: the LMDB is truncated: data\.mdb has \d+ bytes of \d+"):
        train("solver.prototxt", device="cpu", callbacks=[After(3, truncate)])
