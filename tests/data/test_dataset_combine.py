"""Adding to, merging and selecting from datasets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffetools.cancel import CancelToken
from caffetools.data.databases import open_database
from caffetools.data.datasets.adding import AddOptions, add_pictures
from caffetools.data.datasets.bare import merge_databases, subset_database
from caffetools.data.datasets.build import build_dataset, load_card
from caffetools.data.datasets.card import DatasetCard
from caffetools.data.datasets.export import export_database
from caffetools.data.datasets.merging import merge_datasets, subset_dataset
from caffetools.data.datasets.verify import verify_database
from caffetools.data.datum import parse_datum
from caffetools.data.means import compute_mean
from caffetools.data.shards import read_index
from caffetools.errors import Cancelled, DataError
from caffetools.events import Event, Progress
from caffetools.proto.binary import read_binaryproto
from tests.data.drawing import content, draw, draw_classes, names, rows


def records(path: Path | str) -> list[tuple[bytes, bytes]]:
    database = open_database(path)
    found = list(database.records())
    database.close()
    return found


def check(card: DatasetCard) -> None:
    """Check that databases, lists, card and mean of a dataset agree."""
    assert load_card(card.folder) == card
    counts: dict[str, list[int]] = {}
    for part in ("train", "val", "test"):
        path = card.folder / f"{part}.txt"
        counts[part] = [0] * len(card.classes)
        if not path.exists():
            assert not (card.folder / f"{part}_lmdb").exists()
            continue
        listed = path.read_text(encoding="utf-8").splitlines()
        found = rows(card.source(part)) if listed else []
        assert [int(line.rpartition(" ")[2]) for line in listed] == [label for _, label, _ in found]
        for line, (key, _, _) in zip(listed, found, strict=True):
            assert line.rpartition(" ")[0].endswith(key.partition("_")[2].rpartition("/")[2])
        for _, label, _ in found:
            counts[part][label] += 1
    assert (counts["train"], counts["val"], counts["test"]) == (card.train_counts, card.val_counts, card.test_counts or counts["test"])
    assert (card.folder / "labels.txt").read_text(encoding="utf-8").splitlines() == card.classes
    assert card.mean_file is not None
    np.testing.assert_array_equal(read_binaryproto(card.mean_file), compute_mean(card.train_lmdb))


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetCard:
    folder = draw_classes(tmp_path / "old", {"b": 6, "d": 5})
    return build_dataset(folder, tmp_path / "data", size=8, test=0.2, resize_mode="crop")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """More of b, and the classes a and e, whose names come before and after the others."""
    return draw_classes(tmp_path / "new", {"a": 4, "b": 3, "e": 5}, seed=1000)


def test_added_pictures_keep_old_records_and_labels(dataset: DatasetCard, new: Path, tmp_path: Path) -> None:
    before = {part: records(dataset.source(part)) for part in ("train", "val", "test")}
    card = add_pictures(dataset.folder, new)
    assert card.classes == ["b", "d", "a", "e"] and card.folder == dataset.folder
    for part, old in before.items():
        now = records(card.source(part))
        assert now[: len(old)] == old and len(now) > len(old)
        keys = [key for key, _ in now]
        assert keys == sorted(set(keys)) and [int(key[:8]) for key in keys] == list(range(len(keys)))
    assert card.train_count + card.val_count + card.test_count == 11 + 12
    assert names(tmp_path) == ["data", "new", "old"]
    check(card)
    # Stored as the others: the same pictures built at once give the same pixels.
    built = build_dataset(new, tmp_path / "other", size=8, resize_mode="crop")
    expected = {key.partition("_")[2]: pixels.tobytes() for path in (built.train_lmdb, built.val_lmdb) for key, _, pixels in rows(path)}
    added = {key.partition("_")[2]: pixels.tobytes() for part in before for key, _, pixels in rows(card.source(part))[len(before[part]) :]}
    assert added == expected


def test_a_folder_that_has_grown_is_added_to_its_own_dataset(dataset: DatasetCard, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture of .*old can be added; 11 of them are in it already"):
        add_pictures(dataset.folder, tmp_path / "old")
    draw(tmp_path / "old" / "d" / "more.png", 77)
    draw(tmp_path / "old" / "f" / "first.png", 78)
    card = add_pictures(dataset.folder, tmp_path / "old")
    assert card.classes == ["b", "d", "f"] and card.pictures == str(tmp_path / "old")
    assert card.train_count + card.val_count + card.test_count == 13 and "11 picture(s) were in the dataset already." in card.notes
    check(card)


def test_a_second_addition_never_reuses_labels(dataset: DatasetCard, new: Path, tmp_path: Path) -> None:
    add_pictures(dataset.folder, new)
    draw_classes(tmp_path / "third", {"c": 3, "e": 2}, seed=2000)
    card = add_pictures(dataset.folder, tmp_path / "third")
    assert card.classes == ["b", "d", "a", "e", "c"]
    check(card)


def test_lists_name_labels_of_the_dataset(dataset: DatasetCard, new: Path, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a/p 0.png 1\ne/p 0.png 1\n")
    card = add_pictures(dataset.folder, tmp_path / "l.txt", AddOptions(root=new, val=0, test=0))
    assert (card.classes, card.train_counts[1]) == (["b", "d"], dataset.train_counts[1] + 2)
    (tmp_path / "l.txt").write_text("a/p 1.png 2\n")
    with pytest.raises(DataError, match="the label 2 is not below the number of class names, 2"):
        add_pictures(dataset.folder, tmp_path / "l.txt", AddOptions(root=new))


def test_equal_pictures_are_reported_or_dropped_and_groups_join_their_part(dataset: DatasetCard, tmp_path: Path) -> None:
    (tmp_path / "new" / "b").mkdir(parents=True)
    tested = (dataset.folder / "test.txt").read_text().splitlines()[0].rpartition(" ")[0]
    shutil.copy(tmp_path / "old" / tested, tmp_path / "new" / "b" / "copy.png")
    draw(tmp_path / "new" / "b" / f"{Path(tested).stem} again.png", 500)
    reported = add_pictures(dataset.folder, tmp_path / "new", AddOptions(val=0.5), out=tmp_path / "a")
    assert any("are equal to another one" in note for note in reported.notes)
    dropped = add_pictures(dataset.folder, tmp_path / "new", AddOptions(drop_duplicates=True, val=0, test=0), out=tmp_path / "b")
    assert [skipped.reason for skipped in dropped.skipped] == [f"it is equal to 'old/{tested}' of the dataset"]
    assert dropped.train_count == dataset.train_count + 1
    grouped = add_pictures(dataset.folder, tmp_path / "new", AddOptions(group_by=r"/(p \d)", val=0, test=0), out=tmp_path / "c")
    assert "again" in (tmp_path / "c" / "test.txt").read_text() and grouped.test_count == dataset.test_count + 1
    for card in (reported, dropped, grouped):
        check(card)


def test_the_mean_can_be_kept(dataset: DatasetCard, new: Path) -> None:
    assert dataset.mean_file is not None
    mean = dataset.mean_file.read_bytes()
    card = add_pictures(dataset.folder, new, AddOptions(keep_mean=True))
    assert card.mean_file is not None and card.mean_file.read_bytes() == mean and card.mean_values == dataset.mean_values


@pytest.mark.parametrize("step", [1, 8, 20, 30])
def test_a_cancelled_addition_leaves_the_dataset_as_it_was(dataset: DatasetCard, new: Path, tmp_path: Path, step: int) -> None:
    before, token = content(dataset.folder), CancelToken()

    def sink(event: Event) -> None:
        if isinstance(event, Progress) and event.done == step:
            token.cancel()

    with pytest.raises(Cancelled):
        add_pictures(dataset.folder, new, events=sink, cancel=token)
    assert content(dataset.folder) == before and names(tmp_path) == ["data", "new", "old"]


def test_a_given_split_is_not_guessed(new: Path, tmp_path: Path) -> None:
    draw_classes(tmp_path / "p" / "train", {"b": 3, "d": 3})
    draw_classes(tmp_path / "p" / "val", {"b": 1, "d": 1}, seed=50)
    build_dataset(tmp_path / "p", tmp_path / "data", size=8)
    with pytest.raises(DataError, match="the share for validation must be given; give --val"):
        add_pictures(tmp_path / "data", new)
    check(add_pictures(tmp_path / "data", new, AddOptions(val=0.25)))


@pytest.mark.parametrize("encode", ["raw", "png"])
def test_merging_matches_classes_by_name(dataset: DatasetCard, new: Path, tmp_path: Path, encode: str) -> None:
    other = build_dataset(new, tmp_path / "other", size=8, encode=encode, val=0.25)
    card = merge_datasets([dataset.folder, other.folder], tmp_path / "all")
    assert card.classes == ["b", "d", "a", "e"]
    assert card.train_counts == [
        dataset.train_counts[0] + other.train_counts[1],
        dataset.train_counts[1],
        other.train_counts[0],
        other.train_counts[2],
    ]
    assert card.test_count == dataset.test_count and card.pictures == str(tmp_path)
    pixels = {(one.classes[label], array.tobytes()) for one in (dataset, other) for _, label, array in rows(one.train_lmdb)}
    assert pixels == {(card.classes[label], array.tobytes()) for _, label, array in rows(card.train_lmdb)}
    labels = [label for _, label, _ in rows(card.train_lmdb)]
    assert labels != sorted(labels)
    check(card)


def test_leaks_between_merged_datasets_are_reported(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "p", {"a": 6, "b": 6})
    for seed in (1, 2):
        build_dataset(folder, tmp_path / f"d{seed}", size=8, seed=seed)
    card = merge_datasets([tmp_path / "d1", tmp_path / "d2"], tmp_path / "all")
    assert any("12 picture(s) are equal to another one" in note and "in more than one split" in note for note in card.notes)


def test_datasets_that_do_not_fit_are_not_merged(dataset: DatasetCard, new: Path, tmp_path: Path) -> None:
    for name, options, reason in (
        ("wide", {"size": "9x8"}, "wide: its pictures have 9 pixels in width, those of .*data 8"),
        ("gray", {"size": 8, "gray": True}, "gray: its pictures have 1 channels, those of .*data 3"),
    ):
        build_dataset(new, tmp_path / name, **options)
        with pytest.raises(DataError, match=reason):
            merge_datasets([dataset.folder, tmp_path / name], tmp_path / "all")
    with pytest.raises(DataError, match="two or more different datasets"):
        merge_datasets([dataset.folder, dataset.folder], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_subset_has_the_classes_and_numbers_asked_for_in_the_old_order(new: Path, tmp_path: Path) -> None:
    draw_classes(new, {"c": 12}, seed=3000)
    whole = build_dataset(new, tmp_path / "whole", size=8, val=0.25, encode="png")
    card = subset_dataset(tmp_path / "whole", tmp_path / "part", classes=["e", "c"], per_class=3, val_per_class=1)
    assert (card.classes, card.train_counts, card.val_counts) == (["c", "e"], [3, 3], [1, 1])
    old, kept = ([(key.partition("_")[2], whole.classes[label]) for key, label, _ in rows(whole.train_lmdb)], rows(card.train_lmdb))
    chosen = [(key.partition("_")[2], card.classes[label]) for key, label, _ in kept]
    assert [item for item in old if item in chosen] == chosen
    check(card)
    again = subset_dataset(tmp_path / "whole", tmp_path / "again", classes=["c", "e"], per_class=3, val_per_class=1)
    assert records(again.train_lmdb) == records(card.train_lmdb)
    other = subset_dataset(tmp_path / "whole", tmp_path / "other", classes=["c", "e"], per_class=3, seed=2)
    assert records(other.train_lmdb) != records(card.train_lmdb) and other.val_counts == [3, 1]
    same = subset_dataset(tmp_path / "whole", tmp_path / "same")
    assert records(same.train_lmdb) == records(whole.train_lmdb)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"classes": ["b", "D"]}, "it has no class 'D'"),
        ({"classes": ["b"]}, "two or more classes are needed"),
        ({"per_class": 0}, "must be 1 or more, not 0"),
    ],
)
def test_subsets_that_are_not_possible_are_refused(dataset: DatasetCard, tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        subset_dataset(dataset.folder, tmp_path / "part", **options)
    assert not (tmp_path / "part").exists()


def test_lists_that_do_not_fit_the_records_are_found(dataset: DatasetCard, tmp_path: Path) -> None:
    path = dataset.folder / "train.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"train.txt: its pictures are not those that dataset.json counts"):
        subset_dataset(dataset.folder, tmp_path / "part")
    labels = [line.rpartition(" ")[2] for line in lines]
    swap = labels.index("1") if labels[0] == "0" else labels.index("0")
    lines[0], lines[swap] = lines[swap], lines[0]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"record '00000000_.*': its label is \d, but its list states \d"):
        subset_dataset(dataset.folder, tmp_path / "part")


def test_unknown_fields_of_records_survive_a_new_label(dataset: DatasetCard, tmp_path: Path) -> None:
    import lmdb

    with lmdb.open(str(dataset.train_lmdb), map_size=1 << 24, lock=False) as environment, environment.begin(write=True) as transaction:
        for key, value in list(transaction.cursor()):
            transaction.put(key, value + b"\xa2\x06\x03abc")
    draw_classes(tmp_path / "n", {"z": 3, "d": 3}, seed=5000)
    other = build_dataset(tmp_path / "n", tmp_path / "other", size=8)
    card = merge_datasets([other.folder, dataset.folder], tmp_path / "all")
    values = [value for _, value in records(card.train_lmdb)]
    assert sum(value.endswith(b"\xa2\x06\x03abc") for value in values) == dataset.train_count
    assert {parse_datum(value, "").label for value in values} == {0, 1, 2}


def test_datasets_in_shards_are_sources(dataset: DatasetCard, new: Path, tmp_path: Path) -> None:
    sharded = build_dataset(new, tmp_path / "sharded", size=8, shards=2)
    card = merge_datasets([dataset.folder, sharded.folder], tmp_path / "all")
    assert card.train_count == dataset.train_count + sharded.train_count
    check(card)
    check(subset_dataset(sharded.folder, tmp_path / "part", per_class=2))


@pytest.mark.parametrize("in_place", [True, False])
def test_pictures_added_to_shards_are_a_shard_of_their_own_with_the_records_of_one_database(
    new: Path, tmp_path: Path, in_place: bool
) -> None:
    folder = draw_classes(tmp_path / "old", {"b": 9, "d": 8})
    sharded, whole = (build_dataset(folder, tmp_path / f"data{n}", size=8, val=0.3, shards=n) for n in (3, 0))
    before = {path: path.read_bytes() for path in sharded.train_lmdb.rglob("data.mdb")}
    options = AddOptions(test=0.2)  # a part that the dataset does not have
    out = None if in_place else tmp_path / "out"
    card = add_pictures(sharded.folder, new, options, out=out)
    expected = add_pictures(whole.folder, new, options)
    assert card.classes == expected.classes and card.train_counts == expected.train_counts and card.test_count
    for part in ("train", "val", "test"):
        assert records(card.source(part)) == records(expected.source(part))
    check(card)
    assert [len(read_index(card.source(part)).shards) for part in ("train", "val", "test")] == [4, 4, 1]
    for path, data in before.items():
        assert (card.train_lmdb / path.relative_to(sharded.train_lmdb)).read_bytes() == data
    assert not verify_database(card.train_lmdb, classes=4).faults
    more = add_pictures(card.folder, draw_classes(tmp_path / "more", {"a": 3}, seed=4000), AddOptions(val=0, test=0))
    assert more.train_count == card.train_count + 3 and len(read_index(more.train_lmdb).shards) == 5
    check(more)


def test_pictures_that_cannot_be_added_to_shards_leave_them_as_they_are(new: Path, tmp_path: Path) -> None:
    card = build_dataset(new, tmp_path / "data", size=8, shards=2)
    before = {path: path.read_bytes() for path in card.folder.rglob("*") if path.is_file()}
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no picture of .*bad can be added; the first error: a/x.png: "):
        add_pictures(card.folder, tmp_path / "bad", AddOptions(val=0))
    assert before == {path: path.read_bytes() for path in card.folder.rglob("*") if path.is_file()}


def test_sources_and_outputs_may_be_urls(tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    draw_classes(tmp_path / "p", {"a": 4, "b": 4})
    draw_classes(tmp_path / "new", {"c": 3})
    near, far = tmp_path / "near", "memory://combine/far"
    try:
        build_dataset(tmp_path / "p", near, size=8)
        build_dataset(tmp_path / "p", far, size=8)
        expected = subset_dataset(near, tmp_path / "part", per_class=1)
        found = subset_dataset(far, "memory://combine/part", per_class=1)
        assert found.url == "memory://combine/part"
        assert records(f"{found.url}/train_lmdb") == records(expected.train_lmdb)
        subset_database(near / "train_lmdb", tmp_path / "one", per_class=1)
        assert subset_database(f"{far}/train_lmdb", "memory://combine/one", per_class=1).path == "memory://combine/one"
        assert records("memory://combine/one") == records(tmp_path / "one")
        assert merge_datasets([near, far], "memory://combine/both").train_count == 12
        assert merge_databases([f"{far}/train_lmdb", near / "val_lmdb"], tmp_path / "bare").records == 8
        card = add_pictures(far, tmp_path / "new", out="memory://combine/more")
        assert card.classes == ["a", "b", "c"] == json.loads(system.cat("/combine/more/dataset.json"))["classes"]
        assert export_database("memory://combine/more/train_lmdb", "memory://combine/files").path == "memory://combine/files"
        assert len(system.find("/combine/files")) == card.train_count + 1
        with pytest.raises(DataError, match="not changed in place; give --out"):
            add_pictures(far, tmp_path / "new")
        with pytest.raises(DataError, match="download them first"):
            add_pictures(near, "memory://combine/files")
        with pytest.raises(DataError, match="already exists"):
            subset_dataset(far, "memory://combine/both")
    finally:
        system.rm("/combine", recursive=True)
