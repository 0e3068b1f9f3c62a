"""Caffe's own tools by their names, also the deprecated ones: the same arguments for the commands that do their work here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import NamedTuple

from caffetools.cli.commands import CAFFE_TOOLS, COMMANDS


class Tool(NamedTuple):
    """A tool of Caffe: the command that does the same here, and options that give it the tool's habits.

    Attributes:
        command: The command's name.
        more: Options to add: Caffe's tools replace their output files.
    """

    command: str
    more: tuple[str, ...] = ()


# What a user of the command line of Caffe's tools types → what runs here.
TOOLS = {
    "compute-image-mean": Tool("mean", ("--force",)),
    "upgrade-net-proto-text": Tool("upgrade", ("--force",)),
    "upgrade-net-proto-binary": Tool("upgrade", ("--force",)),
    "upgrade-solver-proto-text": Tool("upgrade", ("--force",)),
    "draw-net": Tool("draw-net", ("--force",)),
    "parse-log": Tool("parse-log", ("--force",)),
    "plot-training-log": Tool("plot-training-log", ("--force",)),
    "caffe": Tool(""),
}


def _device(words: Sequence[str]) -> list[str]:
    """Return the option for the old arguments ``[CPU|GPU] [DEVICE_ID]``."""
    if words[:1] == ["GPU"]:
        return ["--gpu", words[1] if len(words) > 1 else "0"]
    return ["--device", "cpu"] if words[:1] == ["CPU"] else list(words)


def _iterations(words: Sequence[str]) -> list[str]:
    """Return the options for the old arguments ``[ITERATIONS] [CPU|GPU] [DEVICE_ID]``."""
    return [*(["--iterations", words[0]] if words else []), *_device(words[1:])]


# Tools of Caffe's first years, which Caffe 1.0 has only to name their replacements; they took their arguments by position.
_DEPRECATED: dict[str, Callable[[list[str]], list[str]]] = {
    "train-net": lambda a: ["train", *a[:1], *(["--snapshot", a[1]] if len(a) > 1 else []), *a[2:]],
    "finetune-net": lambda a: ["train", *a[:1], *(["--weights", a[1]] if len(a) > 1 else []), *a[2:]],
    "test-net": lambda a: ["test", *a[:1], *(["--weights", a[1]] if len(a) > 1 else []), *_iterations(a[2:])],
    "net-speed-benchmark": lambda a: ["time", *a[:1], *_iterations(a[1:])],
}


def known_tools() -> list[str]:
    """Return the names of Caffe's tools that are understood, with underscores as in Caffe."""
    ours = (
        "convert-imageset",
        "extract-features",
        "device-query",
        "convert-mnist-data",
        "convert-mnist-siamese-data",
        "convert-cifar-data",
    )
    return sorted(name.replace("-", "_") for name in (*TOOLS, *_DEPRECATED, *ours) if name != "caffe")


def modern(arguments: list[str]) -> tuple[list[str], str]:
    """Return a command line in which a tool of Caffe is replaced by the command that does its work, and a note on a deprecated one.

    Underscores in a command's name count as dashes, and the endings ``.bin`` and ``.py`` are left out.

    Args:
        arguments: The command line, without the program's name.

    Example:
        >>> modern(["upgrade_net_proto_text", "a.prototxt", "b.prototxt"])
        (['upgrade', '--force', 'a.prototxt', 'b.prototxt'], '')
        >>> modern(["test_net.bin", "net.prototxt", "w.caffemodel", "10", "CPU"])[0]
        ['test', 'net.prototxt', '--weights', 'w.caffemodel', '--iterations', '10', '--device', 'cpu']
    """
    if not arguments or arguments[0].startswith("-"):
        return arguments, ""
    word, rest = arguments[0], arguments[1:]
    name = word.removesuffix(".bin").removesuffix(".py").replace("_", "-")
    if name in TOOLS:
        command, more = TOOLS[name]
        # `caffe` alone shows its usage; a bare `caffetools` would show the project.
        return ([command, *more, *rest] if command else rest or ["--help"]), ""
    if name in _DEPRECATED:
        places = list(takewhile(lambda argument: not argument.startswith("-"), rest))
        new = [*_DEPRECATED[name](places), *rest[len(places) :]]
        return new, f"{word} is a deprecated tool of Caffe; this runs: caffetools {' '.join(new)}"
    return ([name, *rest] if name in COMMANDS or name in CAFFE_TOOLS else arguments), ""
