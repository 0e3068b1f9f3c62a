"""Command lines as users of Caffe type them: ``-solver x``, ``--sigint_effect=stop``, ``device_query``."""

from __future__ import annotations

from typing import Annotated

import typer

Gpu = Annotated[str, typer.Option("--gpu", metavar="IDS", help="As Caffe's flag: the GPUs to use, 0 or 0,1 or all.", show_default=False)]
OneGpu = Annotated[str, typer.Option("--gpu", metavar="ID", help="As Caffe's flag: the GPU to use.", show_default=False)]
Stage = Annotated[str, typer.Option("--stage", metavar="NAME[,NAME]", help="Network stages, as Caffe's flag.", show_default=False)]
Level = Annotated[int, typer.Option("--level", help="Network level, as Caffe's flag.")]
SigintEffect = Annotated[str, typer.Option("--sigint-effect", metavar="EFFECT", help="What Ctrl-C does: stop, snapshot or none.")]
SighupEffect = Annotated[str, typer.Option("--sighup-effect", metavar="EFFECT", help="What a hang-up does: stop, snapshot or none.")]

# The flags of Caffe's tools, by the commands that take them.
FLAGS = {
    "train": ("solver", "weights", "snapshot", "gpu", "sigint_effect", "sighup_effect", "stage", "level"),
    "test": ("model", "weights", "gpu", "iterations", "stage", "level"),
    "time": ("model", "weights", "gpu", "iterations", "phase", "stage", "level"),
    "device-query": ("gpu",),
    "extract-features": ("gpu",),
    "convert-imageset": (
        *("gray", "shuffle", "backend", "resize_width", "resize_height"),
        *("check_size", "encoded", "encode_type"),
    ),
    "mean": ("backend",),
}
# Those without a value; gflags also takes --flag=true and --noflag.
_SWITCHES = {"gray", "shuffle", "check_size", "encoded"}
_SPELLED = {
    "device_query": "device-query",
    "extract_features": "extract-features",
    "convert_imageset": "convert-imageset",
    "compute_image_mean": "mean",
    "compute-image-mean": "mean",
}


def translate(arguments: list[str]) -> list[str]:
    """``arguments`` in our own form: one dash before a long flag of Caffe becomes two, and commands may have underscores."""
    at = next((index for index, argument in enumerate(arguments) if not argument.startswith("-")), len(arguments))
    command = arguments[at : at + 1]
    name = _SPELLED.get(command[0], command[0]) if command else ""
    if name not in FLAGS:
        return arguments
    translated = (_translated(argument, FLAGS[name]) for argument in arguments[at + 1 :])
    return [*arguments[:at], name, *(argument for argument in translated if argument is not None)]


def split(text: str) -> list[str]:
    """The values of a flag that takes several, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _translated(argument: str, flags: tuple[str, ...]) -> str | None:
    if not argument.startswith("-") or argument.startswith("---"):
        return argument
    flag, equals, value = argument.lstrip("-").partition("=")
    name = flag.replace("-", "_")
    if name in _SWITCHES and name in flags and equals:
        return f"--{flag.replace('_', '-')}" if value.lower() in ("true", "t", "1", "yes", "y") else None
    if name.startswith("no") and name[2:] in _SWITCHES and name[2:] in flags:
        return None
    if name not in flags:
        return argument
    return f"--{flag.replace('_', '-')}{equals}{value}"


def chosen_device(gpu: str, device: str, *, several: bool = False) -> str:
    """The device that ``--gpu`` asks for, in the words of ``--device``; ``device`` itself where it asks for nothing.

    Args:
        several: This command can use more than one; then that is left to the launcher.

    Raises:
        CaffeToolsError: there is no such device here; more than one is given where only one can be used; both flags are given.
    """
    if not gpu:
        return device
    from caffetools.errors import CaffeToolsError
    from caffetools.solver.launch import devices
    from caffetools.solver.parallel import launched

    if device != "auto":
        raise CaffeToolsError(f"give the device once, as --gpu {gpu} or as --device {device}")
    if several and launched():
        return "cuda"
    numbers = devices(gpu)
    if len(numbers) > 1 and not several:
        raise CaffeToolsError(f"--gpu {gpu} names {len(numbers)} devices, but this command uses one")
    return f"cuda:{numbers[0]}" if len(numbers) == 1 else "cuda"
