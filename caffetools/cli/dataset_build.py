"""``caffetools dataset build``: from pictures to databases, lists, labels and a mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.options import Cluster, not_standard_output
from caffetools.cli.show import console, print_json, print_next, progress_sink, resumable
from caffetools.util.arguments import MOST_SEED

if TYPE_CHECKING:
    from caffetools.data.datasets.card import DatasetCard

BUILD_EXAMPLES = (
    "caffetools dataset build photos data --val 0.2 --test 0.1",
    "caffetools dataset build train.txt data --root images",
    "caffetools dataset build people.csv data --group-by person",
    "caffetools dataset build photos.zip data --resize-mode crop",
)
# Pictures left out, and classes, that are listed; --json has all of them.
_MOST_SKIPPED, _MOST_CLASSES = 10, 20

# Options that `dataset add` has too.
Val = Annotated[float, typer.Option(help="Fraction of each class for validation.")]
Test = Annotated[float, typer.Option(help="Fraction of each class for testing.")]
GroupBy = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN|REGEX",
        help="Keep pictures with the same value of a list's column, or the same match in their paths, in one split.",
        show_default=False,
    ),
]
DropDuplicates = Annotated[bool, typer.Option("--drop-duplicates", help="Keep one of several equal files; none if their labels differ.")]
DropSimilar = Annotated[bool, typer.Option("--drop-similar", help="The same for near-identical pictures.")]
Root = Annotated[Path | None, typer.Option(help="Folder that the paths of a list are relative to.", show_default=False)]
ValList = Annotated[Path | None, typer.Option(metavar="LIST", help="List of the validation pictures.", show_default=False)]
TestList = Annotated[Path | None, typer.Option(metavar="LIST", help="List of the test pictures.", show_default=False)]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at a picture that cannot be used, instead of leaving it out.")]
Json = Annotated[bool, typer.Option("--json", help="Print the card as JSON.")]


_Pictures = Annotated[
    str,
    typer.Argument(
        metavar="PICTURES",
        help="A folder for each class; train/, val/ (and test/) with such folders; a zip or tar of them; their URL; or a list (.txt, .csv, .tsv, .json).",
        show_default=False,
    ),
]
_Size = Annotated[str, typer.Option(help="Size of the stored pictures: 256, 320x240 (width x height), or 0 to keep their sizes.")]
_ResizeMode = Annotated[str, typer.Option(metavar="MODE", help="squash, crop (the center), fill (black borders) or half-crop.")]
_FastDecode = Annotated[
    bool, typer.Option("--fast-decode", help="Decode large JPEGs at a reduced scale: up to twice as fast, but not the pixels Caffe gives.")
]
_Encode = Annotated[
    str,
    typer.Option(
        metavar="FORM", help="raw (pixels), png, jpeg, or source (the pictures' own files where they are JPEG, PNG or BMP of that size)."
    ),
]
_Encoded = Annotated[bool, typer.Option("--encoded", help="The same as --encode source: smaller, slower to read.")]
_Labels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File of class names, one a line, for a list with numbers as labels.", show_default=False),
]


def build(
    pictures: _Pictures,
    out: Annotated[str, typer.Argument(metavar="OUT", callback=not_standard_output, help="Folder or URL to create.", show_default=False)],
    size: _Size = "256",
    resize_mode: _ResizeMode = "squash",
    fast_decode: _FastDecode = False,
    val: Val = 0.2,
    test: Test = 0.0,
    group_by: GroupBy = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the split and the order.")] = 1,
    gray: Annotated[bool, typer.Option("--gray", help="Store one channel.")] = False,
    encode: _Encode = "raw",
    encoded: _Encoded = False,
    min_per_class: Annotated[int, typer.Option(min=1, metavar="N", help="Leave out classes with fewer usable pictures.")] = 1,
    drop_duplicates: DropDuplicates = False,
    drop_similar: DropSimilar = False,
    root: Root = None,
    val_list: ValList = None,
    test_list: TestList = None,
    labels: _Labels = None,
    strict: Strict = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing dataset, once the new one is complete.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a build that was killed or interrupted.")] = False,
    shards: Annotated[
        int, typer.Option(min=0, help="Write each database in this many shards with an index; 0 for one LMDB (with --cluster: 8 shards).")
    ] = 0,
    cluster: Cluster = "",
    as_json: Json = False,
) -> None:
    """Build a dataset from pictures: LMDBs for training and validation, labels.txt, lists, a mean, a sheet of samples and dataset.json.

    The records are Caffe's Datum under keys like 00000007_cat/tom.jpg. OUT appears when all of it is complete.
    Duplicates, leaks between splits and unbalanced classes are reported.
    """
    from caffetools.data.datasets.build import build_dataset

    with resumable(), progress_sink("Reading pictures") as events:
        card = build_dataset(
            pictures,
            out,
            size=size,
            resize_mode=resize_mode,
            fast_decode=fast_decode,
            val=val,
            test=test,
            group_by=group_by,
            seed=seed,
            gray=gray,
            encode=encode,
            encoded=encoded,
            min_per_class=min_per_class,
            drop_duplicates=drop_duplicates,
            drop_similar=drop_similar,
            root=root,
            val_list=val_list,
            test_list=test_list,
            labels=labels,
            strict=strict,
            force=force,
            resume=resume,
            shards=shards,
            cluster=cluster,
            events=events,
        )
    show_card(card, as_json=as_json)


def show_card(card: DatasetCard, *, as_json: bool) -> None:
    """Print what a dataset holds, what was left out, and where it is."""
    from caffetools.project.surroundings import after_dataset

    if as_json:
        print_json({"folder": card.url or str(card.folder), **card.to_json()})
        return
    shape = f"{card.width} x {card.height}" if card.width else "of their own sizes"
    counts = f"{card.train_count} pictures for training and {card.val_count} for validation"
    if card.test_counts:
        counts = f"{card.train_count} pictures for training, {card.val_count} for validation and {card.test_count} for testing"
    console.print(f"{len(card.classes)} classes, {counts}, {shape}")
    _show_classes(card)
    for skipped in card.skipped[:_MOST_SKIPPED]:
        console.print(f"  left out: {skipped.path}: {skipped.reason}")
    if len(card.skipped) > _MOST_SKIPPED:
        console.print(f"  … and {len(card.skipped) - _MOST_SKIPPED} more; dataset.json lists all {len(card.skipped)}")
    for remark in card.notes:
        console.print(f"  {remark}")
    names = ["train_lmdb", "val_lmdb", *(["test_lmdb"] if card.test_counts else []), "labels.txt", "train.txt", "val.txt"]
    names += ["test.txt"] if card.test_counts else []
    names += [*(["mean.binaryproto"] if card.mean_file else []), "samples.png", "dataset.json"]
    console.print(f"Wrote {card.url or card.folder}: {', '.join(names)}", markup=False)
    if not card.url:
        print_next(after_dataset(card))


def _show_classes(card: DatasetCard) -> None:
    """Print the number of training, validation and test pictures of each class, with a bar for the training pictures."""
    most = max(card.train_counts)
    columns = [card.train_counts, card.val_counts, *([card.test_counts] if card.test_counts else [])]
    for label, name in list(enumerate(card.classes))[:_MOST_CLASSES]:
        numbers = "".join(f"{counts[label]:>8}" for counts in columns)
        bar = "█" * max(card.train_counts[label] and 1, round(24 * card.train_counts[label] / most))
        console.print(f"  {label:>5}{numbers}  {bar:<24}  {name}")
    if len(card.classes) > _MOST_CLASSES:
        least = min(card.train_counts)
        count = f"{most} pictures each" if least == most else f"{least} to {most} pictures"
        console.print(f"  … and {len(card.classes) - _MOST_CLASSES} more classes with {count}")
