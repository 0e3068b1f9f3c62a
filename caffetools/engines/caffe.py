"""Real Caffe as an engine: the user's own ``caffe`` binary, or that of a docker image, run as a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from caffetools.engines.base import EngineError
from caffetools.engines.environments import find_environment
from caffetools.util.process_settings import RUN_SIGNALS

# The variable that names a Python with a caffe module, in place of a binary.
PYTHON = "CAFFETOOLS_CAFFE_PYTHON"
# Does what the binary does by the caffe module of another Python.
_WORKER = Path(__file__).with_name("_train_worker.py")
# Where a build or an installation has the binary, below CAFFE_ROOT.
_BINARIES = ("build/tools/caffe", ".build_release/tools/caffe", "build/install/bin/caffe", "bin/caffe")


class CaffeProcess(Protocol):
    """A running Caffe that signals can be sent to."""

    def send_signal(self, sig: int, /) -> None:
        """Send a signal; a process that has ended ignores it."""


@dataclass(frozen=True)
class RealCaffe:
    """A real Caffe that can be run.

    Attributes:
        command: The words that start it, before its own arguments.
    """

    command: tuple[str, ...]

    @classmethod
    def find(cls) -> RealCaffe:
        """Return the ``caffe`` module of the Python that CAFFETOOLS_CAFFE_PYTHON names, else the ``caffe`` on PATH, that of CAFFE_ROOT, or the environment of ``engine add caffe``.

        Raises:
            EngineError: That Python cannot be run, or none exists; names the places.
        """
        if python := os.environ.get(PYTHON):
            interpreter = shutil.which(python)
            if interpreter is None:
                raise EngineError(f"${PYTHON} is {python}, which is not a program that can be run")
            return cls((interpreter, str(_WORKER)))
        found = shutil.which("caffe")
        if found is not None:
            return cls((found,))
        root = os.environ.get("CAFFE_ROOT")
        for name in _BINARIES if root else ():
            binary = Path(root or "", name)
            if os.access(binary, os.X_OK) and binary.is_file():
                return cls((str(binary),))
        with suppress(EngineError):
            return cls((str(find_environment("caffe").python), str(_WORKER)))
        where = f"on PATH and in CAFFE_ROOT ({root}: {', '.join(_BINARIES)})" if root else "on PATH, and CAFFE_ROOT is not set"
        raise EngineError(
            f"no real Caffe was found (looked for caffe {where}); `caffetools engine add caffe` installs one, or put one on PATH, set "
            f"CAFFE_ROOT to where it was built or {PYTHON} to a Python that imports caffe, or give a docker image with --engine-image, "
            "such as bvlc/caffe:cpu"
        )

    @classmethod
    def in_docker(cls, image: str, folders: Iterable[Path], *, gpus: bool = False) -> RealCaffe:
        """Return the ``caffe`` of a docker image, run as the current user in the current folder.

        Args:
            image: Name of the image.
            folders: Folders to mount under their own names.
            gpus: Whether to pass the GPUs through.

        Raises:
            EngineError: docker is not installed.
        """
        docker = shutil.which("docker")
        if docker is None:
            raise EngineError(f"the image {image} needs docker, which is not on PATH")
        words = [docker, "run", "--rm", "--init", "--env", "GLOG_logtostderr=1"]
        if hasattr(os, "getuid"):
            words += ["--user", f"{os.getuid()}:{os.getgid()}"]
        for folder in folders:
            words += ["--volume", f"{folder.resolve()}:{folder}"]
        words += ["--workdir", str(Path.cwd()), *(["--gpus", "all"] if gpus else []), image, "caffe"]
        return cls(tuple(words))

    def run(
        self,
        arguments: Sequence[str],
        on_line: Callable[[str], object],
        *,
        on_start: Callable[[CaffeProcess | None], object] = lambda process: None,
    ) -> int:
        """Run ``caffe ARGUMENTS``.

        SIGINT, SIGHUP and SIGTERM are passed on to it; a second SIGINT ends it at once.

        Args:
            arguments: Its command line.
            on_line: Receives every line that it prints, with its line end.
            on_start: Receives the process once it runs, and None once it has ended.

        Returns:
            Its exit code; the number of a signal that ended it, negative.

        Raises:
            EngineError: It cannot be started.
            KeyboardInterrupt: A second SIGINT.
        """
        try:
            # In a session of its own: what the terminal sends comes to us alone, and we pass it on once.
            process = subprocess.Popen(
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                env={**os.environ, "GLOG_logtostderr": "1", "GLOG_minloglevel": "0"},
            )
        except OSError as error:
            raise EngineError(f"{self.command[0]} cannot be started: {error.strerror}") from None
        try:
            on_start(process)
            with _passing_on(process):
                for line in process.stdout or ():
                    on_line(line if line.endswith("\n") else f"{line}\n")
                return process.wait()
        finally:
            on_start(None)
            # It still runs only if something failed on our side.
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def _passing_on(process: subprocess.Popen[str]) -> Iterator[None]:
    """Pass signals on to ``process`` during the block; only in the main thread, which handles signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def passed_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT:
            if interrupted:
                raise KeyboardInterrupt
            interrupted = True
        with suppress(ProcessLookupError):
            process.send_signal(number)

    # Caffe stops at SIGINT and takes a snapshot at SIGHUP, if its flags do not say otherwise.
    before: dict[int, Any] = {number: signal.signal(number, passed_on) for number in RUN_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
