"""The commands by name, each imported only when it is asked for.

``--help`` needs no more than a line of each, and one command needs none of the others; together their modules take as long to
import and to build as typer and rich do.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, MutableMapping
from inspect import cleandoc
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Entry(NamedTuple):
    """A command: its panel in --help, the first sentence of its help, and where it is defined.

    Attributes:
        attribute: its function, or a typer app of commands, in ``caffetools.cli.MODULE``; the module's own name unless given.
        alone: It does something without any argument.
        script: All that comes after its first argument is not ours.
    """

    panel: str
    help: str
    module: str
    attribute: str = ""
    alone: bool = False
    script: bool = False


_WHOLE, _DATA, _NETS, _TRAINING, _USE = "The whole way", "Data", "Networks", "Training", "Use"

# In the order in which a user meets them.
COMMANDS = {
    "demo": Entry(
        _WHOLE,
        "Run everything on real handwritten digits: images to LMDB, LeNet trained, retargeted, fine-tuned, exported, drawn.",
        "demo",
        alone=True,
    ),
    "finetune": Entry(_WHOLE, "Fine-tune a network on your own images, and export it.", "finetune"),
    "dataset": Entry(_DATA, "Make datasets of pictures.", "dataset", "app"),
    "mean": Entry(
        _DATA, "Compute the mean of a database's pictures, as compute_image_mean does, and print the mean of each channel.", "mean"
    ),
    "convert-imageset": Entry(
        _DATA,
        "Write the pictures of a list into an LMDB or LevelDB, record for record as Caffe's convert_imageset does.",
        "convert_imageset",
    ),
    "zoo": Entry(_NETS, "List, show and fetch published models.", "zoo", "app"),
    "inspect": Entry(_NETS, "List a net's layers: type, output shapes, parameters, multiply–accumulates and memory.", "inspect"),
    "diff": Entry(_NETS, "Show what differs between two nets, or two weights files, layer by layer.", "diff"),
    "retarget": Entry(
        _NETS,
        "Make a net tell other classes: write its train_val, solver and deploy prototxts, and say what changed.",
        "retarget",
        alone=True,
    ),
    "deploy": Entry(
        _NETS, "Write the deploy net of TRAIN_VAL: an Input for its data, prob for its loss, nothing that only training needs.", "deploy"
    ),
    "trainable": Entry(
        _NETS, "Make a deploy net trainable again: write its train_val and solver prototxts, and say what was made of what.", "trainable"
    ),
    "upgrade": Entry(_NETS, "Write an old network, its weights or its solver in today's form, as Caffe's upgrade tools do.", "upgrade"),
    "time": Entry(_NETS, "Measure the layers of a net, as [bold]caffe time[/bold] does: mean milliseconds forward and backward.", "time"),
    "train": Entry(_TRAINING, "Train the net of a solver prototxt as [bold]caffe train[/bold] does; its flags work here too.", "train"),
    "test": Entry(
        _TRAINING,
        "Score a net on its test data, as [bold]caffe test[/bold] does: the mean of every output over a number of batches.",
        "test",
    ),
    "curves": Entry(_TRAINING, "Draw loss, accuracy and learning rate over the iterations; several logs are drawn together.", "curves"),
    "visualize": Entry(
        _TRAINING, "Draw weights, activations, graphs and training curves, and explain a net's answers.", "visualize", "app"
    ),
    "classify": Entry(_USE, "Classify pictures: the most probable classes of each.", "classify"),
    "export": Entry(_USE, "Write DEPLOY with WEIGHTS as an ONNX file, verified in onnxruntime.", "export"),
    "import": Entry(_USE, "Write MODEL as a Caffe net: deploy.prototxt and weights.caffemodel in the folder --out.", "import_"),
    "verify": Entry(
        _USE, "Run DEPLOY with WEIGHTS through several engines, and other models, on the same inputs, and compare the outputs.", "verify"
    ),
    "engine": Entry(_USE, "Add engines that need a Python environment of their own.", "engine", "app"),
    "extract-features": Entry(
        _USE,
        "Store what blobs of a net hold for each picture of its data layer, as Caffe's extract_features.bin does.",
        "extract_features",
    ),
    "run": Entry(_USE, "Run a script written for Caffe: [bold]import caffe[/bold] means caffetools in it.", "run", script=True),
    "device-query": Entry(
        _USE,
        "Show the GPUs that torch sees here, and what the CPU offers, as [bold]caffe device_query[/bold] does.",
        "device_query",
        alone=True,
    ),
}


class Commands(TyperGroup):
    """The commands of the table; and one line when one was interrupted."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.commands: MutableMapping[str, Any] = _Loaded()
        self._listing = False

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C, of which typer would say nothing, is one line and exit code 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stderr.write("caffetools: interrupted\n")
            sys.exit(130)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; while they are only listed, what is listed of it."""
        if self._listing and cmd_name in COMMANDS:
            entry = COMMANDS[cmd_name]
            return TyperCommand(cmd_name, help=entry.help, rich_help_panel=entry.panel)
        return super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the whole, for which no command is imported."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


class _Loaded(MutableMapping[str, Any]):
    """Name → command, built when it is first asked for."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = _build(name, COMMANDS[name])
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        del self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _build(name: str, entry: Entry) -> Any:
    thing = getattr(importlib.import_module(f"caffetools.cli.{entry.module}"), entry.attribute or entry.module)
    if isinstance(thing, typer.Typer):
        for info in thing.registered_commands:
            info.help = _flowing(info.callback)
        group = typer.main.get_group(thing)
        group.name = name
        return group
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    context = {"allow_interspersed_args": False} if entry.script else None
    app.command(name, help=_flowing(thing), no_args_is_help=not entry.alone, context_settings=context)(thing)
    return typer.main.get_command(app)


def _flowing(function: Any) -> str:
    """A function's docstring with each paragraph on one line, for the terminal to break."""
    paragraphs = cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
