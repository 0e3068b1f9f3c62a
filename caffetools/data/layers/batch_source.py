"""What the layers that read files share: a maker of batches, a prefetch thread, and a state to resume from."""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.data.augment import AugmentConfig, Augmenter, config_of_fork, load_augment
from caffetools.data.databases import CorruptRecords, Database
from caffetools.data.device_transform import DeviceBatch, DeviceTransform
from caffetools.data.lmdb_file import ErrorHandler, Record
from caffetools.data.shards import ShardedDatabase
from caffetools.data.transformer import DeferredBatch, Transformer
from caffetools.errors import DataError
from caffetools.layers.base import Arity, Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.proto.schema import TEST, TRAIN, LayerParameter
from caffetools.util.threads import Prefetcher

PathLike = str | os.PathLike[str]
Tops = tuple[NDArray[np.float32] | DeferredBatch, ...]
# What the prefetch thread hands over.
Ready = tuple[Tensor | DeviceBatch, ...]
State = dict[str, Any]

# How many damaged records the Data layers that are made now leave out, and what is called with the error of each.
_tolerance: ContextVar[tuple[int, ErrorHandler | None]] = ContextVar("tolerance", default=(0, None))


@contextmanager
def tolerating_corrupt_records(limit: int, report: ErrorHandler | None = None) -> Iterator[None]:
    """Let the Data layers of nets that are built in the block leave out damaged records.

    Args:
        limit: How many different records each layer leaves out at most; the next one is an error.
        report: Called once with the error of each, from any thread.

    Raises:
        DataError: ``limit`` is negative.
    """
    if limit < 0:
        raise DataError(f"the number of damaged records to leave out must be 0 or more, not {limit}")
    token = _tolerance.set((limit, report))
    try:
        yield
    finally:
        _tolerance.reset(token)


class BatchMaker(ABC):
    """Makes batches endlessly. Subclasses hold their position as plain numbers and draw from ``rng`` only.

    Args:
        seed: Seed of crops, flips and shuffles.

    Attributes:
        seed: The seed.
        rng: The generator that batches draw from.
        rank: Number of this process among those that share the records, from 0.
        world_size: Number of processes that share the records.
        deferred: Pictures of bytes are only cropped; a device does the arithmetic.
        augmenter: Changes pictures before they are transformed.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.rank, self.world_size = 0, 1
        self.deferred = False
        self.augmenter: Augmenter | None = None
        self._cursor = 0

    @abstractmethod
    def shapes(self) -> list[Shape]:
        """Return the shapes of the tops for the first batch."""

    @abstractmethod
    def next(self) -> Tops:
        """Return the next batch: one array a top. Raises :class:`DataError` naming the record or file at fault."""

    @abstractmethod
    def position(self) -> State:
        """Return the position in the data: plain numbers and strings."""

    @abstractmethod
    def seek(self, position: State) -> None:
        """Continue at what :meth:`position` returned."""

    def skip_batches(self, count: int) -> None:
        """Continue ``count`` batches further on, as if they had been made."""
        for _ in range(count):
            self.next()

    def transformed(self, transformer: Transformer, pictures: Sequence[NDArray[Any]]) -> NDArray[np.float32] | DeferredBatch:
        """Return ``pictures`` as a batch, or their crops if ``deferred`` is set and they are bytes.

        Args:
            transformer: Crops, flips, mean and scale.
            pictures: (C, H, W) each, uint8 or float32.

        Raises:
            DataError: A picture does not fit the settings.
        """
        if self.augmenter is not None:
            pictures = self.augmenter.batch(list(pictures), self.rng)
        deferred = self.deferred and all(picture.dtype == np.uint8 for picture in pictures)
        return transformer.sample_crops(pictures, self.rng) if deferred else transformer(pictures, self.rng)

    def augmented_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the (C, H, W) that a stored picture of ``shape`` has when it reaches the transformer."""
        channels, height, width = shape
        return (channels, height, width) if self.augmenter is None else self.augmenter.output_shape(shape)

    def shard(self, rank: int, world_size: int) -> None:
        """Take only every ``world_size``-th record, from number ``rank`` on.

        As Caffe's data layers do with several GPUs: record i belongs to rank i mod world_size, counted on beyond the end of the
        data. Shuffles are those of all ranks; crops and flips differ.

        Args:
            rank: Number of this process, from 0.
            world_size: Number of processes.
        """
        self.rank, self.world_size = rank, world_size
        if rank:
            self.rng = np.random.default_rng([self.seed, rank])

    def owned_by_this_rank(self) -> bool:
        """Return whether the next record belongs to this rank; to be called once for every record, in order."""
        cursor, self._cursor = self._cursor, (self._cursor + 1) % self.world_size
        return cursor == self.rank

    def get_state(self) -> State:
        """Return all that the following batches depend on, except for the files, as values for JSON."""
        cursor = {"cursor": self._cursor} if self.world_size > 1 else {}
        return {"seed": self.seed, "rng": self.rng.bit_generator.state, **cursor, **self.position()}

    def set_state(self, state: State) -> None:
        """Continue from a state that :meth:`get_state` returned."""
        self.seed = int(state["seed"])
        self.rng.bit_generator.state = state["rng"]
        self._cursor = int(state.get("cursor", 0)) % self.world_size
        self.seek(state)

    def epoch_permutation(self, epoch: int, count: int, *, salt: int = 0) -> NDArray[np.int64]:
        """Return a permutation of ``count`` items that depends on the seed and the epoch alone, so that no state has to hold it.

        Args:
            epoch: Number of the pass over the data, from 0.
            count: Number of items.
            salt: Distinguishes permutations of one epoch.
        """
        return np.random.default_rng([self.seed, epoch, salt]).permutation(count)


