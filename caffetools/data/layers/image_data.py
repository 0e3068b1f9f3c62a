"""ImageData: batches from picture files that a text file lists (image_data_layer.cpp)."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from caffetools.data.augment import FORK_FIELDS as AUGMENT_FIELDS
from caffetools.data.images import TruncatedNotes, read_image, resize
from caffetools.data.layers.batch_source import BatchMaker, ReadingLayer, State, Tops, batch_size_of
from caffetools.data.picture_lists import read_lists
from caffetools.data.random_resize import FORK_FIELDS as RESIZE_FIELDS
from caffetools.data.random_resize import transform_seed
from caffetools.data.transformer import Transformer
from caffetools.errors import DataError
from caffetools.layers.base import Shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import DenseImageDataParameter, ImageDataParameter, LayerParameter
from caffetools.util.threads import ordered_map


@register("ImageData")
class ImageData(ReadingLayer):
    """Pictures of a list, in its order or shuffled for each epoch: data (N, C, H, W) and labels (N), float32.

    ``source`` lists ``path label`` lines; ``root_folder`` is put before each path as it is. Pictures are resized if ``new_height``
    and ``new_width`` are set (or NVCaffe's ``short_side``), and are gray if ``is_color`` is false. A batch takes its size from its first
    picture. Several lists of the same pictures, separated by ``;``, give labels (N, number of lists).
    """

    TRAITS = Traits(role="data", source="image_data_param", file_source=True, transforms=True, label_tops="numbers")
    AUGMENTS = True
    FORK_FIELDS = AUGMENT_FIELDS | RESIZE_FIELDS | {"short_side"}
    TOPS = (2, 2)

    @classmethod
    def stored_item(cls, param: LayerParameter) -> Shape | None:
        """Return (C, H, W) where the pictures are resized."""
        settings = param.image_data_param
        if not (settings.new_height and settings.new_width):
            return None
        return (cls.item_channels(param), settings.new_height, settings.new_width)

    @classmethod
    def item_channels(cls, param: LayerParameter) -> int:
        """3 for color, 1 for grey pictures."""
        return 3 if param.image_data_param.is_color else 1

    def open(self, seed: int) -> BatchMaker:
        param = self.param.image_data_param
        if bool(param.new_height) != bool(param.new_width):
            raise self.error("new_height and new_width must be given together")
        transform = self.param.transform_param
        return LabelledPictures(
            param, batch_size_of(self, param.batch_size), Transformer(transform, self.phase), transform_seed(transform, seed)
        )


class ListedPictures(BatchMaker):
    """Batches of the pictures of a list; the position is the epoch and the next line.

    Args:
        param: Settings of the layer: the list, how its pictures are read and in which order.
        names: The pictures of the list, as it names them.
        size: Pictures in a batch.
        transformer: Crops, flips, mean and scale.
        seed: As for :class:`BatchMaker`.

    Raises:
        DataError: ``rand_skip`` may skip the whole list.
    """

    def __init__(
        self, param: ImageDataParameter | DenseImageDataParameter, names: list[str], size: int, transformer: Transformer, seed: int
    ):
        super().__init__(seed)
        self.names, self.size, self.transformer, self._on_truncated = names, size, transformer, TruncatedNotes()
        self.root, self.color, self.shuffle = str(param.root_folder), bool(param.is_color), bool(param.shuffle)
        self.resized = (int(param.new_width), int(param.new_height)) if param.new_height else None
        self._epoch, self._position = 0, 0
        self._order = self._new_order()
        if param.rand_skip:
            self._position = int(self.rng.integers(0, param.rand_skip))
            if self._position >= len(self.names):
                raise DataError(f"{param.source}: rand_skip may skip more pictures than the list has ({len(self.names)})")

    def position(self) -> State:
        return {"epoch": self._epoch, "position": self._position}

    def seek(self, position: State) -> None:
        self._epoch, self._position = int(position["epoch"]), int(position["position"])
        self._order = self._new_order()

    @property
    @abstractmethod
    def draws(self) -> bool:
        """Whether what is drawn at random depends on the pictures."""

    def skip_batches(self, count: int) -> None:
        if self.draws:
            super().skip_batches(count)
            return
        for _ in range(count * self.size):
            self.next_index()

    def next_index(self) -> int:
        """Return the number of the next line that is this process's."""
        index = self._advance()
        while not self.owned_by_this_rank():
            index = self._advance()
        return index

    def first_index(self) -> int:
        """Return the number of the line that the next batch begins with."""
        return int(self._order[self._position % len(self.names)])

    def path(self, name: str) -> str:
        """Return the path of a file of the list."""
        return self.root + name

    def _advance(self) -> int:
        if self._position >= len(self.names):
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._new_order()
        self._position += 1
        return int(self._order[self._position - 1])

    def _new_order(self) -> NDArray[np.int64]:
        return self.epoch_permutation(self._epoch, len(self.names)) if self.shuffle else np.arange(len(self.names))


class LabelledPictures(ListedPictures):
    """Batches of transformed pictures with one or several labels each."""

    def __init__(self, param: ImageDataParameter, size: int, transformer: Transformer, seed: int):
        names, self.labels = read_lists(param.source)
        super().__init__(param, names, size, transformer, seed)
        self.short_side = int(param.short_side)

    def shapes(self) -> list[Shape]:
        picture = self._read(self.first_index())
        return [(self.size, *self.transformer.top_shape(self.augmented_shape(picture.shape))), (self.size, *self.labels.shape[1:])]

    def next(self) -> Tops:
        indices = [self.next_index() for _ in range(self.size)]
        pictures = list(ordered_map(self._read, indices))
        try:
            batch = self.transformed(self.transformer, pictures)
        except DataError as error:
            raise DataError(f"{self.path(self.names[indices[0]])} and those after it: {error}") from None
        return batch, self.labels[indices]

    @property
    def draws(self) -> bool:
        transformer = self.transformer
        drawn = transformer.mirror or transformer.resize is not None or (transformer.crop and transformer.random_crop)
        return bool(drawn) or self.augmenter is not None

    def _read(self, index: int) -> NDArray[np.uint8]:
        path = self.path(self.names[index])
        if self.short_side:
            image = read_image(path, color=self.color, on_truncated=self._on_truncated)
            height, width = image.shape[:2]
            side = self.short_side
            # NVCaffe's integer division.
            image = resize(image, (side, height * side // width) if height > width else (width * side // height, side))
        else:
            image = read_image(path, color=self.color, size=self.resized, on_truncated=self._on_truncated)
        return image[np.newaxis] if image.ndim == 2 else image.transpose(2, 0, 1)
