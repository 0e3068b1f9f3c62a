"""``caffetools import``: an ONNX model, or a PyTorch one, as a Caffe net."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.models import prototxt
from caffetools.cli.options import Force, check_output
from caffetools.cli.show import console, print_json, print_next, progress_sink


def import_(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="An ONNX file (- for standard input), an exported program (.pt2), or module:callable that gives a torch module.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write into.", show_default=False)],
    target: Annotated[
        str, typer.Option(help="Layers to use: bvlc (BVLC Caffe 1.0), ssd (and Permute, Normalize), any (and other forks').")
    ] = "bvlc",
    input_shape: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=N,C,H,W", help="Shape of an input whose sizes are free. May be repeated.", show_default=False),
    ] = None,
    force: Force = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write MODEL as a Caffe net: deploy.prototxt and weights.caffemodel in the folder --out.

    Both are run on two random inputs before anything is written; a difference above 1e-4 of an output's largest value is a failure.
    What has no Caffe layers with the same numbers is an error that names the node and the reason.
    """
    from caffetools.cli.export import parse_shape
    from caffetools.infer.import_model import import_file
    from caffetools.infer.sidecar import sidecar_path
    from caffetools.project.config import command

    check_output(out / "deploy.prototxt", out / "weights.caffemodel", sidecar_path(out / "deploy.prototxt"), force=force)
    shapes = dict(parse_shape(text) for text in input_shape or [])
    with progress_sink("Importing") as events:
        imported, files = import_file(_stdin_as_onnx() if model == "-" else model, out, target=target, input_shapes=shapes, events=events)
    if json:
        answer = {
            "deploy": str(files[0]),
            "weights": str(files[1]),
            "layers": len(imported.model.net.layer),
            "outputs": imported.outputs,
            "moved_inputs": {name: list(order) for name, order in imported.moved_inputs.items()},
            "largest_difference": imported.largest_difference,
            "batch_limit": imported.batch_limit,
        }
        print_json(answer)
        return
    console.print(f"Wrote {files[0]} and {files[1]} ({len(imported.model.net.layer)} layers, target {target}).", markup=False)
    console.print(
        f"Verified: largest difference {imported.largest_difference:.1e} of the largest value of an output, caffetools against "
        "onnxruntime on two random inputs.",
        markup=False,
    )
    for name, order in imported.moved_inputs.items():
        axes = ", ".join("NHWC"[axis] for axis in order)
        console.print(f"The input '{name}' is (N, H, W, C) in the model and ({axes}) in the net.", markup=False)
    if imported.batch_limit:
        console.print(f"The batch size is fixed, since another gives other numbers: {imported.batch_limit}.", markup=False)
    print_next(command("inspect", files[0], files[1]))


def _stdin_as_onnx() -> str:
    """Return the file in which standard input is kept, by a name of an ONNX file: onnx goes by it."""
    import shutil

    kept = prototxt("-")
    return str(shutil.copyfile(kept, kept.with_suffix(".onnx")))
