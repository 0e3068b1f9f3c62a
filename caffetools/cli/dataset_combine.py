"""``caffetools dataset add``, ``merge`` and ``subset``: datasets made of datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.dataset_build import DropDuplicates, DropSimilar, GroupBy, Json, Root, Strict, show_card
from caffetools.cli.show import progress_sink

_Dataset = Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of a dataset (see dataset build).", show_default=False)]
_Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.", show_default=False)]
_Force = Annotated[bool, typer.Option("--force", help="Replace an existing dataset at OUT, once the new one is complete.")]


def add(
    dataset: _Dataset,
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="A folder for each class, a zip or tar, or a list.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to create, in place of changing DATASET.", show_default=False)
    ] = None,
    val: Annotated[float | None, typer.Option(help="Share of the new pictures for validation; that of DATASET by default.")] = None,
    test: Annotated[float | None, typer.Option(help="Share for testing; that of DATASET by default.")] = None,
    group_by: GroupBy = None,
    root: Root = None,
    drop_duplicates: DropDuplicates = False,
    drop_similar: DropSimilar = False,
    keep_mean: Annotated[bool, typer.Option("--keep-mean", help="Keep the mean, for a net that was trained with it.")] = False,
    strict: Strict = False,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Add pictures and classes to a dataset, stored as its others are.

    Old classes keep their labels and old records stay as they are; new classes get the labels that follow. Pictures that are in the
    dataset already are left out.
    """
    from caffetools.data.datasets.adding import AddOptions, add_pictures

    options = AddOptions(val, test, group_by, root, drop_duplicates, drop_similar, keep_mean, strict)
    with progress_sink("Reading pictures") as events:
        card = add_pictures(dataset, pictures, options, out=out, force=force, events=events)
    show_card(card, as_json=as_json)


def merge(
    out: _Out,
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET...", help="Folders of datasets.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Seed of the order of the training pictures.")] = 1,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Merge datasets into a new one; classes of the same name become one.

    The classes of the first dataset keep their labels. Training, validation and test pictures stay what they are; duplicates between
    the datasets are reported.
    """
    from caffetools.data.datasets.merging import merge_datasets

    with progress_sink("Copying records") as events:
        card = merge_datasets(datasets, out, seed=seed, force=force, events=events)
    show_card(card, as_json=as_json)


def subset(
    dataset: _Dataset,
    out: _Out,
    classes: Annotated[
        list[str] | None, typer.Option("--class", "-c", metavar="NAME", help="Class to take; may be repeated. All by default.")
    ] = None,
    classes_file: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="File of the classes to take, one a line.", show_default=False)
    ] = None,
    per_class: Annotated[int | None, typer.Option(metavar="N", help="Most training pictures of a class.", show_default=False)] = None,
    val_per_class: Annotated[
        int | None, typer.Option(metavar="N", help="Most validation (and test) pictures of a class.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 1,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Write some classes, or some pictures of each class, of a dataset as a new one; labels count from 0 again."""
    from caffetools.data.datasets.inspect import read_names
    from caffetools.data.datasets.merging import subset_dataset

    named = [*(classes or []), *(read_names(classes_file) if classes_file is not None else [])]
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
