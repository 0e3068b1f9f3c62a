"""What a dataset's card says, put into the data layers of a net: batches that fit it, and pictures that are large enough."""

from __future__ import annotations

from typing import Any

from caffetools.data.datasets.card import DatasetCard
from caffetools.data.layers.data import Data
from caffetools.data.layers.image_data import ImageData
from caffetools.errors import CaffeToolsError, DataError, NetError
from caffetools.graph.inputs import source_param
from caffetools.project.data_config import data_layers
from caffetools.proto.schema import TEST, TRAIN
from caffetools.surgery.changes import Change


def classes_of(card: DatasetCard, classes: int | None) -> int:
    """The number of classes: the dataset's. Raises :class:`CaffeToolsError` where another one was asked for."""
    if classes is not None and classes != len(card.classes):
        raise CaffeToolsError(
            f"{classes} classes are asked for, but the dataset {card.folder} has {len(card.classes)} (--classes, --dataset)"
        )
    return len(card.classes)


def mean_of(card: DatasetCard) -> str:
    """The dataset's mean as ``--mean`` takes it: its file, or the values where its pictures differ in size."""
    return str(card.mean_file) if card.mean_file else ",".join(f"{value:g}" for value in card.mean_values)


def convert_imagedata_to_data(net: Any) -> list[Change]:
    """Let data layers that read lists of pictures read databases instead, in place; crop, mean and batch stay.

    Raises:
        NetError: a data layer reads something else, which a dataset of pictures cannot stand for.
    """
    changes = []
    for phase in (TRAIN, TEST):
        for layer in data_layers(net, phase):
            if layer.type not in (Data.TYPE, ImageData.TYPE):
                raise NetError(f"reads {layer.type}, which a dataset of pictures and labels cannot stand for (--dataset)", layer=layer.name)
            if layer.type == ImageData.TYPE:
                layer.type = Data.TYPE
                layer.data_param.batch_size = layer.image_data_param.batch_size
                layer.ClearField("image_data_param")
                changes.append(Change(layer.name, "type", ImageData.TYPE, Data.TYPE))
    return list(dict.fromkeys(changes))


def fit_batches(net: Any, card: DatasetCard, *, train: bool = True, val: bool = True) -> list[Change]:
    """Batches no larger than the dataset, and for testing such that a whole number of them is every picture once, where one can be had.

    Args:
        train, val: whether the TRAIN and the TEST phase's may be changed.
    """
    changes = []
    for phase, count, free in ((TRAIN, card.train_count, train), (TEST, card.val_count, val)):
        for layer in data_layers(net, phase) if free and count else ():
            param = source_param(layer)
            before = param.batch_size or 1
            batch = min(before, count)
            if phase == TEST:
                # Half as many is worth it; far fewer would only be slow.
                batch = whole_batch(count, batch, max(1, batch // 2))
            if batch != before:
                param.batch_size = batch
                changes.append(Change(layer.name, "batch_size", str(before), str(batch)))
    return list(dict.fromkeys(changes))


def whole_batch(count: int, most: int, least: int) -> int:
    """The largest batch from ``least`` to ``most`` of which a whole number is ``count`` pictures; ``most`` where there is none."""
    return next((size for size in range(most, least - 1, -1) if count % size == 0), most)


def check_crops(net: Any, card: DatasetCard) -> None:
    """Raise :class:`DataError` where a data layer cuts more out of a picture than there is."""
    for phase in (TRAIN, TEST):
        for layer in data_layers(net, phase):
            crop = layer.transform_param.crop_size
            if card.width and crop > min(card.width, card.height):
                raise DataError(
                    f"layer '{layer.name}' crops {crop} x {crop}, but the pictures of {card.folder} are {card.width} x {card.height}; "
                    f"build the dataset with --size {crop} or more, or give a smaller --crop"
                )
