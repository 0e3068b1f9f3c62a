"""``caffetools export``: a deployed net as a verified ONNX file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from caffetools.cli.models import DeployArgument, WeightsArgument, deployed
from caffetools.cli.numbers import scale_factor
from caffetools.cli.options import Dialect, Force, Plugin, check_output, given_options, refuse_options
from caffetools.cli.show import console, note, print_json, print_next, progress_sink

if TYPE_CHECKING:
    from caffetools.infer.export import ExportOptions
    from caffetools.infer.torch_export import TorchFormat
    from caffetools.layers.base import Shape
    from caffetools.onnx.export import LrnForm
    from caffetools.onnx.verify import Verification

Batch = Annotated[
    str | None,
    typer.Option(metavar="N", help="Batch size to fix, or 'dynamic'; by default any size where the net takes any.", show_default=False),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(metavar="BLOB=N,C,H,W", help="Shape of an input, in place of the prototxt's. May be repeated.", show_default=False),
]
DynamicAxes = Annotated[
    str | None, typer.Option(help="Axes of any size: batch,height,width or some of them; by default batch.", show_default=False)
]
_Scale = Annotated[
    float | None, typer.Option("--scale", callback=scale_factor, help="Factor after the mean is subtracted; kept in the metadata.")
]
From = Annotated[str | None, typer.Option("--from", metavar="BLOB,…", help="Blobs that become the inputs; earlier layers are removed.")]
InGraph = Annotated[bool, typer.Option("--preprocess", help="Put mean, channel swap and scale into the graph: uint8 NHWC RGB pictures in.")]
To = Annotated[
    str,
    typer.Option(
        help="onnx; or torch (a state_dict, and its module as .module.pt2), torchscript, exported-program. openvino, ncnn, tflite, coreml: the file that their "
        "converter reads, with its command."
    ),
]


def export(
    deploy: DeployArgument,
    weights: WeightsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    opset: Annotated[int, typer.Option(min=11, max=28, help="ONNX operator set version; old runtimes need a low one.")] = 17,
    batch: Batch = None,
    input_shape: InputShape = None,
    dynamic_axes: DynamicAxes = None,
    outputs: Annotated[str | None, typer.Option(metavar="BLOB,…", help="Blobs to export in place of the net's outputs.")] = None,
    from_: From = None,
    mean: Annotated[str | None, typer.Option(help="Mean file, or values as 104,117,123 (BGR); kept in the metadata.")] = None,
    scale: _Scale = None,
    resize: Annotated[str | None, typer.Option(help="Resize whole pictures to 256 or 320x240; kept in the metadata.")] = None,
    labels: Annotated[Path | None, typer.Option(help="File of class names, one a line; kept in the metadata.")] = None,
    preprocess: InGraph = False,
    lrn: Annotated[str, typer.Option(help="LRN across channels: node (ONNX's LRN), or band, which onnxruntime computes faster.")] = "node",
    pictures: Annotated[list[str] | None, typer.Option(help="Picture, folder or pattern to verify on, at most 16.")] = None,
    to: To = "onnx",
    force: Force = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Write DEPLOY with WEIGHTS as an ONNX file, verified in onnxruntime.

    Blobs, layers and parameters keep Caffe's names.
    Before the file is written, every blob is compared with the net in float64, on random inputs or on --pictures.
    A blob may differ by at most 4 times the float32 error of caffetools' own engine; more is a failure (exit code 1).
    """
    from caffetools.data.images import parse_size
    from caffetools.infer.classifier import PreprocessOptions, find_pictures, spread
    from caffetools.infer.export import ExportOptions, export_deployed, preprocessing_of_part
    from caffetools.net.malloc_tuning import return_large_blocks
    from caffetools.project.next_step import after_export

    return_large_blocks()
    options = PreprocessOptions(mean=mean, labels=labels, scale=scale, resize=parse_size(resize) if resize else None)
    how = ExportOptions(
        opset=opset,
        dynamic_axes=_axes(dynamic_axes, batch),
        batch=_batch(batch),
        input_shapes=dict(parse_shape(text) for text in input_shape or []),
        outputs=_names(outputs),
        sources=_names(from_),
        preprocess=preprocess,
        lrn=_lrn(lrn),
    )
    to, how, converter = _for_converter(to, how)
    check_output(*_files(out, to, how), force=force)
    net, parameters, prepared = deployed(deploy, weights, options)
    prepared = preprocessing_of_part(how, options, prepared)
    if to != "onnx":
        _to_torch(net, parameters, out, how, to, converter, as_json=json)
        return
    images = spread(find_pictures(pictures or []), _MOST_PICTURES)
    with progress_sink("Exporting") as events:
        verification = export_deployed(net, parameters, out, prepared, how, pictures=images, events=events)
    command = converter.command(out, _inputs(out)) if converter is not None else ""
    if json:
        _print_json(out, how, verification, command)
        return
    _print_written(out, how, verification)
    if converter is not None:
        _print_converter(converter, command)
    elif not (how.outputs or how.sources):
        print_next(after_export(deploy, weights, out, own_inputs=not (how.preprocess or how.input_shapes)))


