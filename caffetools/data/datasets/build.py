"""Building a dataset: pictures to LMDBs, lists, labels, mean and card, complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from caffetools.cancel import CancelToken
from caffetools.data.datasets.archives import is_archive, list_archive
from caffetools.data.datasets.card import CARD, DatasetCard, Skipped, load_card
from caffetools.data.datasets.duplicates import Fingerprint, Fingerprints, difference_hash, find_duplicates, superfluous
from caffetools.data.datasets.findings import findings
from caffetools.data.datasets.finishing import class_counts, finish_dataset
from caffetools.data.datasets.journal import JOURNALS
from caffetools.data.datasets.listing import Listing, list_pictures
from caffetools.data.datasets.lists import read_listing
from caffetools.data.datasets.picture_records import RecordFormat, check_encoding
from caffetools.data.datasets.pictures import Picture
from caffetools.data.datasets.remote import urls_allowed
from caffetools.data.datasets.resizing import check_resize_mode
from caffetools.data.datasets.splits import PARTS, GroupOf, Split, grouping, split_listing
from caffetools.data.datasets.writing import Source, Step, WriteResult, write_split
from caffetools.data.images import decode_image, parse_size, read_bytes
from caffetools.errors import DataError
from caffetools.events import ArtifactWritten, EventSink, ignore, reported, reporter
from caffetools.util.files import write_text
from caffetools.util.folders import new_folder, remove
from caffetools.util.threads import ordered_map

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]
SplitWriter = Callable[[Split, Source, Path, Step], WriteResult]
# Shards of each database that a cluster writes by default.
_SHARDS = 8
# Files of the hidden folder that a finished dataset does not have.
_STATE, _UNPACKED = "build.json", "unpacked"

__all__ = ["DatasetCard", "Skipped", "build_dataset", "load_card"]


@dataclass(frozen=True)
class _Settings:
    """The arguments of :func:`build_dataset` that decide what is in the dataset, checked."""

    stored: RecordFormat
    val: float
    test: float
    seed: int
    group_by: str | None
    min_per_class: int
    drop: str
    strict: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "encode": self.stored.encoding,
            "resize_mode": self.stored.resize_mode,
            "fast_decode": self.stored.fast_decode,
            "test": self.test,
            "group_by": self.group_by,
            "min_per_class": self.min_per_class,
            "dropped": self.drop,
        }


@urls_allowed
def build_dataset(
    pictures: PathLike,
    out: PathLike,
    *,
    size: int | str | tuple[int, int] = 256,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 1,
    gray: bool = False,
    encoded: bool = False,
    encode: str = "raw",
    resize_mode: str = "squash",
    fast_decode: bool = False,
    group_by: str | None = None,
    min_per_class: int = 1,
    drop_duplicates: bool = False,
    drop_similar: bool = False,
    root: PathLike | None = None,
    val_list: PathLike | None = None,
    test_list: PathLike | None = None,
    labels: PathLike | None = None,
    strict: bool = False,
    force: bool = False,
    resume: bool = False,
    shards: int = 0,
    cluster: str = "",
    progress: Progress | None = None,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> DatasetCard:
    """Build a dataset of ``pictures`` in the new folder ``out``.

    ``out`` gets ``train_lmdb``, ``val_lmdb`` and maybe ``test_lmdb`` (Datum records in Caffe's key and byte format), ``labels.txt`` (line i
    names label i), ``train.txt``, ``val.txt``… (``path label``), ``mean.binaryproto`` (of the training pictures), ``samples.png`` (a row
    of pictures for each class) and ``dataset.json``. The same pictures and arguments give the same records.

    Args:
        pictures: A folder for each class; ``train/``, ``val/`` and maybe ``test/`` with such folders, whose split is then kept; a zip
            or tar of either; or a list (see :func:`~caffetools.data.datasets.lists.read_listing`). May be a URL; of
            a list, the pictures are then in the folder that it is in.
        out: Folder to create; may be a URL.
        size: Size of the stored pictures: ``256``, ``"320x240"`` (width x height), or 0 to keep their own sizes.
        val: Share of each class for validation, between 0 and 1.
        test: Share of each class for testing, from 0.
        seed: Seed of the split and the order.
        gray: Store one channel.
        encoded: The same as ``encode="source"``.
        encode: ``raw``: pixels. ``png``, ``jpeg``: files of that type. ``source``: files, the picture's own if it is a
            JPEG, PNG or BMP of that size.
        resize_mode: ``squash``, ``crop``, ``fill`` or ``half-crop``; see :func:`~caffetools.data.datasets.resizing.resize_to`.
        fast_decode: Decode JPEGs of at least twice ``size`` at a reduced scale: up to twice as fast, but not the pixels that Caffe gives.
        group_by: Column of a list, or regular expression: pictures with the same value, or whose paths match it with the same text, are
            kept in one part.
        min_per_class: Leave out classes with fewer usable pictures.
        drop_duplicates: Keep one of several equal files; none if their labels differ.
        drop_similar: The same for near-identical pictures, equal ones included.
        root: Folder that the paths of a list are relative to.
        val_list: List of the pictures for validation; ``pictures`` must be a list.
        test_list: List of the pictures for testing; ``pictures`` must be a list.
        labels: File of class names for a list whose labels are numbers.
        strict: Stop at the first picture that cannot be used, which is otherwise left out and listed on the card.
        force: Replace a dataset at ``out`` once the new one is complete.
        resume: Continue a build with the same arguments that was killed, interrupted or cancelled, if there is one.
        shards: Write each database in this many shards with an index; 0 for one LMDB, or 8 shards with a cluster.
        cluster: Address of a cluster that reads, decodes and resizes (see :func:`~caffetools.data.cluster.run_tasks`); empty for this
            process. The records are the same.
        progress: Called with (steps done, steps in all): a step for each picture, and one for each training picture in the mean.
        events: Receives ``Started``, ``Progress`` (unit ``images``), ``ArtifactWritten`` and ``Finished``.
        cancel: Checked between pictures; after a cancellation nothing is at ``out``, and ``resume`` continues.

    Raises:
        DataError: The pictures are not a dataset, a class has no usable picture, an argument is out of range, ``out`` exists, another
            run is building it, or the build to resume has other arguments or pictures. What is at ``out`` is unchanged, as after a kill.
        RunFailed: ``out`` cannot be written, or the disk is full.
        Cancelled: ``cancel`` was set.
    """
    encoding, mode = check_encoding(encode, encoded=encoded), check_resize_mode(resize_mode)
    stored = RecordFormat(parse_size(size), not gray, encoding, mode, fast_decode)
    drop = "similar" if drop_similar else "same" if drop_duplicates else ""
    settings = _Settings(stored, val, test, seed, group_by, min_per_class, drop, strict)
    _check(settings)
    report = reporter(events, "dataset", "images", cancel)

    def advance(done: int, total: int) -> None:
        report(done, total)
        if progress:
            progress(done, total)

    listing = None if is_archive(pictures) else _listing(Path(pictures), Path(out), root, val_list, test_list, labels, group_by)
    folder = new_folder(out, force=force, replaceable=lambda old: (old / CARD).is_file(), resumable=True, resume=resume)
    with reported("dataset", f"Building {os.fspath(out)}", events):
        with folder as work:
            listing = listing or list_archive(pictures, work / _UNPACKED)
            card = _Builder(listing, work, Path(out), settings, advance, _writer(shards, cluster)).build()
        events(ArtifactWritten(task="dataset", path=os.fspath(out), what="dataset"))
    return card


def _writer(shards: int, cluster: str) -> SplitWriter:
    """Return the function that writes the databases."""
    if shards < 0:
        raise DataError(f"the number of shards must be 0 or more, not {shards}")
    if not shards and not cluster:
        return write_split
    from caffetools.data.datasets.cluster_writing import write_split_in_shards

    return partial(write_split_in_shards, shards=shards or _SHARDS, cluster=cluster)


def _check(settings: _Settings) -> None:
    if not 0 < settings.val < 1:
        raise DataError(f"the share of validation pictures must be between 0 and 1, such as 0.2, not {settings.val:g}")
    if not 0 <= settings.test < 1 - settings.val:
        raise DataError(f"the share of test pictures must be 0 or more, and less than 1 with that of validation; {settings.test:g} is not")
    if settings.seed < 0:
        raise DataError(f"the seed must be 0 or more, not {settings.seed}")
    if settings.min_per_class < 1:
        raise DataError(f"the fewest pictures of a class must be 1 or more, not {settings.min_per_class}")


def _listing(
    pictures: Path,
    out: Path,
    root: PathLike | None,
    val: PathLike | None,
    test: PathLike | None,
    labels: PathLike | None,
    group_by: str | None,
) -> Listing:
    if pictures.is_file():
        return read_listing(pictures, root=root, val=val, test=test, labels=labels, group_by=group_by)
    if any(given is not None for given in (root, val, test, labels)):
        raise DataError("it is not a list: a root, lists of the other splits and labels belong to a list of pictures", path=pictures)
    inner, outer = Path(os.path.realpath(out)), Path(os.path.realpath(pictures))
    if inner == outer or outer in inner.parents:
        raise DataError(f"{out} is inside of the pictures' folder {pictures} and would be taken for a class; choose another place")
    if inner in outer.parents:
        raise DataError(f"the pictures are inside of {out}; choose another place for the dataset")
    return list_pictures(pictures)


class _Builder:
    """Builds a dataset in the hidden folder ``work``."""

    def __init__(self, listing: Listing, work: Path, out: Path, settings: _Settings, progress: Progress, write: SplitWriter):
        self._write = write
        self._listing, self._work, self._out, self._settings, self._progress = listing, work, out, settings, progress
        self._source = Source(listing.root, settings.stored, listing.home, settings.strict)
        self._group_of: GroupOf | None = grouping(settings.group_by, listing)
        # Pictures that are known not to be used.
        self._left_out: dict[str, Skipped] = {}
        self._steps, self._total = 0, 0

    def build(self) -> DatasetCard:
        if not self._restore() and self._settings.drop:
            self._find_superfluous()
        self._save()
        kept, written, small = self._write_databases()
        card = self._card(kept, written)
        card.notes = small + card.notes
        remove(self._work / _UNPACKED)
        before = self._steps
        # The state and the journals are kept until all is there: a build that is killed at its mean needs no picture again.
        hidden = JOURNALS, _STATE
        finish_dataset(self._work, card, written.parts, lambda done, _: self._progress(before + done, self._total), hidden=hidden)
        for name in hidden:
            remove(self._work / name)
        return card

    def _restore(self) -> bool:
        """Read what an interrupted build left. Raises :class:`DataError` if it was another build."""
        path = self._work / _STATE
        if not path.is_file():
            return False
        state = json.loads(path.read_text("utf-8"))
        if state["build"] != self._identity:
            raise DataError("the build to resume had other arguments or pictures", path=self._out, hint="run without --resume")
        self._left_out = {entry["path"]: Skipped(**entry) for entry in state["left_out"]}
        return True

    def _save(self) -> None:
        state = {"build": self._identity, "left_out": [asdict(skipped) for skipped in self._left_out.values()]}
        write_text(self._work / _STATE, json.dumps(state))

    @cached_property
    def _identity(self) -> str:
        digest = hashlib.sha256(repr((self._settings, self._listing.classes, str(self._listing.home or self._listing.root))).encode())
        for picture in self._listing.all_pictures:
            digest.update(f"{picture.path}\0{picture.label}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _find_superfluous(self) -> None:
        """Leave out duplicates. Reads every picture before the split, which is then drawn of those that are kept."""
        similar, root = self._settings.drop == "similar", self._listing.root
        pictures = ((part, picture) for part, given in _parts_of(self._listing) for picture in given)
        prints = Fingerprints()
        self._total = 3 * self._listing.count
        fingerprints = ordered_map(lambda item: _fingerprint(root, *item, similar=similar), pictures)
        with closing(fingerprints):
            for item in fingerprints:
                if item is not None:
                    prints.append(item)
                self._step()
        for path, reason in superfluous(find_duplicates(prints, similar=similar)).items():
            self._left_out[path] = Skipped(path, reason)

    def _write_databases(self) -> tuple[Listing, WriteResult, list[str]]:
        """Split and write; again without pictures that turned out unusable, if a class lacks its share or is too small without them.

        Returns:
            The listing without the classes that are too small, what is written, and notes on these classes.
        """
        settings, before = self._settings, self._steps
        while True:
            kept, notes = _without_small(self._listing, self._left_out, settings.min_per_class)
            _check_usable(kept, self._left_out)
            split = split_listing(kept, settings.val, settings.seed, self._left_out, test=settings.test, group_of=self._group_of)
            # The training pictures are read once more, for their mean.
            self._steps, self._total = before, before + 2 * len(split.train) + len(split.val) + len(split.test)
            written = self._write(split, self._source, self._work, self._step)
            self._left_out.update({skipped.path: skipped for skipped in written.unusable})
            _check_usable(kept, self._left_out)
            complete = _without_small(self._listing, self._left_out, settings.min_per_class)[0].classes == kept.classes
            if not written.unusable or (complete and _shares_hold(kept, written, self._left_out)):
                return kept, written, notes
            self._save()
            for part in PARTS:
                remove(self._work / f"{part}_lmdb")

    def _step(self) -> None:
        self._steps += 1
        self._progress(self._steps, self._total)

    def _card(self, listing: Listing, written: WriteResult) -> DatasetCard:
        settings = self._settings
        counts = {part: class_counts(pictures, listing.classes) for part, pictures in written.parts.items()}
        height, width = next(iter(written.sizes)) if len(written.sizes) == 1 else (0, 0)
        notes, duplicates = findings(listing, counts, written.prints, width, self._group_of)
        return DatasetCard(
            folder=self._out,
            classes=listing.classes,
            train_counts=counts["train"],
            val_counts=counts["val"],
            width=width,
            height=height,
            channels=3 if settings.stored.color else 1,
            mean_values=[],
            seed=settings.seed,
            val=None if listing.val is not None else settings.val,
            gray=not settings.stored.color,
            encoded=settings.stored.encoding != "raw",
            skipped=[*listing.skipped, *self._left_out.values()],
            notes=notes,
            pictures=str(listing.home or listing.root),
            test_counts=counts["test"] if len(written.parts["test"]) else [],
            settings=settings.to_json(),
            duplicates=duplicates,
        )


def _parts_of(listing: Listing) -> Iterator[tuple[str, Sequence[Picture]]]:
    """Yield the pictures by part, those of given parts first: of several equal ones, they are kept."""
    for part, given in (("test", listing.test), ("val", listing.val), ("train", listing.pictures)):
        for pictures in given or ():
            yield part, pictures


def _fingerprint(root: Path, part: str, picture: Picture, *, similar: bool) -> Fingerprint | None:
    """Return what a picture is compared by; None if it cannot be used."""
    try:
        data = read_bytes(root / picture.path)
        dhash = difference_hash(decode_image(data)) if similar else 0
    except DataError:
        return None
    return Fingerprint(picture.path, picture.label, part, hashlib.sha256(data).digest(), dhash)


def _without_small(listing: Listing, left_out: dict[str, Skipped], fewest: int) -> tuple[Listing, list[str]]:
    if fewest < 2:
        return listing, []
    small = {}
    counts = class_counts((picture for picture in listing.all_pictures if picture.path not in left_out), listing.classes)
    for label, (name, count) in enumerate(zip(listing.classes, counts, strict=True)):
        if count < fewest:
            small[label] = f"The class '{name}' is left out: it has {count} usable picture(s), fewer than {fewest}."
    if len(listing.classes) - len(small) < 2:
        raise DataError(
            f"{len(listing.classes) - len(small)} class(es) have {fewest} usable pictures or more; a classifier needs at least two classes",
            path=listing.source or listing.root,
            hint="lower --min-per-class",
        )
    return listing.without(set(small)), list(small.values())


def _check_usable(listing: Listing, left_out: dict[str, Skipped]) -> None:
    for name, pictures in zip(listing.classes, listing.pictures, strict=True):
        if len(pictures) and all(picture.path in left_out for picture in pictures):
            first = left_out[pictures[0].path]
            raise DataError(
                f"{(listing.home or listing.root) / first.path}: none of the {len(pictures)} picture(s) of the class '{name}' can be used; "
                f"this one: {first.reason}"
            )


def _shares_hold(listing: Listing, written: WriteResult, left_out: dict[str, Skipped]) -> bool:
    """Return whether each class has a training picture, and a validation picture if it has two usable ones."""
    if listing.val is not None:
        return True
    train, val = (set(np.unique(written.parts[part].labels).tolist()) for part in ("train", "val"))
    for label, pictures in enumerate(listing.pictures):
        usable = sum(picture.path not in left_out for picture in pictures)
        if (usable and label not in train) or (usable > 1 and label not in val):
            return False
    return True
