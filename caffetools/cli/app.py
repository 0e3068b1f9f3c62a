"""The ``caffetools`` command: its commands by name, and how errors are shown.

Each command is one module of this room, with a function of the command's name. They import torch, cv2, onnx and matplotlib
only when called, so that ``--help`` stays quick.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

import caffetools
from caffetools.cli.caffe_names import modern
from caffetools.cli.commands import HELP_FLAGS, Commands, HelpForm, is_answer
from caffetools.cli.gflags import translate
from caffetools.cli.interrupts import noted_interrupts
from caffetools.cli.usage import UsageError, usage_error_text
from caffetools.errors import CaffeToolsError, Cancelled, user_error_context
from caffetools.util.process_settings import send_nowhere
from caffetools.util.threads import limit_openmp

app = typer.Typer(
    name="caffetools",
    cls=Commands,
    help="Caffe models keep training, converting and shipping, with the numbers that Caffe itself gives.",
    epilog="Start: caffetools demo; or, with a folder of images for each class in photos: caffetools finetune photos -o run",
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP_FLAGS},
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but results and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of the library, and how long it took.")] = False,
) -> None:
    """These options may stand anywhere; behind ``run`` they are the script's."""
    if version:
        typer.echo(f"caffetools {caffetools.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors that the user can fix are one line on stderr and exit code 2 (1 for a failed run)."""
    arguments, taken = take_global_options(sys.argv[1:])
    arguments = _spelled_out(arguments)
    _prepare_streams()
    limit_openmp()
    if not arguments:
        arguments = _without_arguments()
    with noted_interrupts() as interrupts:
        code = _run(arguments, taken, interrupts)
    sys.exit(code)


def _run(arguments: list[str], taken: set[str], interrupts: list[int]) -> int:
    """Run the command of ``arguments``; return the exit code, after one line on stderr about what failed."""
    started = time.monotonic()
    try:
        try:
            arguments, remark = modern(arguments)
            if remark and "--quiet" not in taken:
                _write_error(f"note: {remark}")
            if complete_for(arguments):
                return 0
            line, as_json = take_json_of_help(translate(arguments or _without_arguments()))
            _set_verbosity(line, quiet="--quiet" in taken, verbose="--verbose" in taken)
            code = app(line, prog_name="caffetools", standalone_mode=False, obj=HelpForm(as_json=as_json))
        finally:
            # Here, where a full disk can still be reported; a flush at the interpreter's exit ends with a traceback.
            sys.stdout.flush()
            if "--verbose" in taken:
                _write_error(f"took {time.monotonic() - started:.1f} s")
    except SystemExit as end:
        # rich ends the process with 1 where the reader of our output has ended.
        sys.exit(0 if isinstance(end.__context__, BrokenPipeError) else end.code)
    except BrokenPipeError:
        # The reader of our output (head, less) has ended; nothing is wrong.
        _drop_output()
        return 0
    except (KeyboardInterrupt, typer.Abort):
        _write_error("interrupted")
        return 130
    except UsageError as error:
        return _report_usage(error, arguments)
    except Exception as error:
        if "--debug" in taken:
            raise
        if interrupts and not isinstance(error, CaffeToolsError) and not user_error_context(error):
            _write_error("interrupted")
            return 130
        return _report(error)
    return code if isinstance(code, int) else 0


def _report_usage(error: Exception, arguments: list[str]) -> int:
    """Write one line about a usage error, or the help of a command that was called without arguments; return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
    else:
        _write_error(f"error: {usage_error_text(error, arguments)}")
    return 2


def _report(error: Exception) -> int:
    """Write one line about ``error`` on stderr and return the exit code."""
    if isinstance(error, CaffeToolsError):
        from caffetools.cli.hints import with_hint

        error = with_hint(_with_stdin_named(error))
        _write_error(f"{'' if isinstance(error, Cancelled) else 'error: '}{error}")
        return error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        _write_error(f"error: {error.filename}: {error.strerror}")
        return 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG):
        _drop_output()
        _write_error(f"error: cannot write the output: {error.strerror}")
        return 1
    if _is_out_of_memory(error):
        _write_error("error: there is not enough memory for this; a smaller batch or smaller pictures need less")
        return 1
    if isinstance(error, UnicodeEncodeError) and (name := _name_that_is_not_utf8(error)):
        _write_error(f"error: '{name}' has a name that is not UTF-8, and what is written here holds UTF-8 only; rename that file or folder")
        return 2
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if context := user_error_context(error) or _failed_plugin(error):
        _write_error(f"error: {context}: {what}")
    else:
        _write_error(f"error: something went wrong inside caffetools ({what}); --debug shows where, please report it")
    return 1


def _name_that_is_not_utf8(error: UnicodeEncodeError) -> str:
    """Return the word of a text in which a byte of a file's name, as Python keeps it, could not be encoded; "" for another error."""
    if not "\udc80" <= error.object[error.start] <= "\udcff":
        return ""
    before, after = error.object[: error.start], error.object[error.start :]
    return re.split("[\"'\n<>]", before)[-1][-100:] + re.split("[\"'\n<>]", after)[0][:100]


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    of_a_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    # torch has a type for GPUs only. What this decides is the words of the message.
    return of_a_gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _failed_plugin(error: Exception) -> str:
    """Return where in a plugin's code ``error`` was raised; empty for others."""
    if "caffetools.layers.plugin" not in sys.modules:
        return ""
    from caffetools.layers.plugin import failed_place

    return failed_place(error)


def _with_stdin_named(error: CaffeToolsError) -> CaffeToolsError:
    """Return an error in standard input with that for its file, not the file in which it was kept."""
    if error.path is None or "caffetools.cli.models" not in sys.modules:
        return error
    from caffetools.cli.models import is_stdin

    return error.located("<stdin>", error.line, error.column) if is_stdin(error.path) else error


def _prepare_streams() -> None:
    """Let text that the terminal's encoding does not have be shown as escapes, and give a closed stdout a place to write to."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (until the process ends)
        _write_error("note: standard output is closed; what would be printed there is lost")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _set_verbosity(arguments: list[str], *, quiet: bool, verbose: bool) -> None:
    if quiet or verbose or "caffetools.cli.show" in sys.modules:
        from caffetools.cli.show import set_verbosity

        set_verbosity(quiet=quiet, verbose=verbose, answers=is_answer(arguments))
    library = logging.getLogger("caffetools")
    for handler in [handler for handler in library.handlers if isinstance(handler, _Notes)]:
        library.removeHandler(handler)
    library.addHandler(_Notes(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING))
    library.setLevel(logging.DEBUG if verbose else logging.NOTSET)
    library.propagate = False


class _Notes(logging.Handler):
    """Shows what the library logs as notes on stderr, each once."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._shown:
            self._shown.add(text)
            _write_error(f"note: {text}")


def _drop_output() -> None:
    """Send what is still buffered for stdout nowhere, so that the interpreter's exit does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        send_nowhere(sys.stdout.fileno())


def _write_error(text: str) -> None:
    # rich, which it imports, is not needed for --help.
    from caffetools.cli.show import write_error

    write_error(text)


def _spelled_out(arguments: list[str]) -> list[str]:
    """Return ``help CMD`` and flags with one dash in our own form; ``--json`` alone is for the command of a bare command line."""
    first = arguments[0] if arguments else ""
    if arguments == ["--json"]:
        return ["status", "--json"]
    if first in ("-version", "--version"):
        return ["version", *arguments[1:]]
    if first in ("help", "-help"):
        return [*arguments[1:], "--help"]
    return [*arguments[:-1], "--help"] if arguments[-1:] == ["-help"] else arguments


def complete_for(arguments: list[str]) -> bool:
    """Install completion for ``--install-completion SHELL``; whether that was asked for. Without SHELL it is typer's option.

    ``--show-completion SHELL`` is passed on as click's own variable, which the command itself answers.
    """
    if len(arguments) != 2 or arguments[0] not in ("--show-completion", "--install-completion"):
        return False
    from typer._completion_shared import install

    option, shell = arguments
    if shell not in SHELLS:
        raise typer.BadParameter(f"'{shell}' is not one of {', '.join(SHELLS)}", param_hint=option)
    if option == "--show-completion":
        os.environ[_COMPLETE] = f"source_{shell}"
        return False
    path = install(shell, "caffetools", _COMPLETE)[1]
    typer.echo(f"{shell} completion installed in {path}; it takes effect in a new terminal")
    return True


def _without_arguments() -> list[str]:
    """Return what a bare ``caffetools`` runs: ``status`` where a project, or pictures for one, are here or below; else help."""
    from caffetools.project.surroundings import picture_folders, projects

    return ["status"] if projects(Path()) or picture_folders(Path()) else ["--help"]


_COMPLETE = "_CAFFETOOLS_COMPLETE"
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
_GLOBAL = {"--debug": "--debug", "--quiet": "--quiet", "-q": "--quiet", "--verbose": "--verbose", "-v": "--verbose"}


def take_global_options(arguments: list[str]) -> tuple[list[str], set[str]]:
    """Split a command line into its other arguments and the options that every command has, which may stand anywhere.

    Behind ``run`` they belong to it or to its script. ``-v N`` is glog's flag.
    """
    command = _first_word(arguments, 0)
    # run has them as options of its own, which stand before the script.
    ours = command if arguments[command : command + 1] == ["run"] else len(arguments)
    if "--" in arguments[:ours]:
        ours = arguments.index("--")
    kept, taken = [], set()
    for index, argument in enumerate(arguments[:ours]):
        is_glog = argument == "-v" and arguments[index + 1 : index + 2] and arguments[index + 1].isdecimal()
        if argument in _GLOBAL and not is_glog:
            taken.add(_GLOBAL[argument])
        else:
            kept.append(argument)
    return kept + arguments[ours:], taken


def take_json_of_help(arguments: list[str]) -> tuple[list[str], bool]:
    """Take ``--json`` from a command line that asks for help; whether it was there. Behind ``run SCRIPT`` both are the script's."""
    command = _first_word(arguments, 0)
    ours = _first_word(arguments, command + 1) if arguments[command : command + 1] == ["run"] else len(arguments)
    before = arguments[:ours]
    if "--json" not in before or not set(HELP_FLAGS) & set(before):
        return arguments, False
    return [word for word in before if word != "--json"] + arguments[ours:], True


def _first_word(arguments: list[str], start: int) -> int:
    """Return the index of the first argument from ``start`` on that is not an option; the number of arguments without one."""
    return next((index for index in range(start, len(arguments)) if not arguments[index].startswith("-")), len(arguments))
