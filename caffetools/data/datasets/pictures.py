"""Pictures of a dataset, millions of them: their paths and labels in a table of a few bytes each, and choices from it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Parts of a dataset, in the order in which they are written.
PARTS = ("train", "val", "test")
# Paths come from the system, and may have any bytes; those of JSON lists may have any surrogates.
_ENCODING = ("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture.

    Attributes:
        path: Its path below the root of its listing, with ``/``.
        label: Its label.
    """

    path: str
    label: int


class PictureTable:
    """Paths and labels of pictures, one after the other: 12 bytes for each, and its path."""

    def __init__(self) -> None:
        self._paths = bytearray()
        self._ends = array("Q", [0])
        self._labels = array("i")

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, path: str, label: int) -> None:
        """Append a picture."""
        self._paths += path.encode(*_ENCODING)
        self._ends.append(len(self._paths))
        self._labels.append(label)

    def path(self, index: int) -> str:
        """Return the path of a picture by its number."""
        return self._paths[self._ends[index] : self._ends[index + 1]].decode(*_ENCODING)

    def label(self, index: int) -> int:
        """Return the label of a picture by its number."""
        return self._labels[index]

    def labels(self, indices: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the labels of pictures by their numbers."""
        # A copy, since nothing can be appended to an array as long as NumPy looks at its memory.
        found: NDArray[np.int32] = np.frombuffer(self._labels, np.int32)[indices]
        return found

    def relabelled(self, new: Sequence[int]) -> PictureTable:
        """Return a table of the same paths, in which label i is ``new[i]``; the paths are not copied."""
        table = PictureTable()
        table._paths, table._ends = self._paths, self._ends
        table._labels = array("i", np.asarray(new, np.int32)[np.frombuffer(self._labels, np.int32)].tobytes())
        return table


class Pictures(Sequence[Picture]):
    """Pictures of a table, in an order: 4 bytes for each.

    Args:
        table: The table.
        indices: (N) numbers of the pictures in it; None: all.
    """

    def __init__(self, table: PictureTable, indices: ArrayLike | None = None):
        self.table = table
        self.indices: NDArray[np.int32] = np.arange(len(table), dtype=np.int32) if indices is None else np.asarray(indices, np.int32)

    @classmethod
    def of(cls, pictures: Iterable[Picture]) -> Pictures:
        """Return ``pictures``; they are put into a new table if they are in none."""
        if isinstance(pictures, Pictures):
            return pictures
        table = PictureTable()
        for picture in pictures:
            table.add(picture.path, picture.label)
        return cls(table)

    @classmethod
    def joined(cls, parts: Sequence[Pictures]) -> Pictures:
        """Return the pictures of all ``parts``, one part after the other."""
        parts = [part for part in parts if len(part)] or parts[:1]
        if not parts:
            return cls.of(())
        if any(part.table is not parts[0].table for part in parts):
            return cls.of(picture for part in parts for picture in part)
        return cls(parts[0].table, np.concatenate([part.indices for part in parts]))

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Picture]:
        # In pieces, so that the numbers do not all become Python's.
        for begin in range(0, len(self.indices), 4096):
            for index in self.indices[begin : begin + 4096].tolist():
                yield Picture(self.table.path(index), self.table.label(index))

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Picture | Pictures:
        if isinstance(index, slice):
            return Pictures(self.table, self.indices[index])
        number = int(self.indices[index])
        return Picture(self.table.path(number), self.table.label(number))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} pictures>"

    @property
    def labels(self) -> NDArray[np.int32]:
        """The labels, (N)."""
        return self.table.labels(self.indices)

    def select(self, chosen: ArrayLike) -> Pictures:
        """Return some of the pictures, by a mask (N) or by their places."""
        return Pictures(self.table, self.indices[np.asarray(chosen)])


def by_class(pictures: Pictures, classes: int) -> list[Pictures]:
    """Return the pictures of each label, in their order."""
    labels = pictures.labels
    order = np.argsort(labels, kind="stable").astype(np.int32)
    ends = np.searchsorted(labels[order], np.arange(classes + 1))
    return [pictures.select(order[begin:end]) for begin, end in pairwise(ends)]
