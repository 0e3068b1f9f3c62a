"""Duplicates among pictures: equal files by SHA-256, near-identical pictures by difference hash; and leaks between splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

from caffetools.data.datasets.pictures import PictureTable
from caffetools.data.images import Pixels

# Bits of 64 in which near-identical pictures differ at most, and the bands of 16 bits, of which one is then equal.
_MOST_BITS, _BANDS = 3, 4
# Set bits that a hash needs at least, and may have at most: others are of pictures with little in them, which look alike.
_FEWEST_SET, _MOST_SET = 8, 56
# Pixels that the shorter side of a picture needs at least: of smaller ones, different pictures (drawn digits) have nearly equal hashes.
_SMALLEST_SIDE = 16
# Pictures with an equal band that are compared in pairs; of more, only those with equal hashes count.
_MOST_PAIRED = 500
# Bytes of a SHA-256.
_DIGEST = 32


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


def difference_hash(image: Pixels, original: Sequence[int] | None = None) -> int:
    """Return 64 bits: whether each of 8 x 8 gray values is below its right neighbor, of the picture at 9 x 8 (dHash, N. Krawetz, 2013).

    Args:
        image: (H, W) or (H, W, 3), uint8, BGR.
        original: (H, W) of the picture before it was resized; those of ``image`` by default.

    Returns:
        The hash; 0, which is near no other, if the picture's shorter side has fewer than 16 pixels: too few to compare by.
    """
    import cv2

    if min(original or image.shape[:2]) < _SMALLEST_SIDE:
        return 0
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
            more = " and others" if len(others) > 1 else ""
            found.setdefault(first, f"{what} '{others[0]}'{more}; their labels differ")
            for path in others:
                found.setdefault(path, f"{what} '{first}'{more}; their labels differ")
            continue
        for path in others:
            found.setdefault(path, f"{what} '{first}'")
    return found


class Prints(Sequence[Fingerprint], ABC):
    """Fingerprints of many pictures, which are searched without an object for each."""

    @abstractmethod
    def words(self) -> NDArray[np.uint64]:
        """Return the first 8 bytes of each digest, (N)."""

    @abstractmethod
    def dhashes(self) -> NDArray[np.uint64]:
        """Return the difference hashes, (N)."""

    @abstractmethod
    def digests(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the digests of some, (K, 4)."""


