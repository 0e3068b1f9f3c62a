"""Datasets as other tools write them, and what is in a database."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from caffetools.data.databases import open_database
from caffetools.data.datum import record_to_array

RNG = np.random.default_rng(7)


def records(path: Path | str) -> dict[str, bytes]:
    with closing(open_database(path)) as database:
        return {key.decode(): value for key, value in database.records()}


def arrays(path: Path | str) -> list[tuple[np.ndarray[Any, Any], int]]:
    return [record_to_array(value) for value in records(path).values()]


def write_idx(folder: Path, count: int = 5, prefix: str = "train", *, packed: bool = False) -> tuple[np.ndarray[Any, Any], list[int]]:
    folder.mkdir(exist_ok=True)
    images = RNG.integers(0, 256, (count, 4, 3), np.uint8)
    labels = [n % 3 for n in range(count)]
    for name, data in (
        ("images-idx3-ubyte", struct.pack(">4I", 2051, count, 4, 3) + images.tobytes()),
        ("labels-idx1-ubyte", struct.pack(">2I", 2049, count) + bytes(labels)),
    ):
        path = folder / f"{prefix}-{name}"
        if packed:
            path = path.with_name(path.name + ".gz")
        path.write_bytes(gzip.compress(data) if packed else data)
    return images, labels


def png(array: np.ndarray[Any, Any]) -> bytes:
    return bytes(cv2.imencode(".png", array)[1])


def write_cifar(folder: Path, labels: int = 1) -> np.ndarray[Any, Any]:
    folder.mkdir()
    rows = RNG.integers(0, 256, (7, labels + 3072), np.uint8)
    rows[:, :labels] %= 10
    if labels == 1:
        for number in range(5):
            (folder / f"data_batch_{number + 1}.bin").write_bytes(rows[number].tobytes())
        (folder / "test_batch.bin").write_bytes(rows[5:].tobytes())
        (folder / "batches.meta.txt").write_text("".join(f"class{n}\n" for n in range(10)))
    else:
        (folder / "train.bin").write_bytes(rows[:5].tobytes())
        (folder / "test.bin").write_bytes(rows[5:].tobytes())
    return rows


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def tfrecord_of(path: Path, messages: list[bytes]) -> None:
    """Write records with TensorBoard's writer, an implementation that is not ours."""
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    with path.open("wb") as stream:
        record_writer = writer.RecordWriter(stream)
        for message in messages:
            record_writer.write(message)


def hugging_face_table(count: int, **more: Any) -> Any:
    arrow = pytest.importorskip("pyarrow")
    images = [RNG.integers(0, 256, (4, 4, 3), np.uint8) for _ in range(count)]
    features = {"picture": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    table = arrow.table(
        {
            "picture": arrow.array([{"bytes": png(image), "path": None} for image in images], kind),
            "kind": [n % 2 for n in range(count)],
            **more,
        }
    )
    return images, table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
