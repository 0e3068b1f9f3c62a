"""``caffetools dataset``: from a folder of pictures to databases, lists, labels and a mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.dataset_convert import convert, shard
from caffetools.cli.dataset_databases import export, inspect, stats, verify
from caffetools.cli.preview import preview
from caffetools.cli.show import console, print_json, progress

app = typer.Typer(help="Make datasets of pictures, and look into databases.", no_args_is_help=True)


@app.callback()
def _dataset() -> None:
    """Make datasets of pictures, and look into databases."""


@app.command()
def build(
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="A folder for each class; or train/ and val/ with such folders inside.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    size: Annotated[str, typer.Option(help="Resize pictures to this: 256, 320x240 (width x height), or 0: keep their sizes.")] = "256",
    val: Annotated[float, typer.Option(help="The share of each class that validates.")] = 0.2,
    seed: Annotated[int, typer.Option(help="What the split and the order are drawn with.")] = 1,
    gray: Annotated[bool, typer.Option("--gray", help="Store one channel.")] = False,
    encoded: Annotated[bool, typer.Option("--encoded", help="Store picture files, not pixels: smaller, slower to read.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a picture that cannot be used; else it is left out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset that is there, once the new one is complete.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make train and val LMDBs, labels.txt, train.txt, val.txt, mean.binaryproto and dataset.json of a folder of pictures.

    The records are Caffe's Datum under keys like 00000007_cat/tom.jpg. Nothing lies at OUT until all of it is complete.
    """
    from caffetools.data.datasets.build import build_dataset

    with progress("Reading pictures") as advance:
        card = build_dataset(
            pictures,
            out,
            size=size,
            val=val,
            seed=seed,
            gray=gray,
            encoded=encoded,
            strict=strict,
            force=force,
            progress=advance,
        )
    if as_json:
        print_json({"folder": str(card.folder), **card.to_json()})
        return
    shape = f"{card.width} x {card.height}" if card.width else "of their own sizes"
    console.print(f"{len(card.classes)} classes, {card.train_count} pictures to train on and {card.val_count} to validate, {shape}")
    for skipped in card.skipped[:10]:
        console.print(f"  left out: {skipped.path}: {skipped.reason}", markup=False)
    if len(card.skipped) > 10:
        console.print(f"  … and {len(card.skipped) - 10} more; dataset.json lists all {len(card.skipped)}")
    for note in card.notes:
        console.print(f"  {note}", markup=False)
    console.print(f"Wrote {card.folder}: train_lmdb, val_lmdb, labels.txt, train.txt, val.txt, dataset.json", markup=False, end="")
    console.print(", mean.binaryproto" if card.mean_file else "")


for command in (convert, shard, inspect, verify, export, stats, preview):
    app.command()(command)
