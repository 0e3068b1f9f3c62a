"""A torch Dataset over any of Caffe's databases."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from caffetools.data.databases import Database, open_database, shown_key
from caffetools.data.datum import record_to_array
from caffetools.errors import DataError

PathLike = str | os.PathLike[str]


class LmdbDataset(Dataset[tuple[Tensor, Any]]):
    """The records of an LMDB or LevelDB of Datum messages, by number: (picture, label).

    Safe with the workers of a ``DataLoader``: each process reads on its own, and nothing is locked.

    Args:
        path: The database.
        labels: A second database whose record i holds the labels of picture i (as DIGITS and multi-label nets store them); None
            for the label in the Datum.
        color: How encoded pictures are decoded: True for BGR, False for gray, None for what is stored.
        transform: Called with each picture (C, H, W); its result is returned instead.
        target_transform: Called with each label; its result is returned instead.

    Raises:
        DataError: A database cannot be read, or the two differ in their number of records.

    Example:
        >>> from caffetools.data import LmdbDataset
        >>> dataset = LmdbDataset("tests/golden/io/db/lmdb_raw")
        >>> picture, label = dataset[0]
        >>> tuple(picture.shape), picture.dtype, label
        ((3, 18, 23), torch.uint8, 0)
    """

    def __init__(
        self,
        path: PathLike,
        *,
        labels: PathLike | None = None,
        color: bool | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ):
        self.path, self.color = os.fspath(path), color
        self.labels = None if labels is None else os.fspath(labels)
        self.transform, self.target_transform = transform, target_transform
        self._open: dict[str, Database] = {}
        self._process = os.getpid()
        self._count = len(self._database(self.path))
        if self.labels is not None and len(self._database(self.labels)) != self._count:
            raise DataError(f"has {len(self._database(self.labels))} records, but {self.path} has {self._count}", path=self.labels)

    def __len__(self) -> int:
        """Return the number of records."""
        return self._count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return a record.

        Args:
            index: Number of the record in the order of the keys; negative ones count from the end.

        Returns:
            The picture (C, H, W): uint8, float32 for ``float_data``, int32 for pictures of 16 bits; and the label: an int, or, with ``labels``, a float32 tensor
            of all values of that record.

        Raises:
            IndexError: There is no such record.
            DataError: The record is damaged; names it.
        """
        number = index + self._count if index < 0 else index
        if not 0 <= number < self._count:
            raise IndexError(f"record {index} of {self._count}")
        array, label = self._read(self.path, number)
        picture: Any = torch.from_numpy(np.array(array))
        target: Any = label
        if self.labels is not None:
            target = torch.from_numpy(np.array(self._read(self.labels, number)[0], np.float32).reshape(-1))
        return (
            picture if self.transform is None else self.transform(picture),
            target if self.target_transform is None else self.target_transform(target),
        )

    def key(self, index: int) -> str:
        """Return the key of the record ``index``."""
        return self._database(self.path).item(index)[0].decode("utf-8", "replace")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def _read(self, path: str, number: int) -> tuple[np.ndarray[Any, Any], int]:
        key, value = self._database(path).item(number)
        array, label = record_to_array(value, color=self.color, what=shown_key(path, key), any_depth=True)
        # Few operations of torch take uint16.
        return (array.astype(np.int32) if array.dtype == np.uint16 else array), label

    def _database(self, path: str) -> Database:
        if self._process != os.getpid():
            # A worker that was forked must not use the handles of its parent.
            self._open, self._process = {}, os.getpid()
        if path not in self._open:
            self._open[path] = open_database(path)
        return self._open[path]
