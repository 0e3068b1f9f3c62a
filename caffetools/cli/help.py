"""The text of ``--help``: usage, panels of arguments, options and commands, and examples, for terminals of any width.

typer's own tables give every option's name, value and effect a column each, so that the longest of all leaves 20 columns of a terminal
of 80 for the effects, and cuts names in a terminal of 40. Here a long name has a line of its own, and narrow terminals show the effect
below the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text
from typer import Context

# Below this width of a panel the effect of an option is below its name.
_TWO_COLUMNS = 60
_INDENT = 4
# typer's words for values of a type, old ("INTEGER RANGE") and new ("<int range>"), by their beginnings, and ours.
_VALUES = {"int": "N", "float": "NUMBER", "str": "TEXT", "text": "TEXT", "list": "TEXT", "path": "PATH", "file": "FILE"}
_TYPE = re.compile(r" <([a-z]+)[^>]*>| (INTEGER|FLOAT|TEXT|PATH|FILENAME)(?: RANGE)?(?=$| )")

Row = tuple[Text, Text]


class _Param(Protocol):
    """An argument or option of typer, whose classes differ between its versions."""

    name: str | None
    metavar: str | None
    param_type_name: str
    required: bool
    nargs: int

    def get_help_record(self, ctx: Context) -> tuple[str, str] | None: ...


class Command(Protocol):
    """A command of typer, or a group of commands."""

    help: str | None
    epilog: str | None

    def get_params(self, ctx: Context) -> list[Any]:
        """Return the command's options and arguments."""


