"""The ``caffetools`` command: its commands by name, and how errors are shown.

Each command is one module beside this one, with a function of the command's name. They import torch, cv2, onnx and matplotlib
only when called, so that ``--help`` stays quick.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import caffetools
from caffetools.cli.commands import Commands
from caffetools.cli.gflags import translate
from caffetools.errors import CaffeToolsError, Cancelled, user_error_context

app = typer.Typer(
    name="caffetools",
    cls=Commands,
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


def main() -> None:
    """Run the command line; errors that the user can mend are one line on stderr and exit code 2 (1 for a failed run)."""
    arguments, debug = _take_debug(sys.argv[1:])
    try:
        app(translate(arguments), prog_name="caffetools")
    except CaffeToolsError as error:
        if debug:
            raise
        sys.stderr.write(f"caffetools: {'' if isinstance(error, Cancelled) else 'error: '}{error}\n")
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
        if context := user_error_context(error):
            sys.stderr.write(f"caffetools: error: {context}: {what}\n")
            sys.exit(1)
        sys.stderr.write(f"caffetools: error: something went wrong inside caffetools ({what}); --debug shows where, please report it\n")
        sys.exit(1)


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, and whether it was among them: it may stand anywhere, but behind ``run`` it is the script's."""
    command = next((index for index, argument in enumerate(arguments) if not argument.startswith("-")), len(arguments))
    ours = command if arguments[command : command + 1] == ["run"] else len(arguments)
    return [a for a in arguments[:ours] if a != "--debug"] + arguments[ours:], "--debug" in arguments[:ours]