class Fingerprints(Prints):
    """Fingerprints in memory, in about 60 bytes each and their paths."""

    def __init__(self, items: Iterable[Fingerprint] = ()):
        self._pictures, self._parts = PictureTable(), array("B")
        self._digests, self._dhashes = bytearray(), array("Q")
        self._names: list[str] = []
        for item in items:
            self.append(item)

    def append(self, item: Fingerprint) -> None:
        """Add one. Raises :class:`ValueError` if its digest is not one of SHA-256."""
        if len(item.digest) != _DIGEST:
            raise ValueError(f"a digest of SHA-256 has {_DIGEST} bytes, not {len(item.digest)}")
        if item.part not in self._names:
            self._names.append(item.part)
        self._pictures.add(item.path, item.label)
        self._parts.append(self._names.index(item.part))
        self._digests += item.digest
        self._dhashes.append(item.dhash)

    def words(self) -> NDArray[np.uint64]:
        """Return the first 8 bytes of each digest, (N)."""
        return np.array(np.frombuffer(self._digests, np.uint64)[:: _DIGEST // 8])

    def dhashes(self) -> NDArray[np.uint64]:
        """Return the difference hashes, (N)."""
        return np.array(np.frombuffer(self._dhashes, np.uint64))

    def digests(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the digests of some, (K, 4)."""
        return np.asarray(np.frombuffer(self._digests, np.uint64).reshape(-1, _DIGEST // 8)[indices])

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, index: int) -> Fingerprint: ...
    @overload
    def __getitem__(self, index: slice) -> Fingerprints: ...
    def __getitem__(self, index: int | slice) -> Fingerprint | Fingerprints:
        if isinstance(index, slice):
            return Fingerprints(self[i] for i in range(*index.indices(len(self))))
        index = range(len(self))[index]
        digest = bytes(self._digests[_DIGEST * index : _DIGEST * (index + 1)])
        path, label = self._pictures.path(index), self._pictures.label(index)
        return Fingerprint(path, label, self._names[self._parts[index]], digest, self._dhashes[index])


def find_duplicates(prints: Sequence[Fingerprint], *, similar: bool = True) -> list[Duplicates]:
    """Return the groups of equal files, then those of near-identical pictures (hashes that differ in 3 bits at most).

    Args:
        prints: The pictures.
        similar: Whether near-identical pictures are looked for.
    """
    packed = prints if isinstance(prints, Prints) else Fingerprints(prints)
    equal = _equal_rows(packed.words(), packed.digests)
    found = [_group("same", packed, indices) for indices in equal]
    if not similar:
        return found
    # Of equal files, the first one stands for all.
    copies = {indices[0]: indices for indices in equal}
    first = np.ones(len(packed), bool)
    for indices in equal:
        first[indices[1:]] = False
    dhashes = packed.dhashes()
    links = _Links()
    for one, other in _near(dhashes, np.flatnonzero(first)):
        links.join(one, other)
    for members in links.groups():
        found.append(_group("similar", packed, sorted(i for index in members for i in copies.get(index, [index]))))
    return found


def _equal_rows(first: NDArray[np.uint64], rows_of: Callable[[NDArray[np.int64]], NDArray[np.uint64]]) -> list[list[int]]:
    """Return the indices of each set of two or more equal rows, rising, in the order of the first of each.

    Args:
        first: The first word of each row, (N).
        rows_of: From (K) indices to the rows, (K, words).
    """
    # Most differ in their first word: the others are few, and are then compared as a whole.
    order = np.argsort(first)
    first = first[order]
    equal = first[1:] == first[:-1]
    chosen = np.sort(order[np.r_[equal, False] | np.r_[False, equal]] if len(order) else order)
    rows = rows_of(chosen)
    if len(rows) < 2:
        return []
    order = np.lexsort(rows.T)
    begins = np.flatnonzero(np.r_[True, (rows[order[1:]] != rows[order[:-1]]).any(axis=1)])
    sizes = np.diff(np.r_[begins, len(rows)])
    order = chosen[order]
    groups = [sorted(order[begin : begin + size].tolist()) for begin, size in zip(begins[sizes > 1], sizes[sizes > 1], strict=True)]
    return sorted(groups)


def _near(dhashes: NDArray[np.uint64], indices: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield pairs of ``indices`` that connect all whose hashes differ in few bits; of hashes that say something."""
    bits = _bit_counts(dhashes[indices])
    indices = indices[(bits >= _FEWEST_SET) & (bits <= _MOST_SET)]
    for band in range(_BANDS):
        values = (dhashes[indices] >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(values, kind="stable")
        begins = np.flatnonzero(np.r_[True, values[order[1:]] != values[order[:-1]]]) if len(order) else np.empty(0, np.int64)
        ends = np.r_[begins[1:], len(order)]
        for begin, end in zip(begins[ends - begins > 1], ends[ends - begins > 1], strict=True):
            members = indices[order[begin:end]]
            if len(members) > _MOST_PAIRED:
                hashes = dhashes[members]
                for equal in _equal_rows(hashes, lambda chosen, hashes=hashes: hashes[chosen, np.newaxis]):  # type: ignore[misc]
                    yield from ((int(members[equal[0]]), int(members[other])) for other in equal[1:])
                continue
            hashes = dhashes[members]
            near = np.argwhere(_bit_counts(hashes[:, np.newaxis] ^ hashes) <= _MOST_BITS)
            yield from ((int(members[one]), int(members[other])) for one, other in near if one < other)


def _bit_counts(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return the number of set bits of each value."""
    counts: NDArray[np.uint8] = _bits_of_bytes()[np.ascontiguousarray(values)[..., np.newaxis].view(np.uint8)].sum(axis=-1, dtype=np.uint8)
    return counts


@cache
def _bits_of_bytes() -> NDArray[np.uint8]:
    counts: NDArray[np.uint8] = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1).sum(axis=1, dtype=np.uint8)
    return counts


def _group(kind: str, prints: Sequence[Fingerprint], indices: list[int]) -> Duplicates:
    members = [prints[index] for index in indices]
    parts = [part for part in ("train", "val", "test") if any(member.part == part for member in members)]
    return Duplicates(kind, [member.path for member in members], parts, sorted({member.label for member in members}))


class _Links:
    """Disjoint sets of numbers; those that are linked to none take no memory."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def root(self, index: int) -> int:
        while (parent := self._parents.get(index, index)) != index:
            self._parents[index] = index = self._parents.get(parent, parent)
        return index

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self._parents[second] = first
        self._parents.setdefault(first, first)

    def groups(self) -> list[list[int]]:
        """Return the sets, each rising, in the order of the least number of each."""
        found: dict[int, list[int]] = {}
        for index in sorted(self._parents):
            found.setdefault(self.root(index), []).append(index)
        return sorted(found.values())
