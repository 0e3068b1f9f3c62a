"""dataset.json: what is known about a dataset, for whoever trains on it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caffetools.errors import DataError
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]

CARD = "dataset.json"
_FORMAT = 1


@dataclass(frozen=True)
class Skipped:
    """A picture that is not in the dataset: its path below the pictures' folder, and why."""

    path: str
    reason: str


@dataclass
class DatasetCard:
    """A dataset that :func:`caffetools.data.datasets.build.build_dataset` made.

    Attributes:
        folder: Where it lies; the files are its properties.
        classes: The names, label i at place i. train_counts, val_counts: pictures of each class.
        width, height: Of every picture; 0 where they keep their own sizes. channels: 3 (BGR) or 1.
        mean_values: One value a channel of the training pictures, in the channels' order; 0 to 255.
        seed, val: What the split was drawn with; ``val`` is None where the pictures came split.
        gray, encoded: As asked for. skipped: pictures left out. notes: what a user should know, one sentence each.
        pictures: The folder that the pictures came from.
    """

    folder: Path
    classes: list[str]
    train_counts: list[int]
    val_counts: list[int]
    width: int
    height: int
    channels: int
    mean_values: list[float]
    seed: int
    val: float | None
    gray: bool = False
    encoded: bool = False
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: str = ""

    @property
    def train_lmdb(self) -> Path:
        return self.folder / "train_lmdb"

    @property
    def val_lmdb(self) -> Path:
        return self.folder / "val_lmdb"

    @property
    def mean_file(self) -> Path | None:
        """The mean picture; None where the pictures differ in size and there cannot be one."""
        return self.folder / "mean.binaryproto" if self.width else None

    @property
    def labels_file(self) -> Path:
        return self.folder / "labels.txt"

    @property
    def train_count(self) -> int:
        return sum(self.train_counts)

    @property
    def val_count(self) -> int:
        return sum(self.val_counts)

    def to_json(self) -> dict[str, Any]:
        """The card as it is written to dataset.json: plain values, without the folder that it lies in."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("folder", "skipped")}
        return {"format": _FORMAT, **values, "skipped": [{"path": s.path, "reason": s.reason} for s in self.skipped]}


def save_card(card: DatasetCard, folder: Path) -> None:
    """Write ``card`` as dataset.json into ``folder``, atomically."""
    text = json.dumps(card.to_json(), indent=2, ensure_ascii=False) + "\n"
    with atomic_write(folder / CARD) as stream:
        stream.write(os.fsencode(text))


def load_card(folder: PathLike) -> DatasetCard:
    """The card of the dataset in ``folder``. Raises :class:`DataError` where there is none, or it is damaged."""
    path = Path(folder) / CARD
    try:
        values = json.loads(os.fsdecode(path.read_bytes()))
        if values.pop("format") != _FORMAT:
            raise DataError(f"{path}: made by another version of caffetools; build the dataset again")
        values["skipped"] = [Skipped(**entry) for entry in values["skipped"]]
        return DatasetCard(folder=Path(folder), **values)
    except OSError as error:
        raise DataError(
            f"{path}: cannot read: {error.strerror}; {os.fspath(folder)} is no dataset of caffetools (see `caffetools dataset build`)"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: damaged, or not a dataset's card: {error}; build the dataset again") from None
