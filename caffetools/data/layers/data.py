"""Data: batches from an LMDB or LevelDB (data_layer.cpp)."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.augment import FORK_FIELDS as AUGMENT_FIELDS
from caffetools.data.databases import Database, open_database, shown_key
from caffetools.data.datum import datum_to_array, is_encoded, parse_datum, record_to_array
from caffetools.data.layers.batch_source import BatchMaker, ReadingLayer, RecordBatches, Tops, batch_size_of
from caffetools.data.lmdb_file import Record
from caffetools.data.random_resize import FORK_FIELDS as RESIZE_FIELDS
from caffetools.data.random_resize import transform_seed
from caffetools.data.transformer import Transformer
from caffetools.errors import DataError
from caffetools.layers.base import Shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter
from caffetools.util.threads import ordered_map


@register("Data")
class Data(ReadingLayer):
    """Records of a database in the order of their keys, over and over; in a random one for each epoch with ``shuffle``, a field of forks.

    Tops: data (N, C, H, W) and labels (N), float32. A batch takes its size from its first record; the others must fit. ``source`` is
    relative to the working directory; its files decide whether it is an LMDB or a LevelDB. ``rand_skip`` has no
    effect, as in Caffe 1.0, which deprecates it.
    """

    TRAITS = Traits(role="data", source="data_param", file_source=True, transforms=True, label_tops="numbers")
    AUGMENTS = True
    FORK_FIELDS = AUGMENT_FIELDS | RESIZE_FIELDS | {"shuffle"}

    @classmethod
    def stored_item(cls, param: LayerParameter) -> Shape | None:
        """Return the shape (C, H, W) of the database's first record, where the database is there."""
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
        seed = transform_seed(self.param.transform_param, seed)
        return DatabaseBatches(
            open_database(param.source), size, transformer, seed, labels=len(self.tops) > 1, skip_corrupt=self.skip_corrupt
        )


# A picture (C, H, W) and its label.
_Decoded = tuple[NDArray[Any], int]


class DatabaseBatches(RecordBatches):
    """Batches of transformed Datum records.

    Args:
        database: The database.
        size: Records in a batch.
        transformer: Crops, flips, mean and scale.
        seed: See :class:`BatchMaker`.
        labels: Whether a second top has the labels.
        skip_corrupt: How many damaged records may be left out.
    """

    def __init__(self, database: Database, size: int, transformer: Transformer, seed: int, *, labels: bool, skip_corrupt: int = 0):
        super().__init__(database, size, seed, skip_corrupt=skip_corrupt)
        self.transformer, self.labels = transformer, labels

    def shapes(self) -> list[Shape]:
        for record in self.database.records(on_error=self.corrupt):
            decoded = self._decode(record)
            if not isinstance(decoded, DataError):
                top: Shape = (self.size, *self.transformer.top_shape(self.augmented_shape(decoded[0].shape)))
                return [top, (self.size,)] if self.labels else [top]
            self.corrupt(decoded)
        raise DataError("no record can be read", path=self.database.path)

    def next(self) -> Tops:
        records = [self.next_owned_record() for _ in range(self.size)]
        # Decoding pictures is worth several threads; copying pixels is not.
        threaded = len(records) > 3 and is_encoded(records[0][1])
        decoded = list(ordered_map(self._decode, records) if threaded else map(self._decode, records))
        sound = [item for item in decoded if not isinstance(item, DataError)]
        for item in decoded:
            if isinstance(item, DataError):
                # The records after the batch take the places of damaged ones, at its end: the order stays that of the keys.
                sound.append(self._sound(item))
        try:
            batch = self.transformed(self.transformer, [array for array, _ in sound])
        except DataError as error:
            raise DataError(f"{shown_key(self.database.path, records[0][0])} and those after it: {error}") from None
        return (batch, np.array([label for _, label in sound], np.float32)) if self.labels else (batch,)

    def skip_batches(self, count: int) -> None:
        transformer = self.transformer
        drawn = transformer.mirror or transformer.resize is not None or (transformer.crop and transformer.random_crop)
        if drawn or self.shuffle or self.augmenter is not None or self.corrupt.limit or self.world_size > 1:
            super().skip_batches(count)  # what is drawn, or left out, depends on the records
            return
        self.seek({"position": (self._position + count * self.size) % len(self.database)})

    def _sound(self, decoded: _Decoded | DataError) -> _Decoded:
        """Return ``decoded``, or the next sound record for one that is damaged."""
        for _ in range(len(self.database) + 1):
            if not isinstance(decoded, DataError):
                return decoded
            self.corrupt(decoded)
            decoded = self._decode(self.next_owned_record())
        raise DataError("no record can be read", path=self.database.path)

    def _decode(self, record: Record) -> _Decoded | DataError:
        try:
            what = shown_key(self.database.path, record[0])
            array, label = record_to_array(record[1], color=self.transformer.color, what=what)
            return (array if self.transformer.resize is None else self._resizable(array, record[1], what)), label
        except DataError as error:
            return error

    def _resizable(self, array: NDArray[Any], value: bytes, what: str) -> NDArray[Any]:
        """Return the picture as NVCaffe resizes it: decoded files as bytes, raw pixels as floats."""
        if array.dtype != np.uint8:
            raise DataError(f"{what}: it holds float_data, which NVCaffe does not resize; remove the random resize from transform_param")
        return array if parse_datum(value, what).encoded else array.astype(np.float32)
