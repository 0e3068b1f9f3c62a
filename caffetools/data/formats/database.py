"""Caffe's own databases as a source and a target of conversions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

from caffetools.data.convert_imageset import Writer
from caffetools.data.databases import CorruptRecords, new_lmdb, open_database, shown_key
from caffetools.data.datasets.card import class_names
from caffetools.data.datum import array_to_datum, datum_to_array, encoded_to_datum, image_to_record, parse_datum
from caffetools.data.formats.examples import ConvertOptions, Example, Part, example_file, example_pixels, interleaved
from caffetools.errors import DataError
from caffetools.util.threads import ordered_map
from caffetools.util.urls import is_url

PathLike = str | os.PathLike[str]


def database_parts(source: PathLike, options: ConvertOptions) -> list[Part]:
    """Return the one part of an LMDB, LevelDB or index of shards; keys are kept. One in a dataset has the dataset's class names.

    Raises:
        DataError: It cannot be read.
    """
    with closing(open_database(source)) as database:
        count = len(database)

    def examples() -> Iterator[Example]:
        with closing(open_database(source)) as database:
            for raw, value in database.records():
                place = shown_key(database.path, raw)
                datum = parse_datum(value, place)
                label = int(datum.label) if datum.HasField("label") else None
                key = raw.decode("utf-8", "surrogateescape")
                if datum.encoded:
                    yield Example(key, label, bytes(datum.data), place=place)
                else:
                    yield Example(key, label, array=datum_to_array(datum, what=place), place=place)

    return [Part("", examples, count, [] if is_url(source) else class_names(source))]


def write_database(
    path: Path, examples: Iterable[Example], options: ConvertOptions, *, backend: str, force: bool, corrupt: CorruptRecords
) -> int:
    """Write examples as Datum records into a new LMDB or LevelDB; return the number of records.

    Args:
        path: The database to make; it appears when it is complete.
        examples: The examples, with the keys to store them under.
        options: Size, colors, and whether files of pictures are stored.
        backend: ``lmdb`` or ``leveldb``.
        force: Replace a database at ``path``.
        corrupt: Takes the error of a picture that cannot be decoded, which is then left out.

    Raises:
        DataError: A picture cannot be decoded, or ``path`` exists.
        WriteFailed: It cannot be written.
    """

    def record(example: Example) -> tuple[bytes, bytes] | DataError:
        try:
            return os.fsencode(example.key), example_record(example, options)
        except DataError as error:
            return error

    count = 0
    with _new(path, backend, force) as writer, closing(ordered_map(record, examples)) as records:
        for outcome in records:
            if isinstance(outcome, DataError):
                corrupt(outcome)
            else:
                writer.put(*outcome)
                count += 1
    return count


def example_record(example: Example, options: ConvertOptions) -> bytes:
    """Return the Datum of an example, serialized: as convert_imageset stores pictures, and as Caffe's examples store arrays.

    Raises:
        DataError: The picture cannot be decoded; names it.
    """
    if options.encoded:
        datum = encoded_to_datum(example_file(example, options), example.label or 0)
        if example.label is None:
            datum.ClearField("label")
        return bytes(datum.SerializeToString())
    array = example_pixels(example, options)
    if example.array is None and example.label is not None:
        return image_to_record(interleaved(array), example.label)
    return bytes(array_to_datum(array, example.label).SerializeToString())


def _new(path: Path, backend: str, force: bool) -> AbstractContextManager[Writer]:
    if backend == "leveldb":
        from caffetools.data.leveldb import new_leveldb

        return new_leveldb(path, force=force)
    return new_lmdb(path, force=force)
