"""run.json: the settings and inputs of a run in its folder, so that a second call resumes it, or reports what has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from caffetools.data.datasets.listing import Listing
from caffetools.errors import CaffeToolsError
from caffetools.proto.file_names import folders_above
from caffetools.util.files import fingerprint_of_file, write_text
from caffetools.util.locks import lock_path

SETTINGS = "run.json"
# See history.py.
HISTORY = "history.json"
LOCK = "run"


def check_or_write_manifest(out: Path, settings: dict[str, Any], inputs: dict[str, str]) -> None:
    """Write settings and inputs to run.json in a folder, or compare them with those written there.

    Args:
        out: The run's folder.
        settings: The settings that identify the run, as plain values.
        inputs: Name of each input → its fingerprint.

    Raises:
        CaffeToolsError: The folder belongs to another run, holds other files, or an input has changed since the run began.
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
    if changed := [key for key in settings if not _is_same(known.get(key), settings[key], path)]:
        raise CaffeToolsError(
            f"{out} holds a run with other settings ({', '.join(changed)}); choose another folder (-o), or give the same ones"
        )
    # By their order: the names have paths, which are others where the run is resumed from another folder.
    if changed := [name for name, was in zip_longest(inputs, before.values()) if name is None or was != inputs[name]]:
        raise CaffeToolsError(
            f"{out} holds a run that began before {changed[0] or 'its inputs'} changed; choose another folder (-o) to start again"
        )


def path_from_here(name: str, near: Path) -> str:
    """Return a path of a run's settings, which counts from where the run was started, as it is found from the working directory.

    Args:
        name: The path; or any other setting, which is returned as it is.
        near: The run's file of settings.
    """
    if Path(name).exists():
        return name
    return next((os.path.relpath(base / name) for base in folders_above(near) if (base / name).exists()), name)


def _is_same(known: object, given: object, near: Path) -> bool:
    """Return whether a setting is the one of the run, or another path of the same file."""
    if known == given or not isinstance(known, str) or not isinstance(given, str):
        return known == given
    places = [Path(path_from_here(name, near)) for name in (known, given)]
    return all(place.exists() for place in places) and places[0].samefile(places[1])


def fingerprint(listing: Listing) -> str:
    """Return a digest of the images' names, sizes and times of change."""
    digest = hashlib.sha256()
    for picture in chain(*listing.pictures, *(listing.val or [])):
        digest.update(f"{picture.path}\0{picture.label}\0".encode("utf-8", "surrogateescape"))
        digest.update(fingerprint_of_file(listing.root / picture.path).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def rollback_if_empty(out: Path) -> Iterator[None]:
    """Remove the run's own files, and the folder ``out`` if it is new, when the body fails before anything else was written to it."""
    existed = os.path.lexists(out)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if {name.name for name in out.iterdir()} <= {SETTINGS, HISTORY}:
                (out / SETTINGS).unlink(missing_ok=True)
                (out / HISTORY).unlink(missing_ok=True)
                if not existed:
                    out.rmdir()
        raise
