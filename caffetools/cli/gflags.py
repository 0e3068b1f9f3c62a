"""Command lines as users of Caffe type them: ``-solver x``, ``--sigint_effect=stop``, ``device_query``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.numbers import INT32
from caffetools.errors import CaffeToolsError

Gpu = Annotated[str, typer.Option("--gpu", metavar="IDS", help="As Caffe's flag: the GPUs to use, 0 or 0,1 or all.", show_default=False)]
OneGpu = Annotated[str, typer.Option("--gpu", metavar="ID", help="As Caffe's flag: the GPU to use.", show_default=False)]
Stage = Annotated[str, typer.Option("--stage", metavar="NAME[,NAME]", help="Network stages, as Caffe's flag.", show_default=False)]
Level = Annotated[int, typer.Option("--level", min=-INT32 - 1, max=INT32, help="Network level, as Caffe's flag.")]
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
    "convert-mnist-data": ("backend",),
    "convert-mnist-siamese-data": (),
    "convert-cifar-data": (),
}
# Those without a value; gflags also takes --flag=true and --noflag.
_SWITCHES = {"gray", "shuffle", "check_size", "encoded"}


# All flags of the caffe command. gflags takes each of them with every action, so those that an action does not use have no effect.
_CAFFE = {"solver", "model", "weights", "snapshot", "gpu", "iterations", "phase", "level", "stage", "sigint_effect", "sighup_effect"}
_CAFFE_ACTIONS = ("train", "test", "time", "device-query")
# glog's flags. Those in _KEPT are passed on through the environment, as glog's own variables; the others have no effect here.
_GLOG_SWITCHES = {
    *("logtostderr", "alsologtostderr", "colorlogtostderr", "log_prefix", "drop_log_memory", "stop_logging_if_full_disk"),
    *("symbolize_stacktrace", "logtostdout", "colorlogtostdout", "log_utc_time", "log_year_in_prefix", "timestamp_in_logfile_name"),
}
_GLOG_VALUES = {
    *("log_dir", "minloglevel", "stderrthreshold", "v", "vmodule", "log_link", "logbuflevel", "logbufsecs", "max_log_size"),
    *("log_backtrace_at", "logmailer", "logemaillevel", "alsologtoemail", "logfile_mode", "logcleansecs"),
    # gflags' own for the completion of words in a shell.
    *("tab_completion_columns", "tab_completion_word"),
}
_KEPT = {"minloglevel", "log_dir"}
# gflags' own flags that stand for others.
_GFLAGS = {"flagfile", "fromenv", "tryfromenv", "undefok"}


def translate(arguments: list[str]) -> list[str]:
    """Return a command line of Caffe's tools in our own form; one that is none of them is returned as it is.

    One dash before a long flag becomes two, commands and flags have dashes for underscores, ``--flagfile`` is read, ``--fromenv`` and
    ``--tryfromenv`` take flags from the environment (``FLAGS_gpu``), flags of ``--undefok`` may be unknown, flags before the action and
    of other actions are taken as gflags takes them, flags with an empty value are dropped, and glog's flags set its environment
    variables (``GLOG_minloglevel``, ``GLOG_log_dir``).

    Raises:
        CaffeToolsError: A flagfile cannot be read, or a flag of ``--fromenv`` is not in the environment.
    """
    before, rest = _leading_flags(arguments)
    name = rest[0].replace("_", "-") if rest else ""
    if name not in FLAGS:
        return arguments
    ours = [argument for argument in before if argument in _OWN]
    flags = [argument for argument in before if argument not in _OWN]
    return [*ours, name, *_translated(_with_gflags([*flags, *rest[1:]]), name)]


def split(text: str) -> list[str]:
    """Return the values of a flag that takes several, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def quiet_by_glog() -> bool:
    """Return whether glog's minloglevel, as a flag or in the environment, leaves out the lines of severity I."""
    return os.environ.get("GLOG_minloglevel", "0").strip() not in ("", "0")  # noqa: SIM112  glog's name


def glog_folder() -> str:
    """Return glog's log_dir, as a flag or in the environment; empty if not given."""
    return os.environ.get("GLOG_log_dir", "")  # noqa: SIM112  glog's name


# Options of caffetools itself, before the command.
_OWN = ("--debug", "--version", "-h", "--help")


