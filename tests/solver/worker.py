"""What a process of :mod:`tests.solver.together` runs. The server that they are forked from has loaded all this already."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch._dynamo  # noqa: F401

import caffetools.builtin
import caffetools.cli.app as app
import caffetools.solver.distributed
import caffetools.solver.run  # noqa: F401


def work(folder: str, rank: int, variables: Mapping[str, str], arguments: list[str]) -> None:
    """``caffetools ARGUMENTS`` in ``folder`` as process ``rank``, its output in files there."""
    os.chdir(folder)
    os.environ.update(variables)
    for number, name in ((1, "stdout"), (2, "stderr")):
        with Path(f"{name}{rank}.txt").open("w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = ["caffetools", *arguments]
    app.main()
