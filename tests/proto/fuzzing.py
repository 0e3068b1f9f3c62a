"""A process that reads damaged files, one after the other: ``python -m tests.proto.fuzzing text|binary TRIES``.

Prints how many were read as something, the longest time that one took (seconds), by how much the process grew (bytes) and the size
of the largest input, as JSON. Anything but a right answer or one of the project's own errors ends it with a traceback.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from caffetools.errors import CaffeToolsError
from caffetools.proto.binary import read_caffemodel, write_caffemodel
from caffetools.proto.forks.dialect import encode
from caffetools.proto.options import override_dialect
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import format_text, parse
from caffetools.zoo.networks import prototxt_path
from tests.proto.test_binary import small_model
from tests.proto.test_dialect import DETECTED
from tests.proto.test_unknown import NET

WORDS = [*"{}<>[]:\"'#\n\\\0é;,", "layer", "type:", "-1", "1e999", "nan", " a: 1 ", "{ " * 200]


def originals() -> list[str]:
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


def read_text(text: str, index: int) -> bool:
    with override_dialect("any" if index % 3 == 0 else None), contextlib.suppress(CaffeToolsError):
        printed = format_text(parse(text, NetParameter))
        assert printed == "" or format_text(parse(printed, NetParameter)) == printed, text
        return True
    return False


def read_binary(data: bytes, path: Path) -> bool:
    path.write_bytes(data)
    with contextlib.suppress(CaffeToolsError):
        model = read_caffemodel(path)
        for arrays in model.blobs.values():
            for array in arrays:
                array.sum()
        write_caffemodel(path, model)
        again = read_caffemodel(path)
        assert again.blobs.keys() == model.blobs.keys() and format_text(again.net) is not None, data
        return True
    return False


def measure(attempts: Callable[[int], tuple[bool, int]], tries: int) -> dict[str, float]:
    """Run ``attempts``, of which each says whether something was read, and how many bytes the input had."""
    read, longest, largest = 0, 0.0, 0
    for index in range(-20, tries):
        start = time.monotonic()
        done, size = attempts(index)
        if index < 0:
            # The first only warm up: what is allocated once is not held against the inputs.
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            continue
        read, longest, largest = read + done, max(longest, time.monotonic() - start), max(largest, size)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"read": read, "longest": longest, "grown": grown, "largest": largest}


def main(kind: str, tries: int) -> None:
    random, texts = Random(1 if kind == "text" else 2), originals()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.caffemodel"
        write_caffemodel(path, small_model())
        models = [path.read_bytes(), *(encode(parse(text, NetParameter)) for text in texts)]

        def one_text(index: int) -> tuple[bool, int]:
            text = damaged_text(random.choice(texts), random)
            return read_text(text, index), len(text)

        def one_binary(index: int) -> tuple[bool, int]:
            data = damaged_bytes(random.choice(models), random)
            return read_binary(data, path), len(data)

        print(json.dumps(measure(one_text if kind == "text" else one_binary, tries)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
