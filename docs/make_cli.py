"""Write docs/reference/cli.md from the commands themselves: python docs/make_cli.py (a test compares the page with them)."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from caffetools.cli.app import app
from caffetools.cli.commands import COMMANDS

PAGE = Path(__file__).resolve().parent / "reference" / "cli.md"

HEAD = """# Command line

Generated from the commands by `python docs/make_cli.py`. Every command has `--help`; exit codes are 0 for success, 2 for usage or input
that can be corrected, 1 for a run that failed, 130 after Ctrl-C. `caffetools --debug COMMAND …` shows the traceback of an error.

A file, folder or database that exists is replaced with `--force` only, and once the new one is complete; without it the command ends
before any work. `finetune` resumes in its folder instead, `demo` replaces an earlier demo, `train` writes snapshots under its solver's
prefix and `report` brings the report in the run's own folder up to date. Caffe's tools `draw_net`, `parse_log` and `plot_training_log`
replace their outputs, as in Caffe.

Caffe's own flags and names of tools work too: [training](../training.md#flags).
"""
_WORDS = {"int": "N", "float": "NUMBER", "str": "TEXT", "Path": "PATH"}
_MARKUP = re.compile(r"\[/?(?:bold|italic|dim|cyan|green|red|yellow|link)[^\]]*\]")


def page() -> str:
    """Return the text of docs/reference/cli.md."""
    root = typer.main.get_command(app)
    context = root.make_context("caffetools", [], resilient_parsing=True)
    parts = [HEAD]
    panel = ""
    for name, entry in COMMANDS.items():
        if entry.panel != panel:
            panel = entry.panel
            parts.append(f"## {panel}\n")
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        parts.append(_command(command, name, 3))
    return "\n".join(parts).rstrip() + "\n"


def _command(command: Any, name: str, level: int) -> str:
    """Return the section of one command, and below it those of its actions."""
    lines = [f"{'#' * level} caffetools {name}", "", _plain(command.help or ""), ""]
    actions = getattr(command, "commands", None)
    if actions is None:
        lines += ["```", f"caffetools {name} {_usage(command)}".rstrip(), "```", "", *_table(command)]
    if command.epilog:
        lines += [f"{_plain(command.epilog).replace('Example: ', 'Example: `')}`", ""]
    for action, subcommand in (actions or {}).items():
        lines.append(_command(subcommand, f"{name} {action}", level + 1))
    return "\n".join(lines)


def _usage(command: Any) -> str:
    words = ["[OPTIONS]"] if any(not _is_argument(p) and not p.hidden for p in command.params) else []
    for parameter in command.params:
        if _is_argument(parameter):
            word = _metavar(parameter) + ("..." if parameter.nargs == -1 else "")
            words.append(word if parameter.required else f"[{word}]")
    return " ".join(words)


def _table(command: Any) -> list[str]:
    """Return the rows of a command's arguments and options."""
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        if _is_argument(parameter):
            names = f"`{_metavar(parameter)}`"
        else:
            value = "" if parameter.is_flag else f" {_metavar(parameter)}"
            names = ", ".join(f"`{flag}{value}`" for flag in [*parameter.opts, *parameter.secondary_opts])
        rows.append(f"| {names} | {_plain(parameter.help or '').replace('|', chr(92) + '|')}{_default(parameter)} |")
    return ["| argument or option | effect |", "|---|---|", *rows, ""] if rows else []


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _metavar(parameter: Any) -> str:
    """Return the word for a value: the one that the command names, the choices, or that of its type."""
    if parameter.metavar:
        return str(parameter.metavar)
    if _is_argument(parameter):
        return str(parameter.name).upper()
    annotation = parameter.type_descriptor.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "{" + ",".join(str(choice.value) for choice in annotation) + "}"
    return _WORDS.get(getattr(annotation, "__name__", ""), "VALUE")


def _default(parameter: Any) -> str:
    default = parameter.default
    if _is_argument(parameter) or parameter.is_flag or callable(default) or default in (None, "", (), []):
        return ""
    return f" Default: `{getattr(default, 'value', default)}`."


def _plain(text: str) -> str:
    """Return a help text without the terminal's markup; what Markdown would take as markup is escaped."""
    text = _MARKUP.sub("", text).replace("\\[", "[")
    return re.sub(r"([<>*_])", r"\\\1", text) if "`" not in text else text


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
