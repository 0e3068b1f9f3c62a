"""What may have been meant where a file does not exist: another file, or a model of the zoo."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from caffetools.errors import CaffeToolsError, closest

# How many entries of a folder are looked at: an error must be there at once.
_MOST = 2000
_MOST_FOLDERS = 100


def with_hint(error: CaffeToolsError) -> CaffeToolsError:
    """Return an error about a file that is missing with what was probably meant, if the error has no hint of its own.

    Args:
        error: Any error; one that is not about a missing file is returned as it is.
    """
    if error.path is None or error.hint or not error.path or os.path.lexists(error.path):
        return error
    hint = _file_hint(Path(error.path)) or _model_hint(error.path)
    if not hint:
        return error
    named = error.located(error.path, error.line, error.column)
    named.hint = hint
    return named


def _file_hint(path: Path) -> str:
    found = _same_name(path) or _close_name(path)
    return f"did you mean '{found}'?" if found else ""


def _same_name(path: Path) -> Path | None:
    """Return a file of this name in the working directory, or, where no other folder is named, in a folder in it."""
    here = Path(path.name)
    if len(path.parts) > 1:
        return here if not path.is_absolute() and here.is_file() else None
    folders = (Path(name) for name in sorted(_names(Path())) if not name.startswith("."))
    return next((folder / here for folder in islice(folders, _MOST_FOLDERS) if (folder / here).is_file()), None)


def _close_name(path: Path) -> Path | None:
    """Return the path with its first part that does not exist replaced by the name closest to it, if that exists."""
    parts = path.parts
    at = next(number for number in range(1, len(parts) + 1) if not os.path.lexists(Path(*parts[:number])))
    folder = Path(*parts[: at - 1])
    close = closest(parts[at - 1], _names(folder), cutoff=0.8)
    if close is None:
        return None
    found = Path(folder, close, *parts[at:])
    return found if os.path.lexists(found) else None


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, _MOST)]
    except OSError:
        return []


def _model_hint(word: str) -> str:
    path = Path(word)
    if path.name != word or path.suffix[1:2].isalpha():
        return ""
    from caffetools.zoo.names import is_model, known_names

    if is_model(word):
        return f"it is a model of the zoo; `caffetools zoo copy {word} {word}` writes its files"

    close = closest(word.lower(), known_names(), cutoff=0.75)
    return "" if close is None else f"did you mean '{close}'? (a model of the zoo)"
