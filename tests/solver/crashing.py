"""Runs that are killed at chosen moments, each in a process of its own. Not a test: ``python -m tests.solver.crashing FOLDER PLANS``.

PLANS is JSON: a list of lists of moments, each ``what:number``; the run is killed at the first, resumed, killed at the second, and so
on, then resumed to its end. The processes are forks of one that has imported everything, so each costs only its training.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from caffetools.solver.callbacks import Callback
from caffetools.solver.run import train


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(Callback):
    """Dies when the update, or the test's batch, of that number (of this process) is reached."""

    def __init__(self, what: str, number: int):
        self.what, self.left = what, number

    def _count(self, what: str) -> None:
        if what == self.what:
            self.left -= 1
            if self.left == 0:
                die()

    def on_before_update(self, solver: Any) -> None:
        self._count("gradients")

    def on_iteration_end(self, solver: Any) -> None:
        self._count("update")

    def on_test_batch_end(self, solver: Any, done: int, total: int) -> None:
        self._count("test")


def killed_in(owner: Any, name: str, number: int) -> None:
    """Die when ``owner.name`` is about to be called for the ``number``-th time."""
    original: Callable[..., Any] = getattr(owner, name)
    left = [number]

    def counted(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            die()
        return original(*arguments, **options)

    setattr(owner, name, counted)


def run(moment: str | None) -> None:
    """Train to the end, or to the moment of death."""
    callbacks = []
    what, _, number = (moment or "").partition(":")
    if what == "fsync":
        killed_in(os, "fsync", int(number))
    elif what == "rename":
        killed_in(Path, "replace", int(number))
    elif what == "clock":
        # Wherever it happens to be after so many milliseconds; the default action of the signal is to end the process.
        signal.setitimer(signal.ITIMER_REAL, int(number) / 1000)
    elif what:
        callbacks.append(Killer(what, int(number)))
    train("solver.prototxt", resume=True, device="cpu", callbacks=callbacks)


def forked(moment: str | None) -> int:
    """The signal that ended the process, or 0."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise SystemExit(f"the run failed at {moment}")
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    try:
        run(moment)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(folder: Path, plans: list[list[str]]) -> None:
    ends = []
    for number, plan in enumerate(plans):
        place = folder.with_name(f"{folder.name}_{number}")
        shutil.copytree(folder, place)
        os.chdir(place)
        ends.append([forked(moment) for moment in plan])
        forked(None)
    print(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
