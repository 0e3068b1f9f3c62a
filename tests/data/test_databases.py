"""LMDBs: what is written is read back, nothing half-written is left, and a damaged one is an error that names the place."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from caffetools.data.databases import LmdbWriter, new_lmdb, open_database, record_key
from caffetools.data.datum import array_to_datum, datum_to_array, parse_datum
from caffetools.data.leveldb import new_leveldb
from caffetools.data.means import compute_mean
from caffetools.errors import DataError, RunFailed
from caffetools.util.checksums import masked_crc32c
from caffetools.util.folders import new_folder
from tests.children import run_child
from tests.conftest import GOLDEN

DB = GOLDEN / "io" / "db"


def records(count: int, size: int = 10) -> list[tuple[bytes, bytes]]:
    return [(record_key(i, f"class a/p{i}.png"), bytes([i % 251]) * size) for i in range(count)]


def write(path: Path, entries: list[tuple[bytes, bytes]]) -> None:
    with new_lmdb(path) as writer:
        for key, value in entries:
            writer.put(key, value)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_records_come_back_in_the_order_of_their_keys(tmp_path: Path) -> None:
    entries = records(2500)
    write(tmp_path / "db", entries[::-1])
    database = open_database(tmp_path / "db")
    assert len(database) == 2500
    assert list(database.records()) == entries
    assert list(database.records(2490)) == entries[2490:]
    database.close()
    assert names(tmp_path) == ["db"] and names(tmp_path / "db") == ["data.mdb"]


def test_the_file_grows_beyond_its_first_size(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    writer = LmdbWriter(tmp_path / "db", map_size=1 << 16)
    entries = records(3000, size=3000)
    for key, value in entries:
        writer.put(key, value)
    writer.close()
    database = open_database(tmp_path / "db")
    assert list(database.records()) == entries
    database.close()


def test_one_database_can_be_read_twice_at_once(tmp_path: Path) -> None:
    write(tmp_path / "db", records(5))
    first, second = open_database(tmp_path / "db"), open_database(tmp_path / "." / "db")
    rows = first.records()
    next(rows)
    assert len(list(second.records())) == 5
    first.close()
    assert len(list(second.records())) == 5
    second.close()
    second.close()


def test_a_database_on_read_only_media_is_read(tmp_path: Path) -> None:
    shutil.copytree(DB / "lmdb_raw", tmp_path / "db")
    for path in (tmp_path / "db" / "data.mdb", tmp_path / "db"):
        path.chmod(0o555)
    database = open_database(tmp_path / "db")
    assert len(database) == 7
    database.close()
    (tmp_path / "db").chmod(0o755)
    assert names(tmp_path / "db") == ["data.mdb"]


def test_what_is_not_a_database_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: no such database"):
        open_database(tmp_path / "none")
    with pytest.raises(DataError, match="this folder is not a database"):
        open_database(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"no pages" * 2000)
    with pytest.raises(DataError, match="data.mdb: this is text, and a database"):
        open_database(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"")
    with pytest.raises(DataError, match=str(tmp_path)):
        open_database(tmp_path)
    assert names(tmp_path) == ["data.mdb"]


def test_a_truncated_lmdb_is_found_before_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "db", records(100, size=5000))
    data = (tmp_path / "db" / "data.mdb").read_bytes()
    (tmp_path / "db" / "data.mdb").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="db: the LMDB is truncated: data.mdb has .* bytes of"):
        open_database(tmp_path / "db")


def test_an_lmdb_without_records_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "db", [])
    with pytest.raises(DataError, match="holds no records"):
        open_database(tmp_path / "db")


def test_a_leveldb_without_plyvel_names_what_to_install() -> None:
    try:
        import plyvel  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"leveldb_raw: reading a LevelDB needs plyvel: pip install 'caffetools\[leveldb\]'"):
            open_database(DB / "leveldb_raw")
    else:
        pytest.skip("plyvel is here; the golden tests read a LevelDB with it")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "the record is empty"),
        (b"\xff\xff\xff\xff", "is damaged: its 4 bytes are not a Datum"),
        (b"\x08\x03", "holds no pixels"),
        (b"\x08\x03\x10\x02\x18\x02\x22\x03abc", "3 values do not fill the stated size 3 x 2 x 2"),
        (b"\x22\x03abc\x38\x01", "not a picture that OpenCV can decode"),
    ],
)
def test_a_damaged_record_is_named_with_database_and_key(tmp_path: Path, value: bytes, reason: str) -> None:
    write(tmp_path / "db", [(b"00000000_a.png", value)])
    with pytest.raises(DataError, match=f"db: record '00000000_a.png': .*{reason}"):
        compute_mean(tmp_path / "db")


def test_a_record_of_another_size_is_named(tmp_path: Path) -> None:
    import numpy as np

    datums = [array_to_datum(np.zeros((3, 4, width), np.uint8), 0).SerializeToString() for width in (5, 6)]
    write(tmp_path / "db", [(b"0_a", datums[0]), (b"1_b", datums[1])])
    assert datum_to_array(parse_datum(datums[1], "it")).shape == (3, 4, 6)
    with pytest.raises(DataError, match=r"record '1_b': it is \(3, 4, 6\), the first record \(3, 4, 5\)"):
        compute_mean(tmp_path / "db")


def test_an_existing_path_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "db", records(3))
    with pytest.raises(DataError, match="db: already exists.*--force"), new_lmdb(tmp_path / "db"):
        pytest.fail("the block must not run")
    database = open_database(tmp_path / "db")
    assert len(database) == 3
    database.close()


def test_force_replaces_an_lmdb_but_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "db", records(3))
    with new_lmdb(tmp_path / "db", force=True) as writer:
        writer.put(b"k", b"v")
    database = open_database(tmp_path / "db")
    assert list(database.records()) == [(b"k", b"v")]
    database.close()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "only copy.jpg").write_bytes(b"dear")
    with pytest.raises(DataError, match="--force may not replace it"), new_lmdb(tmp_path / "photos", force=True):
        pytest.fail("the block must not run")
    assert names(tmp_path / "photos") == ["only copy.jpg"] and names(tmp_path) == ["db", "photos"]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_lmdb(tmp_path / "db") as writer:
        writer.put(b"k", b"v")
        raise ZeroDivisionError
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux")
@pytest.mark.parametrize("fails", [False, True])
def test_a_writer_leaves_no_file_open(tmp_path: Path, fails: bool) -> None:
    with contextlib.suppress(DataError), new_lmdb(tmp_path / "db") as writer:
        for number in range(1500):
            writer.put(record_key(number, "a"), b"value")
        if fails:
            raise DataError("a picture cannot be used")
    assert not [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(link)]


def test_a_second_writer_of_one_folder_gets_the_first_ones_name(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as work:
        (work / "file").write_text("first")
        with pytest.raises(DataError, match=f"another run \\(process {os.getpid()}\\) is writing"), new_folder(tmp_path / "out"):
            pytest.fail("the block must not run")
    assert (tmp_path / "out" / "file").read_text() == "first" and names(tmp_path) == ["out"]


def test_what_a_killed_run_left_is_cleaned_away(tmp_path: Path) -> None:
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half").write_text("stale")
    (tmp_path / ".out.caffetools.lock").write_text("1 host")
    with new_folder(tmp_path / "out") as work:
        (work / "file").write_text("new")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["file"]


def test_a_folder_that_was_being_replaced_when_its_run_was_killed_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "file").write_text("kept")
    with pytest.raises(DataError, match="already exists"), new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert (tmp_path / "out" / "file").read_text() == "kept" and names(tmp_path) == ["out"]


def test_keys_are_within_what_lmdb_can_hold_and_remain_text() -> None:
    assert record_key(7, "katze/größe 1.png") == "00000007_katze/größe 1.png".encode()
    long = record_key(123, "ü" * 600)
    assert 509 <= len(long) <= 511 and long.decode().startswith("00000123_üü")


FULL_DISK = """
import resource, sys
from caffetools.data.databases import new_lmdb
from caffetools.errors import RunFailed
from tests.children import run_child
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with new_lmdb(sys.argv[1]) as writer:
        for i in range(4000):
            writer.put(b"%08d" % i, bytes(1000))
