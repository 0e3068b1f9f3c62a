"""The LMDB reader: records of any sound file, one error for a damaged one, a full epoch while another process writes."""

from __future__ import annotations

import ctypes
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffetools.data.databases import new_lmdb, open_database
from caffetools.data.lmdb_file import LmdbFile
from caffetools.data.lmdb_native import lmdb_library
from caffetools.errors import CaffeToolsError, DataError
from tests.data.lmdb_builder import PAGE, LmdbBuilder, write_lmdb

Records = list[tuple[bytes, bytes]]


@pytest.fixture(autouse=True, params=["native", "python"])
def reader_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with the native library, where it was built, and without it."""
    kind = str(request.param)
    if kind == "python":
        monkeypatch.setenv("CAFFETOOLS_NATIVE", "0")
    elif lmdb_library() is None:
        pytest.skip("the native library was not built here")
    return kind


def some_records(count: int, *, seed: int = 0, largest: int = 9000) -> Records:
    rng = random.Random(seed)
    return [(b"%08d_p" % i, rng.randbytes(rng.choice([0, 1, 50, 700, 1900, 2100, largest]))) for i in range(count)]


def write(path: Path, records: Records) -> Path:
    with new_lmdb(path) as writer:
        for key, value in records:
            writer.put(key, value)
    return path


@pytest.mark.parametrize("word", [8, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_files_of_other_machines_are_read(tmp_path: Path, order: str, word: int) -> None:
    records = some_records(60)
    records = [(key, value[:900] if len(value) < 5000 else value) for key, value in records]
    reader = LmdbFile(write_lmdb(tmp_path / "db", LmdbBuilder(order, word).build(records)))
    assert list(reader.records()) == records
    assert [reader.item(i) for i in (0, 17, 59)] == [records[i] for i in (0, 17, 59)]
    assert list(reader.records(30)) == records[30:]


def test_the_builder_of_these_tests_writes_what_liblmdb_reads(tmp_path: Path) -> None:
    records = [(key, value) for key, value in some_records(40) if len(value) < 1000 or len(value) > 5000]
    path = write_lmdb(tmp_path / "db", LmdbBuilder().build(records))
    with lmdb.open(os.fspath(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        assert list(transaction.cursor()) == records


@settings(max_examples=25, deadline=None)
@given(
    records=st.dictionaries(st.binary(min_size=1, max_size=300), st.integers(0, 12000), max_size=120),
    removed=st.sets(st.integers(0, 119)),
    seed=st.integers(0, 9),
)
def test_the_records_are_those_that_liblmdb_gives(
    tmp_path_factory: pytest.TempPathFactory, records: dict[bytes, int], removed: set[int], seed: int
) -> None:
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("db")
    with lmdb.open(os.fspath(folder), map_size=1 << 26, sync=False) as environment:
        keys = list(records)
        rng.shuffle(keys)
        for key in keys:
            with environment.begin(write=True) as transaction:
                transaction.put(key, rng.randbytes(records[key]))
        with environment.begin(write=True) as transaction:
            for index in removed & set(range(len(keys))):
                transaction.delete(keys[index])
        with environment.begin() as transaction:
            expected = list(transaction.cursor())
    reader = LmdbFile(folder)
    assert list(reader.records()) == expected and len(reader) == len(expected)
    assert [reader.item(i) for i in range(len(expected))] == expected
    for start in {1, len(expected) // 2, len(expected)}:
        assert list(reader.records(start)) == expected[start:]
    with pytest.raises(IndexError):
        reader.item(len(expected))


def test_what_caffe_does_not_write_is_refused(tmp_path: Path) -> None:
    with lmdb.open(os.fspath(tmp_path / "dup"), max_dbs=2) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"k", b"v", db=environment.open_db(b"inner", transaction, dupsort=True))
    with pytest.raises(DataError, match="named databases or several values a key, which Caffe does not write"):
        list(LmdbFile(tmp_path / "dup").records())
    with pytest.raises(DataError, match="several values a key"):
        LmdbFile(write_lmdb(tmp_path / "sorted", LmdbBuilder().build(some_records(3), flags=4)))
    with pytest.raises(DataError, match="another order of keys"):
        LmdbFile(write_lmdb(tmp_path / "reversed", LmdbBuilder().build(some_records(3), flags=2)))


@pytest.mark.parametrize("replacement", ["zeros", "another page"])
def test_a_damaged_or_misplaced_page_is_one_error_and_never_a_wrong_epoch(tmp_path: Path, replacement: str) -> None:
    sizes = [30, 1600, 5000]
    records = [(b"%08d" % i, bytes([i % 251]) * sizes[i % 3]) for i in range(300)]
    data = (write(tmp_path / "db", records) / "data.mdb").read_bytes()
    page = bytes(PAGE) if replacement == "zeros" else data[5 * PAGE : 6 * PAGE]
    errors = 0
    for number in range(len(data) // PAGE):
        broken = data[: number * PAGE] + page + data[(number + 1) * PAGE :]
        try:
            found = list(open_database(write_lmdb(tmp_path / "bad", broken)).records())
        except DataError as error:
            errors += 1
            assert str(error).startswith(str(tmp_path / "bad")) and "\n" not in str(error)
            continue
        # A page that is unused, or one in the middle of a large value, which holds no structure.
        assert [key for key, _ in found] == [key for key, _ in records]
    assert errors > len(data) // PAGE // 3


def test_a_record_whose_pages_are_damaged_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    records = [(b"%08d" % i, bytes([i]) * 5000) for i in range(40)]
    path = write(tmp_path / "db", records)
    data = bytearray((path / "data.mdb").read_bytes())
    begin = data.index(bytes([17]) * 4000) // PAGE * PAGE
    data[begin : begin + PAGE] = bytes(PAGE)
    write_lmdb(path, bytes(data))
    with pytest.raises(DataError, match=r"db: record '00000017': the LMDB is damaged: page \d+ does not hold its value") as caught:
        list(LmdbFile(path).records())
    assert caught.value.record == "00000017"
    errors: list[DataError] = []
    assert list(LmdbFile(path).records(on_error=errors.append)) == records[:17] + records[18:]
    assert [error.record for error in errors] == ["00000017"]
    with pytest.raises(DataError, match="record '00000017'"):
        LmdbFile(path).item(17)
    assert LmdbFile(path).item(18) == records[18]


@pytest.mark.parametrize("page", [2**31, 2**62, 2**63, 2**64 - 1])
def test_a_record_whose_page_is_beyond_any_file_is_named(tmp_path: Path, page: int) -> None:
    path = write(tmp_path / "db", [(b"%08d" % i, bytes([i]) * 5000) for i in range(3)])
    data = bytearray((path / "data.mdb").read_bytes())
    place = data.rindex(b"00000001") + 8
    data[place : place + 8] = page.to_bytes(8, "little")
    write_lmdb(path, bytes(data))
    for reader in (LmdbFile(path), open_database(path)):
        with pytest.raises(DataError, match=rf"db: record '00000001': the LMDB is damaged: its value should be on page {page}"):
            list(reader.records())


def mutated(rng: random.Random, sound: list[bytes], number: int) -> bytes:
    """Return one of the files with some bytes changed; most changes hit the structure: the beginning of a page, or its offsets."""
    data = bytearray(rng.choice(sound))
    for _ in range(rng.choice([1, 1, 3, 20])):
        place = rng.randrange(len(data)) if rng.random() < 0.3 else rng.randrange(len(data) // PAGE) * PAGE + rng.randrange(64)
        data[place] = rng.choice([0, 1, 255, rng.randrange(256)])
    if number % 7 == 0:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def restructured(rng: random.Random, sound: list[bytes], _: int) -> bytes:
    """Return one of the files with bytes, words, numbers and whole pages changed, or cut."""
    data = rng.choice(sound)
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


def test_mutated_files_give_records_or_one_error_that_names_the_file(tmp_path: Path) -> None:
    rng = random.Random(1)
    sound = [(write(tmp_path / f"db{i}", some_records(150, seed=i)) / "data.mdb").read_bytes() for i in range(2)]
    sound.append(LmdbBuilder(">", 4).build([(b"%04d" % i, bytes([i]) * 90) for i in range(99)]))
    errors = 0
    for number in range(600):
        path = write_lmdb(tmp_path / "mutated", mutated(rng, sound, number))
        try:
            reader = LmdbFile(path)
            keys = [key for key, _ in reader.records()]
            assert keys == sorted(set(keys)) and len(keys) == len(reader)
        except CaffeToolsError as error:
            errors += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert errors > 200


def outcome(path: Path) -> tuple[Records, list[str]]:
    """Return all that can be read of a file, in order and by number, and the texts of all errors."""
    errors: list[str] = []
    found: Records = []
    try:
        reader = LmdbFile(path)
        found += reader.records(on_error=lambda error: errors.append(str(error)))
        found += reader.records(len(reader) // 2, on_error=lambda error: errors.append(str(error)))
    except CaffeToolsError as error:
        return found, [*errors, str(error)]
    for number in range(0, len(reader), 7):
        try:
            found.append(reader.item(number))
        except CaffeToolsError as error:
            errors.append(str(error))
    return found, errors


def check_views(path: Path, found: tuple[Records, list[str]]) -> None:
    """Values that are read where they lie are those of the records, up to the first that is damaged."""
    with suppress(CaffeToolsError):
        reader = LmdbFile(path)
        values = viewed(reader, 20000)
        assert values == [value for _, value in found[0][: len(values)]]
        assert found[1] or len(values) == len(reader)


def viewed(reader: LmdbFile, limit: int) -> list[bytes]:
    values = []
    for (addresses, sizes), is_current in reader.views(limit):
        values += [ctypes.string_at(int(address), int(size)) for address, size in zip(addresses, sizes, strict=True)]
        assert is_current()
    return values


@pytest.mark.parametrize(("change", "count", "least", "most"), [(mutated, 300, 1, 300), (restructured, 250, 51, 199)])
def test_the_native_reader_gives_the_records_and_errors_of_the_one_in_python(
    tmp_path: Path,
    reader_kind: str,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[random.Random, list[bytes], int], bytes],
    count: int,
    least: int,
    most: int,
) -> None:
    if reader_kind == "python":
        pytest.skip("both are compared in the native test")
    rng = random.Random(int(os.environ.get("CAFFETOOLS_FUZZ_SEED", "5")))
    sizes = [(150, 9000), (150, 9000), (40, 9000), (300, 2500), (900, 60)]
    sound = [
        (write(tmp_path / f"db{i}", some_records(records, seed=i, largest=largest)) / "data.mdb").read_bytes()
        for i, (records, largest) in enumerate(sizes)
    ]
    damaged = 0
    for number in range(int(os.environ.get("CAFFETOOLS_FUZZ", str(count)))):
        path = write_lmdb(tmp_path / "mutated", change(rng, sound, number))
        native = outcome(path)
        with monkeypatch.context() as patch:
            patch.setenv("CAFFETOOLS_NATIVE", "0")
            assert outcome(path) == native
        damaged += bool(native[1])
        check_views(path, native)
    assert damaged
    assert "CAFFETOOLS_FUZZ" in os.environ or least <= damaged <= most


def test_the_native_reader_reads_sound_files_itself(tmp_path: Path, reader_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reader_kind == "python":
        pytest.skip("of the native reader")
    records = some_records(900, largest=70000)
    reader = LmdbFile(write(tmp_path / "db", records))

    def unused(*_: object) -> None:
        raise AssertionError("the reader in Python was asked")

    monkeypatch.setattr(LmdbFile, "_nodes", unused)
    monkeypatch.setattr(LmdbFile, "_offsets", unused)
    assert list(reader.records()) == records and list(reader.records(450)) == records[450:]
    for _ in range(2):
        assert [reader.item(number) for number in range(900)] == records
    for number in (-1, 900, 2**63, 2**64):
        with pytest.raises(IndexError, match=f"record {number} of 900"):
            reader.item(number)
    assert viewed(reader, 1) == viewed(reader, 1 << 22) == [value for _, value in records]


def test_views_of_pages_that_a_writer_reused_are_known_to_be_out_of_date(tmp_path: Path, reader_kind: str) -> None:
    environment = lmdb.open(os.fspath(tmp_path / "db"), map_size=1 << 26, sync=False)
    answers = []
    for number in range(4):
        with environment.begin(write=True) as transaction:
            transaction.put(b"%d" % number, bytes(9000))
        if number == 0:
            views = LmdbFile(tmp_path / "db").views(1 << 20)
            found = next(views, None)
        answers.append(found is not None and found[1]())
    assert answers == ([True, True, False, False] if reader_kind == "native" else [False] * 4)
    environment.close()


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "db", [(b"%08d" % i, bytes(70000)) for i in range(50)])
    rows = LmdbFile(path).records()
    next(rows)
    os.truncate(path / "data.mdb", 10 * PAGE)
    with pytest.raises(DataError, match=r"the LMDB is truncated: data.mdb has 40960 bytes of \d+"):
        list(rows)
    os.truncate(path / "data.mdb", 100)
    with pytest.raises(DataError, match="too few for an LMDB"):
        LmdbFile(path)


@pytest.mark.parametrize("size", [50, 70000])
@pytest.mark.parametrize("length", [0, 100, PAGE, 5 * PAGE])
def test_a_file_of_which_nothing_is_left_while_it_is_read_is_an_error(tmp_path: Path, size: int, length: int) -> None:
    path = write(tmp_path / "db", [(b"%08d" % i, bytes(size)) for i in range(3000 if size == 50 else 30)])
    reader = LmdbFile(path)
    reader.item(1)
    rows = reader.records()
    next(rows)
    os.truncate(path / "data.mdb", length)
    with pytest.raises(DataError, match=r"the LMDB is truncated"):
        list(rows)
    for number in (1, len(reader) - 1) if length <= PAGE else (len(reader) - 1,):
        with pytest.raises(DataError, match=r"the LMDB is truncated"):
            reader.item(number)


def test_a_database_that_the_process_itself_has_open_is_read(tmp_path: Path) -> None:
    environment = lmdb.open(os.fspath(tmp_path / "db"), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for i in range(20):
            transaction.put(b"%08d" % i, b"first")
    database = open_database(tmp_path / "db")
    assert len(list(database.records())) == 20
    with environment.begin(write=True) as transaction:
        transaction.put(b"%08d" % 20, b"second")
    assert len(list(database.records())) == 21
    environment.close()


def test_a_pass_continues_with_the_newest_snapshot_where_a_writer_reused_pages(tmp_path: Path) -> None:
    keys = [b"%08d" % i for i in range(400)]
    environment = lmdb.open(os.fspath(tmp_path / "db"), map_size=1 << 26, sync=False)
    with environment.begin(write=True) as transaction:
        for key in keys:
            transaction.put(key, b"old" * 500)
    rng = random.Random(3)
    seen = []
    at_random = LmdbFile(tmp_path / "db")
    for key, value in LmdbFile(tmp_path / "db").records():
        seen.append(key)
        assert value in (b"old" * 500, b"new" * 500)
        number = rng.randrange(400)
        found, value = at_random.item(number)
        assert found == keys[number] and value in (b"old" * 500, b"new" * 500)
        for _ in range(3):
            with environment.begin(write=True) as transaction:
                for _ in range(5):
                    transaction.put(rng.choice(keys), b"new" * 500)
    assert seen == keys
    environment.close()


WRITER = """
import random, sys, lmdb
environment = lmdb.open(sys.argv[1], map_size=1 << 28, sync=False)
print("ready", flush=True)
n = 0
while True:
    with environment.begin(write=True) as transaction:
        for _ in range(20):
            transaction.put(b"%08d" % random.randrange(400), bytes([n % 250]) * random.choice([1600, 1600, 9000]))
    n += 1
