"""What the commands of ``caffetools visualize`` share: arguments, opening a net, writing a figure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.models import DeployArgument, WeightsArgument, deployed
from caffetools.cli.options import AsJson, Force, check_output
from caffetools.cli.show import console, open_file, print_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from caffetools.visualize.picture_net import PictureNet
    from caffetools.visualize.style import Theme

Deploy = DeployArgument
Weights = WeightsArgument
Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture file.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write: .png, .svg or .html.", show_default=False)]
Show = Annotated[bool, typer.Option("--show", help="Open the picture in the system's viewer.")]


InputValues = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=VALUE",
        help="Value of another input of the net than the picture's: numbers as 600,800,1, or a .npy file. May be repeated.",
        show_default=False,
    ),
]


@dataclass
class _Drawing:
    """What the command that runs was given of the options that :func:`drawing` adds."""

    force: bool = False
    as_json: bool = False
    inputs: Sequence[str] = ()


_drawing: ContextVar[_Drawing | None] = ContextVar("drawing", default=None)


def drawing(function: Callable[..., None], suffixes: Sequence[str] = (), *, writes: bool = True) -> Callable[..., None]:
    """Give a command the options ``--force`` and ``--json``, for :func:`emit` and :func:`report_written`, and ``--input`` for :func:`open_net`.

    Whether the file may be written is checked before the work that makes its picture.

    Args:
        function: The command's function; options of these names that it has itself are kept.
        suffixes: What the file's name may end with; () takes those of pictures and pages.
        writes: Whether it writes a file.
    """
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())
    options: list[tuple[str, object, object]] = (
        [("inputs", InputValues, None)] if {"deploy", "weights"} <= set(signature.parameters) else []
    )
    options += [("force", Force, False), ("as_json", AsJson, False)] if writes else []
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in options
        if name not in signature.parameters and not (name == "as_json" and "json" in signature.parameters)
    ]
    names = {parameter.name for parameter in added}

    def command(**given: Any) -> None:
        values = _Drawing(bool(given.get("force")), bool(given.get("as_json") or given.get("json")), given.get("inputs") or ())
        token = _drawing.set(values)
        try:
            out = given.get("out")
            if isinstance(out, Path):
                from caffetools.visualize.output import SUFFIXES, check_suffix

                check_suffix(out, suffixes or SUFFIXES)
                check_drawing(out)
            function(**{name: value for name, value in given.items() if name not in names})
        finally:
            _drawing.reset(token)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + added
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command


def check_drawing(path: Path | None) -> None:
    """Raise where the file to be drawn exists and may not be replaced, unless ``--force`` is given."""
    how = _drawing.get()
    check_output(path, force=how is None or how.force)


def report_written(path: Path, caption: str) -> None:
    """Print what was written, as JSON with ``--json``."""
    how = _drawing.get()
    if how is not None and how.as_json:
        print_json({"file": str(path), "caption": caption})
    else:
        console.print(f"{path}: {caption}", markup=False)


def open_net(
    deploy: Path, weights: Path, mean: str | None, scale: float | None, resize: str | None, labels: Path | None, device: str
) -> PictureNet:
    """Open a deployed net with the options that prepare its pictures."""
    from caffetools.data.images import parse_size
    from caffetools.infer.classifier import PreprocessOptions
    from caffetools.visualize.picture_net import PictureNet

    options = PreprocessOptions(mean=mean, labels=labels, scale=scale, resize=parse_size(resize) if resize else None)
    net, parameters, prepared = deployed(deploy, weights, options)
    how = _drawing.get()
    return PictureNet(net, parameters, prepared, device=device, inputs=read_inputs(how.inputs if how is not None else ()))


def read_inputs(options: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the values of ``--input`` options by the inputs' names: of numbers (n,), or as a file has them.

    Raises:
        DataError: One is neither numbers nor a file of an array.
    """
    import numpy as np

    from caffetools.errors import DataError
    from caffetools.proto.numpy_files import read_numbers

    values: dict[str, NDArray[Any]] = {}
    for option in options:
        name, _, text = option.partition("=")
        if not name or not text:
            raise typer.BadParameter(f"'{option}' is not NAME=VALUE; write im_info=600,800,1 or state=state.npy", param_hint="--input")
        try:
            values[name] = np.array([float(part) for part in text.split(",")], np.float32)
        except ValueError:
            values[name] = read_numbers(text, f"a NumPy array (.npy) or numbers for input '{name}'")
        if not np.isfinite(values[name]).all():
            raise DataError(f"the value of input '{name}' has numbers that are NaN or infinite")
    return values


def emit(draw: Callable[[Theme], tuple[Figure, str]], out: Path | None, show: bool, title: str, *, quiet: bool = False) -> None:
    """Write the figure that ``draw`` makes for a theme to ``out``, print its caption, and open it where ``show`` is set."""
    import tempfile

    from caffetools.visualize.output import save_picture

    if out is None and not show:
        raise typer.BadParameter("name a file to write, or give --show", param_hint="-o")
    check_drawing(out)
    path = out or Path(tempfile.mkdtemp(prefix="caffetools-")) / "picture.png"
    caption = save_picture(path, draw, title=title)
    if not quiet:
        report_written(path, caption)
    if show:
        open_file(path)
