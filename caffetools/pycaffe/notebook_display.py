"""What notebooks take from IPython without it: ``display``, the classes of ``IPython.display``, and lists of lines."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_CLASSES = (
    *("Audio", "Code", "FileLink", "FileLinks", "GeoJSON", "HTML", "IFrame", "Image", "JSON", "Javascript", "Latex", "Markdown", "Math"),
    *("Pretty", "ProgressBar", "SVG", "ScribdDocument", "TextDisplayObject", "Video", "VimeoVideo", "YouTubeVideo", "DisplayObject"),
)
_MODULES = ("IPython", "IPython.display", "IPython.core", "IPython.core.display")


class Lines(list[str]):
    """The lines of a command's output, as ``names = !ls`` gives them."""

    @property
    def l(self) -> list[str]:  # noqa: E743
        """The lines."""
        return list(self)

    @property
    def s(self) -> str:
        """The lines with spaces between them."""
        return " ".join(self)

    spstr = s

    @property
    def n(self) -> str:
        """The lines with their ends."""
        return "\n".join(self)

    nlstr = n

    @property
    def p(self) -> list[Path]:
        """The lines that are paths of files, as paths."""
        return [Path(line) for line in self if Path(line).exists()]

    paths = p

    def grep(self, pattern: str | Callable[[str], object], prune: bool = False, field: int | None = None) -> Lines:
        """Return the lines that hold ``pattern``, a regular expression or a function; with ``prune`` the others.

        Args:
            pattern: What to look for, without regard to case.
            prune: Return the other lines.
            field: The word of a line to look at; None: all of it.
        """
        finds = pattern if callable(pattern) else (lambda line: re.search(pattern, line, re.IGNORECASE))

        def part(line: str) -> str:
            words = line.split()
            return line if field is None else words[field] if len(words) > field else ""

        return Lines(line for line in self if bool(finds(part(line))) != prune)

    def fields(self, *numbers: int) -> Any:
        """Return the words of each line in lists; with numbers those words alone, in lines again."""
        words = [line.split() for line in self]
        if not numbers:
            return words
        return Lines(" ".join(line[number] for number in numbers if -len(line) <= number < len(line)) for line in words)


def display(*values: object, **options: object) -> None:
    """Print the texts of values, as IPython shows them where there are no pictures."""
    for value in values:
        print(repr(value))


class _Shown:
    """An object of ``IPython.display``: its data are kept, and its text is its class.

    Args:
        data: What is shown: text, bytes or a web address.
        url: A web address.
        filename: A file, which is read.
        options: Sizes and the like.
    """

    def __init__(self, data: object = None, url: str | None = None, filename: str | None = None, *values: object, **options: object):
        self.url, self.filename, self.metadata = url, filename, options
        self.data = Path(filename).read_bytes() if filename is not None else data

    def __repr__(self) -> str:
        return f"<IPython.core.display.{type(self).__name__} object>"


@contextmanager
def provided(module: ModuleType, shell: object) -> Iterator[None]:
    """Return a context in which ``IPython.display`` can be imported where IPython is not installed.

    Args:
        module: The module that the cells run in: there ``IPython.get_ipython()`` is ``shell``; other code finds no notebook.
        shell: What runs the magics.
    """
    if importlib.util.find_spec("IPython") is not None:
        yield
        return
    names: dict[str, Any] = {name: type(name, (_Shown,), {}) for name in _CLASSES}
    names |= {f"display_{kind}": display for kind in ("html", "png", "svg", "jpeg", "latex", "markdown", "pretty", "json", "javascript")}
    names |= {"display": display, "clear_output": lambda wait=False: None, "set_matplotlib_formats": lambda *formats: None}
    made = {name: ModuleType(name) for name in _MODULES}
    for name, one in made.items():
        one.__path__ = []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, one)
        if child == "display":
            vars(one).update(names)
    top: Any = made["IPython"]
    top.version_info, top.__version__ = (8, 0, 0), "8.0.0"
    top.get_ipython = lambda: shell if sys._getframe(1).f_globals is vars(module) else None
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in _MODULES:
            sys.modules.pop(name, None)
