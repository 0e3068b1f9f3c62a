"""Data: batches from an LMDB or LevelDB (data_layer.cpp)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.databases import Database, open_database, shown_key
from caffetools.data.datum import datum_to_array, is_encoded, parse_datum, record_to_array
from caffetools.data.layers.batch_source import BatchMaker, ReadingLayer, State, Tops, batch_size_of
from caffetools.data.transformer import Transformer
from caffetools.errors import DataError
from caffetools.layers.base import Shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.util.threads import ordered_map


@register("Data")
class Data(ReadingLayer):
    """Records of a database in the order of their keys, over and over: data (N, C, H, W) and, as a second top, labels (N).

    A batch takes its size from its first record; the others must fit. ``source`` is relative to the working directory, whether
    it is an LMDB or a LevelDB its files say. ``rand_skip`` starts at a random one of the first records.
    """

    TRAITS = Traits(role="data", source="data_param", file_source=True, transforms=True, label_tops="numbers")

    @classmethod
    def stored_item(cls, param: Any) -> Shape | None:
        """The shape (C, H, W) of the database's first record, where the database is there."""
        settings = param.data_param
        if not settings.source or not Path(settings.source).exists():
            return None
        with suppress(DataError), closing(open_database(settings.source)) as database:
            _, value = next(iter(database.records()))
            color = True if settings.force_encoded_color else None
            return tuple(datum_to_array(parse_datum(value, database.path), color=color).shape)
        return None

    def prefetch_depth(self) -> int:
        return int(self.param.data_param.prefetch)

    def open(self, seed: int) -> BatchMaker:
        param = self.param.data_param
        size = batch_size_of(self, param.batch_size)
        transformer = Transformer(self.param.transform_param, self.phase)
        maker = DatabaseBatches(open_database(param.source), size, transformer, seed, labels=len(self.tops) > 1)
        if param.rand_skip:
            maker.skip(int(maker.rng.integers(0, param.rand_skip)))
        return maker


class DatabaseBatches(BatchMaker):
    """Batches of ``size`` transformed records of ``database``; its place is the number of the next record."""

    def __init__(self, database: Database, size: int, transformer: Transformer, seed: int, *, labels: bool):
        super().__init__(seed)
        self.database, self.size, self.transformer, self.labels = database, size, transformer, labels
        self._position = 0
        self._records: Iterator[tuple[bytes, bytes]] = iter(())

    def shapes(self) -> list[Shape]:
        key, value = next(self.database.records())
        array, _ = self._decode((key, value))
        top: Shape = (self.size, *self.transformer.top_shape(array.shape))
        return [top, (self.size,)] if self.labels else [top]

    def next(self) -> Tops:
        records = [self._mine() for _ in range(self.size)]
        # Decoding pictures is worth several threads; copying pixels is not.
        threaded = len(records) > 3 and is_encoded(records[0][1])
        decoded = list(ordered_map(self._decode, records) if threaded else map(self._decode, records))
        try:
            batch = self.transformed(self.transformer, [array for array, _ in decoded])
        except DataError as error:
            raise DataError(f"{shown_key(self.database.path, records[0][0])} and those after it: {error}") from None
        return (batch, np.array([label for _, label in decoded], np.float32)) if self.labels else (batch,)

    def skip(self, count: int) -> None:
        """Leave out the next ``count`` records."""
        for _ in range(count):
            self._record()

    def place(self) -> State:
        return {"position": self._position}

    def go_to(self, place: State) -> None:
        self._position = int(place["position"])
        self._records = self.database.records(self._position)

    def _mine(self) -> tuple[bytes, bytes]:
        record = self._record()
        while not self.mine():
            record = self._record()
        return record

    def _record(self) -> tuple[bytes, bytes]:
        record = next(self._records, None)
        if record is None:
            self._position, self._records = 0, self.database.records()
            record = next(self._records)
        self._position += 1
        return record

    def _decode(self, record: tuple[bytes, bytes]) -> tuple[NDArray[Any], int]:
        what = shown_key(self.database.path, record[0])
        return record_to_array(record[1], color=self.transformer.color, what=what)
