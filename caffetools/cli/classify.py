"""``caffetools classify``: the most probable classes of pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.models import complete_model, net_file, prototxt, weights_file
from caffetools.cli.options import (
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
from caffetools.cli.show import console, print_json, print_next, progress_sink, resumable, write_error

if TYPE_CHECKING:
    from caffetools.infer.bulk import BulkResult
    from caffetools.infer.classifier import ClassificationResult


Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL] [WEIGHTS] PICTURE...",
        autocompletion=complete_model,
        help="A deploy prototxt and its .caffemodel, an ONNX file, or a network of the zoo; then pictures, folders or patterns.",
        show_default=False,
    ),
]


def classify(
    files: Files = None,
    model: Annotated[
        str | None,
        typer.Option(help="A network of the zoo, fetched on use; then all arguments are pictures.", autocompletion=complete_model),
    ] = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Annotated[
        str | None,
        typer.Option(help="Resize whole pictures to 256 or 320x240, then crop the centre. By default the mean image's size, or the net's."),
    ] = None,
    labels: Labels = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to show for each picture.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 16,
    oversample: Annotated[bool, typer.Option("--oversample", help="Average ten crops: corners and centre, mirrored too.")] = False,
    engine: InferenceEngine = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    output: Annotated[str | None, typer.Option(help="The blob of the probabilities, where the net has several outputs.")] = None,
    parquet: Parquet = None,
    cluster: Cluster = "",
    force: ForceParquet = False,
    resume: Resume = False,
    pictures_list: PictureList = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Classify pictures: the most probable classes of each.

    Mean, scale, size and labels are those of deploy.json next to DEPLOY, or of the ONNX file's metadata, unless given.
    A picture that cannot be read is reported, the others are classified, and the exit code is 2.
    """
    from caffetools.data.images import parse_size
    from caffetools.infer.classifier import Classifier, PreprocessOptions, find_pictures
    from caffetools.infer.sources import find_sources, listed_pictures
    from caffetools.infer.zoo_models import merge_options
    from caffetools.project.next_step import after_classify

    check_cluster(cluster, parquet=parquet is not None, dialect=dialect, plugin=plugin, resume=resume)
    deploy, weights, names, known, own = split_files(files or [], model, listed=bool(pictures_list))
    given = PreprocessOptions(mean=mean, labels=labels, scale=scale, resize=parse_size(resize) if resize else None)
    options = merge_options(given, known) if known else given
    if parquet is not None:
        from caffetools.infer.bulk import classify_to_parquet

        with resumable(), progress_sink("Classifying") as sink:
            done = classify_to_parquet(
                deploy, weights, options, find_sources(names, pictures_list or []), parquet, engine=engine, device=device, precision=precision, output=output, top=top, batch=batch,
                oversample=oversample, cluster=cluster, force=force, resume=resume, events=sink,
            )  # fmt: skip
        report_bulk(done, json)
        return
    pictures = find_pictures([*names, *listed_pictures(pictures_list or [])])
    classifier = Classifier(deploy, weights, options, engine=engine, device=device, precision=precision, output=output)
    with progress_sink("Classifying") as sink:
        results = classifier.classify(pictures, top=top, batch=batch, oversample=oversample, events=sink)
    _report(results, json)
    if not json:
        print_next(after_classify(known or deploy, known if known and not own else weights))


def _report(results: list[ClassificationResult], as_json: bool) -> None:
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        _show(results)
    broken = [result for result in results if result.error]
    for result in broken:
        write_error(f"error: {result.error}")
    if broken:
        if len(results) > 1:
            write_error(f"{len(broken)} of {len(results)} pictures could not be read")
        raise typer.Exit(2)


def report_bulk(done: BulkResult, as_json: bool) -> None:
    """Print what a run into Parquet files wrote; exit with 2 if pictures could not be read."""
    if as_json:
        print_json(asdict(done))
    else:
        console.print(f"Wrote {done.rows} rows to {done.folders[0]}", markup=False)
    for error in done.errors[:10]:
        write_error(f"error: {error}")
    if done.errors:
        write_error(f"{len(done.errors)} of {done.rows} pictures could not be read; the column 'error' has all")
        raise typer.Exit(2)


def split_files(
    files: list[str], model: str | None, *, command: str = "classify", listed: bool = False
) -> tuple[Path, Path | None, list[str], str | None, bool]:
    """Return the model's file, its weights (None for an ONNX file), the pictures, the network of the zoo, and whether weights are given."""
    from caffetools.data.images import SUFFIXES
    from caffetools.errors import CaffeToolsError
    from caffetools.project.config import command as shell_line
    from caffetools.proto.sniff import Kind, wrong_kind
    from caffetools.zoo.names import is_model

    if model is None and files and is_model(files[0]):
        model, files = files[0], files[1:]
    if model is not None:
        if not files and not listed:
            raise CaffeToolsError(f"{command} needs at least one picture after '{model}', a picture file, a folder or a pattern")
        own = Path(files[0]) if files and files[0].endswith((".caffemodel", ".caffemodel.h5")) else None
        return net_file(model, "deploy"), own or weights_file(model), files[1 if own else 0 :], model, own is not None
    if not files:
        example = "googlenet photo.jpg" if command == "classify" else "deploy.prototxt w.caffemodel photo.jpg"
        raise CaffeToolsError(f"{command} needs a model and pictures, for example: caffetools {command} {example}")
    deploy, rest = prototxt(files[0]), files[1:]
    if deploy.suffix.lower() in SUFFIXES:
        model_first = ["googlenet"] if command == "classify" else ["deploy.prototxt", "w.caffemodel"]
        raise CaffeToolsError(f"{deploy} is a picture; the model comes before it, for example: {shell_line(command, *model_first, *files)}")
    if deploy.suffix.lower() == ".onnx":
        weights, pictures, wanted = None, rest[1:] if rest[:1] == ["-"] and len(rest) > 1 else rest, "at least one picture"
    else:
        weights, pictures, wanted = (
            weights_file(rest[0]) if len(rest) > (0 if listed else 1) else None,
            rest[1:],
            "the .caffemodel and at least one picture",
        )
    if not pictures and not (listed and (weights or deploy.suffix.lower() == ".onnx")):
        if other := wrong_kind(CaffeToolsError, deploy, "a deploy prototxt or an ONNX model", allowed=(Kind.NET_TEXT, Kind.ONNX)):
            raise other
        raise CaffeToolsError(f"{deploy} needs {wanted} after it, for example: {_right_use(command, deploy, rest)}")
    return deploy, weights, pictures, None, True


def _right_use(command: str, model: Path, rest: list[str]) -> str:
    """Return a command line with what was given, and for what is missing the newest weights of the net or a name that stands for them."""
    from caffetools.project.config import command as shell_line
    from caffetools.project.next_step import find_weights

    given = [word for word in rest if word.endswith((".caffemodel", ".h5"))][:1]
    pictures = [word for word in rest if word not in given] or ["photo.jpg"]
    if model.suffix.lower() == ".onnx":
        return shell_line(command, model, *pictures)
    weights = given[0] if given else (find_weights(model) if model.is_file() else None) or "w.caffemodel"
    return shell_line(command, model, weights, *pictures)


def _show(results: list[ClassificationResult]) -> None:
    for result in results:
        if result.error:
            continue
        console.print(result.picture, style="bold", markup=False)
        for guess in result.guesses:
            console.print(f"  {guess.probability:6.4f}  {guess.label}", markup=False)
