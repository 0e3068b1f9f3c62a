"""DenseImageData: pictures with maps of labels, which SegNet's fork trains on (its dense_image_data_layer.cpp)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from caffetools.data.images import read_image
from caffetools.data.layers.batch_source import BatchMaker, ReadingLayer, Tops, batch_size_of
from caffetools.data.layers.image_data import ListedPictures
from caffetools.data.picture_lists import read_pairs
from caffetools.data.transformer import Transformer
from caffetools.errors import DataError
from caffetools.layers.base import Shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import DenseImageDataParameter, LayerParameter
from caffetools.util.threads import ordered_map

Picture = NDArray[np.uint8]


@register("DenseImageData")
class DenseImageData(ReadingLayer):
    """Pictures of a list and their maps of labels: data (N, C, H, W) and labels (N, 1, H, W), float32.

    ``source`` lists ``picture map`` lines; ``root_folder`` is put before each path. Both are resized if ``new_height`` and ``new_width``
    are set, the map to the nearest pixel's value, which is read as gray. ``mirror`` and ``crop_height`` by ``crop_width`` change both
    alike, at random in either phase; mean and scale change the picture only. Follows SegNet's dense_image_data_layer.cpp, which aborts
    for ``mirror`` and ``crop_size`` of transform_param, and does not read ``mean_file`` of dense_image_data_param.
    """

    TRAITS = Traits(role="data", source="dense_image_data_param", file_source=True, transforms=True, label_tops="labels")
    TOPS = (2, 2)

    @classmethod
    def stored_item(cls, param: LayerParameter) -> Shape | None:
        """Return (C, H, W) where the pictures are cropped or resized."""
        how = param.dense_image_data_param
        height, width = (how.crop_height, how.crop_width) if how.crop_height else (how.new_height, how.new_width)
        return (cls.item_channels(param), height, width) if height and width else None

    @classmethod
    def item_channels(cls, param: LayerParameter) -> int:
        """3 for color, 1 for grey pictures."""
        return 3 if param.dense_image_data_param.is_color else 1

    @classmethod
    def label_shape(cls, top: int, shape: Shape) -> Shape:
        """Return the shape of the maps of labels for pictures of ``shape``."""
        return (shape[0], 1, *shape[2:])

    def open(self, seed: int) -> BatchMaker:
        how, transform = self.param.dense_image_data_param, self.param.transform_param
        for one, other in (("new_height", "new_width"), ("crop_height", "crop_width")):
            if bool(getattr(how, one)) != bool(getattr(how, other)):
                raise self.error(f"{one} and {other} must be given together")
        if transform.mirror or transform.crop_size:
            raise self.error(
                "transform_param: mirror and crop_size would change the pictures, but not their maps; "
                "use mirror, crop_height and crop_width of dense_image_data_param"
            )
        return MappedPictures(how, batch_size_of(self, how.batch_size), Transformer(transform, self.phase), seed)


class MappedPictures(ListedPictures):
    """Batches of transformed pictures and the maps of their labels."""

    def __init__(self, param: DenseImageDataParameter, size: int, transformer: Transformer, seed: int):
        names, self.maps = read_pairs(param.source)
        self.mirror = bool(param.mirror)
        self.crop = (int(param.crop_height), int(param.crop_width)) if param.crop_height else None
        super().__init__(param, names, size, transformer, seed)

    def shapes(self) -> list[Shape]:
        picture, labels = self._read(self.first_index())
        height, width = self.crop or labels.shape
        return [(self.size, picture.shape[0], height, width), (self.size, 1, height, width)]

    def next(self) -> Tops:
        indices = [self.next_index() for _ in range(self.size)]
        items = [self._changed(*item, index) for index, item in zip(indices, ordered_map(self._read, indices), strict=True)]
        try:
            batch = self.transformed(self.transformer, [picture for picture, _ in items])
            return batch, np.stack([labels for _, labels in items])[:, np.newaxis].astype(np.float32)
        except (DataError, ValueError) as error:
            raise DataError(f"{self.path(self.names[indices[0]])} and those after it: {error}") from None

    @property
    def draws(self) -> bool:
        return self.mirror or self.crop is not None

    def _changed(self, picture: Picture, labels: Picture, index: int) -> tuple[Picture, Picture]:
        """Mirror and crop a picture (C, H, W) and its map (H, W) alike."""
        if self.mirror and self.rng.integers(2):
            picture, labels = picture[..., ::-1], labels[..., ::-1]
        if self.crop is None:
            return picture, labels
        height, width = self.crop
        if labels.shape[0] < height or labels.shape[1] < width:
            raise DataError(
                f"{self.path(self.names[index])}: a picture of {labels.shape[1]} x {labels.shape[0]} is cropped to {width} x {height}"
            )
        top = int(self.rng.integers(labels.shape[0] - height + 1))
        left = int(self.rng.integers(labels.shape[1] - width + 1))
        area = np.s_[..., top : top + height, left : left + width]
        return picture[area], labels[area]

    def _read(self, index: int) -> tuple[Picture, Picture]:
        path, map_path = self.path(self.names[index]), self.path(self.maps[index])
        picture = read_image(path, color=self.color, size=self.resized, on_truncated=self._on_truncated)
        labels = read_image(map_path, color=False)
        if self.resized is not None:
            labels = np.asarray(cv2.resize(labels, self.resized, interpolation=cv2.INTER_NEAREST))
        if labels.shape != picture.shape[:2]:
            sizes = [f"{width} x {height}" for height, width in (labels.shape, picture.shape[:2])]
            raise DataError(f"{map_path}: the map of labels is {sizes[0]}, but its picture {path} {sizes[1]}")
        return (picture[np.newaxis] if picture.ndim == 2 else picture.transpose(2, 0, 1)), labels
