"""Duplicates among pictures: equal files by SHA-256, near-identical pictures by difference hash; and leaks between splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from caffetools.data.images import Pixels

# Bits of 64 in which near-identical pictures differ at most, and the bands of 16 bits, of which one is then equal.
_MOST_BITS, _BANDS = 3, 4
# Set bits that a hash needs at least, and may have at most: others are of pictures with little in them, which look alike.
_FEWEST_SET, _MOST_SET = 8, 56
# Pictures with an equal band that are compared in pairs; of more, only those with equal hashes count.
_MOST_PAIRED = 500


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a picture is compared by.

    Attributes:
        path: The picture.
        label: Its label.
        part: ``train``, ``val`` or ``test``.
        digest: SHA-256 of the file, or of the pixels.
        dhash: :func:`difference_hash` of the pixels.
    """

    path: str
    label: int
    part: str
    digest: bytes
    dhash: int


@dataclass(frozen=True)
class Duplicates:
    """Pictures that are equal or nearly so.

    Attributes:
        kind: ``same`` (equal files or pixels) or ``similar``.
        paths: The pictures, in the order of the dataset.
        parts: The splits that they are in; more than one is a leak.
        labels: Their different labels; more than one is a contradiction.
    """

    kind: str
    paths: list[str]
    parts: list[str]
    labels: list[int]


def difference_hash(image: Pixels) -> int:
    """Return 64 bits: whether each of 8 x 8 gray values is below its right neighbor, of the picture at 9 x 8 (dHash, N. Krawetz, 2013).

    Args:
        image: (H, W) or (H, W, 3), uint8, BGR.
    """
    import cv2

    small = np.asarray(cv2.resize(image, (9, 8), interpolation=cv2.INTER_AREA))
    gray = np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)) if small.ndim == 3 else small
    return int.from_bytes(np.packbits(gray[:, :-1] < gray[:, 1:]).tobytes(), "big")


def superfluous(duplicates: Iterable[Duplicates]) -> dict[str, str]:
    """Return path → reason of the pictures to leave out, so that one of each group is left.

    Args:
        duplicates: The groups. The first picture of each is kept, unless they have different labels: then none is, since nothing shows
            which label is right.
    """
    found: dict[str, str] = {}
    for group in duplicates:
        what = "it is equal to" if group.kind == "same" else "it is nearly equal to"
        first, *others = group.paths
        if len(group.labels) > 1:
            found.setdefault(first, f"{what} '{others[0]}', which has another label")
            for path in others:
                found.setdefault(path, f"{what} '{first}'; their labels differ")
            continue
        for path in others:
            found.setdefault(path, f"{what} '{first}'")
    return found


def find_duplicates(prints: Sequence[Fingerprint], *, similar: bool = True) -> list[Duplicates]:
    """Return the groups of equal files, then those of near-identical pictures (hashes that differ in 3 bits at most).

    Args:
        prints: The pictures.
        similar: Whether near-identical pictures are looked for.
    """
    by_digest: dict[bytes, list[int]] = {}
    for index, item in enumerate(prints):
        by_digest.setdefault(item.digest, []).append(index)
    found = [_group("same", prints, indices) for indices in by_digest.values() if len(indices) > 1]
    if not similar:
        return found
    first = [indices[0] for indices in by_digest.values()]
    links = _Links(len(prints))
    for index, other in _near(prints, first):
        links.join(index, other)
    # A group of similar pictures has all copies of each.
    groups: dict[int, list[int]] = {}
    for indices in by_digest.values():
        groups.setdefault(links.root(indices[0]), []).append(indices[0])
    for indices in groups.values():
        if len(indices) > 1:
            found.append(_group("similar", prints, sorted(i for index in indices for i in by_digest[prints[index].digest])))
    return found


def _near(prints: Sequence[Fingerprint], indices: Iterable[int]) -> Iterable[tuple[int, int]]:
    buckets: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        dhash = prints[index].dhash
        if _FEWEST_SET <= dhash.bit_count() <= _MOST_SET:
            for band in range(_BANDS):
                buckets.setdefault((band, dhash >> 16 * band & 0xFFFF), []).append(index)
    for members in buckets.values():
        if len(members) > _MOST_PAIRED:
            equal: dict[int, int] = {}
            for index in members:
                yield equal.setdefault(prints[index].dhash, index), index
            continue
        for one, other in combinations(members, 2):
            if (prints[one].dhash ^ prints[other].dhash).bit_count() <= _MOST_BITS:
                yield one, other


def _group(kind: str, prints: Sequence[Fingerprint], indices: list[int]) -> Duplicates:
    members = [prints[index] for index in indices]
    parts = [part for part in ("train", "val", "test") if any(member.part == part for member in members)]
    return Duplicates(kind, [member.path for member in members], parts, sorted({member.label for member in members}))


class _Links:
    """Disjoint sets of numbers."""

    def __init__(self, count: int):
        self._parents = list(range(count))

    def root(self, index: int) -> int:
        while self._parents[index] != index:
            self._parents[index] = self._parents[self._parents[index]]
            index = self._parents[index]
        return index

    def join(self, one: int, other: int) -> None:
        self._parents[self.root(other)] = self.root(one)
