"""Damaged files of every kind that is read: an answer or one error of caffetools, in little time and memory, never a crash.

CAFFETOOLS_FUZZ sets how many of each kind are tried. Each kind is read in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.children import run_child
from tests.proto.fuzzing import KINDS

# Kinds of which hardly any damaged file is still valid: their checksums or their syntax see to that.
SELDOM_READ = frozenset(KINDS) - {"text", "binary", "list", "labels", "hdf5-data", "npy"}
TRIES = int(os.environ.get("CAFFETOOLS_FUZZ", "200"))
LONGEST = 2.0  # seconds of processor time; a hang would be longer by far
ROOM = 64 << 20  # bytes that a reader may need besides twice its input


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused_in_little_time_and_memory(kind: str) -> None:
    ended = run_child(["-m", "tests.proto.fuzzing", kind, TRIES], cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr[-4000:]
    result = json.loads(ended.stdout)
    if "skipped" in result:
        pytest.skip("plyvel is not installed")
    print(f"{kind}: {TRIES} files, {result['read']:.0f} read, the others refused with one error")
    assert kind in SELDOM_READ or result["read"] > TRIES // 20
    assert result["longest"] < LONGEST
    assert result["grown"] < 2 * result["largest"] + ROOM
