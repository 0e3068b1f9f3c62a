"""What the data layers of a net are to read, as people say it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from caffetools.data.datasets.card import DatasetCard
from caffetools.errors import CaffeToolsError, DataError
from caffetools.project.dataset_config import mean_of
from caffetools.proto.binary import read_binaryproto

# What a field of Caffe's messages holds.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class DataOptions:
    """What the data layers are to read; None leaves it.

    Attributes:
        train_source, val_source: databases. mean: a file, or values as text, such as ``104,117,123``.
        train_batch, val_batch: pictures a batch. crop: the side of the square cut out of each picture, at random in training.
    """

    train_source: str | None = None
    val_source: str | None = None
    mean: str | None = None
    train_batch: int | None = None
    val_batch: int | None = None
    crop: int | None = None

    def settings(self) -> dict[str, Any]:
        """The arguments of :func:`~caffetools.project.data_config.set_data_sources`. Raises :class:`DataError` where the mean is none."""
        for name in ("train_batch", "val_batch", "crop"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MOST:
                raise CaffeToolsError(f"--{name.replace('_', '-')} must be from 1 to {_MOST}, not {value}")
        mean_file, mean_values = read_mean_option(self.mean)
        if mean_file is not None:
            # Only to see that it is one.
            read_binaryproto(mean_file)
        return {**{k: v for k, v in asdict(self).items() if k != "mean"}, "mean_file": mean_file, "mean_values": mean_values}

    def with_dataset(self, card: DatasetCard | None) -> DataOptions:
        """These options, and the dataset's sources and mean where they do not say."""
        if card is None:
            return self
        train, val = self.train_source or str(card.train_lmdb), self.val_source or str(card.val_lmdb)
        return replace(self, train_source=train, val_source=val, mean=self.mean or mean_of(card))


def read_mean_option(mean: str | None) -> tuple[str | None, list[float] | None]:
    """A mean as people give it: (file, None) or (None, values). Raises :class:`DataError` where it is neither."""
    if mean is None:
        return None, None
    number = r"\s*-?\d+(?:\.\d*)?\s*"
    if re.fullmatch(rf"{number}(,{number})*", mean):
        return None, [float(value) for value in mean.split(",")]
    if not Path(mean).is_file():
        raise DataError(f"{mean}: no such mean file, and no list of values like 104,117,123")
    return mean, None
