"""New pictures and classes for an existing dataset."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from caffetools.cancel import CancelToken
from caffetools.data.databases import LmdbWriter, open_database
from caffetools.data.datasets.archives import is_archive, list_archive
from caffetools.data.datasets.card import CARD, DatasetCard, Skipped, load_card
from caffetools.data.datasets.combine import all_prints, common_root, complete_card, read_part, record_print
from caffetools.data.datasets.duplicates import Duplicates, find_duplicates, superfluous
from caffetools.data.datasets.finishing import finish_dataset
from caffetools.data.datasets.journal import JOURNALS, Journal
from caffetools.data.datasets.listing import Listing, list_pictures
from caffetools.data.datasets.lists import read_listing
from caffetools.data.datasets.picture_records import RecordFormat, check_encoding, picture_records
from caffetools.data.datasets.pictures import Picture, Pictures
from caffetools.data.datasets.remote import urls_allowed
from caffetools.data.datasets.resizing import check_resize_mode
from caffetools.data.datasets.splits import PARTS, GroupOf, Split, grouping, split_listing
from caffetools.data.datasets.writing import Source, WriteResult, write_pictures
from caffetools.data.sharding import finished_shard, shard_name
from caffetools.data.shards import INDEX, ShardIndex, read_index, write_index
from caffetools.errors import DataError
from caffetools.events import ArtifactWritten, EventSink, ignore, reported, reporter
from caffetools.util.folders import new_folder, remove

PathLike = str | os.PathLike[str]
_NUMBER = re.compile(rb"\d{1,18}(?=_|$)")


@dataclass(frozen=True)
class AddOptions:
    """Options of :func:`add_pictures`.

    Attributes:
        val: Share of each class's new pictures for validation; None takes that of the dataset.
        test: Share for testing; None takes that of the dataset.
        group_by: As for :func:`~caffetools.data.datasets.build.build_dataset`; new pictures of a group that the dataset has join its part.
        root: Folder that the paths of a list are relative to.
        drop_duplicates: Leave out new pictures whose pixels are equal to those of others.
        drop_similar: The same for near-identical pictures.
        keep_mean: Keep the dataset's mean, for a net that was trained with it.
        strict: Stop at the first picture that cannot be used.
    """

    val: float | None = None
    test: float | None = None
    group_by: str | None = None
    root: PathLike | None = None
    drop_duplicates: bool = False
    drop_similar: bool = False
    keep_mean: bool = False
    strict: bool = False


@urls_allowed
def add_pictures(
    dataset: PathLike,
    pictures: PathLike,
    options: AddOptions | None = None,
    *,
    out: PathLike | None = None,
    force: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> DatasetCard:
    """Add pictures to a dataset, stored as its others are.

    Classes keep their labels, new ones get the labels that follow. The old records stay byte for byte, the new ones come after them; in a
    dataset of shards they are a shard of their own.
    Pictures that the dataset lists already are left out, so a folder that has grown can be given again.

    Args:
        dataset: Folder of a dataset of :func:`~caffetools.data.datasets.build.build_dataset`.
        pictures: As for that function; a single class is enough. Labels of lists that are numbers are those of the dataset.
        options: The options.
        out: Folder to create; by default the dataset is replaced once the new one is complete.
        force: Replace a dataset at ``out``.
        events: Receives ``Started``, ``Progress`` (unit ``images``), ``ArtifactWritten`` and ``Finished``.
        cancel: Checked between pictures; the dataset is unchanged after a cancellation.

    Raises:
        DataError: The dataset is damaged, there is no new picture, or an option is out of range.
        WriteFailed: The dataset cannot be written; it is unchanged.
        Cancelled: ``cancel`` was set.
    """
    options = options or AddOptions()
    old = load_card(dataset)
    target = Path(dataset if out is None else out)
    report = reporter(events, "dataset", "images", cancel)
    with reported("dataset", f"Adding to {os.fspath(dataset)}", events):
        with new_folder(target, force=force or out is None, replaceable=lambda folder: (folder / CARD).is_file()) as work:
            listing = _listing(Path(pictures), old, options, work / "unpacked")
            card = _Adder(old, listing, work, target, options, report).add()
        events(ArtifactWritten(task="dataset", path=str(target), what="dataset"))
    return card


def _listing(pictures: Path, card: DatasetCard, options: AddOptions, unpacked: Path) -> Listing:
    if is_archive(pictures):
        return list_archive(pictures, unpacked, fewest=1)
    if pictures.is_file():
        return read_listing(pictures, root=options.root, group_by=options.group_by, classes=card.classes)
    if options.root is not None:
        raise DataError("it is not a list: a root belongs to a list of pictures", path=pictures)
    return list_pictures(pictures, fewest=1)


class _Adder:
    def __init__(
        self, old: DatasetCard, listing: Listing, work: Path, target: Path, options: AddOptions, report: Callable[[int, int], None]
    ):
        self._old, self._work, self._target, self._options, self._report = old, work, target, options, report
        self._classes = [*old.classes, *(name for name in listing.classes if name not in old.classes)]
        self._root, self._prefixes = common_root([old.pictures, str(listing.home or listing.root)])
        self._before = {part: self._moved(read_part(old, part), 0) for part in PARTS}
        self._listing, self._known = self._without_known(_relabelled(listing, self._classes))
        self._source = Source(listing.root, _stored(old), listing.home, options.strict)
        self._done, self._total = 0, 0

    def add(self) -> DatasetCard:
        for part in PARTS:
            if self._before[part] or part == "val":
                self._copy(part)
        left_out = self._find_superfluous() if self._options.drop_duplicates or self._options.drop_similar else {}
        self._drop_empty(left_out)
        split = self._split(left_out)
        new = len(split.train) + len(split.val) + len(split.test)
        if not new:
            reasons = f"; {self._known} of them are in it already" if self._known else ""
            raise DataError(f"no picture of {self._listing.source or self._listing.root} can be added{reasons}", path=self._old.folder)
        before = sum(map(len, self._before.values()))
        self._total = self._done + 2 * new + before + len(self._before["train"]) + len(split.train)
        written = WriteResult()
        for part in PARTS:
            pictures: Pictures = getattr(split, part)
            if len(pictures):
                self._append(part, pictures, written)
        if not any(written.parts.values()):
            first = written.unusable[0]
            known = f" {self._known} of them are in it already;" if self._known else ""
            text = f"no picture of {self._listing.source or self._listing.root} can be added;{known} the first error: {first.path}: {first.reason}"
            raise DataError(text, path=self._old.folder)
        return self._finish(written, left_out)

    def _finish(self, written: WriteResult, left_out: dict[str, str]) -> DatasetCard:
        remove(self._work / "unpacked")
        remove(self._work / JOURNALS)
        parts = {part: self._before[part] + self._moved(written.parts[part], 1) for part in PARTS}
        skipped = [*self._listing.skipped, *(Skipped(path, reason) for path, reason in left_out.items()), *written.unusable]
        moved = [
            replace(one, path=prefix + one.path)
            for prefix, of in zip(self._prefixes, (self._old.skipped, skipped), strict=True)
            for one in of
        ]
        notes = ["The added pictures come after the old ones in the databases, which a Data layer reads in order."]
        notes += [f"{self._known} picture(s) were in the dataset already."] if self._known else []
        card = replace(
            self._old, folder=self._target, classes=self._classes, pictures=self._root, skipped=moved, notes=notes, duplicates=[], files={}
        )
        complete_card(card, parts, all_prints(self._work, parts, self._step))
        keep = self._options.keep_mean
        if keep and self._old.mean_file is not None:
            shutil.copyfile(self._old.mean_file, self._work / "mean.binaryproto")
        finish_dataset(self._work, card, parts, lambda *_: self._step(), keep_mean=keep)
        return card

    def _drop_empty(self, left_out: dict[str, str]) -> None:
        """Leave out new classes of which no picture is left."""
        used = {picture.label for picture in self._listing.all_pictures if picture.path not in left_out}
        empty = {label for label in range(len(self._old.classes), len(self._classes)) if label not in used}
        self._listing = self._listing.without(empty)
        self._classes = self._listing.classes

    def _step(self) -> None:
        self._done += 1
        self._report(self._done, max(self._done, self._total))

    def _moved(self, pictures: Sequence[Picture], which: int) -> list[Picture]:
        """Return pictures with paths below the common root; ``which``: 0 for those of the dataset, 1 for the new ones."""
        return [Picture(self._prefixes[which] + picture.path, picture.label) for picture in pictures]

    def _without_known(self, listing: Listing) -> tuple[Listing, int]:
        """Return the listing without pictures that the dataset lists, and how many they are."""
        known = {picture.path for pictures in self._before.values() for picture in pictures}
        count = 0

        def new(pictures: Sequence[Sequence[Picture]]) -> list[list[Picture]]:
            nonlocal count
            kept = [[picture for picture in of_class if self._prefixes[1] + picture.path not in known] for of_class in pictures]
            count += sum(map(len, pictures)) - sum(map(len, kept))
            return kept

        val, test = (None if given is None else new(given) for given in (listing.val, listing.test))
        return replace(listing, pictures=new(listing.pictures), val=val, test=test), count

    def _split(self, left_out: dict[str, str]) -> Split:
        options, listing = self._options, self._listing
        val = options.val if options.val is not None else self._old.val
        test = options.test if options.test is not None else float(self._old.settings.get("test", 0.0))
        if val is None:
            if listing.val is None:
                raise DataError(
                    "the dataset came with its split, so the share for validation must be given", path=self._old.folder, hint="give --val"
                )
            val = 0.0
        if not 0 <= val < 1 or not 0 <= test < 1 - val:
            raise DataError(
                f"the shares for validation and testing must be 0 or more, and less than 1 together; {val:g} and {test:g} are not"
            )
        group_of, placed = self._groups()
        return split_listing(listing, val, self._old.seed, left_out, test=test, group_of=group_of, placed=placed)

    def _groups(self) -> tuple[GroupOf | None, dict[str, str]]:
        """Return the groups of the new pictures, and the parts of those that the dataset has: a column's values are not known of it."""
        group_by = self._options.group_by
        if group_by is None:
            return None, {}
        group_of = grouping(group_by, self._listing)
        if group_of is None or self._listing.groups is not None:
            return group_of, {}
        return group_of, {group_of(picture.path): part for part in PARTS for picture in self._before[part]}

    def _find_superfluous(self) -> dict[str, str]:
        """Return the new pictures that are equal (or similar) to others, and why; pictures of the dataset are kept."""
        old = all_prints(self._work, self._before, self._step)
        pictures = list(self._listing.all_pictures)
        with closing(picture_records(pictures, self._source.root, self._source.stored)) as records:
            for picture, record in zip(pictures, records, strict=True):
                if not isinstance(record, DataError):
                    old.append(record_print(replace(picture, path=f"\0{picture.path}"), record.value, "train", picture.path))
                self._step()
        groups = find_duplicates(old, similar=self._options.drop_similar)
        found: dict[str, str] = {}
        for group in groups:
            for path, reason in _to_drop(group).items():
                found.setdefault(path.removeprefix("\0"), reason.replace("\0", ""))
        return found

    def _copy(self, part: str) -> None:
        """Copy a database of the dataset: its data.mdb, or its shards and their index."""
        source, target = self._old.source(part), self._work / f"{part}_lmdb"
        if (source / INDEX).is_file():
            names = [INDEX, *(f"{shard.path}/data.mdb" for shard in read_index(source).shards)]
        else:
            names = ["data.mdb"]
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)

    def _append(self, part: str, pictures: Pictures, written: WriteResult) -> None:
        folder = self._work / f"{part}_lmdb"
        shards = read_index(folder).shards if (folder / INDEX).is_file() else ()
        if not shards and not (self._old.source("train") / INDEX).is_file():
            self._write(folder, part, pictures, written)
            return
        # The numbers of the new shard's keys follow those of the last one that has records.
        filled = [shard for shard in shards if shard.records]
        name = shard_name(len(shards))
        self._write(folder / name, part, pictures, written, folder / filled[-1].path if filled else None)
        if written.parts[part]:
            new = finished_shard(folder, name, len(written.parts[part]), checksums=all(shard.sha256 for shard in shards))
            write_index(folder, ShardIndex((*shards, new)))
        else:
            remove(folder if not shards else folder / name)

    def _write(self, folder: Path, part: str, pictures: Pictures, written: WriteResult, before: Path | None = None) -> None:
        """Write pictures into the LMDB ``folder``, with keys that count on after its last one, or after the last one of ``before``."""
        folder.mkdir(parents=True, exist_ok=True)
        writer = LmdbWriter(folder)
        try:
            count, last_key = writer.count, writer.last_key
            if before is not None:
                with closing(open_database(before)) as database:
                    last_key = database.item(len(database) - 1)[0]
            found = _NUMBER.match(last_key)
            number = max(count, int(found[0]) + 1 if found else 0)
            with Journal(self._work / JOURNALS / part) as journal:
                write_pictures(writer, number, pictures, self._source, journal, self._step)
        except BaseException:
            writer.abandon()
            raise
        writer.close()
        written.take(part, pictures, self._work / JOURNALS / part)


