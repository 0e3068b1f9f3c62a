"""Handles of databases shared by the readers of one process."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

from caffetools.data.db_handles import RefCountedHandle


class Database:
    """Counts its closings."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_the_last_user_closes_it(tmp_path: Path) -> None:
    made: list[Database] = []

    def opener(path: str) -> Database:
        made.append(Database())
        return made[-1]

    first, second = (RefCountedHandle(str(tmp_path / "db"), opener) for _ in range(2))
    assert first.handle is second.handle and len(made) == 1
    first.close()
    first.close()
    assert made[0].closed == 0
    del second
    gc.collect()
    assert made[0].closed == 1
    third = RefCountedHandle(str(tmp_path / "db"), opener)
    assert third.handle is made[1]
    third.close()
    assert [database.closed for database in made] == [1, 1]


def test_a_user_collected_while_another_thread_opens_a_database_does_not_wait_for_it(tmp_path: Path) -> None:
    opening, proceed = threading.Event(), threading.Event()
    collected, other = Database(), Database()

    def slow(path: str) -> Database:
        opening.set()
        assert proceed.wait(30)
        return other

    user: RefCountedHandle[Database] | None = RefCountedHandle(str(tmp_path / "a"), lambda path: collected)
    users: list[RefCountedHandle[Database]] = []
    thread = threading.Thread(target=lambda: users.append(RefCountedHandle(str(tmp_path / "b"), slow)))
    thread.start()
    assert opening.wait(10)
    del user
    gc.collect()
    assert collected.closed == 0
    proceed.set()
    thread.join(10)
    assert collected.closed == 1 and other.closed == 0
    users[0].close()
    assert other.closed == 1