def write_help(command: Command, context: Context) -> None:
    """Write the help of a command, or of a group, to stdout.

    Args:
        command: A command of typer.
        context: Its context.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(Padding(_usage(command, context), (0, 1, 1, 1)))
    for paragraph in (command.help or "").split("\n\n"):
        if paragraph.strip():
            console.print(Padding(Text.from_markup(" ".join(paragraph.split())), (0, 1, 1, 1)))
    for title, rows in _panels(command, context).items():
        inside = console.width - 4
        console.print(Panel(Group(*_lines(rows, inside, console)), title=title, title_align="left", border_style="dim"))
    examples = [line for line in (command.epilog or "").split("\n") if line.strip()]
    for text in examples:
        console.print(Padding("\n".join(broken(text, console.width - 2)) if text.startswith("Example: ") else text, (0, 1)))


def write_help_as_json(command: Command, context: Context) -> None:
    """Write what :func:`write_help` writes to stdout as a JSON object.

    It has ``command``, ``usage``, ``help``, ``examples`` (command lines) and ``panels``: title → a ``name`` and its ``help`` for each
    argument, option or command.

    Args:
        command: A command of typer.
        context: Its context.
    """
    from caffetools.cli.show import print_json

    paragraphs = [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]
    epilog = (command.epilog or "").split("\n")
    panels = _panels(command, context)
    print_json(
        {
            "command": context.command_path,
            "usage": _usage(command, context).plain.removeprefix("Usage: "),
            "help": "\n\n".join(Text.from_markup(paragraph).plain for paragraph in paragraphs if paragraph),
            "examples": [line.removeprefix("Example: ") for line in epilog if line.startswith("Example: ")],
            "panels": {title: [{"name": name.plain, "help": effect.plain} for name, effect in rows] for title, rows in panels.items()},
        }
    )


def broken(command: str, width: int) -> list[str]:
    r"""Return the lines of a command that a shell still reads as one: broken between words, with ``\`` at the end of all but the last.

    Args:
        command: Words, quoted as in a shell.
        width: Columns of a line; longer words are not broken.

    Example:
        >>> broken("caffetools classify net 'photos/a b.jpg' --top 1", 30)
        ['caffetools classify net \\', "    'photos/a b.jpg' --top 1"]
    """
    lines = [""]
    for word in re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", command):
        joined = f"{lines[-1]} {word}" if lines[-1].strip() else lines[-1] + word
        # One place and the space before it are kept for the mark.
        if len(joined) > width - 2 and lines[-1].strip():
            lines[-1] += " \\"
            lines.append(" " * _INDENT + word)
        else:
            lines[-1] = joined
    return lines


def _usage(command: Command, context: Context) -> Text:
    words = [context.command_path, "[OPTIONS]"]
    for param in command.get_params(context):
        if param.param_type_name == "argument" and not param.hidden:
            word = _argument(param)
            words.append(word if param.required or word.startswith("[") else f"[{word}]")
    if hasattr(command, "list_commands"):
        words.append("COMMAND [ARGS]...")
    return Text.assemble(("Usage: ", "bold"), " ".join(words))


def _argument(param: _Param) -> str:
    """Return the word for an argument."""
    word = (param.metavar or str(param.name).upper()).removesuffix("...")
    return f"{word}..." if param.nargs == -1 else word


def _panels(command: Command, context: Context) -> dict[str, list[Row]]:
    """Return the rows of each panel: arguments, options, then the commands of a group."""
    panels: dict[str, list[Row]] = {}
    params = [param for param in command.get_params(context) if not getattr(param, "hidden", False)]
    # Arguments come first.
    for param in sorted(params, key=lambda param: param.param_type_name != "argument"):
        title = getattr(param, "rich_help_panel", None) or f"{param.param_type_name.title()}s"
        panels.setdefault(title, []).append(_param(param, context))
    group: Any = command
    if hasattr(group, "list_commands"):
        for name in group.list_commands(context):
            found = group.get_command(context, name)
            if found is not None and not found.hidden:
                first = (found.help or "").split("\n\n")[0]
                title = getattr(found, "rich_help_panel", None) or "Commands"
                panels.setdefault(title, []).append((Text(name, style="bold cyan"), Text.from_markup(" ".join(first.split()))))
    return panels


def _param(param: _Param, context: Context) -> Row:
    """Return the name of an argument or option with the word for its value, and its effect."""
    names, effect = param.get_help_record(context) or ("", "")
    if param.param_type_name == "argument":
        shown = Text(_argument(param), style="bold yellow")
    else:
        shown = Text(_TYPE.sub(_value, names))
        shown.highlight_regex(r"(?<!\S)-\w\b", "bold green")
        shown.highlight_regex(r"--[\w-]+", "bold cyan")
        shown.highlight_regex(r"(?<=[\w-] )[^-\s/].*$", "yellow")
    # typer escapes the bracket, which rich would take for markup.
    text = Text(" ".join(effect.replace("\\[", "[").split()))
    text.highlight_regex(r"\[(?:default|required|env var|x[<>]|\d+<)[^\]]*\]$", "dim")
    return shown, text


def _value(found: re.Match[str]) -> str:
    """Return our word for a value in place of typer's."""
    kind = (found[1] or found[2]).lower()
    return f" {next((ours for theirs, ours in _VALUES.items() if kind.startswith(theirs)), kind.upper())}"


def _lines(rows: list[Row], width: int, console: Console) -> Iterable[Text]:
    """Yield the lines of a panel: name and effect in two columns, or one below the other where the panel is narrow."""
    shifted = any(row[0].plain.startswith("-") and not row[0].plain.startswith("--") for row in rows)
    names = [_with_shift(name, shifted and width >= _TWO_COLUMNS) for name, _ in rows]
    column = min(max(len(name) for name in names), max(int(width * 0.38), 16)) + 2 if width >= _TWO_COLUMNS else _INDENT
    for name, (_, effect) in zip(names, rows, strict=True):
        # A name that reaches into the column of the effects has a line of its own, where its effect follows below.
        if len(name) > column - 2:
            head = name.wrap(console, width)
        else:
            head = [name]  # type: ignore[assignment]
        body = list(effect.wrap(console, width - column))
        if len(head) == 1 and len(name) <= column - 2 and body:
            yield Text.assemble(head[0], " " * (column - len(name)), body.pop(0))
        else:
            yield from head
        for line in body:
            yield Text(" " * column) + line


def _with_shift(name: Text, shifted: bool) -> Text:
    """Return a name, as far to the right as those behind a short one."""
    return Text(" " * _INDENT) + name if shifted and name.plain.startswith("--") else name
