"""Python processes for tests, forked from a server that has torch and the package loaded, so that none costs the time of an import.

They are real processes with output, environment, working directory and signals of their own, and may be killed at any moment. What
depends on how an interpreter starts or ends (its options, closed streams, ``atexit``) needs :mod:`subprocess` instead.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TextIO

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.children_preload"])


class Child:
    """``python ARGUMENTS`` in a process of its own, with the part of :class:`subprocess.Popen`'s interface that tests use.

    Args:
        arguments: ``["-m", module, ...]`` or ``["-c", code, ...]``.
        cwd: Its working directory; this process's by default.
        env: Its environment; this process's by default.
    """

    def __init__(self, arguments: Sequence[object], *, cwd: str | Path | None = None, env: Mapping[str, str] | None = None):
        ours: list[Connection] = []
        theirs: list[Connection] = []
        for number in range(3):
            reader, writer = Pipe(duplex=False)
            ours.append(writer if number == 0 else reader)
            theirs.append(reader if number == 0 else writer)
        words = [str(word) for word in arguments]
        variables = dict(os.environ if env is None else env)
        self._process = CONTEXT.Process(target=_main, args=(words, str(Path(cwd or ".").absolute()), variables, theirs))
        self._process.start()
        for end in theirs:
            end.close()
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(os.dup(end.fileno()), "w" if number == 0 else "r", encoding="utf-8", newline="") for number, end in enumerate(ours)
        )
        for end in ours:
            end.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()
        self.wait()

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("python", timeout or 0.0)
        return code

    def communicate(self, text: str = "") -> tuple[str, str]:
        """Write ``text`` to its stdin and read what it writes until its end; return its stdout and its stderr."""
        found: dict[TextIO, str] = {}

        def read(stream: TextIO) -> None:
            found[stream] = "" if stream.closed else stream.read()

        threads = [threading.Thread(target=read, args=(stream,)) for stream in (self.stdout, self.stderr)]
        for thread in threads:
            thread.start()
        try:
            self.stdin.write(text)
            self.stdin.close()
        except BrokenPipeError:
            pass
        for thread in threads:
            thread.join()
        self.wait()
        return found[self.stdout], found[self.stderr]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def stopped_when(process: Child, moment: Callable[[], bool], sign: int = signal.SIGKILL) -> tuple[str, str]:
    """Send ``sign`` as soon as ``moment`` has come, which must be before the end; what the process printed."""
    with process:
        while not moment():
            # A short rest for the one that works.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.002)
            assert process.poll() is None, f"it ended before the moment came: {process.communicate()}"
        process.send_signal(sign)
        return process.communicate()


def run_child(
    arguments: Sequence[object], *, cwd: str | Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` as :class:`Child` does, to its end."""
    with Child(arguments, cwd=cwd, env=env) as child:
        out, err = child.communicate()
    return subprocess.CompletedProcess(["python", *map(str, arguments)], child.wait(), out, err)


def _main(arguments: list[str], folder: str, variables: dict[str, str], ends: Sequence[Connection]) -> None:
    """Become ``python ARGUMENTS``: a session, streams, an environment and a ``sys.path`` as a new interpreter has them."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, end in enumerate(ends):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    kind, what, *rest = arguments
    sys.path.insert(0, folder)
    if threads := variables.get("OMP_NUM_THREADS", ""):
        # The server's OpenMP has read it already.
        import torch

        torch.set_num_threads(int(threads))
    if kind == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert kind == "-c", arguments
        sys.argv = ["-c", *rest]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
