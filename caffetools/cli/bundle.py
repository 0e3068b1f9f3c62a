"""``caffetools bundle``: a folder with everything that a device needs to run a deployed classifier or detector."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.models import complete_model, deployed
from caffetools.cli.options import Dialect, Labels, Mean, Plugin, Resize, Scale, given_options, not_standard_output, refuse_options
from caffetools.cli.show import console, print_json, print_next, progress_sink
from caffetools.errors import CaffeToolsError

if TYPE_CHECKING:
    from caffetools.bundle.check import BundleCheck


Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="DEPLOY WEIGHTS | check DIR",
        help="A deploy prototxt and its .caffemodel, or a network of the zoo; or a bundle to check.",
        autocompletion=complete_model,
    ),
]


_Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", callback=not_standard_output, help="The folder to create.", show_default=False),
]


def bundle(
    files: Files,
    target: Annotated[str, typer.Option(help="jetson, onnxruntime or opencv.")] = "jetson",
    out: _Out = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    labels: Labels = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="CACHE", help="TensorRT's calibration cache, from `caffetools quantize`.", show_default=False)
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="The blob of the probabilities or detections, where the net has several outputs.")
    ] = None,
    pictures: Annotated[
        list[str] | None, typer.Option(help="Sample pictures to include in place of drawn ones. May be repeated.", show_default=False)
    ] = None,
    engine: Annotated[str, typer.Option(help="Runtime of bundle check: onnxruntime, opencv, tensorrt or auto.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Write DEPLOY with WEIGHTS as a bundle for a device, or check one.

    A bundle has the ONNX model, labels, preprocessing, a script for TensorRT, runners in Python and C++, and sample pictures with the
    expected classes or boxes. `caffetools bundle check DIR` compares all files with SHA256SUMS and the samples with what the net computed.
    """
    if len(files) == 2 and str(files[0]) == "check":
        _check(files[1], engine, as_json=json)
        return
    if len(files) != 2 or out is None:
        hint = "quote a pattern of pictures, which the shell would expand" if len(files) > 2 else ""
        raise CaffeToolsError("bundle needs DEPLOY, WEIGHTS and -o DIR, or check DIR", hint=hint)
    refuse_options({"--engine"}.intersection(given_options()), "is for bundle check; --target chooses the runtime of a bundle")
    from caffetools.bundle.build import build_bundle
    from caffetools.data.images import parse_size
    from caffetools.infer.classifier import PreprocessOptions, find_pictures
    from caffetools.project.config import command

    options = PreprocessOptions(mean=mean, labels=labels, scale=scale, resize=parse_size(resize) if resize else None)
    net, weights, prepared = deployed(files[0], files[1], options)
    with progress_sink("Bundling") as events:
        checked = build_bundle(
            net,
            weights,
            out,
            target,
            prepared,
            calibration=calibration,
            output=output,
            pictures=find_pictures(pictures or []),
            force=force,
            events=events,
        )
    _show(checked, out, "Wrote", as_json=json)
    if not json:
        print_next(command("bundle", "check", out))


def _check(folder: Path, engine: str, *, as_json: bool) -> None:
    from caffetools.bundle.check import check_bundle
    from caffetools.bundle.standalone import BACKENDS

    others = (option for option in given_options() if option not in ("--engine", "--json", "--plugin", "--dialect"))
    refuse_options(others, "is for writing a bundle, not for bundle check")
    if engine not in ("auto", *BACKENDS):
        raise typer.BadParameter(f"'{engine}' is not known; auto, {', '.join(BACKENDS)} are", param_hint="--engine")
    with progress_sink("Checking") as events:
        checked = check_bundle(folder, backend=engine, events=events)
    _show(checked, folder, "Checked", as_json=as_json)


def _show(checked: BundleCheck, folder: Path, done: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"bundle": str(folder), **asdict(checked)})
        return
    console.print(f"{done} {folder} ({checked.files} files).", markup=False)
    console.print(
        f"{checked.samples} samples in {checked.backend} give the expected results; largest difference {checked.largest_difference:.1e}.",
        markup=False,
    )
    if checked.others:
        console.print(f"Not of the bundle, and not checked: {', '.join(checked.others)}.", markup=False)
