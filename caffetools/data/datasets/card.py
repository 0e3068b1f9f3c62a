"""dataset.json: the card of a dataset, with its classes, counts, sizes, checksums and settings."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from caffetools.data.datasets.pictures import PARTS
from caffetools.errors import DataError
from caffetools.util import urls
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]

CARD = "dataset.json"
_FORMAT = 1


@dataclass(frozen=True)
class Skipped:
    """A picture that is not in the dataset.

    Attributes:
        path: Its path below the pictures' folder.
        reason: Why.
    """

    path: str
    reason: str


@dataclass
class DatasetCard:
    """A dataset that :func:`caffetools.data.datasets.build.build_dataset` made.

    Attributes:
        folder: Its folder; the properties name the files in it.
        classes: The class names; label i at place i.
        train_counts: Training pictures of each class.
        val_counts: Validation pictures of each class.
        width: Width of every picture in pixels; 0 if they keep their own sizes.
        height: Height of every picture in pixels; 0 if they keep their own sizes.
        channels: 3 (BGR) or 1.
        mean_values: Mean of each channel over the training pictures, in the channels' order; 0 to 255.
        seed: Seed of the split and the order.
        val: Share that validates; None if the source gives the split.
        gray: Whether one channel is stored.
        encoded: Whether picture files are stored.
        skipped: Pictures that are left out.
        notes: Facts that a user should know, one sentence each.
        pictures: The folder, list or archive that the pictures come from.
        test_counts: Test pictures of each class; empty without a test split.
        settings: Further settings of the build: ``storage``, ``resize_mode``, ``test``, ``group_by``, ``min_per_class``…
        duplicates: Groups of equal or near-identical pictures: ``kind``, ``paths``, ``parts``, ``labels``; the first 200.
        files: File in the folder → its size (``bytes``) and ``sha256``.
        url: The URL that the dataset is at; empty if it is in a folder. Not in dataset.json.
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
    test_counts: list[int] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    duplicates: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    url: str = ""

    @property
    def pictures_source(self) -> Path:
        """Where :attr:`pictures` is: as written, else from the nearest folder above the dataset from which it is found."""
        path = Path(self.pictures)
        if path.is_absolute() or path.exists():
            return path
        above = (Path(os.path.relpath(folder / path)) for folder in self.folder.absolute().parents)
        return next((place for place in above if place.exists()), path)

    @property
    def train_lmdb(self) -> Path:
        """Source of the training pictures for a Data layer."""
        return self.source("train")

    @property
    def val_lmdb(self) -> Path:
        """Source of the validation pictures for a Data layer."""
        return self.source("val")

    @property
    def test_lmdb(self) -> Path | None:
        """Source of the test pictures for a Data layer; None without a test split."""
        return self.source("test") if self.test_counts else None

    @property
    def mean_file(self) -> Path | None:
        """The mean picture; None if the pictures differ in size, which allows none."""
        return self.folder / "mean.binaryproto" if self.width else None

    @property
    def labels_file(self) -> Path:
        """File of the class names."""
        return self.folder / "labels.txt"

    @property
    def train_count(self) -> int:
        """Number of training pictures."""
        return sum(self.train_counts)

    @property
    def val_count(self) -> int:
        """Number of validation pictures."""
        return sum(self.val_counts)

    @property
    def test_count(self) -> int:
        """Number of test pictures."""
        return sum(self.test_counts)

    def counts(self, part: str) -> list[int]:
        """Return the pictures of each class in a part; empty for a test split that there is not.

        Args:
            part: ``train``, ``val`` or ``test``.
        """
        return {"train": self.train_counts, "val": self.val_counts, "test": self.test_counts}[part]

    def source(self, part: str) -> Path:
        """Return the source of a part for a Data layer.

        Args:
            part: ``train``, ``val`` or ``test``.
        """
        return self.folder / f"{part}_lmdb"

    def to_json(self) -> dict[str, Any]:
        """Return the card as it is written to dataset.json: plain values, without the folder."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("folder", "skipped", "url")}
        return {"format": _FORMAT, **values, "skipped": [asdict(skipped) for skipped in self.skipped]}


def card_of(database: PathLike) -> tuple[DatasetCard, str] | None:
    """Return the card of the dataset that a database is in, and its part: ``train``, ``val`` or ``test``; None for one that is in none."""
    folder = Path(database).resolve().parent
    if not (folder / CARD).is_file():
        return None
    card = load_card(folder)
    return next(((card, part) for part in PARTS if card.source(part).resolve() == Path(database).resolve()), None)


def class_names(database: PathLike) -> list[str]:
    """Return the class names of the dataset that a database is in; empty for a database that is in none."""
    found = card_of(database)
    return found[0].classes if found is not None else []


def save_card(card: DatasetCard, folder: Path) -> None:
    """Write ``card`` as dataset.json into ``folder``, atomically."""
    text = json.dumps(card.to_json(), indent=2, ensure_ascii=False) + "\n"
    with atomic_write(folder / CARD) as stream:
        stream.write(os.fsencode(text))


def load_card(folder: PathLike) -> DatasetCard:
    """Return the card of the dataset in ``folder``, which may be a URL. Raises :class:`DataError` if it is missing or damaged."""
    path = urls.join(folder, CARD)
    url = os.fspath(folder) if urls.is_url(folder) else ""
    try:
        values = json.loads(os.fsdecode(urls.read_bytes(path) if url else Path(path).read_bytes()))
        if values.pop("format") != _FORMAT:
            raise DataError(f"{path}: made by another version of caffetools; build the dataset again")
        values["skipped"] = [Skipped(**entry) for entry in values["skipped"]]
        # A card of a later version may have more.
        known = {name: value for name, value in values.items() if name in DatasetCard.__dataclass_fields__}
        return DatasetCard(folder=Path() if url else Path(folder), **{**known, "url": url})
    except OSError as error:
        raise DataError(
            f"cannot read: {error.strerror}; {os.fspath(folder)} is not a dataset of caffetools (see `caffetools dataset build`)", path=path
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: damaged, or not a dataset's card: {error}; build the dataset again") from None