def _print_json(out: Path, how: ExportOptions, verification: Verification, command: str) -> None:
    from caffetools.onnx.model import file_size

    values = {"model": str(out), "bytes": file_size(out), "opset": how.opset, "batch": _batch_size(out)}
    print_json({**values, **_measured(verification), **({"then": command} if command else {})})


def _print_written(out: Path, how: ExportOptions, verification: Verification) -> None:
    from caffetools.onnx.model import file_size

    size = "any batch size" if _batch_size(out) == "dynamic" else "a fixed batch size"
    total = file_size(out)
    files = f"{out} with its weights in {out.name}.data" if total > out.stat().st_size else f"{out}"
    console.print(f"Wrote {files} ({_megabytes(total)}, opset {how.opset}, {size}).", markup=False)
    console.print(f"Verified: {verification.describe()}.", markup=False)


class _Converter(NamedTuple):
    """A program that makes another runtime's file: what it reads, the pip package that has it, and its command."""

    reads: str
    package: str
    text: str

    def command(self, model: Path, inputs: Mapping[str, Shape], outputs: Collection[str] = ()) -> str:
        """Return the command for a file that was written, whose inputs have these names and shapes."""
        stem = str(model.with_suffix(""))
        python = f"import torch, coremltools as ct; m = torch.jit.load({str(model)!r}); "
        takes = ", ".join(f"ct.TensorType(name={_identifier(blob)!r}, shape={shape})" for blob, shape in inputs.items())
        gives = ", ".join(f"ct.TensorType(name={_identifier(blob)!r})" for blob in outputs)
        python += (
            f"ct.convert(m, inputs=[{takes}], outputs=[{gives}], compute_precision=ct.precision.FLOAT32).save({stem + '.mlpackage'!r})"
        )
        names = " ".join(shlex.quote(blob) for blob in inputs)
        return self.text.format(model=shlex.quote(str(model)), stem=shlex.quote(stem), inputs=names, python=_quoted(python))


def _identifier(blob: str) -> str:
    """Return a blob's name in the letters that Core ML takes."""
    return re.sub(r"\W", "_", blob)


def _inputs(model: Path) -> dict[str, Shape]:
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    return {item.name: tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim) for item in graph.input}


def _batch_size(model: Path) -> str:
    """Return the batch size that a written model takes: ``dynamic``, a number, or ``fixed`` where its inputs differ in it."""
    sizes = {shape[0] if shape else -1 for shape in _inputs(model).values()}
    return "fixed" if len(sizes) != 1 or -1 in sizes else str(sizes.pop() or "dynamic")


