"""Which pictures train, validate and test: drawn for each class, or by groups that must not be divided."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caffetools.data.datasets.listing import Listing, Picture, natural
from caffetools.data.datasets.pictures import PARTS as PARTS
from caffetools.data.datasets.pictures import Pictures
from caffetools.errors import DataError

# From a picture's path to the name of its group.
GroupOf = Callable[[str], str]
# The part of each picture of a class: its place in PARTS.
PartOf = NDArray[np.uint8]


@dataclass
class Split:
    """The pictures of each part.

    Attributes:
        train: Pictures for training, shuffled.
        val: Pictures for validation, in the order of the classes.
        test: Pictures for testing, in the order of the classes.
    """

    train: Pictures
    val: Pictures
    test: Pictures


def split_listing(
    listing: Listing,
    val: float,
    seed: int,
    unusable: Collection[str],
    *,
    test: float = 0.0,
    group_of: GroupOf | None = None,
    placed: Mapping[str, str] | None = None,
) -> Split:
    """Draw the pictures for validation and testing: a share of each class, at least one, never all of a class.

    The same pictures, shares and seed give the same split, independent of the other classes (except with ``group_of``). A part that the
    listing gives is kept.

    Args:
        listing: The pictures.
        val: Share of each class for validation, between 0 and 1.
        seed: Seed of the drawing and of the order of the training pictures.
        unusable: Paths of pictures to leave out.
        test: Share of each class for testing, from 0.
        group_of: Pictures of one group are kept in one part; see :func:`grouping`.
        placed: Group → ``train``, ``val`` or ``test``, for groups whose part is decided already.
    """
    good = [_usable(pictures, unusable) for pictures in listing.pictures]
    shares = (val if listing.val is None else 0.0, test if listing.test is None else 0.0)
    if group_of is not None:
        groups = _GroupDraw(good, shares, seed, group_of)
        groups.place(placed or {})
        for part in (1, 2):
            groups.draw(part)
        drawn = groups.drawn
    else:
        drawn = [_draw(len(pictures), name, shares, seed) for name, pictures in zip(listing.classes, good, strict=True)]
    parts = []
    for part, given in ((0, None), (1, listing.val), (2, listing.test)):
        chosen = [pictures.select(part_of == part) for pictures, part_of in zip(good, drawn, strict=True)]
        parts.append(Pictures.joined([*chosen, *(_usable(pictures, unusable) for pictures in given or ())]))
    order = np.random.default_rng(seed).permutation(len(parts[0]))
    return Split(parts[0].select(order), parts[1], parts[2])


def grouping(group_by: str | None, listing: Listing) -> GroupOf | None:
    """Return the function from a picture's path to the name of its group; None without ``group_by``.

    Args:
        group_by: Name of a column, if the listing has its values; else a regular expression: paths in which it finds the same text (its
            groups, or the whole match) are one group. A path without a match is a group of its own.
        listing: The pictures.

    Raises:
        DataError: It is not a regular expression, or it matches no path.
    """
    if group_by is None:
        return None
    if listing.groups is not None:
        values = listing.groups
        return lambda path: f"group:{values[path]}" if path in values else f"path:{path}"
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise DataError(f"'{group_by}' is not a regular expression: {error}", hint=r"such as '/(\w+)_\d+\.jpg'") from None
    if not any(pattern.search(picture.path) for picture in listing.all_pictures):
        first = next(listing.all_pictures, None)
        example = f", such as '{first.path}'" if first else ""
        raise DataError(f"'{group_by}' is not a column of the list, and as a regular expression it matches no path{example}")
    return lambda path: _matched(path, pattern)


def _matched(path: str, pattern: re.Pattern[str]) -> str:
    found = pattern.search(path)
    if found is None:
        return f"path:{path}"
    return "group:" + ("\0".join(part or "" for part in found.groups()) if found.groups() else found[0])


def _usable(pictures: Sequence[Picture], unusable: Collection[str]) -> Pictures:
    known = Pictures.of(pictures)
    if not unusable:
        return known
    return known.select(np.fromiter((picture.path not in unusable for picture in known), bool, len(known)))


def _targets(count: int, shares: tuple[float, float]) -> tuple[int, int]:
    """Return how many of ``count`` pictures validate and test: at least one each if their share is above 0, and one is left to train."""
    val = min(max(1, round(shares[0] * count)), count - 1) if shares[0] and count > 1 else 0
    test = min(max(1, round(shares[1] * count)), count - 1 - val) if shares[1] and count > 1 + val else 0
    return val, test


def _draw(count: int, name: str, shares: tuple[float, float], seed: int) -> PartOf:
    """Return the parts of the ``count`` pictures of the class ``name``."""
    val, test = _targets(count, shares)
    order = np.random.default_rng([seed, zlib.crc32(os.fsencode(name))]).permutation(count)
    drawn = np.zeros(count, np.uint8)
    drawn[order[:val]], drawn[order[val : val + test]] = 1, 2
    return drawn


class _GroupDraw:
    """Draws whole groups, in a drawn order, where they bring a part closer to its share of each class.

    Args:
        good: The pictures of each class.
        shares: Shares for validation and testing.
        seed: Seed of the order.
        group_of: Path → group.
    """

    def __init__(self, good: list[Pictures], shares: tuple[float, float], seed: int, group_of: GroupOf):
        self._groups: dict[str, list[tuple[int, int]]] = {}
        for label, pictures in enumerate(good):
            for index, picture in enumerate(pictures):
                self._groups.setdefault(group_of(picture.path), []).append((label, index))
        names = sorted(self._groups, key=natural)
        self._order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
        self._targets = [_targets(len(pictures), shares) for pictures in good]
        self._have = [Counter[int](), Counter[int](), Counter[int]()]
        # Pictures that are left to train.
        self._left = Counter({label: len(pictures) for label, pictures in enumerate(good)})
        self.drawn: list[PartOf] = [np.zeros(len(pictures), np.uint8) for pictures in good]

    def place(self, placed: Mapping[str, str]) -> None:
        """Put the groups in ``placed`` into their parts."""
        for name in self._open():
            if name in placed:
                self._move(name, PARTS.index(placed[name]))

    def draw(self, part: int) -> None:
        """Draw the groups of a part, 1 (validation) or 2 (testing)."""
        have, targets = self._have[part], [target[part - 1] for target in self._targets]
        for name in self._open():
            sizes = self._sizes(name)
            before = sum(abs(have[label] - targets[label]) for label in sizes)
            after = sum(abs(have[label] + size - targets[label]) for label, size in sizes.items())
            if after < before and self._may_leave(name):
                self._move(name, part)
        # Groups larger than the share: the smallest one, so that no class is left out.
        names_of: dict[int, list[str]] = {}
        for name in self._open():
            for label in self._sizes(name):
                names_of.setdefault(label, []).append(name)
        for label, target in enumerate(targets):
            if target and not have[label]:
                fitting = [name for name in names_of.get(label, ()) if name in self._groups and self._may_leave(name)]
                if fitting:
                    self._move(min(fitting, key=lambda name: len(self._groups[name])), part)

    def _open(self) -> list[str]:
        return [name for name in self._order if name in self._groups]

    def _sizes(self, name: str) -> Counter[int]:
        return Counter(label for label, _ in self._groups[name])

    def _may_leave(self, name: str) -> bool:
        """Return whether every class of a group has training pictures without the group."""
        return all(self._left[label] > size for label, size in self._sizes(name).items())

    def _move(self, name: str, part: int) -> None:
        for label, index in self._groups.pop(name):
            self.drawn[label][index] = part
            self._have[part][label] += 1
            self._left[label] -= 1 if part else 0
