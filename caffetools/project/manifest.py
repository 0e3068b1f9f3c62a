"""run.json: what is being made in a run's folder and of what, so that a second run goes on with it, or is told what has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from caffetools.data.datasets.listing import Listing
from caffetools.errors import CaffeToolsError
from caffetools.util.files import write_text
from caffetools.util.locks import lock_path

SETTINGS = "run.json"
LOCK = "run"


def remember(out: Path, settings: dict[str, Any], inputs: dict[str, str]) -> None:
    """Write down ``settings`` and ``inputs`` in the folder ``out``, or hold them against what is written there.

    Args:
        settings: What was asked for, as plain values. inputs: what each input is called and what it is like (see :func:`state_of`).

    Raises:
        CaffeToolsError: the folder is another run's, or holds other files, or an input has changed since the run began.
    """
    path = out / SETTINGS
    if not path.exists():
        if others := [name.name for name in out.iterdir() if name != lock_path(out / LOCK)]:
            raise CaffeToolsError(f"{out} holds other files ({sorted(others)[0]}); choose a new folder for the run (-o)")
        write_text(path, json.dumps({**settings, "inputs": inputs}, indent=2, ensure_ascii=False) + "\n")
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        before = dict(known.pop("inputs"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise CaffeToolsError(f"{path}: damaged, or not a run's settings; choose another folder (-o)") from None
    if changed := [key for key in settings if known.get(key) != settings[key]]:
        raise CaffeToolsError(
            f"{out} holds a run with other settings ({', '.join(changed)}); choose another folder (-o), or give the same ones"
        )
    if changed := [name for name in inputs if before.get(name) != inputs[name]]:
        raise CaffeToolsError(f"{out} holds a run that began before {changed[0]} changed; choose another folder (-o) to begin anew")


def state_of(listing: Listing) -> str:
    """What tells whether pictures were added, removed or changed: a digest of their names, sizes and times."""
    digest = hashlib.sha256()
    for picture in chain(*listing.pictures, *(listing.val or [])):
        digest.update(f"{picture.path}\0{picture.label}\0".encode("utf-8", "surrogateescape"))
        digest.update(state_of_file(listing.root / picture.path).encode())
    return digest.hexdigest()


def state_of_file(path: Path) -> str:
    """The size and the time of the last change of a file; empty where it is not there."""
    with contextlib.suppress(OSError):
        facts = path.stat()
        return f"{facts.st_size} {facts.st_mtime_ns}"
    return ""


@contextlib.contextmanager
def tidied(out: Path) -> Iterator[None]:
    """Where the body fails before anything was made in ``out``, the settings go again, and so does the folder if it is new."""
    was_there = os.path.lexists(out)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if {name.name for name in out.iterdir()} <= {SETTINGS}:
                (out / SETTINGS).unlink(missing_ok=True)
                if not was_there:
                    out.rmdir()
        raise
