"""What a build reports: duplicates, leaks, balance; and what it leaves out when asked to."""

from __future__ import annotations

import hashlib
import random
import shutil
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffetools.data.datasets.build import build_dataset, load_card
from caffetools.data.datasets.duplicates import Fingerprint, Fingerprints, difference_hash, find_duplicates, superfluous
from caffetools.data.images import read_image
from caffetools.errors import DataError
from tests.data.drawing import draw, draw_classes, names


def picture(seed: int, size: tuple[int, int] = (90, 70)) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def test_the_hash_is_that_of_its_definition() -> None:
    image = picture(1)
    gray = cv2.cvtColor(cv2.resize(image, (9, 8), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY).astype(int)
    bits = "".join(str(int(row[i] < row[i + 1])) for row in gray for i in range(8))
    assert difference_hash(image) == int(bits, 2)
    assert difference_hash(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)).bit_length() <= 64


def test_compression_size_and_brightness_leave_the_hash_nearly_equal_and_other_pictures_do_not() -> None:
    hashes = [difference_hash(picture(seed)) for seed in range(40)]
    for seed, expected in enumerate(hashes):
        image = picture(seed)
        small = np.asarray(cv2.resize(image, (60, 50), interpolation=cv2.INTER_AREA), np.uint8)
        squeezed = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
        darker = (image * 0.8).astype(np.uint8)
        for other in (small, squeezed, darker):
            assert (difference_hash(np.asarray(other, np.uint8)) ^ expected).bit_count() <= 6
    distances = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 8


def test_tiny_pictures_are_near_to_no_other() -> None:
    for size, original, expected in (((15, 40), None, True), ((16, 40), None, False), ((28, 28), (8, 8), True)):
        assert (difference_hash(picture(1, size), original) == 0) is expected


def print_of(path: str, digest: str, dhash: int, label: int = 0, part: str = "train") -> Fingerprint:
    return Fingerprint(path, label, part, hashlib.sha256(digest.encode()).digest(), dhash)


def test_equal_and_similar_pictures_are_grouped() -> None:
    base = 0x0F0F_3333_5555_00FF
    prints = [
        print_of("a", "1", base),
        print_of("b", "2", base ^ 0b111, label=1, part="val"),
        print_of("c", "1", base),
        print_of("d", "3", base ^ 0b111_000),
        print_of("far", "4", base ^ 0xFF00_0000_0000),
        print_of("flat", "5", 0),
        print_of("flat too", "6", 0),
    ]
    same, similar = find_duplicates(prints)
    assert (same.kind, same.paths, same.parts, same.labels) == ("same", ["a", "c"], ["train"], [0])
    # b and d are each near a.
    assert (similar.kind, similar.paths, similar.parts, similar.labels) == ("similar", ["a", "b", "c", "d"], ["train", "val"], [0, 1])
    assert find_duplicates(prints, similar=False) == [same]
    assert superfluous([same]) == {"c": "it is equal to 'a'"}
    assert superfluous([similar]).keys() == {"a", "b", "c", "d"}


def test_many_pictures_with_equal_bands_are_compared_in_bounded_time() -> None:
    rng = np.random.default_rng(0)
    prints = [print_of(str(i), str(i), 0x5555 << 48 | int(rng.integers(1 << 48))) for i in range(4000)]
    prints += [print_of("copy", "x", prints[7].dhash)]
    assert [group.paths for group in find_duplicates(prints)] == [["7", "copy"]]


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """train/ and val/ with a copy in each of both, a similar picture, and a copy of another class."""
    folder = tmp_path / "p"
    draw_classes(folder / "train", {"a": 4, "b": 4})
    draw_classes(folder / "val", {"a": 2, "b": 2}, seed=50)
    shutil.copy(folder / "train" / "a" / "p 1.png", folder / "val" / "a" / "leak.png")
    shutil.copy(folder / "train" / "a" / "p 2.png", folder / "train" / "b" / "clash.png")
    for number, name in ((91, "train/b/large"), (91, "train/b/small")):
        draw(folder / f"{name}.png", number, (200, 160) if "large" in name else (150, 120))
    return folder


def test_leaks_clashes_and_similar_pictures_are_reported_and_kept(leaking: Path, tmp_path: Path) -> None:
    card = build_dataset(leaking, tmp_path / "out", size=32)
    assert (card.train_counts, card.val_counts) == ([4, 7], [3, 2])
    same, similar = (next(note for note in card.notes if what in note) for what in ("are equal to", "are nearly equal to"))
    assert same == (
        "2 picture(s) are equal to another one, such as 'val/a/leak.png' and 'train/a/p 1.png'; 1 group(s) of them are in more "
        "than one split, which makes the scores too good; 1 group(s) have different labels. dataset build leaves them out with "
        "--drop-duplicates."
    )
    assert similar.startswith("1 picture(s) are nearly equal to another one") and similar.endswith("with --drop-similar.")
    assert [(group["kind"], sorted(group["paths"])) for group in load_card(tmp_path / "out").duplicates] == [
        ("same", ["train/a/p 1.png", "val/a/leak.png"]),
        ("same", ["train/a/p 2.png", "train/b/clash.png"]),
        ("similar", ["train/b/large.png", "train/b/small.png"]),
    ]


