"""``caffetools convert-imageset``: Caffe's tool of that name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.show import console, note, print_json, print_next, progress_sink, resumable
from caffetools.errors import DataError
from caffetools.util.arguments import MOST_SEED


def convert_imageset(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="Folder that the list's names are relative to.", show_default=False)],
    listing: Annotated[Path, typer.Argument(metavar="LIST", help="Text file of lines NAME LABEL.", show_default=False)],
    database: Annotated[Path, typer.Argument(metavar="DB", help="Database to create.", show_default=False)],
    gray: Annotated[bool, typer.Option("--gray", help="Store one channel.")] = False,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Shuffle the list.")] = False,
    backend: Annotated[str, typer.Option(help="lmdb or leveldb.")] = "lmdb",
    resize_width: Annotated[int, typer.Option(help="Resize to this width, with --resize-height; 0 keeps the pictures' sizes.")] = 0,
    resize_height: Annotated[int, typer.Option(help="Resize to this height, with --resize-width; 0 keeps the pictures' sizes.")] = 0,
    check_size: Annotated[bool, typer.Option("--check-size", help="Require that all pictures have one size.")] = False,
    encoded: Annotated[bool, typer.Option("--encoded", help="Store picture files, not pixels.")] = False,
    encode_type: Annotated[str, typer.Option(help="File type to store, such as png or jpg (implies --encoded).", show_default=False)] = "",
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Random seed of --shuffle.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a build of this list that was interrupted or killed.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a picture that cannot be read, instead of leaving it out, or that is truncated.")
    ] = False,
    fast_decode: Annotated[
        bool,
        typer.Option(
            "--fast-decode", help="Decode large JPEGs at a reduced scale before resizing: faster, but not the pixels Caffe gives."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a database that exists, once the new one is complete.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write the pictures of a list into an LMDB or LevelDB, record for record as Caffe's convert_imageset does.

    Arguments and flags are those of that tool, in its spellings too (-gray, --resize_width=256). The database appears when it is
    complete.
    """
    from caffetools.data.convert_imageset import ImagesetOptions
    from caffetools.data.convert_imageset import convert_imageset as convert
    from caffetools.project.config import command

    options = ImagesetOptions(
        gray=gray,
        shuffle=shuffle,
        backend=backend.lower(),
        resize_width=resize_width,
        resize_height=resize_height,
        check_size=check_size,
        encoded=encoded,
        encode_type=encode_type.lstrip("."),
        seed=seed,
        resume=resume,
        strict=strict,
        fast_decode=fast_decode,
        force=force,
    )
    with resumable(possible=options.backend == "lmdb"), progress_sink("Reading pictures") as events:
        result = convert(root, listing, database, options, events=events)
    if as_json:
        errors = {"skipped": [str(error) for error in result.skipped], "truncated": [str(error) for error in result.truncated]}
        print_json({"database": result.path, "records": result.count, **errors})
        return
    _show_errors("left out", result.skipped)
    _show_errors("stored all the same, as Caffe's tool does", result.truncated)
    console.print(f"Wrote {result.count} records to {result.path}", markup=False)
    print_next(command("mean", result.path, Path(result.path).with_name("mean.binaryproto")))


def _show_errors(verb: str, errors: Sequence[DataError]) -> None:
    for error in errors[:10]:
        note(f"{verb}: {error}")
    if len(errors) > 10:
        note(f"{verb}: {len(errors) - 10} more; --json lists all")
