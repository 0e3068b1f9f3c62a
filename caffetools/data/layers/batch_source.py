"""What the layers that read files share: a maker of batches, a thread that runs ahead, and a state to resume from."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.data.device_transform import DeviceCrop, DeviceTransform
from caffetools.data.transformer import Cut, Transformer
from caffetools.errors import DataError
from caffetools.layers.base import Arity, Layer, OnnxGraph, Shape, Shapes
from caffetools.proto.schema import TEST, TRAIN
from caffetools.util.prefetch import Prefetcher

Tops = tuple[NDArray[np.float32] | Cut, ...]
# What the reading thread hands over.
Ready = tuple[Tensor | DeviceCrop, ...]
State = dict[str, Any]


class BatchMaker(ABC):
    """Makes one batch after the other, endlessly. Subclasses keep their place in plain numbers, and draw from ``rng`` only.

    Attributes:
        seed: What crops, flips and orders derive from. rng: the generator that batches draw from. part, parts: which of how many
        processes that share the records this one is. raw: pictures of bytes are only cut out; a device does the rest.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.part, self.parts = 0, 1
        self.raw = False
        self._turn = 0

    @abstractmethod
    def shapes(self) -> list[Shape]:
        """The shapes of the tops, as the first batch has them."""

    @abstractmethod
    def next(self) -> Tops:
        """The next batch: one array for each top."""

    @abstractmethod
    def place(self) -> State:
        """Where the reading stands: plain numbers and strings."""

    @abstractmethod
    def go_to(self, place: State) -> None:
        """Continue from what :meth:`place` gave."""

    def transformed(self, transformer: Transformer, pictures: Sequence[NDArray[Any]]) -> NDArray[np.float32] | Cut:
        """``pictures`` as a batch, or their crops where ``raw`` asks for it and they are bytes. Raises :class:`DataError`."""
        raw = self.raw and all(picture.dtype == np.uint8 for picture in pictures)
        return transformer.cut(pictures, self.rng) if raw else transformer(pictures, self.rng)

    def share(self, part: int, parts: int) -> None:
        """Take every ``parts``-th record only, from number ``part`` on; orders stay those of all parts, crops and flips differ.

        As Caffe's data layers do with several GPUs: record i goes to part i mod parts, counted on beyond the end of the data.
        """
        self.part, self.parts = part, parts
        if part:
            self.rng = np.random.default_rng([self.seed, part])

    def mine(self) -> bool:
        """Whether the next record belongs to this part; to be asked of every record, in order."""
        turn, self._turn = self._turn, (self._turn + 1) % self.parts
        return turn == self.part

    def get_state(self) -> State:
        """All that the following batches depend on besides the files; JSON can hold it."""
        turn = {"turn": self._turn} if self.parts > 1 else {}
        return {"seed": self.seed, "rng": self.rng.bit_generator.state, **turn, **self.place()}

    def set_state(self, state: State) -> None:
        """Continue from a state that :meth:`get_state` gave."""
        self.seed = int(state["seed"])
        self.rng.bit_generator.state = state["rng"]
        self._turn = int(state.get("turn", 0)) % self.parts
        self.go_to(state)

    def order(self, epoch: int, count: int, *, salt: int = 0) -> NDArray[np.int64]:
        """A random order of ``count`` things that depends on the seed and the epoch alone, so that no state has to hold it."""
        return np.random.default_rng([self.seed, epoch, salt]).permutation(count)


class ReadingLayer(Layer):
    """A layer whose tops come from files. Reading starts at the first forward pass, in a thread of its own.

    The batches are reproducible: they derive from ``seed``, which is torch's seed and the layer's name unless it is set.
    """

    BOTTOMS = (0, 0)
    TOPS: ClassVar[Arity] = (1, 2)
    IS_DATA = True
    # How many batches are kept ready; 0 makes them when they are asked for.
    PREFETCH = 3

    def __init__(self, param: Any, phase: int = TEST):
        super().__init__(param, phase)
        self.phase = TRAIN if phase == TRAIN else TEST
        self._seed = zlib.crc32(f"{torch.initial_seed()}/{self.name}".encode())
        self._part: tuple[int, int] | None = None
        self._maker: BatchMaker | None = None
        self._ahead: Prefetcher[tuple[Ready, State]] | None = None
        self._device: torch.device | None = None
        self._finish: DeviceTransform | None = None
        self._state: State | None = None

    def open(self, seed: int) -> BatchMaker:
        """Open the files and look at the first record. Raises :class:`DataError` or :class:`NetError`."""
        raise NotImplementedError

    def prefetch_depth(self) -> int:
        """How many batches are kept ready."""
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
                    # Without this layer, which must go away when nobody else holds it.
                    self._ahead = Prefetcher(lambda: _make(maker, pinned), self.prefetch_depth())
                tops, self._state = self._ahead.next()
        return tuple(self._finished(top) if isinstance(top, DeviceCrop) else top for top in tops)

    def to_onnx(self, graph: OnnxGraph) -> None:
        """Nothing: the exporter makes the net's inputs the graph's."""

    def transform_on(self, device: torch.device) -> None:
        """From the first record on, send pictures to ``device`` as bytes and do the transformer's arithmetic there."""
        self._device = device
        self.close()

    def get_state(self) -> State:
        """What to give :meth:`set_state` so that the batch after the last one given out comes next. Plain numbers and strings."""
        with self._named():
            return dict(self._state or self._source().get_state())

    def set_state(self, state: State) -> None:
        """Continue where :meth:`get_state` was called, maybe in another process. Batches that are ready are thrown away."""
        with self._named():
            self._halt()
            self._source().set_state(state)
            self._state = dict(state)

    def seed(self, seed: int) -> None:
        """Start over at the first record with ``seed``."""
        self._seed = seed
        self.close()

    def share(self, part: int, parts: int) -> None:
        """Give out only the records of ``part`` of ``parts``, from the first on; see :meth:`BatchMaker.share`."""
        self._part = (part, parts)
        self.close()

    def close(self) -> None:
        """Stop the thread and let go of the files; a later forward pass starts over."""
        self._halt()
        self._maker = self._state = self._finish = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies: they open the files and run ahead on their own, from where this layer stands."""
        return {**self.__dict__, "_maker": None, "_ahead": None}

    def _source(self) -> BatchMaker:
        if self._maker is None:
            self._maker = self.open(self._seed)
            if self._part is not None:
                self._maker.share(*self._part)
            self._maker.raw = self._device is not None
            if self._state is not None:
                self._maker.set_state(self._state)
        return self._maker

    def _finished(self, cut: DeviceCrop) -> Tensor:
        if self._finish is None:
            self._finish = DeviceTransform(Transformer(self.param.transform_param, self.phase), self._device or torch.device("cpu"))
        return self._finish(cut)

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
    return tuple(DeviceCrop(top, pinned=pinned) if isinstance(top, Cut) else torch.from_numpy(top) for top in tops), maker.get_state()


def batch_size_of(layer: Layer, size: int) -> int:
    """``size``, which must be at least 1. Raises :class:`NetError` naming the layer."""
    if size < 1:
        raise layer.error("batch_size is missing or 0; it must be at least 1")
    return size
