"""Find the commands and the Python code in a Markdown page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_BLOCK = re.compile(r"^```([a-z]*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SHELL = {"", "sh", "bash", "console"}


def read_commands(page: Path) -> list[list[str]]:
    """Return the words of each ``caffetools`` command line in a page's blocks, comments left out, continued lines joined."""
    commands = []
    for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language in _SHELL:
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            starts = (line.strip().removeprefix("$ ") for line in lines)
            commands += [shlex.split(line, comments=True)[1:] for line in starts if line.startswith("caffetools ")]
    return commands


def read_table_commands(page: Path) -> list[list[str]]:
    """Return the words of each ``caffetools`` command in the tables of a page."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [shlex.split(command)[1:] for command in re.findall(r"`(caffetools [^`]+)`", "\n".join(rows))]


def read_python(page: Path) -> list[str]:
    """Return the Python blocks of a page."""
    return [block for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")) if language == "python"]
