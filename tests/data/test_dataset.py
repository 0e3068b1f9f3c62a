"""Building datasets: what comes out, and what it depends on."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from caffetools.data.databases import open_database
from caffetools.data.datasets.build import build_dataset, load_card
from caffetools.data.images import read_image
from caffetools.data.means import channel_means, compute_mean
from caffetools.errors import DataError
from caffetools.proto.binary import read_binaryproto
from tests.data.drawing import CLASSES, content, draw, draw_classes, names, rows


def test_a_folder_of_pictures_becomes_a_dataset(pictures: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    card = build_dataset(pictures, tmp_path / "out", size=16, progress=lambda done, total: steps.append((done, total)))
    assert names(tmp_path / "out") == [
        "dataset.json",
        "labels.txt",
        "mean.binaryproto",
        "samples.png",
        "train.txt",
        "train_lmdb",
        "val.txt",
        "val_lmdb",
    ]
    assert names(tmp_path) == ["out", "pictures"]
    assert card.classes == ["big dogs", "Katze_9", "Katze_10", "日本"]
    assert (tmp_path / "out" / "labels.txt").read_text(encoding="utf-8").splitlines() == card.classes
    assert card.train_counts == [4, 5, 3, 2] and card.val_counts == [1, 1, 1, 1]
    assert load_card(tmp_path / "out") == card
    # The mean of so few pictures is one step.
    assert steps == [(i, 32) for i in (*range(1, 19), 32)]
    seen = set()
    for part, path in (("train", card.train_lmdb), ("val", card.val_lmdb)):
        listed = (tmp_path / "out" / f"{part}.txt").read_text(encoding="utf-8").splitlines()
        for number, (line, (key, label, pixels)) in enumerate(zip(listed, rows(path), strict=True)):
            name = line.rpartition(" ")[0]
            assert (key, line) == (f"{number:08d}_{name}", f"{name} {label}")
            assert name.startswith(card.classes[label] + "/")
            np.testing.assert_array_equal(pixels, read_image(pictures / name, size=(16, 16)).transpose(2, 0, 1))
            seen.add(name)
    assert len(seen) == sum(CLASSES.values())


def test_the_mean_is_that_of_the_training_pictures(pictures: Path, tmp_path: Path) -> None:
    card = build_dataset(pictures, tmp_path / "out", size="12x10")
    assert (card.width, card.height, card.channels) == (12, 10, 3)
    assert card.mean_file is not None
    mean = read_binaryproto(card.mean_file)
    expected = np.stack([pixels for _, _, pixels in rows(card.train_lmdb)]).mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(mean, expected[np.newaxis], rtol=1e-6)
    np.testing.assert_array_equal(mean, compute_mean(card.train_lmdb))
    assert card.mean_values == channel_means(mean)


def test_the_same_seed_gives_the_same_dataset_and_another_a_different_split(pictures: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        build_dataset(pictures, tmp_path / name, size=8, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a")["val.txt"] != content(tmp_path / "c")["val.txt"]


def test_training_pictures_are_shuffled_across_classes(pictures: Path, tmp_path: Path) -> None:
    card = build_dataset(pictures, tmp_path / "out", size=8)
    labels = [label for _, label, _ in rows(card.train_lmdb)]
    assert labels != sorted(labels)


def test_another_class_does_not_change_the_split_of_the_rest(pictures: Path, tmp_path: Path) -> None:
    build_dataset(pictures, tmp_path / "a", size=8)
    draw_classes(pictures, {"zebra": 4})
    build_dataset(pictures, tmp_path / "b", size=8)
    before, after = ([line.rpartition(" ")[0] for line in (tmp_path / name / "val.txt").read_text().splitlines()] for name in "ab")
    assert [name for name in after if "zebra" not in name] == before


def test_gray_stores_one_channel(pictures: Path, tmp_path: Path) -> None:
    card = build_dataset(pictures, tmp_path / "out", size=8, gray=True)
    assert card.channels == 1 and len(card.mean_values) == 1
    assert {pixels.shape for _, _, pixels in rows(card.train_lmdb)} == {(1, 8, 8)}


@pytest.mark.parametrize("size", [0, 16])
def test_encoded_records_decode_to_the_same_pictures(pictures: Path, tmp_path: Path, size: int) -> None:
    plain = build_dataset(pictures, tmp_path / "plain", size=size)
    encoded = build_dataset(pictures, tmp_path / "encoded", size=size, encoded=True)
    for (key, label, pixels), (other_key, other_label, other) in zip(rows(plain.train_lmdb), rows(encoded.train_lmdb), strict=True):
        assert (key, label) == (other_key, other_label)
        np.testing.assert_array_equal(pixels, other, strict=True)
    assert plain.mean_values == encoded.mean_values


def test_encoded_records_all_have_the_channels_asked_for_and_keep_a_jpegs_bytes(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "pictures", {"a": 2, "b": 2})
    Image.open(folder / "a" / "p 0.png").convert("RGBA").save(folder / "a" / "alpha.png")
    Image.open(folder / "a" / "p 0.png").convert("L").save(folder / "a" / "grey.png")
    cv2.imwrite(str(folder / "b" / "wide.png"), np.full((20, 30, 3), 40000, np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(folder / "b" / "turned.jpg", 7, quality=90, exif=exif)
    draw(folder / "b" / "plain.jpg", 8, quality=90)
    card = build_dataset(folder, tmp_path / "out", size=0, encoded=True)
    found = {key.partition("_")[2]: pixels for path in (card.train_lmdb, card.val_lmdb) for key, _, pixels in rows(path)}
    assert len(found) == 9
    for name, pixels in found.items():
        np.testing.assert_array_equal(pixels, read_image(folder / name).transpose(2, 0, 1), strict=True)
    stored = content(tmp_path / "out")
    assert (folder / "b" / "plain.jpg").read_bytes() in stored["train_lmdb/data.mdb"] + stored["val_lmdb/data.mdb"]


def test_pictures_that_keep_their_sizes_have_mean_values_but_no_mean_file(pictures: Path, tmp_path: Path) -> None:
    card = build_dataset(pictures, tmp_path / "out", size=0)
    assert (card.width, card.height, card.mean_file) == (0, 0, None)
    assert "mean.binaryproto" not in names(tmp_path / "out")
    flat = np.concatenate([pixels.reshape(3, -1) for _, _, pixels in rows(card.train_lmdb)], axis=1)
    np.testing.assert_allclose(card.mean_values, flat.mean(axis=1), rtol=1e-9)
    assert any("there is no mean file" in note for note in card.notes)


def test_a_split_that_is_there_is_kept(tmp_path: Path) -> None:
    draw_classes(tmp_path / "p" / "train", {"a": 3, "b": 2, "c": 1})
    draw_classes(tmp_path / "p" / "val", {"b": 1, "a": 2}, seed=50)
    card = build_dataset(tmp_path / "p", tmp_path / "out", size=8)
    assert card.classes == ["a", "b", "c"] and card.val is None
    assert (card.train_counts, card.val_counts) == ([3, 2, 1], [2, 1, 0])
    assert card.notes == ["The class 'c' has no validation picture."]
    assert all(line.startswith("val/") for line in (tmp_path / "out" / "val.txt").read_text().splitlines())


def test_a_class_of_one_picture_trains_and_is_mentioned_and_one_of_two_validates(tmp_path: Path) -> None:
    draw_classes(tmp_path / "p", {"one": 1, "two": 2, "three": 3})
    for val in (0.01, 0.99):
        card = build_dataset(tmp_path / "p", tmp_path / "out", size=8, val=val, force=True)
        counts = dict(zip(card.classes, zip(card.train_counts, card.val_counts, strict=True), strict=True))
        assert counts == {"one": (1, 0), "two": (1, 1), "three": (2, 1) if val < 0.5 else (1, 2)}
        assert card.notes == ["The class 'one' has one usable picture only; it trains, and nothing validates this class."]


def test_pictures_and_output_may_be_urls(pictures: Path, tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    build_dataset(pictures, tmp_path / "near", size=8)
    try:
        system.put(str(pictures), "/build/photos", recursive=True)
        card = build_dataset("memory://build/photos", "memory://build/out", size=8)
        assert card.pictures == "memory://build/photos"
        for part in ("train_lmdb", "val_lmdb"):
            with closing(open_database(tmp_path / "near" / part)) as near, closing(open_database(f"memory://build/out/{part}")) as far:
                assert list(near.records()) == list(far.records())
        build_dataset(pictures, f"file://{tmp_path}/far", size=8, shards=2)
        assert load_card(tmp_path / "far").train_counts == card.train_counts
        names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
        lines = "".join(f"{name} {int(name.split('/')[0] == names[-1].split('/')[0])}\n" for name in names)
        system.pipe("/build/photos/list.txt", lines.encode())
        card = build_dataset("memory://build/photos/list.txt", tmp_path / "listed", size=8)
        assert card.pictures == "memory://build/photos" and card.train_count + card.val_count == len(names)
        with pytest.raises(DataError, match="already exists"):
            build_dataset(pictures, "memory://build/out", size=8)
        with pytest.raises(DataError, match="cannot be resumed"):
            build_dataset(pictures, "memory://build/other", size=8, resume=True)
        with pytest.raises(DataError, match="its machines share"):
            build_dataset(pictures, "memory://build/other", size=8, cluster="auto")
        with pytest.raises(DataError, match="does not exist"):
            build_dataset("memory://build/none", tmp_path / "other", size=8)
    finally:
        system.rm("/build", recursive=True)
