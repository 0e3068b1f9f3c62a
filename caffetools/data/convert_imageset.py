"""A list of pictures into an LMDB or LevelDB, record for record as Caffe's convert_imageset makes it."""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from caffetools.cancel import CancelToken
from caffetools.data.databases import LmdbWriter, new_lmdb, record_key
from caffetools.data.datum import encoded_to_datum, image_to_record
from caffetools.data.images import Pixels, decode_image, encode_image, fast_divisor, pixel_budget, read_bytes, resize
from caffetools.data.picture_lists import labelled_lines
from caffetools.errors import DataError
from caffetools.events import ArtifactWritten, EventSink, Finished, Progress, Started, Warned, ignore
from caffetools.util.threads import ordered_map

PathLike = str | os.PathLike[str]
# The number in the key, the name and the label of a picture.
Entry = tuple[int, str, int]
# A record, the number of the picture's values, and the error of a truncated file.
Made = tuple[bytes, int, list[DataError]]
_BACKENDS = ("lmdb", "leveldb")
# Pictures that a thread takes at a time, and how many progress events a build emits at most.
_CHUNK, _MOST_EVENTS = 8, 2000


class Writer(Protocol):
    """What :func:`new_lmdb` and :func:`new_leveldb` yield."""

    count: int

    def put(self, key: bytes, value: bytes) -> None:
        """Add a record."""


