"""The command line run in this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from caffetools.cli.app import main


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Done:
    """``caffetools ARGUMENTS``: its exit code and what it printed."""
    monkeypatch.setattr(sys, "argv", ["caffetools", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    output = capsys.readouterr()
    return Done(int(end.value.code or 0), output.out, output.err)