except RunFailed as error:
    print(error)
"""


def test_a_full_disk_ends_in_one_clear_error(tmp_path: Path) -> None:
    # Folders that were made for it are removed as well.
    done = run_child(["-c", FULL_DISK, tmp_path / "new" / "db"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith(
        f"cannot write {tmp_path / 'new' / 'db'}: the disk is full, or a quota is used up; nothing was changed there"
    )
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match=r"cannot write .*file/db: "), new_lmdb(tmp_path / "file" / "db"):
        pytest.fail("the block must not run")


def make_leveldb(path: Path, count: int = 200) -> list[tuple[bytes, bytes]]:
    plyvel = pytest.importorskip("plyvel")
    entries = [(b"%08d" % i, bytes([i % 100]) * 100) for i in range(count)]
    with plyvel.DB(os.fspath(path), create_if_missing=True, compression=None) as database:
        for key, value in entries:
            database.put(key, value)
        database.compact_range()
        database.put(*entries[-1])
    return entries


def test_a_leveldb_is_read_by_number_and_from_any_record(tmp_path: Path) -> None:
    entries = make_leveldb(tmp_path / "level")
    database = open_database(tmp_path / "level")
    assert len(database) == 200 and list(database.records(150)) == entries[150:]
    assert database.item(7) == entries[7]
    with pytest.raises(IndexError):
        database.item(200)
    database.close()


def test_a_leveldb_table_that_cannot_be_opened_is_not_taken_for_the_end(tmp_path: Path) -> None:
    make_leveldb(tmp_path / "level")
    [table] = (tmp_path / "level").glob("*.ldb")
    data = bytearray(table.read_bytes())
    data[-48:-40] = b"\xff" * 8  # where the table's index is said to be
    table.write_bytes(data)
    with pytest.raises(DataError, match=r"level: the LevelDB is damaged: Corruption"):
        list(open_database(tmp_path / "level").records())


@pytest.mark.parametrize("pattern", ["*.ldb", "*.log", "MANIFEST-*"])
def test_a_leveldb_whose_checksums_fail_or_that_was_cut_is_one_error(tmp_path: Path, pattern: str) -> None:
    make_leveldb(tmp_path / "sound")
    [file] = [path.name for path in (tmp_path / "sound").glob(pattern)]
    data = (tmp_path / "sound" / file).read_bytes()
    middle = len(data) // 2
    for number, broken in enumerate((data[:middle], data[:-1], data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])):
        path = tmp_path / str(number)
        shutil.copytree(tmp_path / "sound", path)
        (path / file).write_bytes(broken)
        with pytest.raises(DataError, match="LevelDB") as caught:
            list(open_database(path).records())
        assert str(caught.value).startswith(str(path)) and "b'" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "content", "message"),
    [
        ("CURRENT", b"", "its file CURRENT does not name a MANIFEST; copy or build it again"),
        ("CURRENT", b"MANIFEST-999999\n", "MANIFEST-999999 is missing; copy or build it again"),
        ("MANIFEST-*", None, r"MANIFEST-\d+ is missing; copy or build it again"),
        ("*.log", None, r"\d+\.log, which holds the last records, is missing; .*make an empty file of that name"),
    ],
)
def test_a_leveldb_that_lacks_a_file_is_damaged_and_never_short(tmp_path: Path, pattern: str, content: bytes | None, message: str) -> None:
    entries = make_leveldb(tmp_path / "level")
    [file] = (tmp_path / "level").glob(pattern)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=f"level: the LevelDB is damaged: {message}"):
        open_database(tmp_path / "level")
    if pattern == "*.log":
        file.touch()
        assert list(open_database(tmp_path / "level").records()) == entries


def manifest_log(path: Path) -> Path:
    """The only log of a LevelDB, which its MANIFEST names."""
    [log] = path.glob("*.log")
    return log


def test_a_leveldb_whose_newest_log_is_missing_is_damaged_where_its_own_log_file_shows_that(tmp_path: Path) -> None:
    entries = make_leveldb(tmp_path / "level")
    number = int(manifest_log(tmp_path / "level").stem)
    remarks = (tmp_path / "level" / "LOG").read_text()
    started = f"Level-0 table #{number + 2}: started\n"
    (tmp_path / "level" / "LOG").write_text(remarks + started)
    with pytest.raises(
        DataError, match=f"the log after {number:06d}.log, which holds the last records, is missing; .* remove its file LOG"
    ):
        open_database(tmp_path / "level")
    # A process that ended while it replayed the log leaves the same remark and has no other log.
    (tmp_path / "level" / "LOG").write_text(f"Recovering log #{number}\n{started}")
    database = open_database(tmp_path / "level")
    assert list(database.records()) == entries
    database.close()


def test_a_leveldb_with_a_newer_log_than_its_manifest_names_is_read(tmp_path: Path) -> None:
    entries = make_leveldb(tmp_path / "level")
    log = manifest_log(tmp_path / "level")
    (tmp_path / "level" / "LOG").write_text(f"Level-0 table #{int(log.stem) + 2}: started\n")
    (tmp_path / "level" / f"{int(log.stem) + 1:06d}.log").touch()
    assert list(open_database(tmp_path / "level").records()) == entries


def test_records_missing_from_the_middle_of_a_leveldbs_logs_are_noticed(tmp_path: Path) -> None:
    plyvel = pytest.importorskip("plyvel")
    with plyvel.DB(os.fspath(tmp_path / "level"), create_if_missing=True) as database:
        for number in range(3):
            database.put(b"%d" % number, b"value")
    log = manifest_log(tmp_path / "level")
    record = len(log.read_bytes()) // 3
    log.write_bytes(log.read_bytes()[:record] + log.read_bytes()[2 * record :])
    with pytest.raises(DataError, match=r"level: the LevelDB is damaged: \d+.log goes on with change 3 after 1, so records are missing"):
        open_database(tmp_path / "level")


def test_changes_that_a_leveldbs_manifest_counts_and_its_logs_lack_are_noticed(tmp_path: Path) -> None:
    make_leveldb(tmp_path / "level")
    [manifest] = (tmp_path / "level").glob("MANIFEST-*")
    # The tag of the last change's number, and the number; in a record of its own.
    content = b"\x04\xff\x7f"
    header = masked_crc32c(b"\x01" + content).to_bytes(4, "little") + len(content).to_bytes(2, "little") + b"\x01"
    manifest.write_bytes(manifest.read_bytes() + header + content)
    with pytest.raises(DataError, match="level: the LevelDB is damaged: the last 16182 changes of its records are missing"):
        open_database(tmp_path / "level")


def test_every_log_that_a_leveldb_of_ours_needs_is_named_by_its_manifest(tmp_path: Path) -> None:
    pytest.importorskip("plyvel")
    with new_leveldb(tmp_path / "level") as writer:
        for number in range(50):
            writer.put(b"%08d" % number, bytes(1000))
    assert manifest_log(tmp_path / "level").stat().st_size == 0
    for file in [path for path in (tmp_path / "level").iterdir() if path.name not in ("LOG", "LOG.old", "LOCK")]:
        copy = tmp_path / f"without-{file.name}"
        shutil.copytree(tmp_path / "level", copy)
        (copy / file.name).unlink()
        with pytest.raises(DataError, match=r"missing|not a database|no database|LevelDB"):
            list(open_database(copy).records())


def test_a_leveldb_that_is_open_elsewhere_is_named_as_that(tmp_path: Path) -> None:
    make_leveldb(tmp_path / "level")
    import plyvel

    with plyvel.DB(os.fspath(tmp_path / "level")), pytest.raises(DataError, match=r"another program, or this one, has it open"):
        open_database(tmp_path / "level")


def test_a_leveldb_is_not_compressed_by_writing_or_reading_it(tmp_path: Path) -> None:
    pytest.importorskip("plyvel")
    value = b"pixels " * 1000
    with new_leveldb(tmp_path / "level") as writer:
        writer.put(b"0", value)
    for _ in range(3):
        database = open_database(tmp_path / "level")
        assert list(database.records()) == [(b"0", value)]
        database.close()
        # In pieces of the log's blocks, or in a table.
        assert sum(path.read_bytes().count(b"pixels " * 100) for path in (tmp_path / "level").iterdir()) >= 9
    assert list((tmp_path / "level").glob("*.ldb"))
