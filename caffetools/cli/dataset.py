"""``caffetools dataset``: make, extend and check datasets and databases of pictures."""

from __future__ import annotations

from collections.abc import Callable

import typer

from caffetools.cli.dataset_build import BUILD_EXAMPLES, build
from caffetools.cli.dataset_combine import add, merge, subset
from caffetools.cli.dataset_convert import convert, shard
from caffetools.cli.dataset_databases import export, inspect, stats, verify
from caffetools.cli.preview import preview

app = typer.Typer(help="Make datasets of pictures, and look into databases.", no_args_is_help=True)

_COMMANDS: dict[Callable[..., None], tuple[str, ...]] = {
    build: BUILD_EXAMPLES,
    add: ("caffetools dataset add data new_pictures", "caffetools dataset add data more.csv --root images -o data2"),
    merge: ("caffetools dataset merge all data1 data2",),
    subset: ("caffetools dataset subset data small --class cat --class dog", "caffetools dataset subset data small --per-class 100"),
    convert: ("caffetools dataset convert mnist downloads data",),
    shard: ("caffetools dataset shard train_lmdb train_shards --shards 4",),
    inspect: ("caffetools dataset inspect train_lmdb -o sheet.png", "caffetools dataset inspect train.h5"),
    verify: ("caffetools dataset verify train_lmdb --classes 1000",),
    export: ("caffetools dataset export train_lmdb pictures --labels labels.txt",),
    stats: ("caffetools dataset stats train_lmdb train_val.prototxt",),
    preview: ("caffetools dataset preview train_lmdb --augment augment.yaml -o sheet.png",),
}


@app.callback()
def _dataset() -> None:
    """Make datasets of pictures, and look into databases."""


for command, examples in _COMMANDS.items():
    # Each example is a paragraph of its own, which keeps its line.
    app.command(epilog="\n\n".join(f"Example: {example}" for example in examples))(command)