def _quoted(text: str) -> str:
    """Quote Python code for a shell; in double quotes where it holds nothing special, since it has single ones of its own."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


_CONVERTERS = {
    "openvino": _Converter("onnx", "openvino", "ovc {model} --output_model {stem} --compress_to_fp16=False"),
    "ncnn": _Converter("onnx", "pnnx", "pnnx {model} fp16=0"),
    # Inputs keep their (N, C, H, W); without -kat onnx2tf also downloads pictures to compare on.
    "tflite": _Converter("onnx", "onnx2tf", "onnx2tf -i {model} -o {stem}_tflite -kat {inputs}"),
    "coreml": _Converter("torchscript", "coremltools", "python -c {python}"),
}


def _for_converter(to: str, how: ExportOptions) -> tuple[str, ExportOptions, _Converter | None]:
    """Return what to write for ``to``, how, and the converter that reads it."""
    converter = _CONVERTERS.get(to)
    if converter is None:
        return to, how, None
    # A free batch size is fixed by the converters, or they fail; ncnn has no average pooling whose padding differs at both ends.
    return converter.reads, replace(how, batch=how.batch or 1, symmetric_pools=to == "ncnn"), converter


def _print_converter(converter: _Converter, command: str) -> None:
    console.print(f"Then, with `pip install {converter.package}`:\n  {command}", markup=False, soft_wrap=True, highlight=False)


# What only an ONNX file keeps.
_OF_ONNX = {"--preprocess", "--opset", "--lrn", "--pictures", "--mean", "--scale", "--resize", "--labels"}


def _files(out: Path, to: str, how: ExportOptions) -> list[Path]:
    """Return the files that will be written; an option that has no effect on them is an error."""
    if to == "onnx":
        return [out]
    from caffetools.infer.torch_export import torch_files

    kind = _torch_format(to)
    axes = {"--dynamic-axes"} if {"height", "width"} & set(how.dynamic_axes or ()) else set()
    given = [option for option in given_options() if option in _OF_ONNX | axes]
    refuse_options(given, f"is for ONNX files; a {to} file has the net alone")
    return torch_files(out, kind)


def _torch_format(to: str) -> TorchFormat:
    from caffetools.infer.torch_export import TORCH_FORMATS

    kind = next((known for known in TORCH_FORMATS if known == to), None)
    if kind is None:
        raise typer.BadParameter(f"'{to}' is not known; onnx, {', '.join((*TORCH_FORMATS, *_CONVERTERS))} are", param_hint="--to")
    return kind


def _to_torch(deploy: Path, weights: Path, out: Path, how: ExportOptions, to: str, converter: _Converter | None, *, as_json: bool) -> None:
    from caffetools.infer.export import build_part, free_axes
    from caffetools.infer.torch_export import export_torch, torch_files

    kind = _torch_format(to)
    net = build_part(deploy, how)
    axes, limit = free_axes(net, how)
    difference = export_torch(deploy, weights, out, kind, replace(how, dynamic_axes=axes))
    if limit:
        note(limit)
    command = ""
    if converter is not None:
        command = converter.command(out, {blob: net.blob_shapes[blob] for blob in net.inputs}, net.outputs)
    files = torch_files(out, kind)
    if as_json:
        more = {"module": str(files[1])} if len(files) > 1 else {}
        then = {"then": command} if command else {}
        print_json({"model": str(out), **more, "bytes": out.stat().st_size, "to": to, "largest_difference": difference, **then})
        return
    batch = "any batch size" if "batch" in axes else "a fixed batch size"
    console.print(f"Wrote {out} ({_megabytes(out.stat().st_size)}, {'a state_dict' if files[1:] else to}, {batch}).", markup=False)
    for module in files[1:]:
        console.print(f"Wrote {module}: its module, for torch.export.load({str(module)!r}).module().", markup=False)
    console.print(f"Verified: largest difference {difference:.1e} of the largest value of an output.", markup=False)
    if converter is not None:
        _print_converter(converter, command)


# Verifying holds all the pictures in one batch.
_MOST_PICTURES = 16


def _axes(text: str | None, batch: str | None) -> tuple[str, ...] | None:
    """Return the axes that were asked for; None where that is left to the net."""
    if text is None:
        return ("batch",) if batch == "dynamic" else None
    return _names(text)


def _batch(text: str | None) -> int | None:
    if text is None or text == "dynamic":
        return None
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise typer.BadParameter(f"'{text}' is neither a number from 1 on nor 'dynamic'", param_hint="--batch")
    return int(text)


def _lrn(text: str) -> LrnForm:
    from caffetools.onnx.export import LRN_FORMS

    form = next((known for known in LRN_FORMS if known == text), None)
    if form is None:
        raise typer.BadParameter(f"'{text}' is not known; {' and '.join(LRN_FORMS)} are", param_hint="--lrn")
    return form


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read ``BLOB=N,C,H,W``."""
    blob, _, sizes = text.rpartition("=")
    parts = sizes.replace("x", ",").split(",")
    if not blob or not all(part.isdecimal() and 0 < int(part) < 2**31 for part in parts):
        raise typer.BadParameter(f"'{text}' is not BLOB=N,C,H,W, such as data=1,3,368,656", param_hint="--input-shape")
    return blob, tuple(int(part) for part in parts)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _measured(verification: Verification) -> dict[str, Any]:
    return {
        "largest_difference": verification.largest,
        "tolerance": verification.tolerance,
        "measured_on": verification.measured_on,
        "notes": list(verification.notes),
        "outputs": [
            {
                "blob": d.blob,
                "relative": d.relative,
                "error": d.error,
                "float32_error": d.float32_error,
                "allowed": d.allowed,
                "where": list(d.where),
                "expected": d.expected,
                "got": d.got,
            }
            for d in verification.outputs
        ],
    }
