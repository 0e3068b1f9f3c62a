"""``caffetools extract-features``: blobs of a net into databases or Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from caffetools.cli.gflags import OneGpu, chosen_device, split
from caffetools.cli.models import complete_model, net_file, weights_file
from caffetools.cli.options import AsJson, Cluster, Dialect, Mean, Plugin, Resize, Resume, Scale, check_cluster, not_standard_output
from caffetools.cli.show import console, print_json, print_next, progress, progress_sink, resumable

_Weights = Annotated[
    Path,
    typer.Argument(metavar="WEIGHTS", help="The .caffemodel; or a network of the zoo.", show_default=False, autocompletion=complete_model),
]
_Net = Annotated[
    Path, typer.Argument(metavar="NET", help="The net's prototxt, with a data layer; with --images a deploy prototxt.", show_default=False)
]
_Databases = Annotated[
    str | None, typer.Argument(metavar="[DB[,DB]]", help="Database to create for each blob; not with --images.", show_default=False)
]
_Batches = Annotated[
    int | None, typer.Argument(metavar="[BATCHES]", help="Number of batches to run; not with --images.", show_default=False)
]
_Backend = Annotated[
    str, typer.Argument(metavar="[BACKEND]", help="lmdb, leveldb; or hdf5 or parquet: a folder of such files for each blob.")
]
_Images = Annotated[
    list[str] | None,
    typer.Option(
        "--images",
        metavar="DIR|LIST",
        help="Pictures in place of a data layer: a folder, a list (.txt), a file, a pattern or a database. May be repeated. Needs --output.",
        show_default=False,
    ),
]
_Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        callback=not_standard_output,
        help="New folder of Parquet files for the blobs of --images.",
        show_default=False,
    ),
]
_Batch = Annotated[int, typer.Option("--batch", min=1, help="Batch size, with --images.")]


class _Run(TypedDict):
    """Options of a run into Parquet files."""

    cluster: str
    force: bool
    resume: bool


def extract_features(
    weights: _Weights,
    net: _Net,
    blobs: Annotated[str, typer.Argument(metavar="BLOB[,BLOB]", help="The blobs to store.", show_default=False)],
    databases: _Databases = None,
    batches: _Batches = None,
    backend: _Backend = "lmdb",
    mode: Annotated[str, typer.Argument(metavar="[CPU|GPU]", help="As Caffe's tool takes it; --device does the same.")] = "",
    number: Annotated[int, typer.Argument(metavar="[DEVICE_ID]", help="Number of the GPU.")] = 0,
    images: _Images = None,
    output: _Output = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    batch: _Batch = 16,
    gpu: OneGpu = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    cluster: Cluster = "",
    force: Annotated[bool, typer.Option("--force", help="Replace databases that exist.")] = False,
    resume: Resume = False,
    as_json: AsJson = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Store what blobs of a net hold for each picture: of its data layer, as Caffe's extract_features.bin does, or of --images.

    The arguments are that tool's, in its order. Records are Datum messages with float_data.
    With --images, a row of the Parquet files is a picture; it is prepared as deploy.json next to NET says, unless options are given.
    """
    from caffetools.errors import CaffeToolsError
    from caffetools.solver.run import choose_device

    if mode not in ("", "CPU", "GPU"):
        raise typer.BadParameter(f"'{mode}' is neither CPU nor GPU", param_hint="MODE")
    parquet = bool(images) or backend.lower() == "parquet"
    check_cluster(cluster, parquet=parquet, dialect=dialect, plugin=plugin, resume=resume)
    where = chosen_device(gpu, {"CPU": "cpu", "GPU": f"cuda:{number}"}.get(mode, device))
    run = _Run(cluster=cluster, force=force, resume=resume)
    if images:
        if databases is not None or output is None:
            raise CaffeToolsError(
                "--images needs --output, the folder of Parquet files, in place of DB and BATCHES: "
                "caffetools extract-features WEIGHTS DEPLOY BLOB --images photos --output features"
            )
        _of_pictures(weights, net, split(blobs), images, output, (mean, scale, resize), batch, where, run, as_json=as_json)
        return
    paths, count = _arguments(databases, batches, {"--output": output, "--mean": mean, "--scale": scale, "--resize": resize})
    net, weights, names = net_file(net, "train_val"), weights_file(weights), split(blobs)
    if parquet:
        _of_batches(weights, net, names, paths, count, where, run, as_json=as_json)
        return
    from caffetools.infer.features import extract_features as extract
    from caffetools.solver.testing import load_test_net

    loaded = load_test_net(net, weights, device=choose_device(where))
    with progress("Extracting") as advance:
        done = extract(loaded, names, paths, count, backend=backend.lower(), force=force, progress=advance)
    _show(names, paths, done, backend.lower(), as_json=as_json)


