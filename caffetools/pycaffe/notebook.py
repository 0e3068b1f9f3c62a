"""The code cells of a Jupyter notebook as Python, with magics and shell commands as IPython runs them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
import tokenize
from collections.abc import Generator
from io import StringIO
from pathlib import Path
from string import Formatter
from types import FunctionType, ModuleType
from typing import Any

from caffetools.errors import DataError

_SHELL = ["cmd", "/c"] if os.name == "nt" else ["sh", "-c"]
# Cell magics after which the rest of the cell is Python as any other.
_TRANSPARENT = ("time", "timeit", "prun", "pypy", "python", "python3")
_DISPLAY = ("javascript", "js", "html", "HTML", "latex", "svg", "SVG", "markdown")
_DOLLAR = re.compile(r"\$(\$?[A-Za-z_][\w.]*)")
_LINE = re.compile(r"^(?P<indent>\s*)(?:(?P<target>[\w.\[\]'\", ]+?)\s*=\s*)?(?P<kind>[%!])(?P<rest>(?![=%]).*)$")


def notebook_cells(path: Path, module: ModuleType) -> Generator[tuple[str, str], None, None]:
    """Yield the code cells of a notebook as (name for tracebacks, Python source), in order.

    Args:
        path: The notebook.
        module: The module that the cells run in; what their magics need is put there.

    Raises:
        DataError: The file is not a notebook.
    """
    cells = read_cells(path)
    magics = Magics(module)
    module.__dict__["get_ipython"] = lambda: magics
    for number, cell in enumerate(cells, 1):
        try:
            yield f"{path.name}, cell {number}", magics.transform_cell(cell)
        finally:
            magics.end_capture()


def read_cells(path: Path) -> list[str]:
    """Return the texts of the code cells of a notebook. Raises :class:`DataError` where the file is not one."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"] if "cells" in notebook else [cell for sheet in notebook["worksheets"] for cell in sheet["cells"]]
        code = [cell.get("source", cell.get("input", "")) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a Jupyter notebook ({type(error).__name__}: {error})") from None
    return [cell if isinstance(cell, str) else "".join(cell) for cell in code]


class Captured:
    """What a cell under ``%%capture`` has written; ``show()`` prints it."""

    def __init__(self) -> None:
        self.out, self.err = StringIO(), StringIO()

    @property
    def stdout(self) -> str:
        """What was written to stdout."""
        return self.out.getvalue()

    @property
    def stderr(self) -> str:
        """What was written to stderr."""
        return self.err.getvalue()

    def show(self) -> None:
        """Write both again."""
        sys.stdout.write(self.stdout)
        sys.stderr.write(self.stderr)

    __call__ = show

    def __str__(self) -> str:
        return self.stdout


class Magics:
    """The magics that notebooks for Caffe use; others are left to IPython, where it is installed. The methods are those of its shell.

    Args:
        module: The module that the cells run in.
    """

    def __init__(self, module: ModuleType):
        self.user_ns = module.__dict__
        self._module = module
        self._capture = contextlib.ExitStack()

    def transform_cell(self, cell: str) -> str:
        """Return a cell as Python: magics and shell commands become calls of ``get_ipython()``."""
        head, _, body = cell.lstrip().partition("\n")
        if not head.startswith("%%"):
            return _transform_lines(cell)
        name, _, line = head[2:].strip().partition(" ")
        if name == "capture":
            return f"get_ipython().begin_capture({line!r})\n{_transform_lines(body)}"
        if name in _TRANSPARENT:
            # A first line stays, so that line numbers are those of the cell.
            return "\n" + _transform_lines(body)
        return f"get_ipython().run_cell_magic({name!r}, {line!r}, {body!r})\n"

    def begin_capture(self, line: str) -> None:
        """Begin a cell under ``%%capture line``: what it writes is kept in the variable that ``line`` names, in place of being shown."""
        words, kept = line.split(), Captured()
        self.user_ns.update((word, kept) for word in words if not word.startswith("-"))
        if "--no-stdout" not in words:
            self._capture.enter_context(contextlib.redirect_stdout(kept.out))
        if "--no-stderr" not in words:
            self._capture.enter_context(contextlib.redirect_stderr(kept.err))

    def end_capture(self) -> None:
        """End the cell, also where it has failed or captures nothing."""
        self._capture.close()

    def run_line_magic(self, name: str, line: str) -> Any:
        """Run ``%name line``. Magics that only configure a notebook do nothing without IPython."""
        if name in ("cd",):
            os.chdir(Path(line.strip() or "~").expanduser())
        elif name in ("run",):
            script, *arguments = line.split()
            before, sys.argv = sys.argv, [script, *arguments]
            try:
                self.user_ns.update(runpy.run_path(script, run_name="__main__"))
            finally:
                sys.argv = before
        elif name in ("env", "set_env") and line.strip():
            key, _, value = line.strip().replace(" ", "=", 1).partition("=")
            os.environ[key.strip()] = value.strip()
        elif name == "pwd":
            return str(Path.cwd())
        elif name in ("ls", "mkdir", "cp", "mv", "rm", "cat", "pip", "sx", "system"):
            self.system(line if name in ("sx", "system") else f"{name} {line}")
        elif name in ("matplotlib", "pylab") and importlib.util.find_spec("matplotlib"):
            importlib.import_module("matplotlib").use("Agg")
            if name == "pylab":
                pylab = importlib.import_module("pylab")
                self.user_ns.update({key: value for key, value in vars(pylab).items() if not key.startswith("_")})
        elif name not in ("matplotlib", "pylab", "env", "set_env") and (shell := _ipython(self._module)) is not None:
            return shell.run_line_magic(name, line)
        return None

    def run_cell_magic(self, name: str, line: str, body: str) -> None:
        """Run ``%%name line`` over the rest of the cell. Raises ``CalledProcessError`` where a shell fails, as in Jupyter."""
        if name in ("bash", "sh", "script", "cmd"):
            program = line.split() if name == "script" else [name]
            subprocess.run(program, input=body, text=True, check=True)
        elif name in ("writefile", "file"):
            append, _, path = line.rpartition(" ")
            with Path(path.strip()).open("a" if "-a" in append else "w", encoding="utf-8") as stream:
                stream.write(body)
        elif name in _DISPLAY:
            return
        elif (shell := _ipython(self._module)) is not None:
            shell.run_cell_magic(name, line, body)
        else:
            raise DataError(f"the notebook's magic %%{name} needs IPython, which is not installed (pip install ipython)")

    def system(self, command: str) -> None:
        """Run ``!command`` in the shell; its output is that of the script."""
        sys.stdout.flush()
        subprocess.run([*_SHELL, self._expanded(command)], check=False)

    def getoutput(self, command: str) -> list[str]:
        """Run ``!command`` in the shell; return the lines of its output."""
        done = subprocess.run([*_SHELL, self._expanded(command)], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout.splitlines()

    def _expanded(self, command: str) -> str:
        """Replace ``{expression}`` and ``$name`` by their values in the notebook, as IPython does: all of them, or none where one fails.

        ``{{`` and ``}}`` are braces, and ``$$name`` is a variable of the shell.
        """
        parts: list[str] = []
        try:
            for text, expression, layout, conversion in Formatter().parse(command):
                parts.append(_DOLLAR.sub(self._variable, text))
                if expression is not None:
                    value = Formatter().convert_field(self._value(expression), conversion)
                    parts.append(format(value, layout or ""))
        except Exception:  # braces of the shell's or of awk's own
            return _DOLLAR.sub(self._variable, command)
        return "".join(parts)

    def _variable(self, match: re.Match[str]) -> str:
        if match[1].startswith("$"):
            return match[1]
        try:
            return str(self._value(match[1].rstrip(".")))
        except Exception:  # a variable of the shell
            return match[0]

    def _value(self, expression: str) -> Any:
        return FunctionType(compile(expression.strip(), "<shell command>", "eval"), self.user_ns)()


def _ipython(module: ModuleType) -> Any:
    """Return IPython's shell over ``module``; None where IPython is not installed."""
    try:
        shell = importlib.import_module("IPython.core.interactiveshell").InteractiveShell
    except ImportError:
        return None
    return shell.instance(user_module=module, user_ns=module.__dict__)


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
        return f"get_ipython().{'getoutput' if captured else 'system'}({rest.lstrip('!')!r})"
    name, _, line = rest.partition(" ")
    if name in ("time", "timeit", "prun"):
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
