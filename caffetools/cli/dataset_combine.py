"""``caffetools dataset add``, ``merge`` and ``subset``: datasets made of datasets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.dataset_build import DropDuplicates, DropSimilar, GroupBy, Json, Root, Strict, show_card
from caffetools.cli.options import not_standard_output
from caffetools.cli.show import console, print_json, print_next, progress_sink
from caffetools.errors import CaffeToolsError, DataError
from caffetools.util.arguments import MOST_SEED

if TYPE_CHECKING:
    from caffetools.data.datasets.bare import CopiedRecords

_Dataset = Annotated[
    str, typer.Argument(metavar="DATASET", help="Folder of a dataset (see dataset build), or its URL.", show_default=False)
]
_Out = Annotated[
    str, typer.Argument(metavar="OUT", callback=not_standard_output, help="Folder to create; may be a URL.", show_default=False)
]
_Force = Annotated[bool, typer.Option("--force", help="Replace an existing dataset at OUT, once the new one is complete.")]


def add(
    dataset: _Dataset,
    pictures: Annotated[
        str, typer.Argument(metavar="PICTURES", help="A folder for each class, a zip or tar, or a list.", show_default=False)
    ],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder or URL to create, in place of changing DATASET.", show_default=False)
    ] = None,
    val: Annotated[float | None, typer.Option(help="Fraction of the new pictures for validation; by default that of DATASET.")] = None,
    test: Annotated[float | None, typer.Option(help="Fraction of the new pictures for testing; by default that of DATASET.")] = None,
    group_by: GroupBy = None,
    root: Root = None,
    drop_duplicates: DropDuplicates = False,
    drop_similar: DropSimilar = False,
    keep_mean: Annotated[bool, typer.Option("--keep-mean", help="Keep the dataset's mean, for a net that was trained with it.")] = False,
    strict: Strict = False,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Add pictures and classes to a dataset, stored as its others are.

    Old classes keep their labels and old records stay as they are; new classes get the labels that follow. Pictures that the dataset
    lists already are left out.
    """
    from caffetools.data.datasets.adding import AddOptions, add_pictures

    options = AddOptions(val, test, group_by, root, drop_duplicates, drop_similar, keep_mean, strict)
    with progress_sink("Reading pictures") as events:
        card = add_pictures(dataset, pictures, options, out=out, force=force, events=events)
    show_card(card, as_json=as_json)


def merge(
    out: _Out,
    datasets: Annotated[
        list[str], typer.Argument(metavar="DATASET...", help="Folders of datasets, or their URLs; or databases alone.", show_default=False)
    ],
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the order of the training pictures.")] = 1,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Merge datasets into a new one; classes of the same name become one.

    The classes of the first dataset keep their labels. Training, validation and test pictures stay what they are; duplicates between
    the datasets are reported. Of bare databases (LMDB, LevelDB) the records follow each other with the labels that they have.
    """
    from caffetools.data.datasets.bare import merge_databases
    from caffetools.data.datasets.combine import is_dataset
    from caffetools.data.datasets.merging import merge_datasets

    if len(datasets) > 1 and os.path.lexists(out) and not os.path.lexists(datasets[-1]):
        hint = f"the folder to create comes first: merge {datasets[-1]} {' '.join([out, *datasets[:-1]])}"
        raise DataError("does not exist", path=datasets[-1], hint=hint)
    if not any(is_dataset(path) for path in datasets):
        with progress_sink("Copying records") as events:
            copied = merge_databases(datasets, out, force=force, events=events)
        _show_copied(copied, as_json=as_json)
        return
    with progress_sink("Copying records") as events:
        card = merge_datasets(datasets, out, seed=seed, force=force, events=events)
    show_card(card, as_json=as_json)


def subset(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="Folder of a dataset (see dataset build), or its URL; or a database alone.", show_default=False
        ),
    ],
    out: _Out,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", "-c", metavar="NAME", help="Class to take (of a database: its label); by default all. May be repeated."),
    ] = None,
    classes_file: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="FILE|NAMES",
            help="File of the classes to take, one a line; or their names, with commas.",
            show_default=False,
        ),
    ] = None,
    per_class: Annotated[int | None, typer.Option(metavar="N", help="Most training pictures of a class.", show_default=False)] = None,
    val_per_class: Annotated[
        int | None, typer.Option(metavar="N", help="Most validation (and test) pictures of a class.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Random seed of the choice.")] = 1,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Write some classes, or some pictures of each class, of a dataset as a new one; labels count from 0 again."""
    from caffetools.data.datasets.bare import subset_database
    from caffetools.data.datasets.combine import is_dataset
    from caffetools.data.datasets.merging import subset_dataset

    named = [*(classes or []), *(_listed(classes_file) if classes_file is not None else [])]
    if not is_dataset(dataset):
        if val_per_class is not None:
            raise CaffeToolsError("--val-per-class belongs to datasets with a validation part; this is a database alone", path=dataset)
        with progress_sink("Copying records") as events:
            copied = subset_database(
                dataset, out, labels=_numbers(named) or None, per_class=per_class, seed=seed, force=force, events=events
            )
        _show_copied(copied, as_json=as_json)
        return
    with progress_sink("Copying records") as events:
        card = subset_dataset(
            dataset,
            out,
            classes=named or None,
            per_class=per_class,
            val_per_class=val_per_class,
            seed=seed,
            force=force,
            events=events,
        )
    show_card(card, as_json=as_json)


def _listed(classes: str) -> list[str]:
    """Return the class names in a file, or those that are written with commas."""
    from caffetools.data.datasets.inspect import read_names

    if Path(classes).is_file() or Path(classes).suffix == ".txt":
        return read_names(classes)
    return [name.strip() for name in classes.split(",") if name.strip()]


def _numbers(labels: list[str]) -> list[int]:
    for label in labels:
        if not label.isdecimal():
            raise CaffeToolsError(f"the classes of a database are its labels, which are numbers, not '{label}'")
    return [int(label) for label in labels]


def _show_copied(copied: CopiedRecords, *, as_json: bool) -> None:
    from caffetools.project.config import command

    if as_json:
        print_json(copied.to_json())
        return
    for old, new in copied.labels.items():
        console.print(f"  label {old} is {new}")
    console.print(f"Wrote {copied.records} records to {copied.path}")
    print_next(command("dataset", "inspect", copied.path))