def _to_drop(group: Duplicates) -> dict[str, str]:
    """Return path → reason of a group's pictures to leave out; new ones have a zero byte before their path."""
    old = [path for path in group.paths if not path.startswith("\0")]
    if not old:
        return superfluous([group])
    what = "it is equal to" if group.kind == "same" else "it is nearly equal to"
    return {path: f"{what} '{old[0]}' of the dataset" for path in group.paths if path.startswith("\0")}


def _relabelled(listing: Listing, classes: list[str]) -> Listing:
    """Return the listing with the labels that ``classes`` gives to its classes' names, and an empty list for each other class."""
    labels = [classes.index(name) for name in listing.classes]

    def moved(pictures: Sequence[Sequence[Picture]]) -> list[list[Picture]]:
        found: list[list[Picture]] = [[] for _ in classes]
        for label, of_class in zip(labels, pictures, strict=True):
            found[label] = [Picture(picture.path, label) for picture in of_class]
        return found

    val, test = (None if given is None else moved(given) for given in (listing.val, listing.test))
    return replace(listing, classes=classes, pictures=moved(listing.pictures), val=val, test=test)


def _stored(card: DatasetCard) -> RecordFormat:
    """Return how the pictures of a dataset are stored."""
    settings = card.settings
    encoding = check_encoding(str(settings.get("encode", "source" if card.encoded else "raw")))
    mode = check_resize_mode(str(settings.get("resize_mode", "squash")))
    size = (card.width, card.height) if card.width else None
    return RecordFormat(size, not card.gray, encoding, mode, settings.get("fast_decode") is True)
