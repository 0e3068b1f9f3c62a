"""The native LMDB reader gives what the one in Python gives, for sound files and damaged ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from caffetools.data.lmdb_file import LmdbFile
from caffetools.data.lmdb_native import lmdb_library
from caffetools.errors import CaffeToolsError
from tests.data.test_lmdb_file import Records, some_records, write

pytestmark = pytest.mark.skipif(lmdb_library() is None, reason="the native library was not built here")
PAGE = 4096


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Change bytes, words and whole pages."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        begin = rng.randrange(len(changed) // PAGE) * PAGE
        kind = rng.random()
        if kind < 0.4:
            changed[begin + rng.choice([rng.randrange(16), rng.randrange(200), rng.randrange(PAGE)])] = rng.randrange(256)
        elif kind < 0.6:
            place = begin + 2 * rng.randrange(100)
            changed[place : place + 2] = rng.choice([0, 1, 16, 24, 4096, 0x7FFF, 0xFFFF]).to_bytes(2, "little")
        elif kind < 0.75:
            other = rng.randrange(len(changed) // PAGE) * PAGE
            changed[begin : begin + PAGE] = changed[other : other + PAGE]
        elif kind < 0.95:
            place = begin + 8 * rng.randrange(PAGE // 8)
            changed[place : place + 8] = rng.choice([0, 2**32, 2**63, 2**64 - 1, len(data)]).to_bytes(8, "little")
        else:
            return bytes(changed[: rng.randrange(2 * PAGE, len(changed))])
    return bytes(changed)


def read(folder: Path) -> tuple[Records, list[object]] | str:
    """Return all records and three by number, or the error."""
    try:
        reader = LmdbFile(folder)
        records = list(reader.records())
        numbered: list[object] = []
        for number in {0, len(records) // 2, len(records) - 1}:
            try:
                numbered.append(reader.item(number))
            except (CaffeToolsError, IndexError) as error:
                numbered.append(str(error))
        return records, numbered
    except CaffeToolsError as error:
        return str(error)


def test_mutated_files_give_the_same_records_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    sizes = [(40, 9000), (300, 2500), (900, 60)]
    sources = [(write(tmp_path / f"s{i}", some_records(count, seed=i, largest=most)) / "data.mdb") for i, (count, most) in enumerate(sizes)]
    contents = [source.read_bytes() for source in sources]
    folder = tmp_path / "mutated"
    folder.mkdir()
    errors = 0
    for _ in range(250):
        (folder / "data.mdb").write_bytes(mutated(rng.choice(contents), rng))
        monkeypatch.delenv("CAFFETOOLS_NATIVE", raising=False)
        native = read(folder)
        monkeypatch.setenv("CAFFETOOLS_NATIVE", "0")
        assert native == read(folder)
        errors += isinstance(native, str)
    assert 50 < errors < 200
