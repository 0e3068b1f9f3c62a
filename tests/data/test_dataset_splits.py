"""Splits: shares of each class, and groups that are kept in one part."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffetools.data.datasets.build import build_dataset
from caffetools.data.datasets.listing import Listing, Picture
from caffetools.data.datasets.splits import PARTS, Split, grouping, split_listing
from caffetools.errors import DataError
from tests.data.drawing import draw_classes


def listing_of(groups: list[list[int]]) -> Listing:
    """A class for each list, with groups of these sizes: ``c0/g1 2.png`` is picture 2 of the group 1 of the class 0."""
    pictures = [
        [Picture(f"c{label}/g{group} {i}.png", label) for group, size in enumerate(sizes) for i in range(size)]
        for label, sizes in enumerate(groups)
    ]
    return Listing(Path("root"), [f"c{label}" for label in range(len(groups))], pictures)


def parts(split: Split) -> dict[str, str]:
    return {picture.path: part for part in PARTS for picture in getattr(split, part)}


counts = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=8), min_size=1, max_size=5)
shares = st.tuples(st.floats(0.05, 0.6), st.floats(0, 0.35))


@settings(deadline=None, max_examples=200)
@given(counts, shares, st.integers(0, 5))
def test_each_class_has_its_shares_and_every_picture_one_part(groups: list[list[int]], share: tuple[float, float], seed: int) -> None:
    listing = listing_of(groups)
    found = parts(split_listing(listing, share[0], seed, set(), test=share[1]))
    assert found.keys() == {picture.path for picture in listing.all_pictures}
    for pictures in listing.pictures:
        count = len(pictures)
        by_part = {part: sum(found[picture.path] == part for picture in pictures) for part in PARTS}
        assert by_part["train"] >= 1
        if count > 1:
            assert by_part["val"] == min(max(1, round(share[0] * count)), count - 1)
        if count > 2 and share[1]:
            assert by_part["test"] == min(max(1, round(share[1] * count)), count - 1 - by_part["val"])


@settings(deadline=None, max_examples=200)
@given(counts, shares, st.integers(0, 5), st.sampled_from([r"/(g\d+)", r"c\d/g\d+"]))
def test_groups_are_never_divided(groups: list[list[int]], share: tuple[float, float], seed: int, pattern: str) -> None:
    listing = listing_of(groups)
    group_of = grouping(pattern, listing)
    assert group_of is not None
    found = parts(split_listing(listing, share[0], seed, set(), test=share[1], group_of=group_of))
    used = defaultdict(set)
    for path, part in found.items():
        used[group_of(path)].add(part)
    assert all(len(of_group) == 1 for of_group in used.values())
    for label in range(len(groups)):
        of_class = [part for path, part in found.items() if path.startswith(f"c{label}/")]
        assert "train" in of_class
        if len(groups[label]) > 1 and pattern.startswith("c"):
            assert "val" in of_class


def test_groups_come_close_to_the_shares() -> None:
    listing = listing_of([[4] * 50, [1, 2, 3] * 30])
    found = list(parts(split_listing(listing, 0.2, 3, set(), test=0.1, group_of=grouping(r".*/g\d+", listing))).items())
    for label, total in enumerate((200, 180)):
        of_class = [part for path, part in found if path.startswith(f"c{label}/")]
        assert abs(of_class.count("val") - 0.2 * total) <= 4 and abs(of_class.count("test") - 0.1 * total) <= 4


def test_groups_whose_part_is_decided_go_there() -> None:
    listing = listing_of([[2] * 6])
    found = parts(
        split_listing(listing, 0.3, 1, set(), group_of=grouping(r"/(g\d)", listing), placed={"group:g5": "test", "group:g0": "train"})
    )
    assert {found[f"c0/g5 {i}.png"] for i in range(2)} == {"test"} and {found[f"c0/g0 {i}.png"] for i in range(2)} == {"train"}


@pytest.mark.parametrize(
    ("pattern", "reason"), [("(", "is not a regular expression"), ("person", "matches no path, such as 'c0/g0 0.png'")]
)
def test_a_pattern_that_groups_nothing_is_an_error(pattern: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        grouping(pattern, listing_of([[1]]))


def test_a_column_groups_across_classes(tmp_path: Path) -> None:
    draw_classes(tmp_path / "p", {"smile": 8, "frown": 8})
    rows = "".join(f"{name}/p {i}.png,{name},{i // 2}\n" for name in ("smile", "frown") for i in range(8))
    (tmp_path / "l.csv").write_text("path,label,Person\n" + rows)
    card = build_dataset(tmp_path / "l.csv", tmp_path / "out", size=8, root=tmp_path / "p", val=0.25, group_by="person")
    validated = {line.split()[1] for line in (tmp_path / "out" / "val.txt").read_text().splitlines()}
    trained = {line.split()[1] for line in (tmp_path / "out" / "train.txt").read_text().splitlines()}
    assert card.val_counts == [2, 2] and not validated & trained
    assert card.settings["group_by"] == "person" and not any("group" in note for note in card.notes)


def test_groups_that_a_given_split_divides_are_reported(tmp_path: Path) -> None:
    draw_classes(tmp_path / "p" / "train", {"a": 3, "b": 3})
    draw_classes(tmp_path / "p" / "val", {"a": 1, "b": 1}, seed=70)
    card = build_dataset(tmp_path / "p", tmp_path / "out", size=8, group_by=r"/p (\d)")
    (note,) = (note for note in card.notes if "group" in note)
    assert note.startswith("1 group(s) are in more than one split that the pictures came with, such as that of 'train/")
