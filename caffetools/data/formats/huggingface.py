"""Datasets of Hugging Face: Parquet files, or the Arrow files of ``Dataset.save_to_disk``; they are written as Parquet (extra ``huggingface``)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from caffetools.data.formats.examples import ConvertOptions, Example, Part, checked_label, example_file, in_files
from caffetools.data.formats.folders import picture_suffix
from caffetools.errors import DataError
from caffetools.proto.sniff import wrong_kind
from caffetools.util import urls
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]
_SPLIT = re.compile(r"(?:^|[/_.-])(train|validation|valid|val|dev|test)(?=[/_.-])", re.IGNORECASE)
_PICTURES, _LABELS = ("image", "img", "picture", "photo"), ("label", "labels", "fine_label", "class", "target")
_ROWS = 64


@dataclass(frozen=True)
class _Columns:
    """The columns of the pictures and the labels, and the names of the classes."""

    picture: str
    label: str | None
    classes: list[str]


def huggingface_parts(source: PathLike, options: ConvertOptions) -> list[Part]:
    """Return the parts of a dataset: one for each split in the names of its files or folders.

    The picture is the column of type ``Image`` (or ``image``, ``img``…), a file's bytes or its path; the label the ``ClassLabel`` column (or
    ``label``…), whose names become those of the classes. ``options.data`` and ``options.label`` name others.

    Raises:
        DataError: pyarrow is not installed, there is no Parquet or Arrow file, or it has no such columns.
    """
    _import_pyarrow(source)
    names = urls.list_files(source) if urls.is_folder(source) else [""]
    names = [name for name in names if not name or name.endswith((".parquet", ".arrow"))]
    if not names:
        raise DataError("it holds no .parquet or .arrow file", path=source)
    splits: dict[str, list[str]] = {}
    for name in names:
        found = _SPLIT.search(name)
        splits.setdefault(found[1].lower() if found else "", []).append(urls.join(source, name) if name else os.fspath(source))
    if "" in splits and len(splits) > 1:
        raise DataError(f"to which split {splits[''][0]} belongs is not certain", path=source)
    parts = []
    for split, files in splits.items():
        columns = _columns(files[0], options)
        parts.append(Part(split if len(splits) > 1 else "", _reader(source, files, columns), classes=columns.classes))
    return parts


def write_huggingface(path: Path, examples: Iterable[Example], options: ConvertOptions, classes: list[str]) -> int:
    """Write Parquet files data-00000.parquet … of ``options.per_file`` examples each into the folder ``path``; return the number of examples.

    Pictures keep their files, pixels become PNG: the column ``image`` as Hugging Face's library stores it, bytes and path. The column
    ``label`` has the type ``ClassLabel`` if the names of the classes are known.

    Args:
        path: The existing folder.
        examples: The examples.
        options: Size, colors, and the number of examples in a file.
        classes: Names of the classes; empty if they are not known.

    Raises:
        DataError: pyarrow is not installed, or an example is not a picture of bytes; names it.
    """
    arrow = _import_pyarrow(path, "writing")
    picture = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    label = {"names": classes, "_type": "ClassLabel"} if classes else {"dtype": "int64", "_type": "Value"}
    features = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
    schema = arrow.schema([("image", picture), ("label", arrow.int64())], metadata={"huggingface": features})
    count = 0
    for number, examples_of_file in enumerate(in_files(examples, options.per_file)):
        with atomic_write(path / f"data-{number:05d}.parquet") as stream, arrow.parquet.ParquetWriter(stream, schema) as file:
            rest = iter(examples_of_file)
            while rows := [_row(example, options) for example in islice(rest, _ROWS)]:
                file.write_batch(arrow.RecordBatch.from_pylist(rows, schema=schema))
                count += len(rows)
    return count


def _row(example: Example, options: ConvertOptions) -> dict[str, object]:
    data = example_file(example, options)
    name = PurePosixPath(example.key).name
    return {"image": {"bytes": data, "path": PurePosixPath(name).with_suffix(picture_suffix(data)).name}, "label": example.label}


def _reader(source: PathLike, files: list[str], columns: _Columns) -> Any:
    return lambda: _examples(source, files, columns)


def _import_pyarrow(path: PathLike, action: str = "reading") -> Any:
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{action} it needs pyarrow: pip install 'caffetools[huggingface]'", path=path) from None
    return pyarrow


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Open a Parquet or Arrow file: its schema, and its rows in batches."""
    arrow = _import_pyarrow(path)
    with urls.open_binary(path) as stream:
        try:
            if path.endswith(".parquet"):
                file = arrow.parquet.ParquetFile(stream)
                yield file.schema_arrow, file.iter_batches(batch_size=_ROWS)
                return
            start = stream.read(6)
            stream.seek(0)
            reader = arrow.ipc.open_file(stream) if start == b"ARROW1" else arrow.ipc.open_stream(stream)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if start == b"ARROW1" else iter(reader)
            yield reader.schema, batches
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if not urls.is_url(path) and (other := wrong_kind(DataError, path, "a Parquet or Arrow file")):
                raise other from None
            text = " ".join(str(error).split())[:200]
            raise DataError(f"the file is truncated or damaged: {text}", path=path) from None


def _columns(path: str, options: ConvertOptions) -> _Columns:
    with _opened(path) as (schema, _):
        names, features = list(schema.names), _features(schema)
    kinds = {name: feature.get("_type", "") for name, feature in features.items() if isinstance(feature, dict)}
    picture = options.data or next((name for name in names if kinds.get(name) == "Image"), _first(_PICTURES, names))
    label = options.label or next((name for name in names if kinds.get(name) == "ClassLabel"), _first(_LABELS, names))
    for name, option in ((picture, "--data"), (label or picture, "--label")):
        if name not in names:
            listed = ", ".join(names) or "none"
            raise DataError(f"it has no column '{name or 'image'}'; it has: {listed}", path=path, hint=f"name one with {option}")
    classes = features.get(label or "", {}).get("names", [])
    return _Columns(str(picture), label, [str(name) for name in classes])


def _first(wanted: tuple[str, ...], names: list[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the types that Hugging Face's library stores with the schema; empty without them."""
    try:
        values = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = values.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return features if isinstance(features, dict) else {}


def _examples(source: PathLike, files: list[str], columns: _Columns) -> Iterator[Example]:
    wanted = [columns.picture, *([columns.label] if columns.label else [])]
    number = 0
    for path in files:
        row = 0
        with _opened(path) as (_, batches):
            for batch in batches:
                # Offsets of a damaged file could lead out of its memory.
                batch.validate(full=True)
                for values in batch.select(wanted).to_pylist():
                    place = f"{path}: row {row}"
                    label = values[columns.label] if columns.label else None
                    checked = None if label is None else checked_label(label, place)
                    yield Example(f"{number:08d}", checked, _content(values[columns.picture], source, place), place=place)
                    number, row = number + 1, row + 1


def _content(value: object, source: PathLike, place: str) -> bytes:
    """Return the bytes of a picture's file: stored in the row, or at a path relative to the dataset."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
    else:
        data, path = (value, None) if isinstance(value, bytes) else (None, value)
    if data:
        return bytes(data)
    if not isinstance(path, str):
        raise DataError(f"{place}: its picture is {type(value).__name__}, not the bytes or the path of a picture's file")
    if path.startswith("/") or ".." in path.split("/") or urls.is_url(path):
        raise DataError(f"{place}: its picture is at {path}, outside of the dataset")
    return urls.read_bytes(urls.join(source, path))
