"""Options that several commands have: the dialect of the files, and a user's own layers."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from caffetools.cli.numbers import scale_factor


def _force(context: typer.Context, name: str | None) -> str | None:
    if name is not None:
        from caffetools.proto.options import override_dialect

        context.with_resource(override_dialect(name))
    return name


def _load(context: typer.Context, paths: list[Path] | None) -> list[Path] | None:
    if paths:
        from caffetools.cli.show import keep_plugins
        from caffetools.layers.plugin import load_plugin

        for path in paths:
            load_plugin(path)
        keep_plugins(context, paths)
    return paths


# They act when the command line is read, before the command itself.
Dialect = Annotated[
    str | None,
    typer.Option(
        "--dialect",
        metavar="NAME",
        callback=_force,
        help="The Caffe fork whose files these are (bvlc, ssd, rfcn, pspnet, …); 'any' keeps fields that no fork has. By default recognized from the files.",
        show_default=False,
    ),
]
Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        callback=_load,
        help="A Python file with layers of your own; its code is run. May be repeated.",
        show_default=False,
    ),
]
Stage = Annotated[
    list[str] | None,
    typer.Option(
        "--stage",
        metavar="NAME",
        help="A stage, for layers with include or exclude rules on stages. May be repeated.",
        show_default=False,
    ),
]
SkipCorrupt = Annotated[int, typer.Option(min=0, metavar="N", help="Leave out up to N damaged records of each Data layer; each is named.")]
Engine = Annotated[str, typer.Option(help="caffetools, or caffe: the real Caffe of this machine.")]
EngineImage = Annotated[str, typer.Option(metavar="IMAGE", help="The docker image with the real Caffe.", show_default=False)]
# How pictures are prepared for a deployed net.
Mean = Annotated[str | None, typer.Option("--mean", help="Mean file (.binaryproto, .npy), or values as 104,117,123 (BGR).")]
Scale = Annotated[float | None, typer.Option("--scale", callback=scale_factor, help="Factor after the mean is subtracted.")]
Resize = Annotated[
    str | None,
    typer.Option(
        "--resize", help="Resize whole pictures to 256 or 320x240, then crop the centre. By default the mean image's size, or the net's."
    ),
]
Labels = Annotated[Path | None, typer.Option("--labels", help="File of class names, one a line (labels.txt).")]
# A note where the weights to fine-tune from are not known.
ADD_WEIGHTS = "training starts from random weights; to fine-tune, add --weights FILE.caffemodel to the next command"
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]


def check_output(*paths: Path | None, force: bool, in_place: bool = False) -> None:
    """Raise where a file to be written exists and may not be replaced, or its place cannot be written.

    Args:
        paths: What will be written; None for what will not.
        force: From ``--force``.
        in_place: Whether an input of the command may be replaced, too.

    Raises:
        CaffeToolsError: A file exists, and ``force`` is not set; or it is an input of the command.
        WriteFailed: A file cannot be written where it is to be.
    """
    from caffetools.errors import CaffeToolsError
    from caffetools.util.files import check_not_read, check_writable

    inputs = [] if in_place else _values_of_parameters(but="out")
    for path in filter(None, paths):
        refuse_standard_output(path)
        check_not_read(path, inputs)
        if path.is_file() and not force:
            raise CaffeToolsError("already exists", path=path, hint="give another name, or --force to replace it")
        check_writable(path)


def refuse_standard_output(path: Path) -> None:
    """Raise :class:`CaffeToolsError` for ``-``, which would be the name of a file."""
    from caffetools.errors import CaffeToolsError

    if str(path) == "-":
        raise CaffeToolsError("this command writes no standard output ('-'); name a file or folder to write")


def not_standard_output(path: Any) -> Any:
    """Return a path to write, for ``callback=``. Raises as :func:`refuse_standard_output`."""
    if path is not None:
        refuse_standard_output(path)
    return path


def given_options() -> list[str]:
    """Return the options of the running command that are on its command line, by their first long names, in the order of its help."""
    context = _context()
    if context is None:
        return []
    options = [parameter for parameter in context.command.params if parameter.param_type_name == "option"]
    given = [option for option in options if getattr(context.get_parameter_source(option.name or ""), "name", "") == "COMMANDLINE"]
    return [next((name for name in option.opts if name.startswith("--")), option.opts[0]) for option in given]


def refuse_options(given: Iterable[str], reason: str) -> None:
    """Raise :class:`CaffeToolsError` for the first option of ``given``: it ``reason`` ("is for ...")."""
    from caffetools.errors import CaffeToolsError

    for option in given:
        raise CaffeToolsError(f"{option} {reason}", hint="leave it out")


def _context() -> Any:
    # typer carries its own copy of click; older releases of it use the installed one.
    globals_of_click = import_module(typer.Context.__mro__[1].__module__.replace(".core", ".globals"))
    return globals_of_click.get_current_context(silent=True)


def _values_of_parameters(*, but: str) -> list[object]:
    """Return the values of the running command's arguments and options, those of ``but`` left out; values of lists one by one."""
    context = _context()
    values = [value for name, value in (context.params if context is not None else {}).items() if name != but]
    return [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]


Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N or auto.")]
Precision = Annotated[str, typer.Option("--precision", help="fp32 (as Caffe), tf32, bf16 or fp16; for the engine torch.")]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Work on a Ray cluster (extra 'cluster'): local, local:N (N workers on this machine), auto, or HOST:PORT.",
        show_default=False,
    ),
]

Resume = Annotated[bool, typer.Option("--resume", help="Continue a run with the same arguments that was killed or interrupted.")]
InferenceEngine = Annotated[
    str | None, typer.Option("--engine", help="torch or onnxruntime; by default onnxruntime for ONNX files and torch for others.")
]
Parquet = Annotated[
    Path | None,
    typer.Option(
        "--parquet",
        metavar="DIR",
        callback=not_standard_output,
        help="Write Parquet files to this new folder, for many pictures.",
        show_default=False,
    ),
]
ForceParquet = Annotated[bool, typer.Option("--force", help="Replace the folder of --parquet.")]
PictureList = Annotated[
    list[Path] | None,
    typer.Option("--list", metavar="FILE", help="A text file with a picture on each line. May be repeated.", show_default=False),
]


def check_cluster(cluster: str, *, parquet: bool, dialect: str | None, plugin: list[Path] | None, resume: bool = False) -> None:
    """Raise a usage error if a command cannot run on a cluster, or be resumed, with these options."""
    if resume and not parquet:
        raise typer.BadParameter("only a run into Parquet files can be resumed", param_hint="--resume")
    if cluster and not parquet:
        raise typer.BadParameter("it needs Parquet files as output, which the workers write", param_hint="--cluster")
    if cluster and (dialect or plugin):
        raise typer.BadParameter("--dialect and --plugin do not reach the workers; leave them out", param_hint="--cluster")
