"""Write an LMDB file page by page, in any byte order and word size, to test the reader on files of other machines."""

from __future__ import annotations

import struct
from pathlib import Path

PAGE = 4096


class LmdbBuilder:
    """Pages of an LMDB whose leaves hold ``per_leaf`` records each, below one root."""

    def __init__(self, order: str = "<", word: int = 8, per_leaf: int = 4):
        self.order, self.word, self.per_leaf = order, word, per_leaf
        self.letter = "Q" if word == 8 else "I"
        self.pages: list[bytes] = [b"", b""]
        self.head = word + 8

    def build(self, records: list[tuple[bytes, bytes]], *, flags: int = 0) -> bytes:
        """Return the file's bytes; ``records`` are in order of their keys; ``flags`` are those of the main database."""
        leaves = [self.leaf(records[i : i + self.per_leaf]) for i in range(0, len(records), self.per_leaf)]
        first = [records[i][0] for i in range(0, len(records), self.per_leaf)]
        overflow = sum(page[self.word + 2 : self.word + 4] == self.pack("H", 4) for page in self.pages if page)
        root, depth = leaves[0], 1
        if len(leaves) > 1:
            nodes = [
                self.pack("IHH", leaf & 0xFFFFFFFF, leaf >> 32, len(key) if i else 0) + (key if i else b"")
                for i, (leaf, key) in enumerate(zip(leaves, first, strict=True))
            ]
            root, depth = self.page(1, nodes), 2
        tree = (0, flags, depth, int(depth == 2), len(leaves), overflow, len(records), root)
        for number, transaction in ((0, 4), (1, 5)):
            fields = (0xBEEFC0DE, 1, 0, 1 << 20, PAGE, 0, 0, 0, 0, 0, 0, (1 << 8 * self.word) - 1, *tree, len(self.pages) - 1, transaction)
            meta = self.pack(f"II{self.letter * 2}{f'IHH5{self.letter}' * 2}{self.letter * 2}", *fields)
            self.pages[number] = (self.header(number, 8, 0, 0) + meta).ljust(PAGE, b"\0")
        return b"".join(self.pages)

    def leaf(self, records: list[tuple[bytes, bytes]]) -> int:
        nodes = []
        for key, value in records:
            if len(value) < 1000:
                nodes.append(self.pack("IHH", len(value), 0, len(key)) + key + value)
            else:
                nodes.append(self.pack("IHH", len(value), 1, len(key)) + key + self.pack(self.letter, self.overflow(value)))
        return self.page(2, nodes)

    def overflow(self, value: bytes) -> int:
        number, count = len(self.pages), (self.head - 1 + len(value)) // PAGE + 1
        data = (self.pack(f"{self.letter}HHI", number, 0, 4, count) + value).ljust(count * PAGE, b"\0")
        self.pages += [data[i : i + PAGE] for i in range(0, len(data), PAGE)]
        return number

    def page(self, kind: int, nodes: list[bytes]) -> int:
        number, offsets, end, body = len(self.pages), [], PAGE, b""
        for node in nodes:
            node += b"\0" * (len(node) % 2)
            end -= len(node)
            offsets.append(end)
            body = node + body
        start = self.header(number, kind, self.head + 2 * len(nodes), end) + self.pack(f"{len(nodes)}H", *offsets)
        self.pages.append(start.ljust(end, b"\0") + body)
        return number

    def header(self, number: int, kind: int, lower: int, upper: int) -> bytes:
        return self.pack(f"{self.letter}HHHH", number, 0, kind, lower, upper)

    def pack(self, form: str, *values: int) -> bytes:
        return struct.pack(self.order + form, *values)


def write_lmdb(folder: Path, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.mdb").write_bytes(data)
    return folder
