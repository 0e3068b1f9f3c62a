"""The lock of a snapshot prefix, between real processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from caffetools.errors import CaffeToolsError
from caffetools.solver.checkpoints.snapshots import prefix_lock
from tests.children import Child, run_child

HOLD = """
import sys
from caffetools.solver.checkpoints.snapshots import prefix_lock
from tests.children import Child, run_child
with prefix_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(prefix: Path) -> Child:
    process = Child(["-c", HOLD, prefix])
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_and_gets_the_holders_name(tmp_path: Path) -> None:
    with holder(tmp_path / "net") as process:
        with pytest.raises(CaffeToolsError, match=rf"another run \(process {process.pid} on .*net_iter_"), prefix_lock(tmp_path / "net"):
            pass
        with prefix_lock(tmp_path / "other"):
            pass
        process.communicate()
    with prefix_lock(tmp_path / "net"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_hinders_nobody(tmp_path: Path) -> None:
    with holder(tmp_path / "net") as process:
        process.kill()
        process.wait()
    assert (tmp_path / ".net.caffetools.lock").read_text().split()[0] == str(process.pid)
    with prefix_lock(tmp_path / "net"):
        assert (tmp_path / ".net.caffetools.lock").read_text().split()[0] == str(os.getpid())


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with prefix_lock(tmp_path / "net"):
        for _ in range(2):
            with pytest.raises(CaffeToolsError, match="another run"), prefix_lock(tmp_path / "net"):
                pass
        outside = run_child(["-c", HOLD, tmp_path / "net"])
        assert "another run" in outside.stderr, "a refused attempt must not let go of the lock"


def test_it_ends_with_an_error_inside(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), prefix_lock(tmp_path / "net"):
        raise ZeroDivisionError
    with prefix_lock(tmp_path / "net"):
        pass