def _arguments(databases: str | None, batches: int | None, options: dict[str, object]) -> tuple[list[str], int]:
    """Return the databases and the number of batches; raise a usage error without them, or with options for pictures."""
    from caffetools.errors import CaffeToolsError

    if databases is None or batches is None:
        missing = "DB[,DB] and BATCHES" if databases is None else "BATCHES"
        raise CaffeToolsError(
            f"{missing} missing: the databases to create and the number of batches to run; or give pictures with --images"
        )
    for name, value in options.items():
        if value is not None:
            raise CaffeToolsError(f"{name} is for the pictures of --images; without them the net's data layer has it")
    return split(databases), batches


def _of_pictures(
    weights: Path,
    net: Path,
    blobs: list[str],
    images: list[str],
    output: Path,
    given: tuple[str | None, float | None, str | None],
    batch: int,
    device: str,
    run: _Run,
    *,
    as_json: bool,
) -> None:
    """Write the blobs of pictures into Parquet files."""
    from caffetools.cli.classify import report_bulk
    from caffetools.data.images import parse_size
    from caffetools.infer.bulk_features import picture_features_to_parquet
    from caffetools.infer.classifier import PreprocessOptions
    from caffetools.infer.sources import find_images
    from caffetools.infer.zoo_models import merge_options

    mean, scale, resize = given
    options = merge_options(PreprocessOptions(mean=mean, scale=scale, resize=parse_size(resize) if resize else None), net)
    sources = find_images(images)
    with resumable(), progress_sink("Extracting") as events:
        done = picture_features_to_parquet(
            net_file(net, "deploy"),
            weights_file(weights),
            options,
            blobs,
            sources,
            output,
            device=device,
            batch=batch,
            events=events,
            **run,
        )
    report_bulk(done, as_json)


def _of_batches(
    weights: Path, net: Path, names: list[str], paths: list[str], batches: int, device: str, run: _Run, *, as_json: bool
) -> None:
    """Write the blobs of a net's own batches into Parquet files."""
    from caffetools.infer.bulk_features import features_to_parquet

    with resumable(), progress_sink("Extracting") as events:
        result = features_to_parquet(net, weights, names, paths, batches, device=device, events=events, **run)
    if as_json:
        print_json([{"blob": name, "folder": folder, "rows": result.rows} for name, folder in zip(names, result.folders, strict=True)])
        return
    for name, folder in zip(names, result.folders, strict=True):
        console.print(f"{name}: {result.rows} rows in {folder}", markup=False)


def _show(names: list[str], paths: list[str], done: Sequence[tuple[int, Sequence[int]]], backend: str, *, as_json: bool) -> None:
    """Print the blobs, databases, numbers of records and their shapes."""
    from caffetools.project.config import command

    if as_json:
        rows = [
            {"blob": name, "database": path, "records": count, "shape": list(shape)}
            for name, path, (count, shape) in zip(names, paths, done, strict=True)
        ]
        print_json(rows)
        return
    for name, path, (count, shape) in zip(names, paths, done, strict=True):
        console.print(f"{name}: {count} records of {' x '.join(map(str, shape))} in {path}", markup=False)
    if backend in ("lmdb", "leveldb"):
        print_next(command("dataset", "inspect", paths[0]))
