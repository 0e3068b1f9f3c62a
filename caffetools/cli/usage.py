"""Usage errors as one plain line: what is wrong, with the flag as it was typed, and an example of the right use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from caffetools.cli.caffe_names import known_tools
from caffetools.cli.commands import COMMANDS, EXAMPLES, NoSuchCommand
from caffetools.cli.gflags import FLAGS
from caffetools.errors import closest, did_you_mean
from caffetools.project.config import command

# typer carries its own copy of click; these are its error classes.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_OUT_OF_RANGE = re.compile(r"(?P<value>\S+) is not in the range (?:(?P<least>[^<>x]+)(?P<least_sign><=?))?x(?P<sign>[<>]=?)(?P<limit>\S+)$")


def usage_error_text(error: Any, arguments: Sequence[str]) -> str:
    """Return the line for a usage error.

    Args:
        error: A ``UsageError`` of typer.
        arguments: The command line, without the program's name.
    """
    context = getattr(error, "ctx", None)
    if context is not None:
        path = context.command_path.split()[1:]
    else:
        path = list(arguments[:1]) if arguments and arguments[0] in COMMANDS else []
    text = f"{' '.join(path)}: " if path else ""
    text += _what(error, arguments, context)
    example = _example(path, context)
    return f"{text}{'' if text.endswith('?') else ';'} example: {example}" if example else text


def _example(path: list[str], context: object) -> str:
    """Return an example of the right use of a command: the first of its help."""
    if len(path) == 1 and path[0] in COMMANDS:
        return COMMANDS[path[0]].example
    shown = str(getattr(getattr(context, "command", None), "epilog", "") or "").split("\n")[0]
    return EXAMPLES.get(" ".join(path)) or (shown.removeprefix("Example: ") if shown.startswith("Example: ") else "")


def _what(error: Any, arguments: Sequence[str], context: Any) -> str:
    if isinstance(error, NoSuchCommand):
        is_place = "dataset" in error.known and Path(error.word).exists()
        hint = _command_for(Path(error.word)) if is_place else _meant(error.word, error.known)
        return f"there is no command '{error.word}'{hint or f' ({context.command_path} --help lists them)'}"
    kind = type(error).__name__
    if kind == "NoSuchOption":
        return _no_such_option(str(error.option_name), arguments, context)
    if kind == "MissingParameter" and error.param is not None:
        flags = list(getattr(error.param, "opts", []))
        option = getattr(error.param, "param_type_name", "") == "option"
        name = (
            f"option {flags[0]}" + (f" ({', '.join(flags[1:])})" if flags[1:] else "")
            if option
            else f"argument {(error.param.metavar or str(error.param.name).upper())}"
        )
        return f"missing {name}"
    message = (
        str(error.format_message())
        .rstrip(".")
        .replace(", unable to parse string as an integer", "")
        .replace("Input should be", "it must be")
    )
    # Older releases of typer say it in click's words.
    message = re.sub(r"'[^']*' is not a valid integer( range)?$", "it must be a valid integer", message)
    message = re.sub(r"'[^']*' is not a valid float( range)?$", "it must be a valid number", message)
    message = _OUT_OF_RANGE.sub(_broken_limit, message)
    return _as_typed(message[:1].lower() + message[1:], error, arguments)


def _broken_limit(found: re.Match[str]) -> str:
    """Return which limit a number breaks, for click's "8 is not in the range 0<=x<=7"."""
    sign, limit = found["sign"], found["limit"]
    if found["least"] and float(found["value"]) <= float(found["least"]):
        sign, limit = found["least_sign"].replace("<", ">"), found["least"]
    how = "greater than" if sign[0] == ">" else "less than"
    return f"it must be {how}{' or equal to' if sign[1:] else ''} {limit.removesuffix('.0')}"


def _as_typed(message: str, error: object, arguments: Sequence[str]) -> str:
    """Replace the list of an option's flags by the one that was typed."""
    flags = [*getattr(getattr(error, "param", None), "opts", []), *getattr(getattr(error, "param", None), "secondary_opts", [])]
    typed = [flag for flag in flags if any(a == flag or a.startswith(f"{flag}=") for a in arguments)]
    return message.replace(" / ".join(f"'{flag}'" for flag in flags), f"'{typed[0]}'") if typed else message


def _command_for(path: Path) -> str:
    """Return what runs a file or a folder that was given where a command is expected; empty where that is not known."""
    from caffetools.project.surroundings import holds_classes, projects
    from caffetools.proto.sniff import Kind, sniff

    found = sniff(path)
    kind = found.kind if found is not None else None
    if projects(path) == [path]:
        return f"; see what is in this project by: {command('status', path)}"
    if holds_classes(path):
        return f"; fine-tune a network on these pictures by: {command('finetune', path, '-o', 'run')}"
    if kind is Kind.SOLVER_TEXT:
        return f"; train by: {command('train', path)}"
    if kind is Kind.NET_TEXT:
        return f"; list its layers by: {command('inspect', path)}"
    return ""


def _meant(word: str, known: list[str]) -> str:
    """Return the command that was probably meant: one of a group, such as ``zoo fetch`` for ``fetch``, or one of a similar name."""
    of_datasets = [f"dataset {name}" for name in ("build", "merge", "subset", "shard", "preview")]
    in_group = [path for path in (*EXAMPLES, *of_datasets) if path.split()[-1] == word] if "zoo" in known else []
    return f"; did you mean '{in_group[0]}'?" if in_group else did_you_mean(word, [*known, *known_tools()])


def _no_such_option(name: str, arguments: Sequence[str], context: Any) -> str:
    """Name the flag as it was typed: typer splits ``-iterations`` into letters."""
    typed = next((a for a in arguments if a.split("=")[0] == name), None) or next((a for a in arguments if a.startswith(name)), name)
    typed = typed.split("=")[0]
    known = [flag for param in getattr(getattr(context, "command", None), "params", []) for flag in getattr(param, "opts", [])]
    word = typed.lstrip("-").replace("_", "-")
    # The dashes count for nothing: with them "--o" would be close to "--json".
    close = closest(word, [flag.lstrip("-") for flag in known if flag.startswith("--")])
    hint = "" if close is None else f"; did you mean '--{close}'?"
    takes = [command for command, flags in FLAGS.items() if word.replace("-", "_") in flags]
    if takes:
        hint = f"; it is a flag of {' and '.join(takes)}"
    return f"there is no option {typed}{hint}"
