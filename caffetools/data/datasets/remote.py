"""Datasets from and to URLs: sources are downloaded first, and the complete output is uploaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from caffetools.data.cluster import is_local
from caffetools.data.datasets.card import DatasetCard, save_card
from caffetools.errors import DataError
from caffetools.util import urls

PathLike = str | os.PathLike[str]
P = ParamSpec("P")
R = TypeVar("R")
# Arguments that are one file or folder, or several.
_SOURCES = ("pictures", "root", "val_list", "test_list", "labels", "dataset", "source", "sources")
_LISTS = (".txt", ".csv", ".tsv", ".json", ".jsonl")


def urls_allowed(make: Callable[P, R]) -> Callable[P, R]:
    """Let the sources and ``out`` of a function that makes a dataset or database be URLs, for which fsspec's packages are installed.

    Sources are downloaded to a temporary folder; of a list, with the folder that it is in unless ``root`` is given. The result names
    the URL where something was written to one.
    """
    signature = inspect.signature(make)

    @wraps(make)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        given, pictures = bound.arguments, bound.arguments.get("pictures")
        out: Any = given.get("out")
        remote = [name for name in _SOURCES if name in given and any(map(_is_url, _several(given[name])))]
        if not remote and not _is_url(out):
            return make(*args, **kwargs)
        _check(given, out)
        with ExitStack() as stack:
            for name in remote:
                near = [stack.enter_context(_near(place, given, name)) for place in _several(given[name])]
                given[name] = near if isinstance(given[name], list | tuple) else near[0]
            if _is_url(out):
                given["out"] = stack.enter_context(urls.local_output(out, force=bool(given.get("force"))))
            result = make(*bound.args, **bound.kwargs)
            if pictures is not None and _is_url(pictures) and isinstance(result, DatasetCard):
                result.pictures = _folder_of_list(os.fspath(pictures)) or os.fspath(pictures)
                save_card(result, result.folder)
        return _at(result, out) if _is_url(out) else result

    return wrapped


def _several(given: object) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _is_url(given: object) -> bool:
    return isinstance(given, str | os.PathLike) and urls.is_url(given)


def _check(given: dict[str, Any], out: str | os.PathLike[str] | None) -> None:
    if _is_url(out) and given.get("resume"):
        raise DataError("a dataset at a URL cannot be resumed; leave out --resume", path=out)
    if _is_url(out) and given.get("cluster") and not is_local(given["cluster"]):
        raise DataError("a cluster writes to a folder that its machines share, not to a URL", path=out)
    if _is_url(given.get("dataset")) and out is None:
        raise DataError("a dataset at a URL is not changed in place", path=given["dataset"], hint="give --out")
    if "dataset" in given and _is_url(given["pictures"]):
        raise DataError("pictures at a URL cannot be added to a dataset", path=given["pictures"], hint="download them first")


@contextmanager
def _near(place: object, given: dict[str, Any], name: str) -> Iterator[Any]:
    """Yield a local path for a source; of a list of pictures at a URL, in a copy of its folder."""
    text = os.fspath(place) if isinstance(place, str | os.PathLike) else ""
    if not urls.is_url(text):
        yield place
    elif name == "pictures" and given.get("root") is None and (folder := _folder_of_list(text)):
        with urls.local_copy(folder) as copy:
            yield copy / text.rpartition("/")[2]
    else:
        with urls.local_copy(text) as copy:
            yield copy


def _folder_of_list(url: str) -> str:
    """Return the URL of the folder that a list of pictures is in; empty if ``url`` is something else."""
    return url.rpartition("/")[0] if url.lower().endswith(_LISTS) and not urls.is_folder(url) else ""


def _at(result: R, out: PathLike) -> R:
    if isinstance(result, DatasetCard):
        result.folder, result.url = Path(out), os.fspath(out)
    elif hasattr(result, "path"):
        result.path = os.fspath(out)
    return result
