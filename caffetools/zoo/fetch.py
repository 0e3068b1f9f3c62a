"""Fetching a model's weights: from the publisher or a mirror, checked before they get their name."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from caffetools._deprecation import deprecated_parameter
from caffetools.cancel import CancelToken
from caffetools.errors import RunFailed, WriteFailed, ZooError
from caffetools.events import ArtifactWritten, EventSink, Warned, ignore, reported, reporter
from caffetools.util.files import check_writable, write_text
from caffetools.util.locks import file_lock
from caffetools.zoo.cards import SCHEMES, ModelCard, Weights, get_card
from caffetools.zoo.check import WrongFile, check_weights
from caffetools.zoo.download import FetchFailed, Progress, RetryPolicy, discard_partial, download, finish
from caffetools.zoo.resources import zoo_file

MIRROR = "CAFFETOOLS_ZOO_MIRROR"
# How far the size of weights may be from the megabytes on their card, which are rounded.
_ABOUT = 0.1
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class FetchResult:
    """Weights that are there and checked.

    Attributes:
        name: Name of the model.
        path: The .caffemodel.
        source: The address they came from, or None where they were there already.
        verified: How they were checked, in words.
        sha256: SHA-256 of the file, in hexadecimal.
        labels: File of the class names next to it, if the model has any.
    """

    name: str
    path: Path
    source: str | None
    verified: str
    sha256: str
    labels: Path | None


def cache_folder() -> Path:
    """Return where fetched files are kept: ``$XDG_CACHE_HOME/caffetools/zoo``, usually ``~/.cache/caffetools/zoo``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "caffetools" / "zoo"


def weights_path(card: ModelCard, to: PathLike | None = None) -> Path | None:
    """Return where the card's weights are or would be: in ``to``, else in the cache; None for a model without published weights."""
    return (Path(to) if to is not None else cache_folder()) / card.weights.file if card.weights else None


def cached(card: ModelCard) -> Literal["", "whole", "damaged"]:
    """Return whether the weights are in the cache; "damaged" where the file there is not about as large as the published one.

    Its contents are not read, so that a list is there at once; :func:`fetch_weights` checks them.
    """
    path = weights_path(card)
    if card.weights is None or path is None or not path.is_file():
        return ""
    expected = card.weights.megabytes * 1e6
    return "whole" if abs(path.stat().st_size - expected) <= _ABOUT * expected else "damaged"


