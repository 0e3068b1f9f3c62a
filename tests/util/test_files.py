"""Atomic files: the usual permissions without touching the process's umask, and names of any length."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from caffetools.errors import RunFailed, WriteFailed
from caffetools.util.files import atomic_write, write_text
from caffetools.util.folders import new_folder


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_gets_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~mask


def test_writing_never_sets_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "umask", calls.append)
    threads = [threading.Thread(target=write_text, args=(tmp_path / f"{i}.txt", "x")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert calls == [] and len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("name", ["n" * 255, "名" * 85])
def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_error_of_a_hidden_folder_names_the_folder_that_was_asked_for(tmp_path: Path) -> None:
    def fill(work: Path) -> None:
        with atomic_write(work / "sub" / "file") as stream:
            stream.write(b"x")
            raise OSError(28, "No space left on device")

    with pytest.raises(RunFailed) as caught, new_folder(tmp_path / "out") as work:
        fill(work)
    assert isinstance(caught.value, WriteFailed)
    assert caught.value.path == str(tmp_path / "out" / "sub" / "file")
    assert str(caught.value) == f"cannot write {caught.value.path}: No space left on device; nothing was changed there"
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_hdf5_library_is_that_of_the_system(tmp_path: Path) -> None:
    text = (
        "Can't synchronously write data (file write failed: time = now\n, errno = 28, error message = 'No space left on device', buf = 0x7)"
    )
    with pytest.raises(WriteFailed) as failure, new_folder(tmp_path / "new" / "out"):
        raise OSError(text)
    assert str(failure.value).startswith(f"cannot write {tmp_path / 'new' / 'out'}: No space left on device;")
    assert list(tmp_path.iterdir()) == []
