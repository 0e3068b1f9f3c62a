"""What a build reports about its dataset: notes on balance, duplicates and leaks, a sheet of samples, and checksums."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.databases import open_database
from caffetools.data.datasets.duplicates import Duplicates, Fingerprint, find_duplicates
from caffetools.data.datasets.listing import Listing
from caffetools.data.datasets.sheet import write_sheet
from caffetools.data.datasets.splits import GroupOf
from caffetools.data.datum import record_to_array
from caffetools.util.checksums import file_sha256

# From this ratio of the largest to the smallest class on, a note is given.
_UNBALANCED = 10
# Groups of duplicates on the card, pictures of a class on the sheet, and classes on it.
_MOST_GROUPS, _PER_CLASS, _MOST_CLASSES = 200, 8, 60


def findings(
    listing: Listing, counts: dict[str, list[int]], prints: Sequence[Fingerprint], width: int, group_of: GroupOf | None = None
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return notes on a dataset, one sentence each, and its groups of duplicates as plain values.

    Args:
        listing: Its pictures.
        counts: ``train``, ``val`` and ``test`` → number of pictures of each class.
        prints: What its pictures are compared by.
        width: Width of all pictures; 0 if they differ.
        group_of: Groups that should be in one part each.
    """
    notes = []
    for name, train, val in zip(listing.classes, counts["train"], counts["val"], strict=True):
        if not train:
            notes.append(f"The class '{name}' has no training picture.")
        elif listing.val is None and train + val == 1:
            notes.append(f"The class '{name}' has one usable picture only; it trains, and nothing validates this class.")
        elif not val:
            notes.append(f"The class '{name}' has no validation picture.")
    if not width:
        notes.append("The pictures keep different sizes: there is no mean file, and a net must crop them or take one at a time.")
    if listing.others:
        notes.append(f"{listing.others} file(s) are not pictures by their names and were ignored.")
    notes += _balance(listing.classes, counts["train"])
    if group_of is not None:
        notes += _divided_groups(prints, group_of)
    duplicates = find_duplicates(prints)
    notes += _duplicate_notes(duplicates)
    # Leaks and contradictions first: the card has room for the first groups only.
    duplicates.sort(key=lambda group: (len(group.parts) < 2, len(group.labels) < 2))
    return notes, [asdict(group) for group in duplicates[:_MOST_GROUPS]]


def write_sample_sheet(path: Path, database: Path, labels: NDArray[np.int32], classes: Sequence[str]) -> None:
    """Write an image with a row of pictures for each class.

    Args:
        path: The image file.
        database: The training pictures.
        labels: (N) label of each record.
        classes: The class names.
    """
    order = np.argsort(labels, kind="stable")
    present, begins = np.unique(labels[order], return_index=True)
    ends = np.r_[begins[1:], len(order)]
    rows: list[tuple[str, list[NDArray[Any]]]] = []
    with closing(open_database(database)) as opened:
        for label, begin, end in list(zip(present.tolist(), begins, ends, strict=True))[:_MOST_CLASSES]:
            numbers = order[begin : min(end, begin + _PER_CLASS)].tolist()
            pictures = [_small(record_to_array(opened.item(number)[1])[0]) for number in numbers]
            rows.append((f"{label} {classes[label]}", pictures))
    write_sheet(path, rows)


def file_checksums(folder: Path, hidden: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return for each file in ``folder`` and below, but ``hidden``, its size in bytes and its SHA-256; names are relative, with ``/``."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).parts[0] not in hidden:
            found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return found


def _small(array: NDArray[Any]) -> NDArray[Any]:
    """Return a picture (C, H, W) in the size that the sheet needs, so that hundreds of large ones fit into memory."""
    step = max(1, min(array.shape[1:]) // 192)
    return np.ascontiguousarray(array[:, ::step, ::step])


def _divided_groups(prints: Sequence[Fingerprint], group_of: GroupOf) -> list[str]:
    """Return a note if a split that the listing gives divides groups; one that is drawn does not."""
    parts: dict[str, set[str]] = {}
    examples: dict[str, str] = {}
    for item in prints:
        group = group_of(item.path)
        parts.setdefault(group, set()).add(item.part)
        examples.setdefault(group, item.path)
    divided = [group for group, used in parts.items() if len(used) > 1]
    if not divided:
        return []
    return [f"{len(divided)} group(s) are in more than one split that the pictures came with, such as that of '{examples[divided[0]]}'."]


def _balance(classes: Sequence[str], counts: Sequence[int]) -> list[str]:
    present = [(count, name) for count, name in zip(counts, classes, strict=True) if count]
    if not present:
        return []
    (few, small), (many, large) = min(present), max(present)
    if many < _UNBALANCED * few:
        return []
    return [f"The classes are unbalanced: '{large}' has {many} training pictures, '{small}' has {few}."]


def _duplicate_notes(duplicates: Sequence[Duplicates]) -> list[str]:
    notes = []
    for kind, what, flag in (("same", "equal", "--drop-duplicates"), ("similar", "nearly equal", "--drop-similar")):
        groups = [group for group in duplicates if group.kind == kind]
        if not groups:
            continue
        extra = sum(len(group.paths) - 1 for group in groups)
        leaks = [group for group in groups if len(group.parts) > 1]
        clashes = [group for group in groups if len(group.labels) > 1]
        first, second = (leaks or clashes or groups)[0].paths[:2]
        text = f"{extra} picture(s) are {what} to another one, such as '{second}' and '{first}'"
        if leaks:
            text += f"; {len(leaks)} group(s) of them are in more than one split, which makes the scores too good"
        if clashes:
            text += f"; {len(clashes)} group(s) have different labels"
        notes.append(f"{text}. dataset build leaves them out with {flag}.")
    return notes
