"""``caffetools detect``: the objects in pictures."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.classify import report_bulk, split_files
from caffetools.cli.options import (
    AsJson,
    Cluster,
    Device,
    Dialect,
    ForceParquet,
    InferenceEngine,
    Labels,
    Mean,
    Parquet,
    PictureList,
    Plugin,
    Precision,
    Resume,
    Scale,
    check_cluster,
)
from caffetools.cli.show import console, print_json, progress_sink, resumable, write_error

if TYPE_CHECKING:
    from caffetools.infer.detector import DetectionResult


def detect(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DEPLOY [WEIGHTS] PICTURE...",
            help="A deploy prototxt and its .caffemodel, or an ONNX file; then pictures, folders or patterns; with --parquet databases too.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Leave out objects with a lower score.")] = 0.5,
    top: Annotated[int | None, typer.Option(min=1, help="Objects of each picture at most.", show_default=False)] = None,
    mean: Mean = None,
    scale: Scale = None,
    labels: Labels = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 1,
    engine: InferenceEngine = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    output: Annotated[str | None, typer.Option(help="The blob of the objects, where the net has several outputs.")] = None,
    parquet: Parquet = None,
    cluster: Cluster = "",
    force: ForceParquet = False,
    resume: Resume = False,
    pictures_list: PictureList = None,
    as_json: AsJson = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Detect objects in pictures, with a net that ends in a layer of boxes such as SSD's DetectionOutput.

    Boxes are in pixels of the picture. A picture that cannot be read is reported, the others are processed, and the exit code is 2.
    """
    from caffetools.infer.bulk import detect_to_parquet
    from caffetools.infer.classifier import PreprocessOptions, find_pictures
    from caffetools.infer.detector import Detector
    from caffetools.infer.sources import find_sources, listed_pictures

    check_cluster(cluster, parquet=parquet is not None, dialect=dialect, plugin=plugin, resume=resume)
    lists = pictures_list or []
    deploy, weights, names, _, _ = split_files(files or [], None, command="detect", listed=bool(lists))
    options = PreprocessOptions(mean=mean, labels=labels, scale=scale)
    if parquet is not None:
        with resumable(), progress_sink("Detecting") as sink:
            done = detect_to_parquet(
                deploy, weights, options, find_sources(names, lists), parquet, engine=engine, device=device, precision=precision, output=output,
                threshold=threshold, top=top, batch=batch, cluster=cluster, force=force, resume=resume, events=sink,
            )  # fmt: skip
        report_bulk(done, as_json)
        return
    pictures = find_pictures([*names, *listed_pictures(lists)])
    detector = Detector(deploy, weights, options, engine=engine, device=device, precision=precision, output=output)
    with progress_sink("Detecting") as sink:
        results = detector.detect(pictures, threshold=threshold, top=top, batch=batch, events=sink)
    _report(results, as_json)


def _report(results: list[DetectionResult], as_json: bool) -> None:
    if as_json:
        print_json([asdict(result) for result in results])
    for result in results:
        if as_json or result.error:
            continue
        console.print(result.picture, style="bold", markup=False)
        for item in result.objects:
            corners = ", ".join(f"{value:.1f}" for value in item.box)
            console.print(f"  {item.score:6.4f}  {item.label}  ({corners})", markup=False)
    broken = [result for result in results if result.error]
    for result in broken:
        write_error(f"error: {result.error}")
    if broken:
        raise typer.Exit(2)