@dataclass(frozen=True)
class ImagesetOptions:
    """The flags of convert_imageset.

    Attributes:
        gray: Store one channel.
        shuffle: Shuffle the list; the keys number the shuffled lines.
        backend: ``lmdb`` or ``leveldb``.
        resize_width: Width in pixels; takes effect with ``resize_height`` only, as in Caffe's tool. 0 or less keeps the picture's size.
        resize_height: Height in pixels; takes effect with ``resize_width`` only.
        check_size: Require that all pictures have the same number of values, also where their files are stored.
        encoded: Store picture files in place of pixels.
        encode_type: File type to store, such as ``png`` or ``jpg``; implies ``encoded``. Empty: that of each file's name.
        seed: Seed of the shuffle. (Caffe's tool draws one from the clock.)
        force: Replace a database that exists, once the new one is complete.
        resume: Continue a build of the same list and flags that was interrupted or killed; LMDB only.
        strict: Stop at the first picture that cannot be read, which is otherwise left out, or that is truncated, of which the missing
            part is otherwise stored as gray, both as Caffe's tool does.
        fast_decode: Decode large JPEGs at a reduced scale, if they are resized: up to twice as fast, but the pixels are not Caffe's.
        threads: Threads that decode; None for one a core.
    """

    gray: bool = False
    shuffle: bool = False
    backend: str = "lmdb"
    resize_width: int = 0
    resize_height: int = 0
    check_size: bool = False
    encoded: bool = False
    encode_type: str = ""
    seed: int = 1
    force: bool = False
    resume: bool = False
    strict: bool = False
    fast_decode: bool = False
    threads: int | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) to resize to, or None."""
        return (self.resize_width, self.resize_height) if self.resize_width > 0 and self.resize_height > 0 else None


@dataclass
class ImagesetResult:
    """What was written.

    Attributes:
        path: The database.
        count: Number of records.
        skipped: The error of each picture that was left out.
        truncated: The error of each truncated JPEG that was stored as cv::imread reads it, or as it is with ``encoded``.
    """

    path: str
    count: int = 0
    skipped: list[DataError] = field(default_factory=list)
    truncated: list[DataError] = field(default_factory=list)


def convert_imageset(
    root: PathLike,
    listing: PathLike,
    database: PathLike,
    options: ImagesetOptions | None = None,
    *,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> ImagesetResult:
    """Write the pictures of ``listing`` into a new database.

    Keys and Datum messages are those of Caffe's tool: the key of line i (from 0) is ``%08d_NAME``, with gaps where a line is empty
    or a picture was left out. The database appears when it is complete.

    Args:
        root: Prefix of the names in the list; a folder's final slash may be omitted.
        listing: A text file of ``NAME LABEL`` lines.
        database: The database to make.
        options: The flags; by default those of the tool.
        events: Receives ``Started``, ``Progress`` (unit ``images``), ``Warned``, ``ArtifactWritten`` and ``Finished``.
        cancel: Checked between pictures; after cancelling the build can be resumed, and nothing is at ``database``.

    Raises:
        DataError: The options are not possible, the list cannot be read, no picture can be read, the sizes differ with
            ``check_size``, the type of a picture cannot be written, or the database exists.
        RunFailed: The database cannot be written.
        Cancelled: ``cancel`` was set.
    """
    options = options or ImagesetOptions()
    _check_options(options)
    unlabelled: list[bool] = []
    entries = _read_entries(listing, options, lambda: unlabelled.append(True))
    prefix = os.fspath(root)
    if prefix and Path(prefix).is_dir() and not prefix.endswith(("/", os.sep)):
        prefix += "/"
    result = ImagesetResult(os.fspath(database))
    events(Started(task="dataset", title=f"Writing {len(entries)} pictures to {result.path}"))
    for message in _remarks(options, unlabelled=bool(unlabelled)):
        events(Warned(task="dataset", message=f"{message}, as in Caffe's tool"))
    status, message = "failed", ""
    try:
        with _new_database(database, options) as writer:
            start = _check_resumed(writer, entries, result.path) if isinstance(writer, LmdbWriter) else 0
            _write(entries, start, prefix, writer, options, result, events, cancel)
            if not writer.count:
                hint = f"the first error: {result.skipped[0]}"
                if prefix.strip("/") and entries[0][1].startswith("/"):
                    hint += "; the list's paths are absolute, so ROOT must be /"
                elif prefix and not Path(prefix).is_dir() and not prefix.endswith("/"):
                    hint += f"; ROOT '{prefix}' is not a folder"
                raise DataError("no picture of the list can be read", path=listing, hint=hint)
            result.count = writer.count
        events(ArtifactWritten(task="dataset", path=result.path, what=options.backend))
        status = "done"
    except BaseException as error:
        status, message = ("cancelled" if cancel is not None and cancel.cancelled else "failed"), str(error)
        raise
    finally:
        events(Finished(task="dataset", status=status, message=message))  # type: ignore[arg-type]
    return result


def _check_options(options: ImagesetOptions) -> None:
    if options.backend not in _BACKENDS:
        raise DataError(f"the backend '{options.backend}' is unknown; it can be lmdb or leveldb")
    if max(options.resize_width, options.resize_height) > 65535:
        raise DataError(f"the size {options.resize_width}x{options.resize_height} is impossible; both sides must be 65535 or less")
    if options.resume and options.backend != "lmdb":
        raise DataError("only an LMDB can be resumed; leave out --resume or --backend leveldb")
    if options.encode_type:
        encode_image(np.zeros((1, 1, 3), np.uint8), f".{options.encode_type}")


def _remarks(options: ImagesetOptions, *, unlabelled: bool) -> Iterator[str]:
    """Yield what Caffe's tool does in silence with these options and this list, and its user may not expect."""
    sides = {"resize_width": options.resize_width, "resize_height": options.resize_height}
    yield from (f"{name} {value} is taken as 0 (the pictures keep their sizes)" for name, value in sides.items() if value < 0)
    given = [name for name, value in sides.items() if value > 0]
    if len(given) == 1 and 0 in sides.values():
        yield f"{given[0]} alone has no effect (the pictures keep their sizes)"
    if unlabelled:
        yield "the list has no labels: the label is the number that a name begins with, else 0"


def _read_entries(listing: PathLike, options: ImagesetOptions, on_unlabelled: Callable[[], None]) -> list[Entry]:
    """Return the pictures in the order of the database. Caffe's tool counts empty lines too, as pictures that it cannot read."""
    entries = [(line - 1, name, label) for line, name, label in labelled_lines(listing, on_unlabelled)]
    if not options.shuffle:
        return entries
    order = np.random.default_rng(options.seed).permutation(len(entries))
    return [(number, *entries[index][1:]) for number, index in enumerate(order)]


