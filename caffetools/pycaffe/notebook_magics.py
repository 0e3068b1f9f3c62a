"""Magics and shell commands of notebooks, as IPython runs them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import timeit
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from string import Formatter
from types import FunctionType, ModuleType
from typing import Any

from caffetools.errors import DataError
from caffetools.pycaffe.notebook import transform_cell
from caffetools.pycaffe.notebook_display import Lines, display

_SHELL = ["cmd", "/c"] if os.name == "nt" else ["sh", "-c"]
_DISPLAY = ("javascript", "js", "html", "HTML", "latex", "svg", "SVG", "markdown")
_DOLLAR = re.compile(r"\$(\$?[A-Za-z_][\w.]*)")
# Magics that only configure a notebook or show something in it.
_IGNORED = (
    *("aimport", "alias", "autoawait", "autocall", "automagic", "autoreload", "bookmark", "colors", "config", "gui", "hist", "history"),
    *("load", "load_ext", "loadpy", "logoff", "logon", "logstart", "logstate", "logstop", "lsmagic", "magic", "matplotlib", "more", "pdb"),
    *("pinfo", "pinfo2", "pdoc", "precision", "pycat", "qtconsole", "quickref", "reload_ext", "tb", "unload_ext", "xmode", "warn", "page"),
    *("debug", "doctest_mode", "notebook", "psource", "pfile", "pylab", "less", "man", "connect_info", "edit", "dhist"),
)
_COMMANDS = ("ls", "ll", "mkdir", "rmdir", "cp", "mv", "rm", "cat", "pip", "conda")
_PROGRAMS = ("bash", "sh", "script", "cmd", "python", "python2", "python3", "pypy", "perl", "ruby")
# Names of the notebook itself, which %reset leaves.
_KEPT = ("In", "Out", "get_ipython", "display")


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
        module: The module that the cells run in; what cells find in every notebook (``In``, ``Out``, ``display``) is put there.
        run_script: Runs the script of ``%run`` and returns its variables; by default as Python does.
        run_source: Runs Python in the module and returns the value of an expression at its end.
    """

    def __init__(
        self,
        module: ModuleType,
        run_script: Callable[[str, dict[str, Any] | None, str], dict[str, Any]] | None = None,
        run_source: Callable[[str, str], object] | None = None,
    ):
        self.user_ns = module.__dict__
        self._module, self._script, self._source = module, run_script or _run_path, run_source
        self._capture, self._captured = contextlib.ExitStack(), False
        self._folder = Path.cwd()
        self.user_ns |= {"get_ipython": lambda: self, "display": display, "In": [""], "Out": {}, "_": "", "__": "", "___": ""}
        self._hidden = set(self.user_ns)

    # ---- cells ----

    def begin_cell(self, text: str) -> None:
        """Keep the text of a cell in ``In``."""
        self.user_ns["In"].append(text)

    def end_cell(self, value: object, *, shown: bool) -> None:
        """End a cell with the value of its last expression: ``_`` and ``Out`` keep it, and it is printed where it is to be shown."""
        captured, self._captured = self._captured, False
        self._capture.close()
        if value is None:
            return
        number = len(self.user_ns["In"]) - 1
        names = self.user_ns
        names["___"], names["__"], names["_"] = names["__"], names["_"], value
        names["Out"][number] = names[f"_{number}"] = value
        self._hidden.add(f"_{number}")
        if shown and not captured:
            print(repr(value))

    def begin_capture(self, line: str) -> None:
        """Begin a cell under ``%%capture line``: what it writes is kept in the variable that ``line`` names, in place of being shown."""
        words, kept = line.split(), Captured()
        self._captured = True
        self.user_ns.update((word, kept) for word in words if not word.startswith("-"))
        if "--no-stdout" not in words:
            self._capture.enter_context(contextlib.redirect_stdout(kept.out))
        if "--no-stderr" not in words:
            self._capture.enter_context(contextlib.redirect_stderr(kept.err))

    def end_capture(self) -> None:
        """End the output of a cell, also where it has failed or captures nothing."""
        self._capture.close()

    # ---- magics ----

    def run_line_magic(self, name: str, line: str) -> Any:
        """Run ``%name line``. Raises :class:`DataError` for a magic that needs IPython where it is not installed."""
        method = getattr(self, f"_magic_{name}", None)
        if method is None and name not in (*_COMMANDS, *_IGNORED):
            return _ipython(self._module, f"%{name}").run_line_magic(name, line)
        if name != "timeit":
            line = self._expanded(line)
        if method is not None:
            return method(line)
        if name in _COMMANDS:
            self.system(f"{'ls -l' if name == 'll' else name} {line}")
        elif name in ("matplotlib", "pylab") and importlib.util.find_spec("matplotlib"):
            importlib.import_module("matplotlib").use("Agg")
            if name == "pylab":
                pylab = importlib.import_module("pylab")
                names = {key: value for key, value in vars(pylab).items() if not key.startswith("_")}
                self.user_ns.update(names)
                self._hidden.update(names)
        return None

    def run_cell_magic(self, name: str, line: str, body: str) -> Any:
        """Run ``%%name line`` over the rest of the cell.

        Raises:
            CalledProcessError: A shell fails, as in Jupyter.
            DataError: The magic needs IPython, which is not installed.
        """
        if name in _PROGRAMS:
            self._run_program(name, self._expanded(line), body)
        elif name == "timeit":
            return self._timed(transform_cell(body), line)
        elif name in ("writefile", "file"):
            append, _, path = self._expanded(line).rpartition(" ")
            with Path(path.strip()).open("a" if "-a" in append else "w", encoding="utf-8") as stream:
                stream.write(body)
        elif name in ("system", "sx", "!"):
            return self.getoutput(body)
        elif name not in _DISPLAY:
            return _ipython(self._module, f"%%{name}").run_cell_magic(name, line, body)
        return None

    def magic(self, text: str) -> Any:
        """Run the line magic ``text``: ``get_ipython().magic("matplotlib inline")``, as exported notebooks have it."""
        name, _, line = text.strip().lstrip("%").partition(" ")
        return self.run_line_magic(name, line)

    def run_cell(self, text: str, *options: object, **named: object) -> None:
        """Run a cell's text."""
        if self._source is not None:
            self._source(transform_cell(text), "cell")

    ex = run_cell

    def ev(self, expression: str) -> Any:
        """Return the value of an expression of the notebook."""
        return self._value(expression)

    def _magic_cd(self, line: str) -> None:
        here, words = Path.cwd(), line.strip()
        folder = words.removeprefix("-q").strip().strip("'\"")
        os.chdir(self._folder if folder == "-" else Path(folder or "~").expanduser())
        self._folder = here
        if not words.startswith("-q"):
            print(Path.cwd())

    def _magic_pwd(self, line: str) -> str:
        return str(Path.cwd())

    def _magic_run(self, line: str) -> None:
        words = shlex.split(line)
        options = []
        while words and words[0].startswith("-"):
            options.append(words.pop(0))
        if not words:
            raise DataError("%run needs the name of a script")
        script, *arguments = words
        if "-m" in options:
            self.user_ns.update(runpy.run_module(script, run_name="__main__"))
            return
        path = script if Path(script).exists() or script.endswith((".py", ".ipynb")) else f"{script}.py"
        if not Path(path).exists():
            raise DataError(f"%run: the script {path} does not exist")
        before, search = sys.argv, list(sys.path)
        sys.argv = [path, *arguments]
        sys.path.insert(0, str(Path(path).resolve().parent))
        try:
            found = self._script(path, self.user_ns if "-i" in options else None, Path(path).stem if "-n" in options else "__main__")
        finally:
            sys.argv, sys.path[:] = before, search
        self.user_ns.update(
            {name: value for name, value in found.items() if not re.fullmatch(r"_+|_\d+|__.*__", name) and name not in _KEPT}
        )

    def _magic_env(self, line: str) -> Any:
        if not line.strip():
            return dict(os.environ)
        key, sign, value = line.strip().replace(" ", "=", 1).partition("=")
        if not sign:
            return os.environ.get(key.strip())
        os.environ[key.strip()] = value.strip()
        return None

    _magic_set_env = _magic_env

    def _magic_system(self, line: str) -> Lines:
        return self.getoutput(line)

    _magic_sx = _magic_system

    def _magic_timeit(self, line: str) -> Any:
        return self._timed(line, "")

    def _magic_reset(self, line: str) -> None:
        for name in self._own_names():
            del self.user_ns[name]

    def _magic_reset_selective(self, line: str) -> None:
        pattern = re.compile(line.replace("-f", "", 1).strip())
        for name in [name for name in self._own_names() if pattern.search(name)]:
            del self.user_ns[name]

    def _magic_xdel(self, line: str) -> None:
        self.user_ns.pop(line.removeprefix("-n ").strip(), None)

    def _magic_who_ls(self, line: str) -> list[str]:
        return sorted(self._own_names())

    def _magic_who(self, line: str) -> None:
        print("\t".join(sorted(self._own_names())))

    def _magic_whos(self, line: str) -> None:
        for name in sorted(self._own_names()):
            print(f"{name}\t{type(self.user_ns[name]).__name__}\t{self.user_ns[name]!r:.80}")

    def _own_names(self) -> list[str]:
        return [name for name in self.user_ns if not name.startswith("_") and name not in self._hidden and name not in _KEPT]

    def _timed(self, code: str, setup: str) -> Any:
        """Run code as ``%timeit`` does: its variables are its own, and the time of a run is printed; returns the times with ``-o``."""
        options = dict(re.findall(r"-([nrtcpqo])\s*(\d*)(?=\s|$)", _options(setup or code)))
        code, setup = (code, _without_options(setup)) if setup else (_without_options(code), "pass")
        timer = timeit.Timer(code.strip("\n") or "pass", setup or "pass", globals=self.user_ns)
        number = int(options.get("n") or 0) or timer.autorange()[0]
        times = [time / number for time in timer.repeat(int(options.get("r") or 0) or 7, number)]
        if "q" not in options:
            mean = sum(times) / len(times)
            print(f"{mean:.3g} s per loop (mean of {len(times)} runs, {number} loops each; the best {min(times):.3g} s)")
        return times if "o" in options else None

    # ---- commands ----

    def _run_program(self, name: str, line: str, body: str) -> None:
        """Run ``%%bash``, ``%%python`` and the like: a process of its own that reads the cell."""
        words, kept = shlex.split(line), {}
        for option in ("--out", "--err"):
            while option in words:
                index = words.index(option)
                kept[option] = words[index + 1]
                del words[index : index + 2]
        checked = "--no-raise-error" not in words
        words = [word for word in words if word not in ("--bg", "--no-raise-error")]
        program = words if name == "script" else [sys.executable if name in ("python", "python3") else name, *words]
        if not program:
            raise DataError("%%script needs the name of a program")
        streams = {
            "stdout": subprocess.PIPE if "--out" in kept else None,
            "stderr": subprocess.PIPE if "--err" in kept else None,
        }
        sys.stdout.flush()
        done = subprocess.run(program, input=body, text=True, check=checked, **streams)  # type: ignore[call-overload]
        self.user_ns.update({kept[option]: text for option, text in (("--out", done.stdout), ("--err", done.stderr)) if option in kept})

    def system(self, command: str) -> None:
        """Run ``!command`` in the shell; its output is that of the script. ``_exit_code`` is its status."""
        sys.stdout.flush()
        self.user_ns["_exit_code"] = subprocess.run([*_SHELL, self._expanded(command)], check=False).returncode

    def getoutput(self, command: str) -> Lines:
        """Run ``!command`` in the shell; return the lines of its output."""
        done = subprocess.run([*_SHELL, self._expanded(command)], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return Lines(done.stdout.splitlines())

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


def _options(text: str) -> str:
    found = re.match(r"\s*(?:-\w+\s*\d*\s+)*", f"{text} ")
    return found[0] if found else ""


def _without_options(text: str) -> str:
    return text[min(len(_options(text)), len(text)) :]


def _run_path(path: str, names: dict[str, Any] | None, run_name: str) -> dict[str, Any]:
    return runpy.run_path(path, names, run_name)


def _ipython(module: ModuleType, magic: str) -> Any:
    """Return IPython's shell over ``module``, for a magic. Raises :class:`DataError` where IPython is not installed."""
    try:
        shell = importlib.import_module("IPython.core.interactiveshell").InteractiveShell
    except ImportError:
        raise DataError(f"the notebook's magic {magic} needs IPython, which is not installed (pip install ipython)") from None
    return shell.instance(user_module=module, user_ns=module.__dict__)