@deprecated_parameter("progress", since="0.2", instead="events=")
@deprecated_parameter("note", since="0.2", instead="events=")
def fetch(
    model: ModelCard | str,
    to: PathLike | None = None,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    retry: RetryPolicy | None = None,
    unverified: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> FetchResult:
    """Make sure that a model's weights are there, and are the files that the publisher released.

    A file that is there (fetched earlier, or put there by hand) is checked and used. Otherwise it is fetched from the mirror
    that ``$CAFFETOOLS_ZOO_MIRROR`` names (an http, https or file address or a folder, with the files in it), else from the
    publisher. An interrupted fetch leaves a .part file, from which the next resumes; two fetches of one file wait for each other.

    Args:
        model: A card, or the name of a model.
        to: The folder; the cache by default.
        progress: Called with (bytes, total bytes); deprecated, use ``events``.
        note: Called with a sentence when there is something to wait for; deprecated, use ``events``.
        retry: How often and how long to try.
        unverified: Also fetch weights for which no checksum is published.
        events: Receives ``Started``, ``Progress`` in bytes, ``Warned`` when another process is fetching the file, ``ArtifactWritten``
            for weights that were fetched, and ``Finished``.
        cancel: Checked between blocks and while there is something to wait for; the .part file is kept, and the next fetch resumes from it.

    Returns:
        Where the weights are, where they came from, and how they were checked.

    Raises:
        ZooError: The model is unknown or has no published weights, no address can be reached, or a file is wrong: names file, address
            and how to get it by hand.
        RunFailed: The folder cannot be written, or the disk is full.
        Cancelled: ``cancel`` was set.
    """
    if not isinstance(model, str | ModelCard):
        raise ZooError(f"model must be the name of a model of the zoo or its card, not {type(model).__name__}")
    card = get_card(model) if isinstance(model, str) else model
    report = reporter(events, "fetch", "bytes", cancel)

    def on_bytes(done: int, total: int) -> None:
        report(done, total)
        if progress is not None:
            progress(done, total)

    def on_wait(sentence: str) -> None:
        events(Warned(task="fetch", message=sentence))
        if note is not None:
            note(sentence)

    with reported("fetch", f"Fetching the weights of {card.name}", events):
        result = fetch_weights(card, to, progress=on_bytes, note=on_wait, retry=retry, unverified=unverified, cancel=cancel)
        if result.source is not None:
            events(ArtifactWritten(task="fetch", path=str(result.path), what="caffemodel"))
    return result


def fetch_weights(
    card: ModelCard,
    to: PathLike | None = None,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    retry: RetryPolicy | None = None,
    unverified: bool = False,
    cancel: CancelToken | None = None,
) -> FetchResult:
    """Fetch weights as :func:`fetch` does, for a caller with steps of its own.

    Args:
        card: The model.
        to: The folder; the cache by default.
        progress: Called with (bytes, total bytes); may raise to stop.
        note: Called with a sentence when there is something to wait for.
        retry: How often and how long to try.
        unverified: Also fetch weights for which no checksum is published.
        cancel: As for :func:`fetch`.

    Raises:
        ZooError: As for :func:`fetch`.
        RunFailed: As for :func:`fetch`.
        Cancelled: ``cancel`` was set.
    """
    path = weights_path(card, to)
    if card.weights is None or path is None:
        raise ZooError(f"{card.name}: {card.no_weights}")
    source = None
    if not path.exists() and not card.weights.checksums and not unverified:
        raise ZooError(
            f"{card.name}: no checksum of its weights is published, so a fetched file cannot be verified",
            hint="--unverified (unverified=True) accepts what the server sends and records its SHA-256 for later fetches",
        )
    if cancel is not None:
        cancel.raise_if_cancelled("fetch")
    if not path.exists():
        _make_folder(path.parent)
        with _locked(path, note, cancel):
            # Another fetch may have brought the file while this one waited.
            if not path.exists():
                source = _download_from_any(card, card.weights, path, progress, retry or RetryPolicy(), cancel)
    try:
        checked = check_weights(card, path, record=_record(path))
    except WrongFile as error:
        raise ZooError(f"{path} is not the weights of {card.name}: {error}; move it away and fetch again") from None
    except OSError as error:
        raise ZooError(f"{path}: cannot read: {error.strerror}") from None
    return FetchResult(card.name, path, source, checked.how, checked.sha256, _place_labels(card, path.parent))


def addresses(weights: Weights) -> list[str]:
    """Return where the file is looked for: in the mirror alone when one is set, else at the publisher's. Raises :class:`ZooError`."""
    mirror = os.environ.get(MIRROR, "").strip()
    if not mirror:
        return list(weights.urls)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", mirror):
        mirror = Path(mirror).expanduser().absolute().as_uri()
    if urlsplit(mirror).scheme.lower() not in SCHEMES:
        raise ZooError(f"${MIRROR} is {mirror}; it must be an http, https or file address, or a folder")
    return [mirror.rstrip("/") + "/" + quote(weights.file)]


def _download_from_any(
    card: ModelCard, weights: Weights, path: Path, progress: Progress | None, retry: RetryPolicy, cancel: CancelToken | None
) -> str:
    """Fetch from the first address that has the right file; the address."""
    part = path.with_name(path.name + ".part")
    failures: list[str] = []
    for url in addresses(weights):
        try:
            _download_from(url, card, path, part, progress, retry, cancel)
        except FetchFailed as error:
            failures.append(f"{url}: {error}")
        except WrongFile as error:
            discard_partial(part)
            failures.append(f"{url} gives a wrong file: {error}")
        else:
            finish(part, path)
            return url
    raise ZooError(
        f"cannot fetch {weights.file} ({'; '.join(failures)}); get it in another way and put it at {path} (it is checked before use), "
        f"or name a mirror in ${MIRROR}"
    )


def _download_from(
    url: str, card: ModelCard, path: Path, part: Path, progress: Progress | None, retry: RetryPolicy, cancel: CancelToken | None
) -> None:
    limit = _limit(card.weights.megabytes) if card.weights is not None else None
    resumed = download(url, part, progress=progress, retry=retry, limit=limit, cancel=cancel)
    try:
        check_weights(card, part, record=_record(path))
    except WrongFile:
        if not resumed:
            raise
        # The earlier part may have been another file's or damaged: only a fetch in one piece can show which.
        discard_partial(part)
        download(url, part, progress=progress, retry=retry, limit=limit, cancel=cancel)
        check_weights(card, part, record=_record(path))


def _limit(megabytes: float) -> int:
    """Return the most bytes to accept for weights of about so many megabytes."""
    return int(megabytes * 1.25e6) + 10**6


def _place_labels(card: ModelCard, folder: Path) -> Path | None:
    if card.labels is None:
        return None
    path = folder / card.labels
    if not path.exists():
        write_text(path, zoo_file(card.labels).read_text(encoding="utf-8"))
    return path


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make the folder {folder}: {error.strerror}; choose another with --to") from None
    check_writable(folder)


@contextlib.contextmanager
def _locked(path: Path, note: Callable[[str], None] | None, cancel: CancelToken | None) -> Iterator[None]:
    """Hold the lock of ``path``; waits while another fetch holds it.

    Raises:
        WriteFailed: The folder cannot be written to.
    """

    def on_wait() -> None:
        if note is not None:
            note(f"another process is fetching {path.name}; waiting for it")

    def while_waiting() -> None:
        if cancel is not None:
            cancel.raise_if_cancelled("fetch")

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path, required=False, on_wait=on_wait, while_waiting=while_waiting))
        except OSError as error:
            raise WriteFailed(path.parent, error.strerror, hint="choose another folder with --to") from None
        yield
