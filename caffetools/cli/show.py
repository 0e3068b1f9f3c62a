"""Output of the commands: one console, progress bars, JSON for scripts; text from files reaches a terminal as plain characters only.

Names, labels and paths come from files of strangers. rich's markup is off unless a call asks for it, and control characters (escape
codes, carriage returns, marks that reverse the direction of writing) are shown as ``\\x1b``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from caffetools.events import Event, EventSink, Warned
from caffetools.events import Progress as ProgressEvent

if TYPE_CHECKING:
    from pathlib import Path

    import typer
    from rich.progress import ProgressColumn, Task


# What library functions call to report their progress: (done, total).
Progress = Callable[[int, int], None]

# What is shown as an escape: C0 and C1 controls but tab and newline, line separators, direction marks, surrogates, and the private
# characters that stand for bytes which are not UTF-8 (caffetools.proto.encoding).
_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\U0010ff80-\U0010ffff]")
_KEPT_BYTES = 0x10FF00


def printable(text: str) -> str:
    """Return ``text`` with every character that could act on a terminal shown as an escape; tabs and newlines are kept."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code >= _KEPT_BYTES:
        code -= _KEPT_BYTES
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class SafeConsole(Console):
    """A console without markup, emoji codes and highlighting that shows control characters of texts as escapes."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape control characters before rich makes a text of a string: it leaves out some (the bell, the form feed)."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as usual, then escape control characters of the texts; codes of rich's own are kept."""
        for segment in super().render(renderable, options):
            if segment.control or not _UNPRINTABLE.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


console = SafeConsole()


@dataclass
class Verbosity:
    """What ``-q`` and ``-v`` ask for; set by :func:`set_verbosity` for one command line."""

    quiet: bool = False
    verbose: bool = False


@dataclass
class Plugins:
    """The ``--plugin`` files of the present command line, for the next command; set by :func:`keep_plugins`."""

    context: typer.Context | None = None
    files: tuple[Path, ...] = ()


verbosity = Verbosity()
_plugins = Plugins()


def set_verbosity(*, quiet: bool, verbose: bool, answers: bool) -> None:
    """Set what is printed from here on.

    Args:
        quiet: Print nothing but results and errors: no notes, no progress, no next command.
        verbose: Also print what the library logs.
        answers: The command's output is its result; with ``quiet``, other commands print nothing on stdout.
    """
    verbosity.quiet, verbosity.verbose = quiet, verbose
    console.quiet = quiet and not answers


def keep_plugins(context: typer.Context, files: Iterable[Path]) -> None:
    """Name ``files`` behind ``--plugin`` in the next command, as long as ``context`` is open."""
    _plugins.context, _plugins.files = context, tuple(files)
    context.call_on_close(_forget_plugins)


def _forget_plugins() -> None:
    _plugins.context, _plugins.files = None, ()


def print_next(command: str) -> None:
    """Print the command to run next, if there is one, with the ``--plugin`` files of the present command where it takes them.

    There is none after a command that read standard input, which cannot be read again.
    """
    if command and not verbosity.quiet and not _reads_standard_input(command):
        console.print(f"Next: {command}{_plugin_options(command)}", markup=False)


def _reads_standard_input(command: str) -> bool:
    """Return whether a command names standard input, or the file in which it is kept until the present command ends."""
    models = sys.modules.get("caffetools.cli.models")
    return any(word == "-" or (models is not None and models.is_stdin(word)) for word in shlex.split(command))


def _plugin_options(command: str) -> str:
    """Return the ``--plugin`` options of the present command line, if ``command`` has that option; its layers need them again."""
    if _plugins.context is None or not _plugins.files:
        return ""
    following: object = _plugins.context.find_root().command
    for word in shlex.split(command)[1:]:
        find = getattr(following, "get_command", None)
        if find is None:
            break
        following = find(_plugins.context, word)
    if not any(option.name == "plugin" for option in getattr(following, "params", [])):
        return ""
    return "".join(f" --plugin {shlex.quote(str(file))}" for file in _plugins.files)


def print_title(title: str, rest: str = "") -> None:
    """Print ``title`` in bold, then ``rest`` on the same line."""
    from rich.text import Text

    console.print(Text.assemble((title, "bold"), rest))