@contextlib.contextmanager
def _new_database(path: PathLike, options: ImagesetOptions) -> Iterator[Writer]:
    if options.backend == "leveldb":
        from caffetools.data.leveldb import new_leveldb

        writer: AbstractContextManager[Writer] = new_leveldb(path, force=options.force)
    else:
        writer = new_lmdb(path, force=options.force, resumable=True, resume=options.resume)
    with writer as opened:
        yield opened


def _check_resumed(writer: LmdbWriter, entries: list[Entry], path: str) -> int:
    """Return the index of the first picture that is not written yet. Raises :class:`DataError` if the records are of another list."""
    if not writer.count:
        return 0
    digits = writer.last_key.partition(b"_")[0]
    number = int(digits) if digits.isdigit() else -1
    index = bisect.bisect_left(entries, number, key=lambda entry: entry[0])
    if index == len(entries) or writer.last_key != record_key(*entries[index][:2]):
        raise DataError(
            f"the build to resume ends with the record '{writer.last_key.decode('utf-8', 'replace')}', which is not of this list",
            path=path,
            hint="run without --resume",
        )
    return index + 1


def _write(
    entries: list[Entry],
    start: int,
    prefix: str,
    writer: Writer,
    options: ImagesetOptions,
    result: ImagesetResult,
    events: EventSink,
    cancel: CancelToken | None,
) -> None:
    first_size: int | None = None
    make = _record_maker(prefix, options)
    rest = entries[start:]
    chunks = (rest[begin : begin + _CHUNK] for begin in range(0, len(rest), _CHUNK))
    step = max(1, len(entries) // _MOST_EVENTS)
    with closing(ordered_map(lambda chunk: [make(entry) for entry in chunk], chunks, threads=options.threads)) as made:
        outcomes = zip(rest, chain.from_iterable(made), strict=True)
        for done, ((number, name, _), outcome) in enumerate(outcomes, start + 1):
            if cancel is not None:
                cancel.raise_if_cancelled("writing the database")
            if isinstance(outcome, DataError):
                if options.strict:
                    raise outcome
                result.skipped.append(outcome)
            else:
                value, size, truncated = outcome
                if truncated and options.strict:
                    raise truncated[0]
                result.truncated += truncated
                first_size = size if first_size is None else first_size
                if options.check_size and size != first_size:
                    raise DataError(
                        f"the picture has {size} values (channels x height x width), the first one {first_size}", path=prefix + name
                    )
                writer.put(record_key(number, name), value)
            if done % step == 0 or done == len(entries):
                events(Progress(task="dataset", done=done, total=len(entries), unit="images"))


def _record_maker(prefix: str, options: ImagesetOptions) -> Callable[[Entry], Made | DataError]:
    """Return a function from a picture of the list to its record, or to the error."""

    def make(entry: Entry) -> Made | DataError:
        _, name, label = entry
        truncated: list[DataError] = []
        try:
            path = prefix + name
            data = read_bytes(path)
            divisor = fast_divisor(data, options.size) if options.fast_decode else 1
            with pixel_budget(data, divisor):
                image = decode_image(data, color=not options.gray, what=path, divisor=divisor, on_truncated=truncated.append)
                if options.size is not None:
                    image = resize(image, options.size)
        except DataError as error:
            return error
        if kind := _stored_type(name, options):
            data = _encoded(data, image, path, kind, options)
            return encoded_to_datum(data, label).SerializeToString(), image.size, truncated
        return image_to_record(image, label), image.size, truncated

    return make


def _stored_type(name: str, options: ImagesetOptions) -> str:
    """Return the type of the file to store, empty for pixels. As in Caffe's tool it is all that follows the last dot of the name."""
    if options.encode_type or not options.encoded:
        return options.encode_type.lower()
    return name[name.rfind(".") + 1 :].lower()


def _encoded(data: bytes, image: Pixels, path: str, kind: str, options: ImagesetOptions) -> bytes:
    """Return the file to store: the source's bytes where its type is asked for and no size is given, else ``image`` encoded."""
    suffix = path[path.rfind(".") + 1 :].lower()
    if options.resize_width <= 0 >= options.resize_height and (suffix == kind or (kind == "jpg" and suffix == "jpeg")):
        return data
    try:
        return encode_image(image, f".{kind}")
    except DataError as error:
        raise DataError(str(error), path=path, hint="give --encode_type") from None
