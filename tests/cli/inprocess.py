"""Running the command line in the test's own process, and what must hold of an error."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from caffetools.cli.app import main


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def run(*arguments: object, terminal: bool = False) -> Done:
    """Run ``caffetools ARGUMENTS`` as ``main`` does; with ``terminal``, its stdout is one."""
    out, err = Terminal() if terminal else io.StringIO(), io.StringIO()
    code: object = 0
    argv, sys.argv = sys.argv, ["caffetools", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())


def without_next(text: str) -> list[str]:
    """The lines of an output but the last, which is the next command."""
    *lines, last = text.splitlines()
    assert last.startswith("Next: caffetools "), text
    return lines


def run_well(*arguments: object) -> Done:
    """Run it; it must succeed."""
    done = run(*arguments)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done


def error_of(done: Done, code: int = 2) -> str:
    """The message of a run that failed as it should: one line, the exit code, no traceback, no talk of insides."""
    assert done.returncode == code, f"exit code {done.returncode}: {done.stderr}{done.stdout}"
    assert done.stderr.startswith("caffetools: error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr and "inside caffetools" not in done.stderr
    return done.stderr.removeprefix("caffetools: error: ").rstrip("\n")


def usage_error_of(done: Done) -> str:
    """The message of a command line that cannot be understood: one plain line, exit code 2."""
    return error_of(done)


def below(folder: Path) -> dict[str, bytes]:
    """Every path below ``folder`` with what the file holds, to see that nothing has changed."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def refused(materials: Path, line: str, words: str, code: int = 2) -> None:
    """``line`` ends with one line that has ``words``, and everything lies as it lay before."""
    before = below(materials)
    message = error_of(run(*shlex.split(line)), code)
    assert words in message, message
    after = below(materials)
    assert sorted(after) == sorted(before) and after == before
