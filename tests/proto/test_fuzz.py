"""Damaged prototxts and caffemodels, of BVLC Caffe and of forks: a right answer or one clear error, soon and small, whatever the bytes.

CAFFETOOLS_FUZZ sets how many of each are tried. Each kind is read in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRIES = int(os.environ.get("CAFFETOOLS_FUZZ", "1000"))
LONGEST = 2.0  # seconds; a hang would be longer by far
ROOM = 64 << 20  # bytes that a reader may need besides twice its input


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_damaged_files_are_read_or_refused_in_little_time_and_memory(kind: str) -> None:
    command = [sys.executable, "-m", "tests.proto.fuzzing", kind, str(TRIES)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    told = json.loads(ended.stdout)
    assert told["read"] > TRIES // 20
    assert told["longest"] < LONGEST
    assert told["grown"] < 2 * told["largest"] + ROOM