"""


def test_every_epoch_is_whole_while_another_process_writes(tmp_path: Path) -> None:
    write(tmp_path / "db", [(b"%08d" % i, bytes(1600)) for i in range(400)])
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "db"], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        reader = LmdbFile(tmp_path / "db")
        first = reader.snapshot.transaction
        for _ in range(60):
            records = list(reader.records())
            assert [key for key, _ in records] == [b"%08d" % i for i in range(400)]
            assert all(value == value[:1] * len(value) for _, value in records)
        assert writer.poll() is None and reader.snapshot.transaction > first
    finally:
        writer.kill()
        writer.wait()
        if writer.stdout:
            writer.stdout.close()


def test_a_reader_works_in_threads_after_a_fork_and_in_a_copy(tmp_path: Path) -> None:
    records = some_records(200)
    reader = LmdbFile(write(tmp_path / "db", records))
    results: list[Records] = []
    threads = [threading.Thread(target=lambda: results.append(list(reader.records()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [records] * 4
    assert list(pickle.loads(pickle.dumps(reader)).records()) == records
    child = os.fork()
    if not child:
        os._exit(0 if list(reader.records()) == records else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_that_were_read_do_not_count_to_the_memory_of_the_process(tmp_path: Path, reader_kind: str) -> None:
    path = write(tmp_path / "db", [(b"%08d" % number, bytes(300)) for number in range(60_000)])

    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    reader = LmdbFile(path)
    records = reader.records()
    next(records)
    before = mapped()
    assert sum(1 for _ in records) == 59_999
    # In kB, of a file of 20 MB. The reader in Python maps 32 MiB before it releases them.
    assert mapped() - before < (1500 if reader_kind == "native" else 33_000)