class RecordBatches(BatchMaker):
    """Batches of the records of a database, over and over; the position is the next record's number.

    Args:
        database: The database.
        size: Records in a batch.
        seed: See :class:`BatchMaker`.
        skip_corrupt: How many damaged records may be left out.

    Attributes:
        shuffle: Take the records of each epoch in a random order (``shuffle`` in data_param of NVCaffe, Intel's and TSN's Caffe),
            not in that of their keys; to be set before the first batch.
    """

    def __init__(self, database: Database, size: int, seed: int, *, skip_corrupt: int = 0):
        super().__init__(seed)
        self.database, self.size = database, size
        self.corrupt = CorruptRecords(skip_corrupt)
        self.shuffle = False
        self._position = self._epoch = 0
        self._records: Iterator[Record] | None = None
        self._own_shards = False

    def shard(self, rank: int, world_size: int) -> None:
        """Take only this rank's records; of an index with as many shards as ranks or more, only its shards, and others are not read."""
        super().shard(rank, world_size)
        own = self.database.for_rank(rank, world_size) if isinstance(self.database, ShardedDatabase) else None
        if own is not None:
            self.database, self._own_shards = own, True
            self.seek(self.position())

    def position(self) -> State:
        return {"position": self._position, **({"epoch": self._epoch} if self.shuffle else {})}

    def seek(self, position: State) -> None:
        self._position, self._epoch = int(position["position"]), int(position.get("epoch", 0))
        if self._position > len(self.database):
            # The position of another number of processes, which share an index of shards in another way.
            self._position %= len(self.database)
        self._records = self._remaining()

    def next_owned_record(self) -> Record:
        """Return the next record of this rank."""
        record = self._next_record()
        while not self._own_shards and not self.owned_by_this_rank():
            record = self._next_record()
        return record

    def _next_record(self) -> Record:
        if self._records is None:
            self._records = self._remaining()
        record = next(self._records, None)
        if record is None:
            self._position, self._epoch = 0, self._epoch + 1
            self._records = self._remaining()
            record = next(self._records, None)
            if record is None:
                raise DataError("no record can be read", path=self.database.path)
        self._position += 1
        return record

    def _remaining(self) -> Iterator[Record]:
        """Return the records of this epoch from the present position on."""
        return self._shuffled() if self.shuffle else self.database.records(self._position, on_error=self.corrupt)

    def _shuffled(self) -> Iterator[Record]:
        for number in self.epoch_permutation(self._epoch, len(self.database))[self._position :]:
            try:
                record = self.database.item(int(number))
            except DataError as error:
                self.corrupt(error)
            else:
                yield record