def _leading_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line before its action: the flags, with their values, and the rest."""
    index = 0
    while index < len(arguments) and arguments[index].startswith("-"):
        flag = _name(arguments[index])
        index += 2 if flag in _CAFFE | _GLOG_VALUES | _GFLAGS and "=" not in arguments[index] else 1
    return arguments[:index], arguments[index:]


def _with_gflags(arguments: list[str]) -> list[str]:
    """Replace gflags' own flags by what they stand for."""
    found: list[str] = []
    allowed: set[str] = set()
    values = iter(arguments)
    for argument in values:
        name = _name(argument) if argument.startswith("-") else ""
        if name not in _GFLAGS:
            found.append(argument)
            continue
        value = argument.partition("=")[2] if "=" in argument else next(values, "")
        if name == "undefok":
            allowed.update(flag.replace("-", "_") for flag in split(value))
        elif name == "flagfile":
            found += _with_gflags(_flags_in(value))
        else:
            found += _flags_of_environment(split(value), needed=name == "fromenv")
    known = {*_CAFFE, *_GLOG_SWITCHES, *_GLOG_VALUES, *(flag for flags in FLAGS.values() for flag in flags)}
    return [word for word in found if not word.startswith("-") or _name(word) not in allowed - known]


def _flags_in(path: str) -> list[str]:
    """Return the flags in a file of ``--flagfile``, one a line; # begins a comment."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise CaffeToolsError(f"cannot read: {error.strerror}", path=path) from None
    return [line.strip() for line in lines if line.strip().startswith("-")]


def _flags_of_environment(names: list[str], *, needed: bool) -> list[str]:
    found = []
    for name in names:
        value = os.environ.get(f"FLAGS_{name}")
        if value is not None:
            found.append(f"--{name}={value}")
        elif needed:
            raise CaffeToolsError(f"FLAGS_{name} is not in the environment, from which --fromenv takes the flag")
    return found


def _translated(arguments: list[str], command: str) -> Iterator[str]:
    """Yield the arguments after the command in our form."""
    flags = FLAGS[command]
    values = iter(arguments)
    for argument in values:
        if argument == "--":
            yield argument
            yield from values
            return
        name, (_, equals, value) = _name(argument), argument.partition("=")
        if not argument.startswith("-") or argument.startswith("---"):
            yield argument
        elif name in _SWITCHES and name in flags and equals:
            if value.lower() in ("true", "t", "1", "yes", "y"):
                yield f"--{name.replace('_', '-')}"
        elif name.startswith("no") and name[2:] in {*_GLOG_SWITCHES, *(flag for flag in _SWITCHES if flag in flags)}:
            continue
        elif name in flags and name not in _SWITCHES:
            yield from _with_value(name, value if equals else next(values, None), joined=bool(equals))
        elif name in _GLOG_VALUES or (name in _CAFFE and command in _CAFFE_ACTIONS):
            value = value if equals else next(values, "")
            if name in _KEPT:
                os.environ[f"GLOG_{name}"] = value
        elif name not in _GLOG_SWITCHES:
            yield f"--{name.replace('_', '-')}" if name in flags else argument


def _with_value(name: str, value: str | None, *, joined: bool) -> list[str]:
    """Return a flag with its value, ``joined`` by = or apart; alone where the value is missing, which is then an error of the command line."""
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return [flag]
    if not value and name in _CAFFE:
        return []
    return [f"{flag}={value}"] if joined else [flag, value]


def _name(argument: str) -> str:
    """Return the name of a flag, with underscores; the argument itself where it is a short option of ours."""
    name = argument.lstrip("-").partition("=")[0]
    return name.replace("-", "_") if len(name) > 1 or name == "v" else argument


def chosen_device(gpu: str, device: str, *, several: bool = False) -> str:
    """Return the device that ``--gpu`` asks for, as ``--device`` names it.

    Args:
        gpu: Value of ``--gpu``; empty if it was not given.
        device: Value of ``--device``, returned without ``--gpu``.
        several: Whether this command can use more than one device, one a process.

    Raises:
        CaffeToolsError: The device does not exist; several are given where one can be used; both flags are given.
    """
    if not gpu:
        return device
    from caffetools.solver.launch import devices
    from caffetools.solver.strategy import launched

    if device != "auto":
        raise CaffeToolsError(f"give the device once, as --gpu {gpu} or as --device {device}")
    if several and launched():
        return "cuda"
    numbers = devices(gpu)
    if len(numbers) > 1 and not several:
        raise CaffeToolsError(f"--gpu {gpu} names {len(numbers)} devices, but this command uses one")
    return f"cuda:{numbers[0]}" if len(numbers) == 1 else "cuda"
