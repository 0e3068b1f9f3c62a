"""The code cells of a Jupyter notebook as Python, with magics and shell commands as calls of ``get_ipython()``."""

from __future__ import annotations

import json
import re
import tokenize
from io import StringIO
from pathlib import Path

from caffetools.errors import DataError

# Cell magics after which the rest of the cell is Python as any other; only their times are not shown.
_TRANSPARENT = ("time", "prun")
_PROMPTS = {">>>": re.compile(r"^\s*(>>>|\.\.\.)( |$)"), "In [": re.compile(r"^\s*(In \[\d+\]: |\s*\.{3,}: ?)")}
_LINE = re.compile(r"^(?P<indent>\s*)(?:(?P<target>[\w.\[\]'\", ]+?)\s*=\s*)?(?P<kind>[%!])(?P<rest>(?![=%]).*)$")


def read_cells(path: Path) -> list[str]:
    """Return the texts of the code cells of a notebook. Raises :class:`DataError` where the file is not one."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"] if "cells" in notebook else [cell for sheet in notebook["worksheets"] for cell in sheet["cells"]]
        code = [cell.get("source", cell.get("input", "")) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a Jupyter notebook ({type(error).__name__}: {error})") from None
    return [cell if isinstance(cell, str) else "".join(cell) for cell in code]


def transform_cell(cell: str) -> str:
    """Return a cell as Python: magics and shell commands become calls of ``get_ipython()``."""
    cell = _without_prompts(cell)
    head, _, body = cell.lstrip().partition("\n")
    if not head.startswith("%%"):
        return _transform_lines(cell)
    name, _, line = head[2:].strip().partition(" ")
    if name == "capture":
        return f"get_ipython().begin_capture({line!r})\n{transform_cell(body)}"
    if name in _TRANSPARENT:
        # A first line stays, so that line numbers are those of the cell.
        return "\n" + transform_cell(body)
    return f"get_ipython().run_cell_magic({name!r}, {line!r}, {body!r})\n"


def _without_prompts(cell: str) -> str:
    """Return a cell without the prompts of a session that was copied, and without the indentation that all of it has."""
    lines = cell.splitlines()
    prompt = _PROMPTS.get(next((mark for mark in _PROMPTS if lines and lines[0].lstrip().startswith(mark)), ""))
    if prompt is not None:
        lines = [prompt.sub("", line, count=1) for line in lines]
    first = next((line for line in lines if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    return "\n".join(line.removeprefix(indent) for line in lines)


def _transform_lines(text: str) -> str:
    lines = text.splitlines()
    result: list[str] = []
    index = 0
    while index < len(lines):
        line, first = lines[index], index
        index += 1
        if not _begins_statement(result):
            result.append(line)
            continue
        if line.rstrip().endswith("?") or line.lstrip().startswith("?"):
            result.append("")
            continue
        found = _LINE.match(line)
        if found is None or (found["target"] is not None and not _is_target(found["target"])):
            result.append(line)
            continue
        rest = found["rest"]
        while rest.endswith("\\") and index < len(lines):
            rest = rest[:-1] + lines[index].lstrip()
            index += 1
        target = f"{found['target']} = " if found["target"] else ""
        result.append(found["indent"] + target + _call(found["kind"], rest, captured=bool(target)))
        result += [""] * (index - first - 1)
    return "\n".join(result) + "\n"


def _call(kind: str, rest: str, *, captured: bool) -> str:
    if kind == "!":
        # Two of them give the lines of the output, as where it is assigned.
        return f"get_ipython().{'getoutput' if captured or rest.startswith('!') else 'system'}({rest.lstrip('!')!r})"
    name, _, line = rest.strip().partition(" ")
    if name in ("time", "prun"):
        # The statement itself; what it takes is not shown.
        return re.sub(r"^(?:-\w+\s*\d*\s*)+", "", line) or "pass"
    return f"get_ipython().run_line_magic({name!r}, {line!r})"


def _is_target(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z_][\w.]*(\s*,\s*[A-Za-z_][\w.]*)*", text.strip()))


def _begins_statement(before: list[str]) -> bool:
    """Return whether the next line begins a statement: it lies in no bracket, string or continued line."""
    if before and before[-1].rstrip().endswith("\\"):
        return False
    text = "\n".join(before) + "\n"
    if not any(mark in text for mark in "([{'\""):
        return True
    try:
        for _ in tokenize.generate_tokens(StringIO(text).readline):
            pass
    except tokenize.TokenError:
        return False
    except (SyntaxError, IndentationError):
        pass
    return True