def test_dropping_keeps_the_validation_picture_of_a_leak_and_none_of_a_clash(leaking: Path, tmp_path: Path) -> None:
    card = build_dataset(leaking, tmp_path / "out", size=32, drop_duplicates=True)
    assert {skipped.path: skipped.reason for skipped in card.skipped} == {
        "train/a/p 1.png": "it is equal to 'val/a/leak.png'",
        "train/a/p 2.png": "it is equal to 'train/b/clash.png'; their labels differ",
        "train/b/clash.png": "it is equal to 'train/a/p 2.png'; their labels differ",
    }
    assert (card.train_counts, card.val_counts) == ([2, 6], [3, 2])
    assert [group["kind"] for group in card.duplicates] == ["similar"]
    card = build_dataset(leaking, tmp_path / "out", size=32, drop_similar=True, force=True)
    assert len(card.skipped) == 4 and card.train_counts == [2, 5] and card.duplicates == []
    shutil.copy(leaking / "train" / "b" / "clash.png", leaking / "train" / "b" / "again.png")
    reasons = {skipped.path: skipped.reason for skipped in build_dataset(leaking, tmp_path / "more", size=32, drop_duplicates=True).skipped}
    assert reasons["train/a/p 2.png"] == "it is equal to 'train/b/again.png' and others; their labels differ"
    assert reasons["train/b/clash.png"] == "it is equal to 'train/a/p 2.png' and others; their labels differ"


def test_unbalanced_classes_are_reported(tmp_path: Path) -> None:
    draw_classes(tmp_path / "p", {"many": 26, "few": 3})
    card = build_dataset(tmp_path / "p", tmp_path / "out", size=8)
    assert "The classes are unbalanced: 'many' has 21 training pictures, 'few' has 2." in card.notes


def test_small_classes_are_left_out_and_labels_have_no_gaps(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "p", {"a": 4, "b": 3, "c": 5})
    (folder / "b" / "bad.png").write_bytes(b"x")
    (folder / "c" / "bad.png").write_bytes(b"x")
    card = build_dataset(folder, tmp_path / "out", size=8, min_per_class=4)
    assert card.classes == ["a", "c"] and card.notes[0] == "The class 'b' is left out: it has 3 usable picture(s), fewer than 4."
    labels = {line.rpartition(" ")[0]: line[-1] for line in (tmp_path / "out" / "train.txt").read_text().splitlines()}
    assert {label for path, label in labels.items() if path.startswith("c/")} == {"1"}
    with pytest.raises(DataError, match=r"1 class\(es\) have 5 usable pictures or more; .*lower --min-per-class"):
        build_dataset(folder, tmp_path / "out2", size=8, min_per_class=5)
    assert names(tmp_path) == ["out", "p"]


def test_the_card_has_the_size_and_checksum_of_every_file_and_the_sheet_a_row_for_each_class(tmp_path: Path) -> None:
    card = build_dataset(draw_classes(tmp_path / "p", {"a": 12, "b": 3}), tmp_path / "out", size="40x30", test=0.2)
    for name, facts in card.files.items():
        data = (tmp_path / "out" / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert {*card.files, "dataset.json"} == {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert read_image(tmp_path / "out" / "samples.png").shape[0] == 2 * 102 + 6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0, 1, 2, 5, 40]), st.integers(0, 3)), max_size=40), st.integers(0, 99))
def test_groups_are_those_of_comparing_each_picture_with_each(drawn: list[tuple[int, int, int]], seed: int) -> None:
    rng = random.Random(seed)
    centers = [rng.getrandbits(64) for _ in range(4)]
    prints: list[Fingerprint] = []
    for number, (digest, flips, center) in enumerate(drawn):
        # Equal files have equal hashes.
        bits = random.Random(f"{seed} {digest}")
        dhash = centers[center if not flips else digest % 4] ^ sum(1 << bit for bit in bits.sample(range(64), flips if flips < 6 else 0))
        known = next((item for item in prints if item.digest == hashlib.sha256(b"%d" % digest).digest()), None)
        prints.append(
            Fingerprint(f"{number}", 0, "train", hashlib.sha256(b"%d" % digest).digest(), dhash if known is None else known.dhash)
        )
    found = find_duplicates(prints)
    same = {tuple(group.paths) for group in found if group.kind == "same"}
    by_digest: dict[bytes, list[str]] = {}
    for item in prints:
        by_digest.setdefault(item.digest, []).append(item.path)
    assert same == {tuple(paths) for paths in by_digest.values() if len(paths) > 1}
    # Sets of different files that are connected by small distances.
    parent = {item.digest: item.digest for item in prints}

    def root(digest: bytes) -> bytes:
        while parent[digest] != digest:
            digest = parent[digest]
        return digest

    for one, other in combinations(prints, 2):
        sound = all(8 <= item.dhash.bit_count() <= 56 for item in (one, other))
        if one.digest != other.digest and sound and (one.dhash ^ other.dhash).bit_count() <= 3:
            parent[root(one.digest)] = root(other.digest)
    groups: dict[bytes, set[bytes]] = {}
    for sha in parent:
        groups.setdefault(root(sha), set()).add(sha)
    expected = {tuple(item.path for item in prints if item.digest in members) for members in groups.values() if len(members) > 1}
    assert {tuple(group.paths) for group in found if group.kind == "similar"} == expected


def test_fingerprints_are_kept_packed() -> None:
    items = [print_of(f"{n}", str(n), n << 50, n % 3, ("train", "val")[n % 2]) for n in range(7)]
    packed = Fingerprints(items)
    assert list(packed) == items and packed[-1] == items[-1] and list(packed[2:5]) == items[2:5] and len(packed) == 7
    with pytest.raises(IndexError):
        packed[7]
    with pytest.raises(ValueError, match="32 bytes, not 1"):
        packed.append(Fingerprint("x", 0, "train", b"1", 0))
