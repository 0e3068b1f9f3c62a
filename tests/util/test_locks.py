"""Locks exclude threads and processes, end with their process, and never touch a file of the user."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from caffetools.util.locks import Busy, file_lock, lock_path

HOLD = """
import sys
from pathlib import Path
from caffetools.util.locks import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold_in_process(target: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_of_several_threads_one_at_a_time_holds_it(tmp_path: Path) -> None:
    for _ in range(50):
        start, leave = threading.Barrier(4), threading.Barrier(4)
        results: list[str] = []

        def take(start: threading.Barrier = start, leave: threading.Barrier = leave, results: list[str] = results) -> None:
            start.wait(30)
            try:
                with file_lock(tmp_path / "run"):
                    results.append("held")
                    leave.wait(30)
            except Busy as busy:
                results.append("busy")
                assert busy.holder is None or busy.holder[0] == str(os.getpid())
                leave.wait(30)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(results) == ["busy", "busy", "busy", "held"]
    assert list(tmp_path.iterdir()) == []


def test_another_process_is_excluded_and_named(tmp_path: Path) -> None:
    with hold_in_process(tmp_path / "run") as process:
        with pytest.raises(Busy) as busy, file_lock(tmp_path / "run"):
            pass
        assert busy.value.holder is not None and busy.value.holder[0] == str(process.pid)
        process.communicate()
    with file_lock(tmp_path / "run"):
        pass


def test_waiting_ends_when_the_holder_does(tmp_path: Path) -> None:
    with hold_in_process(tmp_path / "run") as process:
        waited = []

        def on_wait() -> None:
            waited.append(True)
            process.kill()

        with file_lock(tmp_path / "run", on_wait=on_wait):
            assert waited == [True]
            assert lock_path(tmp_path / "run").read_text().split()[0] == str(os.getpid())


def test_a_child_process_does_not_inherit_it(tmp_path: Path) -> None:
    with file_lock(tmp_path / "run"):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    with file_lock(tmp_path / "run"):
        pass
    child.communicate()


@pytest.mark.parametrize("content", [b"mine\n", b"12\n", b"\0\xff", b"x" * 5000])
def test_a_file_of_the_user_is_not_touched(tmp_path: Path, content: bytes) -> None:
    path = lock_path(tmp_path / "run")
    path.write_bytes(content)
    with pytest.raises(FileExistsError, match="not one of caffetools"), file_lock(tmp_path / "run"):
        pass
    assert path.read_bytes() == content
    assert path.name.startswith("."), "a visible name such as poetry.lock would be a user's"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    lock_path(tmp_path / "run").symlink_to(other)
    with pytest.raises(OSError, match="not one of caffetools"), file_lock(tmp_path / "run"):
        pass
    assert other.read_bytes() == b"" and lock_path(tmp_path / "run").is_symlink()


@pytest.mark.parametrize("content", ["", "123 host\n", "99 another-host"])
def test_a_lock_file_that_was_left_behind_does_not_block(tmp_path: Path, content: str) -> None:
    lock_path(tmp_path / "run").write_text(content)
    with file_lock(tmp_path / "run"):
        assert lock_path(tmp_path / "run").read_text().split()[0] == str(os.getpid())
    assert list(tmp_path.iterdir()) == []
