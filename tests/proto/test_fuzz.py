"""Damaged prototxts and caffemodels, of BVLC Caffe and of forks: a right answer or one clear error, soon, whatever the bytes.

CAFFETOOLS_FUZZ sets how many of each are tried.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from random import Random

import pytest

from caffetools.errors import CaffeToolsError
from caffetools.proto.binary import read_caffemodel, write_caffemodel
from caffetools.proto.dialect import encode, forced
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import format_text, parse
from caffetools.zoo.networks import prototxt_path
from tests.proto.test_dialect import DETECTED
from tests.proto.test_unknown import NET

TRIES = int(os.environ.get("CAFFETOOLS_FUZZ", "1000"))
LONGEST = 2.0  # seconds; a hang would be longer by far
WORDS = [*"{}<>[]:\"'#\n\\\0é;,", "layer", "type:", "-1", "1e999", "nan", " a: 1 "]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*DETECTED.values(), NET, prototxt_path("lenet", "train_val").read_text()]


def damaged_text(text: str, random: Random) -> str:
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(text) + 1)
        kind = random.random()
        if kind < 0.4:
            text = text[:place] + random.choice(WORDS) + text[place:]
        elif kind < 0.7:
            text = text[:place] + text[place + random.randint(1, 30) :]
        else:
            other = random.randrange(len(text) + 1)
            text = text[:place] + text[other : other + random.randint(1, 60)] + text[place:]
    return text


def damaged_bytes(data: bytes, random: Random) -> bytes:
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(data) + 1)
        kind = random.random()
        if kind < 0.6:
            data = data[:place] + bytes([random.randrange(256)]) + data[place + 1 :]
        elif kind < 0.8:
            data = data[:place] + data[place + random.randint(1, 5) :]
        else:
            data = data[:place] + random.randbytes(random.randint(1, 6)) + data[place:]
    return data


def test_damaged_prototxts_are_read_or_refused(texts: list[str]) -> None:
    random, read = Random(1), 0
    for index in range(TRIES):
        text = damaged_text(random.choice(texts), random)
        start = time.monotonic()
        with forced("any" if index % 3 == 0 else None), contextlib.suppress(CaffeToolsError):
            param = parse(text, NetParameter)
            printed = format_text(param)
            assert printed == "" or format_text(parse(printed, NetParameter)) == printed, text
            read += 1
        assert time.monotonic() - start < LONGEST, text
    assert read > TRIES // 20


def test_damaged_caffemodels_are_read_or_refused(texts: list[str], tmp_path: Path) -> None:
    random, read = Random(2), 0
    models = [encode(parse(text, NetParameter)) for text in texts]
    path = tmp_path / "m.caffemodel"
    for _ in range(TRIES):
        data = damaged_bytes(random.choice(models), random)
        path.write_bytes(data)
        start = time.monotonic()
        with contextlib.suppress(CaffeToolsError):
            model = read_caffemodel(path)
            write_caffemodel(path, model)
            again = read_caffemodel(path)
            assert again.blobs.keys() == model.blobs.keys() and format_text(again.net) is not None, data
            read += 1
        assert time.monotonic() - start < LONGEST, data
    assert read > TRIES // 20
