"""Bringing one file from an http, https or file address, through dropped connections, resuming what is there."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import caffetools
from caffetools.cancel import CancelToken
from caffetools.errors import WriteFailed

if TYPE_CHECKING:
    from http.client import HTTPMessage

Progress = Callable[[int, int], None]

_CHUNK = 1 << 18
_RETRYABLE = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers that may be better in a moment


@dataclass(frozen=True)
class RetryPolicy:
    """How long to try: ``attempts`` in a row without a new byte, waiting ``backoff`` seconds, then twice that, and so on.

    ``timeout`` are the seconds without an answer after which a connection counts as dropped.
    """

    attempts: int = 5
    backoff: float = 0.5
    timeout: float = 30.0


class FetchFailed(Exception):
    """An address did not give the file; the text states why. The caller knows what file it was and what to do."""


class _Dropped(FetchFailed):
    """Failed in a way that may pass."""


class _Unreachable(FetchFailed):
    """No connection at all: passing only if there was one a moment ago."""


@dataclass(frozen=True)
class _Origin:
    """What a .part file is a part of; kept next to it so that a later run can resume."""

    url: str
    validator: str | None = None
    total: int | None = None


def download(
    url: str,
    part: Path,
    *,
    progress: Progress | None = None,
    retry: RetryPolicy | None = None,
    limit: int | None = None,
    cancel: CancelToken | None = None,
) -> bool:
    """Bring the whole of ``url`` into ``part``, resuming where an earlier run stopped.

    A resumed download asks with If-Range for the same ETag or date and holds the length against the earlier one; a server
    that knows no ranges, or whose file has changed, sends it from the start. ``part`` is kept when this fails or is interrupted.

    Args:
        url: An https, http or file address.
        part: The .part file.
        progress: Called with (bytes written, total bytes or 0 if the server does not give them).
        retry: How often and how long to try.
        limit: Most bytes to accept; a longer file is refused before the disk is full.
        cancel: Checked before each attempt and while it waits for the next one; ``progress`` may raise between blocks.

    Returns:
        Whether ``part`` holds bytes of an earlier connection.

    Raises:
        FetchFailed: The address can't be reached or does not have the file.
        RunFailed: ``part`` can't be written.
        Cancelled: ``cancel`` was set; ``part`` is kept.
    """
    retry = retry or RetryPolicy()
    most, failures, resumed = _size(part), 0, False
    progressed = False
    while True:
        if cancel is not None:
            cancel.raise_if_cancelled("fetch")
        try:
            return _attempt(url, part, progress, retry, limit) or resumed
        except (_Dropped, _Unreachable) as error:
            size = _size(part)
            if size > most:
                most, failures, progressed = size, 0, True
            failures += 1
            if failures >= retry.attempts or (isinstance(error, _Unreachable) and not progressed):
                raise
            (time.sleep if cancel is None else cancel.wait)(retry.backoff * 2 ** (failures - 1))


def discard_partial(part: Path) -> None:
    """Remove a .part file and the note about where it came from."""
    for path in (part, _origin_file(part)):
        path.unlink(missing_ok=True)


def finish(part: Path, target: Path) -> None:
    """Make the complete and checked ``part`` be ``target``: flushed to the disk, then renamed."""
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    part.replace(target)
    _origin_file(part).unlink(missing_ok=True)


def _attempt(url: str, part: Path, progress: Progress | None, retry: RetryPolicy, limit: int | None) -> bool:
    if urlsplit(url).scheme == "file":
        _copy(url, part, progress)
        return False
    origin = _read_note(part)
    offset = _size(part) if origin.url == url else 0
    if offset and offset == origin.total:
        return True
    with _open(url, offset, origin, part, retry) as response:
        if response.status == 206:
            total = _resumed_total(response, offset, origin)
            if total is None:
                discard_partial(part)
                raise _Dropped("the server went on at another place than asked")
        else:
            offset = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else 0
        _write_note(part, _Origin(url, _validator(response.headers), total or None))
        if limit is not None and total > limit:
            raise _too_long(part, limit)
        _check_space(part, total - offset)
        done = _stream_to_file(response, part, offset, total, progress, limit)
    if total and done != total:
        raise _Dropped(f"the connection dropped after {done} of {total} bytes")
    return offset > 0


def _too_long(part: Path, limit: int) -> FetchFailed:
    """Remove what was written and return the error of a file that is longer than its card allows."""
    discard_partial(part)
    return FetchFailed(f"the server sends more than {limit / 1e6:.0f} MB, which the model's card does not allow")


def _open(url: str, offset: int, origin: _Origin, part: Path, retry: RetryPolicy) -> Any:
    headers = {"User-Agent": f"caffetools/{caffetools.__version__}"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if origin.validator:
            headers["If-Range"] = origin.validator
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 (the schemes are checked by the caller and on redirects)
        return urllib.request.build_opener(_WebOnly).open(request, timeout=retry.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            discard_partial(part)
            raise _Dropped("the server's file is shorter than what was fetched earlier") from None
        kind = _Dropped if error.code in _RETRYABLE else FetchFailed
        # One that redirects in a circle gets a reason of several lines from urllib.
        reason = str(error.reason).partition("\n")[0].rstrip(".")
        raise kind(f"the server answers {error.code} {reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, (ConnectionResetError, TimeoutError, BrokenPipeError)):
            raise _Dropped(f"no answer ({_reason(error.reason)})") from None
        raise _Unreachable(f"cannot connect ({_reason(error.reason)})") from None
    except ValueError as error:
        raise FetchFailed(f"not a usable address ({_reason(error)})") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Dropped(f"no proper answer ({_reason(error)})") from None


class _WebOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise FetchFailed(f"the server redirects to {newurl}, which is neither an http nor an https address")
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise FetchFailed(f"the server redirects from https to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _stream_to_file(source: IO[bytes], part: Path, offset: int, total: int, progress: Progress | None, limit: int | None = None) -> int:
    """Write what ``source`` gives into ``part`` from ``offset`` on; the bytes there are then."""
    done = offset
    with _writing(part), part.open("r+b" if offset else "wb", buffering=0) as stream:
        if offset:
            stream.truncate(offset)
            stream.seek(offset)
        while True:
            if progress is not None:
                progress(done, total)
            block = _read_chunk(source)
            if not block:
                return done
            if limit is not None and done + len(block) > limit:
                raise _too_long(part, limit)
            _write_all(stream, block)
            done += len(block)


def _read_chunk(source: IO[bytes]) -> bytes:
    try:
        return bytes(source.read(_CHUNK))
    except http.client.IncompleteRead as error:
        if error.partial:
            return error.partial
        raise _Dropped("the connection dropped") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Dropped(f"the connection dropped ({_reason(error)})") from None


def _write_all(stream: IO[bytes], block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[stream.write(view) :]


@contextlib.contextmanager
def _writing(part: Path) -> Any:
    try:
        yield
    except OSError as error:
        hint = "free some space and run the same command again: it resumes where it stopped"
        raise WriteFailed(part, error.strerror or error, hint=hint) from error


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        reason = f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free"
        raise WriteFailed(part, reason, hint="free some space or choose another folder")


def _copy(url: str, part: Path, progress: Progress | None) -> None:
    address = urlsplit(url)
    if address.netloc not in ("", "localhost"):
        raise FetchFailed(f"a file address on another machine ({address.netloc}) can't be read; mount it and give its folder")
    path = Path(urllib.request.url2pathname(address.path))
    try:
        with path.open("rb") as source:
            total = os.fstat(source.fileno()).st_size
            _check_space(part, total)
            discard_partial(part)
            _stream_to_file(source, part, 0, total, progress)
    except OSError as error:
        raise FetchFailed(f"cannot read {path} ({error.strerror})") from None


def _resumed_total(response: http.client.HTTPResponse, offset: int, origin: _Origin) -> int | None:
    """Return the whole length, if the answer continues at ``offset`` of the file that was begun; else None."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", "").strip())
    if not found or int(found[1]) != offset or (origin.total and int(found[3]) != origin.total):
        return None
    return int(found[3])


def _validator(headers: HTTPMessage) -> str | None:
    """Return what If-Range may name: a strong ETag, else the date of the file."""
    tag = headers.get("ETag")
    return str(tag) if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _origin_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(part: Path) -> _Origin:
    try:
        return _Origin(**json.loads(_origin_file(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _Origin("")


def _write_note(part: Path, origin: _Origin) -> None:
    with _writing(part):
        _origin_file(part).write_text(json.dumps(asdict(origin)), encoding="utf-8")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: str | BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
