"""Millions of pictures: a few bytes for each before a build, none while it writes; journals and fingerprints on the disk."""

from __future__ import annotations

import hashlib
import os
import re
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffetools.data.datasets.build import build_dataset
from caffetools.data.datasets.duplicates import Fingerprint, Fingerprints, find_duplicates
from caffetools.data.datasets.journal import Journal, Outcome, read_journal
from caffetools.data.datasets.listing import natural
from caffetools.data.datasets.lists import read_listing
from caffetools.data.datasets.pictures import Picture, Pictures, PictureTable
from caffetools.data.datasets.writing import WriteResult
from caffetools.errors import DataError

PATHS = ["a/b.png", "", "c/\udcff\ud800.jpg", "中/文 1.png", "a/b.png"]


def plain(paths: list[str], label: int = 0) -> list[Picture]:
    return [Picture(path, label) for path in paths]


def test_a_table_gives_back_its_pictures() -> None:
    wanted = [Picture(path, label) for label, path in enumerate(PATHS)]
    pictures = Pictures.of(wanted)
    assert list(pictures) == wanted == [pictures[index] for index in range(5)] and pictures[-1] == wanted[-1]
    assert list(pictures[1:4:2]) == wanted[1:4:2] and list(pictures.select([4, 0])) == [wanted[4], wanted[0]]
    assert list(pictures.select(np.array([True, False, True, False, False]))) == [wanted[0], wanted[2]]
    assert pictures.labels.tolist() == list(range(5))
    other = Pictures.of(plain(["x"], 7))
    assert list(Pictures.joined([pictures[:2], other, pictures[2:]])) == [*wanted[:2], Picture("x", 7), *wanted[2:]]
    moved = pictures.table.relabelled([4, 3, 2, 1, 0])
    assert list(Pictures(moved)) == [Picture(path, 4 - label) for label, path in enumerate(PATHS)]
    assert list(pictures) == wanted
    with pytest.raises(IndexError):
        pictures[5]


def compared(text: str) -> list[tuple[int, int, str]]:
    """The order of names in words: numbers by value before words without case before the end, then the name as it is."""
    parts = [part for part in re.split(r"([0-9]+)", text) if part]
    return [(0, int(part), "") if re.fullmatch("[0-9]+", part) else (1, 0, part.casefold()) for part in parts] + [(2, 0, text)]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text(st.sampled_from("aAbBéß_ /.0129中٣"), max_size=8)))
def test_names_are_in_natural_order(names: list[str]) -> None:
    assert sorted(names, key=natural) == sorted(names, key=compared)


def write_journal(path: Path, pictures: list[Picture], broken: set[int], kept: int = 0) -> None:
    with Journal(path, kept) as journal:
        for number, picture in enumerate(pictures):
            digest = hashlib.sha256(picture.path.encode("utf-8", "surrogatepass")).digest()
            journal.add(picture, Outcome(f"reason {number}") if number in broken else Outcome("", (3, 4 + number % 2), digest, 5 + number))


def test_a_journal_is_of_its_pictures_and_ends_where_it_was_cut(tmp_path: Path) -> None:
    pictures = plain(PATHS[:4])
    assert len(read_journal(tmp_path / "none", pictures)) == 0
    write_journal(tmp_path / "train", pictures, {1, 3})
    found = read_journal(tmp_path / "train", pictures)
    assert (len(found), found.reasons, found.usable.tolist()) == (4, {1: "reason 1", 3: "reason 3"}, [True, False, True, False])
    assert [len(found.up_to(records)) for records in range(4)] == [0, 1, 3, 0]
    assert len(read_journal(tmp_path / "train", pictures[:3])) == 0
    assert len(read_journal(tmp_path / "train", [*pictures[:3], Picture("other", 0)])) == 0
    assert len(read_journal(tmp_path / "train", [*pictures[:3], Picture(pictures[3].path, 1)])) == 0
    # Cut within the third entry, and within the line of a reason.
    os.truncate(tmp_path / "train.entries", 2 * 64 + 63)
    with (tmp_path / "train.reasons").open("a") as stream:
        stream.write("[1, ")
    found = read_journal(tmp_path / "train", pictures)
    assert (len(found), found.reasons) == (2, {1: "reason 1"})
    with Journal(tmp_path / "train", 1) as journal:
        journal.add(pictures[1], Outcome("", (1, 1), bytes(32)))
    found = read_journal(tmp_path / "train", pictures)
    assert (len(found), found.reasons) == (2, {})


