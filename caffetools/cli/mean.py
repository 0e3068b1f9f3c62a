"""``caffetools mean``: the mean picture of a database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.show import console, print_json, progress


def mean(
    lmdb: Annotated[Path, typer.Argument(metavar="LMDB", help="The database: an LMDB (or, with the extra 'leveldb', a LevelDB).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, such as mean.binaryproto.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the mean values as JSON.")] = False,
) -> None:
    """Compute the mean of a database's pictures, as compute_image_mean does, and print the mean of each channel."""
    from caffetools.data.means import channel_means, compute_mean, format_mean_values, write_binaryproto

    with progress("Adding up pictures") as advance:
        array = compute_mean(lmdb, progress=advance)
    write_binaryproto(out, array)
    values = channel_means(array)
    if as_json:
        print_json({"mean_file": str(out), "shape": list(array.shape), "mean_values": values})
        return
    for line in format_mean_values(values):
        console.print(line, markup=False)
    console.print(f"Wrote {out}", markup=False)
