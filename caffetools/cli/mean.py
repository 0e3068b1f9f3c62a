"""``caffetools mean``: the mean picture of a database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.options import Cluster, Force, check_output
from caffetools.cli.show import console, print_json, progress_sink


def mean(
    database: Annotated[
        str, typer.Argument(metavar="DB", help="An LMDB, LevelDB (extra 'leveldb') or index of shards; a path or URL.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Mean file to write, such as mean.binaryproto.", show_default=False)
    ] = None,
    backend: Annotated[str, typer.Option(help="lmdb or leveldb, as Caffe's flag; found out from the files.", show_default=False)] = "",
    skip_corrupt: Annotated[int, typer.Option(min=0, help="Leave out up to this many damaged records.")] = 0,
    cluster: Cluster = "",
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the mean values as JSON.")] = False,
) -> None:
    """Compute the mean of a database's pictures, as compute_image_mean does, and print the mean of each channel."""
    from caffetools.data.means import channel_means, compute_mean, format_mean_values, write_binaryproto

    if backend not in ("", "lmdb", "leveldb"):
        raise typer.BadParameter(f"'{backend}' is neither lmdb nor leveldb", param_hint="--backend")
    check_output(out, force=force)
    if cluster:
        from caffetools.data.cluster_jobs import cluster_mean

        with progress_sink("Computing the mean") as events:
            array = cluster_mean(database, cluster, skip_corrupt=skip_corrupt, events=events)
    else:
        with progress_sink("Computing the mean") as events:
            array = compute_mean(database, skip_corrupt=skip_corrupt, events=events)
    if out is not None:
        write_binaryproto(out, array)
    values = channel_means(array)
    if as_json:
        print_json({"mean_file": str(out) if out else None, "shape": list(array.shape), "mean_values": values})
        return
    for line in format_mean_values(values):
        console.print(line, markup=False)
    if out is not None:
        console.print(f"Wrote {out}", markup=False)
