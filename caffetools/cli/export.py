"""``caffetools export``: a deployed net as a verified ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from caffetools.cli.options import Dialect, Plugin
from caffetools.cli.show import console, print_json, show_warnings


def export(
    deploy: Annotated[Path, typer.Argument(metavar="DEPLOY", help="The deploy prototxt.", show_default=False)],
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Its .caffemodel.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    opset: Annotated[int, typer.Option(min=11, max=20, help="The version of ONNX's operators; old runtimes need low ones.")] = 17,
    batch: Annotated[str, typer.Option(help="The batch size to fix, or 'dynamic'.")] = "dynamic",
    mean: Annotated[str | None, typer.Option(help="Mean file, or values as 104,117,123 (BGR); noted in the file.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor after the mean is taken off; noted in the file.")] = None,
    resize: Annotated[str | None, typer.Option(help="Size of the whole picture before the crop, 256 or 320x240; noted.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Class names, one a line; noted in the file.")] = None,
    pictures: Annotated[list[str] | None, typer.Option(help="Picture, folder or pattern to verify on; may be repeated.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Write DEPLOY with WEIGHTS as an ONNX file, after onnxruntime has given the same numbers.

    Blobs, layers and parameters keep Caffe's names.
    The model is held against caffetools on random inputs, or on --pictures, before anything is written.
    A difference above 1e-4 of an output's largest value is a failure (exit code 1).
    """
    from caffetools.data.images import parse_size
    from caffetools.infer.classifier import Options, find_pictures
    from caffetools.project.onnx_file import export_deployed

    options = Options(mean=mean, labels=labels, scale=scale, resize=parse_size(resize) if resize else None)
    verification = export_deployed(
        deploy,
        weights,
        out,
        options,
        opset=opset,
        batch=_batch(batch),
        pictures=find_pictures(pictures or [])[:_MOST_PICTURES],
        events=show_warnings,
    )
    if json:
        print_json({"model": str(out), "bytes": out.stat().st_size, "opset": opset, "batch": batch, **_measured(verification)})
        return
    size = "any batch size" if batch == "dynamic" else f"batch size {batch}"
    console.print(f"Wrote {out} ({_megabytes(out.stat().st_size)}, opset {opset}, {size}).", markup=False)
    console.print(f"Verified: {verification.describe()}.", markup=False)


# Verifying holds all the pictures in one batch.
_MOST_PICTURES = 16


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise typer.BadParameter(f"'{text}' is neither a number from 1 on nor 'dynamic'", param_hint="--batch")
    return int(text)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _measured(verification: Any) -> dict[str, Any]:
    return {
        "largest_difference": verification.largest,
        "tolerance": verification.tolerance,
        "measured_on": verification.measured_on,
        "outputs": [
            {"blob": d.output, "relative": d.relative, "absolute": d.absolute, "where": list(d.where), "expected": d.expected, "got": d.got}
            for d in verification.differences
        ],
    }
