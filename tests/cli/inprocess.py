"""Running the command line in the test's own process, and what must hold of an error."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from caffetools.cli.app import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def run(*arguments: object) -> Done:
    """Run ``caffetools ARGUMENTS`` as ``main`` does."""
    out, err = io.StringIO(), io.StringIO()
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


def run_well(*arguments: object) -> Done:
    """Run it; it must succeed."""
    done = run(*arguments)
    assert done.code == 0, f"{arguments}: {done.err}"
    return done


def error_of(done: Done, code: int = 2) -> str:
    """The message of a run that failed as it should: one line, the exit code, no traceback, no talk of insides."""
    assert done.code == code, f"exit code {done.code}: {done.err}{done.out}"
    assert done.err.startswith("caffetools: error: ") and done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err and "inside caffetools" not in done.err
    return done.err.removeprefix("caffetools: error: ").rstrip("\n")


def usage_error_of(done: Done) -> str:
    """What typer says of a command line that cannot be understood, without its frame."""
    assert done.code == 2, f"exit code {done.code}: {done.err}{done.out}"
    assert done.err.startswith("Usage: caffetools") and "Traceback" not in done.err
    return " ".join(done.err.replace("│", " ").split())


def below(folder: Path) -> dict[str, bytes]:
    """Every path below ``folder`` with what the file holds, to see that nothing has changed."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def refused(materials: Path, line: str, words: str, code: int = 2) -> None:
    """``line`` ends with one line that has ``words``, and everything lies as it lay before."""
    before = below(materials)
    message = error_of(run(*shlex.split(line)), code)
    assert words in message
    after = below(materials)
    assert sorted(after) == sorted(before) and after == before
