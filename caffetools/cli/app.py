"""The ``caffetools`` command: its commands by name, and how errors are shown.

Each command is one module beside this one, with a function of the command's name. They import torch, cv2, onnx and matplotlib
only when called, so that ``--help`` stays quick.
"""

from __future__ import annotations

import sys
from inspect import cleandoc
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import caffetools
from caffetools.cli import dataset, visualize, zoo
from caffetools.cli.classify import classify
from caffetools.cli.curves import curves
from caffetools.cli.demo import demo
from caffetools.cli.deploy import deploy
from caffetools.cli.device_query import device_query
from caffetools.cli.diff import diff
from caffetools.cli.export import export
from caffetools.cli.extract_features import extract_features
from caffetools.cli.finetune import finetune
from caffetools.cli.gflags import translate
from caffetools.cli.inspect import inspect
from caffetools.cli.mean import mean
from caffetools.cli.retarget import retarget
from caffetools.cli.run import CONTEXT, run
from caffetools.cli.test import test
from caffetools.cli.time import time
from caffetools.cli.train import train
from caffetools.cli.trainable import trainable
from caffetools.cli.upgrade import upgrade
from caffetools.errors import CaffeToolsError

# The commands as --help shows them: in panels, in the order in which a user meets them. One that is missing here comes last.
_PANELS = {
    "The whole way": ("demo", "finetune"),
    "Data": ("dataset", "mean"),
    "Networks": ("zoo", "inspect", "diff", "retarget", "deploy", "trainable", "upgrade", "time"),
    "Training": ("train", "test", "curves", "visualize"),
    "Use": ("classify", "export", "extract-features", "run", "device-query"),
}
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names}


class _Commands(TyperGroup):
    """Lists the commands in the order of the panels, groups and commands alike, and says when one was interrupted."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C, of which typer would say nothing, is one line and exit code 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stderr.write("caffetools: interrupted\n")
            sys.exit(130)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        order = list(_PANEL_OF)
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order))


app = typer.Typer(
    name="caffetools",
    cls=_Commands,
    help="Caffe models keep training, converting and shipping, with the numbers that Caffe itself gives.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        typer.echo(f"caffetools {caffetools.__version__}")
        raise typer.Exit


def _register() -> None:
    """Add the commands, each to its panel."""
    for command in (demo, finetune, inspect, diff, retarget, train, test, deploy, trainable, upgrade, classify, export, mean, curves, time):
        app.command(no_args_is_help=command not in (demo, retarget))(command)
    app.command("extract-features", no_args_is_help=True)(extract_features)
    app.command("device-query")(device_query)
    app.command(context_settings=CONTEXT, no_args_is_help=True)(run)
    app.add_typer(zoo.app, name="zoo")
    app.add_typer(dataset.app, name="dataset")
    app.add_typer(visualize.app, name="visualize")
    for group in app.registered_groups:
        group.rich_help_panel = _PANEL_OF.get(group.name or "", "More")
        for info in group.typer_instance.registered_commands if group.typer_instance is not None else ():
            _describe(info)
    for info in app.registered_commands:
        _describe(info)


def _describe(info: Any) -> None:
    """Give a command its panel and its help: the docstring, of which each paragraph is one line, for the terminal to break."""
    info.rich_help_panel = _PANEL_OF.get(info.name or info.callback.__name__)
    paragraphs = cleandoc(info.callback.__doc__ or "").split("\n\n")
    info.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def main() -> None:
    """Run the command line; errors that the user can mend are one line on stderr and exit code 2 (1 for a failed run)."""
    arguments, debug = _take_debug(sys.argv[1:])
    try:
        app(translate(arguments), prog_name="caffetools")
    except CaffeToolsError as error:
        if debug:
            raise
        sys.stderr.write(f"caffetools: error: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("caffetools: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; nothing is wrong.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            sys.stderr.write(f"caffetools: error: {error.filename}: {error.strerror}\n")
            sys.exit(1)
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            sys.stderr.write("caffetools: error: there is not enough memory for this; a smaller batch or smaller pictures need less\n")
            sys.exit(1)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"caffetools: error: something went wrong inside caffetools ({what}); --debug shows where, please report it\n")
        sys.exit(1)


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, and whether it was among them: it may stand anywhere, but behind ``run`` it is the script's."""
    command = next((index for index, argument in enumerate(arguments) if not argument.startswith("-")), len(arguments))
    ours = command if arguments[command : command + 1] == ["run"] else len(arguments)
    return [a for a in arguments[:ours] if a != "--debug"] + arguments[ours:], "--debug" in arguments[:ours]


_register()
