"""``caffetools infer``: blobs of a deployed net for pictures and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.models import DeployArgument, WeightsArgument, deployed
from caffetools.cli.options import AsJson, Device, Dialect, Force, Plugin, Precision, Scale, check_output, not_standard_output
from caffetools.cli.show import console, print_json, progress_sink

if TYPE_CHECKING:
    from caffetools.infer.blobs import BlobReader


_Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="DIR", callback=not_standard_output, help="Folder for the files INPUT.BLOB.npy.", show_default=False
    ),
]


def infer(
    deploy: DeployArgument,
    weights: WeightsArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Pictures, folders or patterns; .npy files (C, H, W) or (N, C, H, W); .npz files with an array for each input blob.",
            show_default=False,
        ),
    ],
    out: _Out,
    outputs: Annotated[str | None, typer.Option(metavar="BLOB,…", help="Blobs to write in place of the net's outputs.")] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="SIZE", help="Run in tiles of at most SIZE x SIZE pixels, with the values of one pass.", show_default=False
        ),
    ] = None,
    own_size: Annotated[
        bool, typer.Option("--own-size", help="Run at each picture's own size, not the net's input size; implied by --tile.")
    ] = False,
    png: Annotated[
        bool, typer.Option("--png", help="Also write a PNG: one channel in gray, several as the number of the largest channel.")
    ] = False,
    npz: Annotated[bool, typer.Option("--npz", help="Write one INPUT.npz with all blobs, in place of .npy files.")] = False,
    mean: Annotated[str | None, typer.Option(help="Mean file (.binaryproto, .npy), or values as 104,117,123 (BGR).")] = None,
    scale: Scale = None,
    resize: Annotated[str | None, typer.Option(help="Resize whole pictures to 256 or 320x240 first.")] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    force: Force = False,
    as_json: AsJson = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Run DEPLOY on pictures or arrays, and write blobs as .npy files.

    Pictures are prepared as deploy.json next to DEPLOY says, unless options are given; arrays are the net's input as they are.
    --tile is for fully convolutional nets and pictures that do not fit in memory; a layer that sees the whole picture is an error.
    """
    from caffetools.data.images import parse_size
    from caffetools.errors import CaffeToolsError
    from caffetools.infer.blobs import BlobOptions, BlobReader, result_paths
    from caffetools.infer.classifier import PreprocessOptions, find_pictures

    if npz and tile is not None:
        raise CaffeToolsError("--npz holds all blobs in memory; with --tile they are written as .npy files")
    given = PreprocessOptions(mean=mean, scale=scale, resize=parse_size(resize) if resize else None)
    net, parameters, options = deployed(deploy, weights, given)
    what = BlobOptions(tuple(name.strip() for name in outputs.split(",")) if outputs else (), own_size, tile)
    items = find_pictures(inputs)
    reader = BlobReader(net, parameters, options, what, device=device, precision=precision)
    paths = result_paths(out, items, reader.outputs)
    pictures = result_paths(out, items, reader.outputs, suffix=".png") if png else [{} for _ in items]
    together = [path[""] for path in result_paths(out, items, [""], suffix=".npz")] if npz else []
    check_output(*together, *(path for row in ([] if npz else paths) + pictures for path in row.values()), force=force)
    rows: list[dict[str, object]] = []
    for number, item in enumerate(items):
        rows += _write(reader, item, paths[number], pictures[number], together[number] if npz else None, quiet=as_json)
    if as_json:
        print_json(rows)


def _write(
    reader: BlobReader, item: str, paths: dict[str, Path], pictures: dict[str, Path], together: Path | None, *, quiet: bool
) -> list[dict[str, object]]:
    """Write the blobs of one input, and return a row about each."""
    from caffetools.infer.blobs import new_arrays, write_npz, write_png

    with progress_sink(Path(item).name) as sink:
        if together is not None:
            blobs = reader.run(item, events=sink)
            write_npz(together, blobs)
        else:
            with new_arrays(paths) as make:
                blobs = reader.run(item, make, events=sink)
    rows: list[dict[str, object]] = []
    for blob, array in blobs.items():
        file = together or paths[blob]
        row: dict[str, object] = {"input": item, "blob": blob, "shape": list(array.shape), "file": str(file)}
        if pictures:
            row["png"], row["pixels"] = str(pictures[blob]), write_png(pictures[blob], array)
        rows.append(row)
        if not quiet:
            console.print(f"{item}: {blob} ({' x '.join(map(str, array.shape))}) in {file}", markup=False)
    return rows
