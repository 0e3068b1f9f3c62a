"""``caffetools extract-features``: blobs of a net into databases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.gflags import OneGpu, chosen_device, split
from caffetools.cli.models import complete_model, net_file, weights_file
from caffetools.cli.options import AsJson, Cluster, Dialect, Plugin, Resume, check_cluster
from caffetools.cli.show import console, print_json, print_next, progress, progress_sink

_Weights = Annotated[
    Path,
    typer.Argument(metavar="WEIGHTS", help="The .caffemodel; or a network of the zoo.", show_default=False, autocompletion=complete_model),
]


def extract_features(
    weights: _Weights,
    net: Annotated[Path, typer.Argument(metavar="NET", help="The net's prototxt, with a data layer.", show_default=False)],
    blobs: Annotated[str, typer.Argument(metavar="BLOB[,BLOB]", help="The blobs to store.", show_default=False)],
    databases: Annotated[str, typer.Argument(metavar="DB[,DB]", help="Database to create for each blob.", show_default=False)],
    batches: Annotated[int, typer.Argument(metavar="BATCHES", help="Number of batches to run.", show_default=False)],
    backend: Annotated[
        str, typer.Argument(metavar="BACKEND", help="lmdb, leveldb; or hdf5 or parquet: a folder of such files for each blob.")
    ] = "lmdb",
    mode: Annotated[str, typer.Argument(metavar="[CPU|GPU]", help="As Caffe's tool takes it; --device does the same.")] = "",
    number: Annotated[int, typer.Argument(metavar="[DEVICE_ID]", help="Number of the GPU.")] = 0,
    gpu: OneGpu = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    cluster: Cluster = "",
    force: Annotated[bool, typer.Option("--force", help="Replace databases that exist.")] = False,
    resume: Resume = False,
    as_json: AsJson = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Store what blobs of a net hold for each picture of its data layer, as Caffe's extract_features.bin does.

    The arguments are that tool's, in its order. Records are Datum messages with float_data.
    """
    from caffetools.infer.features import extract_features as extract
    from caffetools.solver.run import choose_device
    from caffetools.solver.testing import load_test_net

    if mode not in ("", "CPU", "GPU"):
        raise typer.BadParameter(f"'{mode}' is neither CPU nor GPU", param_hint="MODE")
    check_cluster(cluster, parquet=backend.lower() == "parquet", dialect=dialect, plugin=plugin, resume=resume)
    wanted = {"CPU": "cpu", "GPU": f"cuda:{number}"}.get(mode, device)
    net, weights = net_file(net, "train_val"), weights_file(weights)
    if backend.lower() == "parquet":
        from caffetools.infer.bulk import features_to_parquet

        on = chosen_device(gpu, wanted)
        with progress_sink("extracting") as events:
            result = features_to_parquet(
                net, weights, split(blobs), split(databases), batches, device=on, cluster=cluster, force=force, resume=resume, events=events
            )
        if as_json:
            print_json(
                [{"blob": name, "folder": folder, "rows": result.rows} for name, folder in zip(split(blobs), result.folders, strict=True)]
            )
            return
        for name, folder in zip(split(blobs), result.folders, strict=True):
            console.print(f"{name}: {result.rows} rows in {folder}")
        return
    loaded = load_test_net(net, weights, device=choose_device(chosen_device(gpu, wanted)))
    names, paths = split(blobs), split(databases)
    with progress("extracting") as advance:
        done = extract(loaded, names, paths, batches, backend=backend.lower(), force=force, progress=advance)
    _show(names, paths, done, backend.lower(), as_json=as_json)


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
