"""``caffetools quantize``: a deployed net as an int8 or fp16 ONNX file, with calibration tables for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.models import DeployArgument, WeightsArgument, deployed
from caffetools.cli.options import Dialect, Force, Labels, Mean, Plugin, Resize, Scale, check_output, given_options, refuse_options
from caffetools.cli.show import console, print_json, print_next, print_table, progress_sink, shortened
from caffetools.results import share_text

if TYPE_CHECKING:
    from caffetools.quant.quantize import Quantization

Calibration = Annotated[
    list[str],
    typer.Option(
        "--calibration",
        "-c",
        metavar="DIR|LMDB",
        help="Pictures like those of use: a folder, a database, a list (.txt) or a pattern. May be repeated.",
    ),
]
MinAgreement = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", help="Keep the worst layers in float until this share of best classes (0.99) is the same.", show_default=False
    ),
]
Test = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR|LMDB",
        help="Labelled pictures to measure the accuracy on: a folder for each class, a list (.txt) or a database.",
        show_default=False,
    ),
]
Ranges = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Ranges that `train --quantize` wrote (a .ranges.json), or none; by default those next to WEIGHTS.",
        show_default=False,
    ),
]


def quantize(
    deploy: DeployArgument,
    weights: WeightsArgument,
    calibration: Calibration,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    precision: Annotated[str, typer.Option(help="int8 or fp16.")] = "int8",
    method: Annotated[str, typer.Option(help="How ranges are found: minmax, entropy or percentile.")] = "minmax",
    percentile: Annotated[float, typer.Option(help="For percentile: % of the values that are not clipped.")] = 99.99,
    keep: Annotated[str, typer.Option(metavar="LAYER,…", help="Layers to keep in float.", show_default=False)] = "",
    min_agreement: MinAgreement = None,
    tables: Annotated[
        str, typer.Option(metavar="NAME,…", help="Calibration tables to write, of tensorrt,ncnn,caffe; or none.")
    ] = "tensorrt,ncnn,caffe",
    test: Test = None,
    images: Annotated[int, typer.Option("--most", "--images", min=1, help="Pictures to take at most, spread over all.")] = 500,
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 8,
    opset: Annotated[int, typer.Option(min=13, max=25, help="ONNX operator set version.")] = 17,
    outputs: Annotated[str, typer.Option(metavar="BLOB,…", help="Blobs to end the net at.", show_default=False)] = "",
    ranges: Ranges = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a calibration that was interrupted.")] = False,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    labels: Labels = None,
    force: Force = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Write DEPLOY with WEIGHTS in int8 or fp16, calibrated on pictures and compared with the float net.

    Pictures are prepared as deploy.json next to DEPLOY describes. int8 is ONNX with QDQ nodes, for onnxruntime; next to OUT are
    TensorRT's calibration cache, ncnn's table and the table of caffe-int8-convert-tools, for use with the float model.
    """
    from caffetools.data.images import parse_size
    from caffetools.infer.classifier import PreprocessOptions
    from caffetools.infer.quantize import quantize_deployed
    from caffetools.project.next_step import after_quantize
    from caffetools.quant.quantize import QuantizeOptions, table_paths

    given = given_options()
    if precision == "fp16":
        refuse_options((option for option in _OF_INT8 if option in given), "is for int8")
    if method != "percentile":
        refuse_options({"--percentile"}.intersection(given), "is for --method percentile")
    options = PreprocessOptions(mean=mean, labels=labels, scale=scale, resize=parse_size(resize) if resize else None)
    chosen = () if tables == "none" else _names(tables)
    how = QuantizeOptions(precision, method, percentile, _names(keep), min_agreement, chosen, batch, opset, resume)  # type: ignore[arg-type]
    check_output(out, *table_paths(out, how), force=force)
    net, parameters, prepared = deployed(deploy, weights, options)
    with progress_sink("Calibrating") as events:
        names, own = _names(outputs), (net, parameters, out, calibration, prepared, how)
        done = quantize_deployed(*own, test=test, images=images, ranges=ranges, outputs=names, events=events)
    if json:
        print_json(_plain(done))
    else:
        _print(done)
        print_next(after_quantize(deploy, out))


# Without effect on fp16, for which nothing is counted.
_OF_INT8 = ("--method", "--percentile", "--ranges", "--tables", "--resume")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _print(done: Quantization) -> None:
    if any(layer.sqnr is not None for layer in done.layers):
        cells = [
            (layer.name, "" if layer.sqnr is None else f"{layer.sqnr:.1f}", "float" if layer.kept else done.precision)
            for layer in done.layers
        ]
        print_table(("layer", ">SQNR (dB)", "computed in"), cells)
    if done.agreement is not None:
        of = f"{done.images} pictures" if done.decisions == done.images else f"{done.decisions:,} classifications in {done.images} pictures"
        console.print(f"Same best class as in float: {share_text(done.agreement, '.2%')} of {of}.")
    if done.accuracy_before is not None and done.accuracy_after is not None:
        console.print(
            f"Accuracy on {done.tested} labelled pictures: {share_text(done.accuracy_before, '.2%')} in float, "
            f"{share_text(done.accuracy_after, '.2%')} in {done.precision}."
        )
    before, after = shortened(done.bytes_before, "B"), shortened(done.bytes_after, "B")
    console.print(f"Size: {before} in float, {after} in {done.precision} ({done.bytes_after / done.bytes_before:.0%}).")
    ratio = done.ms_before / done.ms_after if done.ms_after else 0.0
    console.print(
        f"Speed in onnxruntime here: {done.ms_before:.2f} ms a picture in float, {done.ms_after:.2f} ms in {done.precision} ({ratio:.2f} times as fast)."
    )
    console.print(f"Wrote {done.path}.")
    for name, path in done.tables.items():
        console.print(f"Wrote {path} (table for {name}).")


def _plain(done: Quantization) -> dict[str, object]:
    return {
        "model": str(done.path),
        "precision": done.precision,
        "images": done.images,
        "agreement": done.agreement,
        "layers": [{"name": layer.name, "sqnr_db": layer.sqnr, "kept": layer.kept} for layer in done.layers],
        "tables": {name: str(path) for name, path in done.tables.items()},
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
        "tested": done.tested,
        "accuracy_before": done.accuracy_before,
        "accuracy_after": done.accuracy_after,
        "ms_before": done.ms_before,
        "ms_after": done.ms_after,
    }