@pytest.mark.parametrize("broken", [set(), {0, 4}])
def test_fingerprints_in_journals_are_those_in_memory(tmp_path: Path, broken: set[int]) -> None:
    written, wanted = WriteResult(), Fingerprints()
    names = [f"{number % 7}/{number}.png" for number in range(30)]
    for part, paths in (("train", names[:18]), ("val", names[18:])):
        pictures = plain(paths, 3)
        with Journal(tmp_path / part) as journal:
            for number, picture in enumerate(pictures):
                # Several are equal, within a part and across, and some nearly so.
                digest = hashlib.sha256(picture.path[0].encode() if number % 3 else picture.path.encode()).digest()
                outcome = Outcome("broken") if number in broken else Outcome("", (20, 30), digest, 0xF0F0F0F0F0 ^ (1 << number % 5))
                journal.add(picture, outcome)
                if number not in broken:
                    wanted.append(Fingerprint(picture.path, 3, part, digest, outcome.dhash))
        written.take(part, Pictures.of(pictures), tmp_path / part)
    assert list(written.prints) == list(wanted) == [written.prints[index] for index in range(len(wanted))]
    assert find_duplicates(written.prints) == find_duplicates(wanted) != []
    assert [skipped.reason for skipped in written.unusable] == ["broken"] * 2 * len(broken)
    assert written.sizes == {(20, 30)}
    assert list(written.prints[2:4]) == list(wanted)[2:4]
    assert [picture.path for picture in written.parts["val"]] == [item.path for item in wanted if item.part == "val"]


def test_a_list_takes_a_few_bytes_a_line(tmp_path: Path) -> None:
    count = 20000
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"")
    (tmp_path / "list.txt").write_text("".join(f"a/{number}.png {number % 3}\n" for number in range(count)))
    tracemalloc.start()
    try:
        listing = read_listing(tmp_path / "list.txt")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert listing.count == count and listing.pictures[1][1] == Picture("a/4.png", 1)
    # 12 bytes of path, 12 of the table, and 4 of each order of them.
    assert kept < 60 * count and peak < 150 * count


@pytest.mark.parametrize("form", ["list.txt", "list.csv", "list.jsonl"])
def test_errors_name_the_line_of_the_file(tmp_path: Path, form: str) -> None:
    lines = {"list.txt": "{} {}", "list.csv": "{},{}", "list.jsonl": '{{"path": "{}", "label": {}}}'}[form]
    rows = [lines.format(*row) for row in (("a.png", 0), ("b.png", 1), ("c.png", 0), ("b.png", 0), ("a.png", 1))]
    (tmp_path / form).write_text("\n\n".join(rows))
    where = [4, 2] if form == "list.jsonl" else [7, 3]
    place = "{}: entry {}" if form == "list.jsonl" else "{}:{}"
    first, second = (re.escape(place.format(tmp_path / form, number)) for number in where)
    with pytest.raises(DataError, match=f"^{first}: the picture 'b.png' is listed already in {second};"):
        read_listing(tmp_path / form)


def test_memory_stays_the_same_while_pictures_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for label in range(2):
        (tmp_path / f"pictures/{label}").mkdir(parents=True)
        for number in range(1600):
            path = tmp_path / f"pictures/{label}/{number}.pgm"
            if number:
                os.link(tmp_path / f"pictures/{label}/0.pgm", path)
            else:
                cv2.imwrite(str(path), rng.integers(0, 256, (4, 4), np.uint8))
    sizes: dict[int, int] = {}

    def progress(done: int, _: int) -> None:
        # With as many records that are not committed; the least of several, since other threads may hold memory for a moment.
        if (place := -(-done // 20) * 20) in (1400, 2400):
            sizes[place] = min(sizes.get(place, 1 << 60), tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        build_dataset(tmp_path / "pictures", tmp_path / "out", size=4, gray=True, progress=progress)
    finally:
        tracemalloc.stop()
    # Objects, paths or digests of 1,000 pictures would be 50 kB and more.
    assert abs(sizes[2400] - sizes[1400]) < 10000


def test_tables_grow_with_what_is_looked_at() -> None:
    table = PictureTable()
    for number in range(3):
        table.add(f"{number}.png", number)
        assert Pictures(table).labels.tolist() == list(range(number + 1))
