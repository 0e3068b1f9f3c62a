"""Pictures for tests to build datasets of, and looking at what came out."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from caffetools.data.databases import open_database
from caffetools.data.datum import datum_to_array, parse_datum

CLASSES = {"big dogs": 5, "Katze_10": 4, "Katze_9": 6, "日本": 3}


def draw(path: Path, number: int, size: tuple[int, int] = (30, 20), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(np.asarray(cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC), np.uint8)).save(path, **options)
    return path


def draw_classes(folder: Path, classes: dict[str, int], seed: int = 0) -> Path:
    for label, (name, count) in enumerate(classes.items()):
        for i in range(count):
            draw(folder / name / f"p {i}.png", seed + 100 * label + i, (30 + i, 20 + label))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def rows(path: Path) -> list[tuple[str, int, np.ndarray[Any, Any]]]:
    """(key, label, pixels) of every record."""
    database = open_database(path)
    found = []
    for key, value in database.records():
        datum = parse_datum(value, key.decode())
        found.append((key.decode(), int(datum.label), datum_to_array(datum)))
    database.close()
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def png_bomb(side: int = 30_000) -> bytes:
    """A PNG of some bytes, whose header states ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
