"""A stand-in for the external ``caffe`` binary: a script that prints a log which real Caffe wrote."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPT = """#!{python}
import json, os, shutil, signal, sys
with open("called.json", "w") as file:
    json.dump({{"arguments": sys.argv[1:], "pid": os.getpid(), "folder": os.getcwd()}}, file)
for argument in sys.argv:
    if argument.startswith("--snapshot="):
        shutil.copy(argument.partition("=")[2], "seen.solverstate")
# Signals wait until they are asked for, so none comes too early.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
for line in open({log!r}):
    if os.environ.get("FAKE_FATAL") and os.environ["FAKE_FATAL"] in line:
        print("F1124 03:22:05.300000 14691 data.cpp:7] Check failed: status == 0 (2 vs. 0) No such file", file=sys.stderr)
        print("*** Check failure stack trace: ***", file=sys.stderr, flush=True)
        os.abort()
    print(line, end="", file=sys.stderr, flush=True)
    if os.environ.get("FAKE_PAUSE") and os.environ["FAKE_PAUSE"] in line:
        number = signal.sigwait([signal.SIGHUP] if os.environ.get("FAKE_DEAF") else [signal.SIGINT, signal.SIGHUP])
        if number == signal.SIGINT:
            print("I1124 03:22:05.300000 14691 solver.cpp:316] Optimization stopped early.", file=sys.stderr, flush=True)
            sys.exit(0)
        print("hung up", file=sys.stderr, flush=True)
sys.exit(int(os.environ.get("FAKE_CODE", "0")))
"""


def write_script(path: Path, text: str) -> Path:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def write_fake_caffe(path: Path, log: Path) -> Path:
    """A ``caffe`` at ``path`` that prints ``log`` to stderr, whatever it is asked for.

    It writes called.json, and keeps a copy of the snapshot that it is given. FAKE_FATAL: abort in place of the line with this
    text; FAKE_PAUSE: wait for a signal after that line; FAKE_DEAF: ignore SIGINT; FAKE_CODE: the exit code.
    """
    return write_script(path, SCRIPT.format(python=sys.executable, log=str(log)))