class ReadingLayer(Layer):
    """A layer whose tops come from files. Reading starts at the first forward pass, in a thread of its own.

    The batches are reproducible: they derive from the layer's own seed, by default one made of torch's seed and the layer's name.

    Attributes:
        skip_corrupt: How many damaged records a Data layer leaves out before it raises an error; 0, or what
            :func:`tolerating_corrupt_records` sets while the layer is made.
    """

    BOTTOMS = (0, 0)
    TOPS: ClassVar[Arity] = (1, 2)
    IS_DATA = True
    # Batches that are kept ready; 0 makes each when it is asked for.
    PREFETCH = 3
    # Whether its pictures can be augmented.
    AUGMENTS: ClassVar[bool] = False

    def __init__(self, param: LayerParameter, phase: int = TEST):
        super().__init__(param, phase)
        self.skip_corrupt, self._report_corrupt = _tolerance.get()
        self.phase = TRAIN if phase == TRAIN else TEST
        self._seed = zlib.crc32(
            f"{self.generator.initial_seed() if self.generator is not None else torch.initial_seed()}/{self.name}".encode()
        )
        self._shard: tuple[int, int] | None = None
        self._augment: AugmentConfig | None = None
        self._maker: BatchMaker | None = None
        self._ahead: Prefetcher[tuple[Ready, State]] | None = None
        self._device: torch.device | None = None
        self._finish: DeviceTransform | None = None
        self._state: State | None = None

    @classmethod
    def source_exists(cls, param: LayerParameter) -> bool:
        """Return whether the file or the database that ``param`` names as the source is there."""
        if not (cls.TRAITS.source and cls.TRAITS.file_source):
            return False
        source = str(getattr(param, cls.TRAITS.source).source)
        return bool(source) and Path(source).exists()

    @classmethod
    def item_shapes(cls, param: LayerParameter) -> list[Shape] | None:
        """Return the shapes of one item as the first batch has them. Raises :class:`CaffeToolsError` where that cannot be read."""
        if not cls.source_exists(param):
            return None
        whole = type(param)()
        whole.CopyFrom(param)
        # A deploy net has lost the labels.
        whole.top.extend(f"{param.name}/{number}" for number in range(len(param.top), cls.TOPS[0]))
        layer = cls(whole)
        try:
            return [shape[1:] for shape in layer.configure([])]
        finally:
            layer.close()

    def open(self, seed: int) -> BatchMaker:
        """Open the files and read the first record. Raises :class:`DataError` or :class:`NetError`."""
        raise NotImplementedError

    def prefetch_depth(self) -> int:
        """Return how many batches are kept ready."""
        return self.PREFETCH

    def setup(self, bottoms: Shapes) -> Shapes:
        with self._named():
            return self._source().shapes()

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        with self._named():
            maker = self._source()
            pinned = self._device is not None and self._device.type == "cuda"
            if not self.prefetch_depth():
                tops, self._state = _make(maker, pinned)
            else:
                if self._ahead is None:
                    # Without a reference to this layer, so that it is freed when nothing else refers to it.
                    self._ahead = Prefetcher(lambda: _make(maker, pinned), self.prefetch_depth())
                tops, self._state = self._ahead.next()
        return tuple(self._finished(top) if isinstance(top, DeviceBatch) else top for top in tops)

    def to_onnx(self, graph: OnnxGraph) -> None:
        """Add nothing: the exporter makes the net's inputs the graph's."""

    def augment(self, config: AugmentConfig) -> None:
        """Start over at the first record and change pictures at random as ``config`` describes; in the TRAIN phase only.

        Raises:
            NetError: The layer's type has no augmentation.
        """
        if not self.AUGMENTS:
            raise self.error(f"data of the type {self.type_name} cannot be augmented")
        self._augment = config if self.phase == TRAIN else None
        self.close()

    def transform_on(self, device: torch.device) -> None:
        """Start over at the first record, send pictures to ``device`` as bytes and do the transformer's arithmetic there."""
        self._device = device
        self.close()

    def get_state(self) -> State:
        """Return the state after the last batch that was returned, for :meth:`set_state`: plain numbers and strings."""
        with self._named():
            return dict(self._state or self._source().get_state())

    def set_state(self, state: State) -> None:
        """Continue where :meth:`get_state` was called, maybe in another process. Batches that are ready are dropped."""
        with self._named():
            self._halt()
            self._source().set_state(state)
            self._state = dict(state)

    def seed(self, seed: int) -> None:
        """Start over at the first record with ``seed``."""
        self._seed = seed
        self.close()

    def skip_batches(self, count: int) -> None:
        """Continue ``count`` batches further on, without reading them where their records need not be known."""
        with self._named():
            self._halt()
            self._source().skip_batches(count)

    def shard(self, rank: int, world_size: int) -> None:
        """Start over at the first record, and return only the records of ``rank``; see :meth:`BatchMaker.shard`."""
        self._shard = (rank, world_size)
        self.close()

    def pause(self) -> None:
        """Stop the thread and close the files; a later forward pass opens them again and continues with the next batch."""
        if self._maker is not None:
            with self._named():
                self._state = self.get_state()
            self._halt()
            self._maker = None

    def close(self) -> None:
        """Stop the thread and close the files; a later forward pass starts over."""
        self._halt()
        self._maker = self._state = self._finish = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: it opens the files itself and continues at this layer's position."""
        return {**self.__dict__, "_maker": None, "_ahead": None, "_report_corrupt": None}

    def _source(self) -> BatchMaker:
        if self._maker is None:
            self._maker = self.open(self._seed)
            if isinstance(self._maker, RecordBatches):
                self._maker.corrupt.report = self._report_corrupt
                self._maker.shuffle = self.param.data_param.shuffle
            if self._shard is not None:
                self._maker.shard(*self._shard)
            self._maker.augmenter = self._augmenter()
            self._maker.deferred = self._device is not None
            if self._state is not None:
                self._maker.set_state(self._state)
        return self._maker

    def _augmenter(self) -> Augmenter | None:
        """Return the augmentation of :meth:`augment`, or of the fork fields of ``transform_param``; None in the TEST phase."""
        config = self._augment
        if config is None and self.phase == TRAIN and self.AUGMENTS:
            config = config_of_fork(self.param.transform_param)
        return None if config is None or config.is_off else Augmenter(config)

    def _finished(self, batch: DeviceBatch) -> Tensor:
        if self._finish is None:
            self._finish = DeviceTransform(Transformer(self.param.transform_param, self.phase), self._device or torch.device("cpu"))
        return self._finish(batch)

    def _halt(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(str(error), layer=self.name) from None


def _make(maker: BatchMaker, pinned: bool) -> tuple[Ready, State]:
    tops = maker.next()
    return tuple(
        DeviceBatch(top, pinned=pinned) if isinstance(top, DeferredBatch) else torch.from_numpy(top) for top in tops
    ), maker.get_state()


def batch_size_of(layer: Layer, size: int) -> int:
    """Return ``size``. Raises :class:`NetError` naming the layer if it is below 1."""
    if size < 1:
        raise layer.error("batch_size is missing or 0; it must be at least 1")
    return size


def augment_layers(layers: Iterable[Layer], path: PathLike) -> list[str]:
    """Augment the data layers of a net for training as an ``augment.yaml`` describes, if that file exists.

    Args:
        layers: The layers of the net, configured.
        path: The file.

    Returns:
        The names of the layers.

    Raises:
        DataError: The file is not valid, or it changes the size of a layer's pictures, for which the net is built already.
    """
    if not Path(path).is_file():
        return []
    config, names = load_augment(path), []
    for layer in layers:
        if isinstance(layer, ReadingLayer) and layer.AUGMENTS and layer.phase == TRAIN:
            before = list(layer.top_shapes[0])
            layer.augment(config)
            if (after := list(layer.configure([])[0])) != before:
                raise DataError(
                    f"it makes pictures of {format_shape(after[1:])} of those of {format_shape(before[1:])} that the net is built for",
                    path=path,
                    layer=layer.name,
                    hint="set crop_size in transform_param, or another random_resized_crop",
                )
            names.append(layer.name)
    return names


def pause_reading(layers: Iterable[Layer]) -> None:
    """Stop the threads that read ahead for ``layers`` and close their files; see :meth:`ReadingLayer.pause`."""
    for layer in layers:
        if isinstance(layer, ReadingLayer):
            layer.pause()