def write_error(text: str) -> None:
    """Write one line on stderr; line breaks in ``text`` are shown as escapes. A closed stderr is ignored."""
    line = printable(text).replace("\n", "\\n")
    with suppress(OSError, AttributeError, ValueError):
        sys.stderr.write(f"caffetools: {line}\n")


def write_log(text: str) -> object:
    """Write lines of a log on stderr with control characters escaped."""
    return sys.stderr.write(printable(text))


def print_json(answer: object) -> None:
    """Print ``answer`` as JSON on stdout: what ``--json`` promises a script."""
    text = json.dumps(answer, indent=2, ensure_ascii=False)
    sys.stdout.write(_UNPRINTABLE.sub(lambda found: json.dumps(found[0])[1:-1], text) + "\n")


def note(text: str) -> None:
    """Write a note on stderr: something that a user should know, though nothing failed."""
    if not verbosity.quiet:
        write_error(f"note: {text}")


def open_file(target: str | os.PathLike[str]) -> None:
    """Open a file, or the address of a page, in the desktop's program for it; a note says so where there is no desktop or no such program."""
    has_desktop = sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if not has_desktop:
        note(f"there is no desktop to show it on; open {os.fspath(target)} yourself")
    elif typer.launch(os.fspath(target)) != 0:
        note(f"no program opened {os.fspath(target)}; open it yourself")


def show_warnings(event: Event) -> None:
    """Event sink: show ``Warned`` events as notes on stderr."""
    if isinstance(event, Warned):
        note(event.message)


def _rate_column() -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps per second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    return Rate()


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show a progress bar on stderr (on a terminal only, removed when done); yields a function ``(done, total)`` for library code to call."""
    if verbosity.quiet or not sys.stderr.isatty():
        # Not a bar that is disabled: older releases of rich end it with an empty line.
        yield lambda done, total: None
        return
    from rich import progress as bars

    rate = _rate_column()
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        rate,
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=SafeConsole(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


@contextmanager
def progress_sink(what: str) -> Iterator[EventSink]:
    """Yield an event sink that shows ``Progress`` as a bar with rate and time left (:func:`progress`) and ``Warned`` as notes."""
    with progress(what) as advance:

        def sink(event: Event) -> None:
            if isinstance(event, ProgressEvent):
                advance(event.done, event.total)
            show_warnings(event)

        yield sink


@contextmanager
def resumable(*, possible: bool = True) -> Iterator[None]:
    """Mention ``--resume`` when the user interrupts the work in the block, if it is ``possible``."""
    try:
        yield
    except KeyboardInterrupt:
        if possible:
            note("the same command with --resume continues where this one stopped")
        raise


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout, with two spaces between columns; one whose name starts with ``>`` stands at the right.

    On a terminal that is narrower, each row takes several lines, with the same columns in each; those behind the first are indented.
    """
    from rich.cells import cell_len

    right = [column.startswith(">") for column in columns]
    lines = [[column.removeprefix(">") for column in columns], *map(list, rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    parts = _fitting(widths, console.width) if console.is_terminal else [range(len(columns))]
    for index, line in enumerate(lines):
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        cells = [gap + cell if to_right else cell + gap for cell, gap, to_right in zip(line, gaps, right, strict=True)]
        for part in parts:
            text = ("  " * bool(part.start) + "  ".join(cells[i] for i in part)).rstrip()
            if text or not part.start:
                console.print(text, style="bold" if index == 0 else None, markup=False)


def _fitting(widths: Sequence[int], most: int) -> list[range]:
    """Return the columns in parts, each of which fits on a line of ``most`` characters, or is one column."""
    starts, used = [0], 0
    for index, width in enumerate(widths):
        if index > starts[-1] and used + 2 + width > most:
            starts.append(index)
            used = 2
        used += width + 2 * (index > starts[-1])
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(widths)], strict=True)]


def shortened(number: float, unit: str = "") -> str:
    """Return a number as people read it: ``61.0 M``, ``1.6 G``, ``512``; with the unit B ``3.2 MB``, ``600 B``."""
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f} {prefix}{unit}"
    return f"{number:.0f} {unit}".rstrip()
