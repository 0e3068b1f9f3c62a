"""Point the data layers of a net for training at other data: sources, mean, batch sizes and crop, by options or by a dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from caffetools.data.databases import may_be_database, open_database
from caffetools.data.datasets.card import DatasetCard
from caffetools.data.layers.data import Data
from caffetools.data.layers.image_data import ImageData
from caffetools.errors import CaffeToolsError, DataError, NetError
from caffetools.graph.inputs import data_layers, source_param
from caffetools.layers.registry import traits
from caffetools.proto.binary import read_binaryproto
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter
from caffetools.surgery.changes import Change, number

# What a field of Caffe's messages holds.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class DataOptions:
    """What the data layers are to read; None leaves it.

    Attributes:
        train_source, val_source: databases. mean: a file, or values as text, such as ``104,117,123``.
        train_batch, val_batch: pictures a batch. crop: the side of the square cut out of each picture, at random in training.
    """

    train_source: str | None = None
    val_source: str | None = None
    mean: str | None = None
    train_batch: int | None = None
    val_batch: int | None = None
    crop: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return the arguments of :func:`~caffetools.project.data_config.set_data_sources`. Raises :class:`DataError` where the mean is none."""
        for name in ("train_batch", "val_batch", "crop"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MOST:
                raise CaffeToolsError(f"--{name.replace('_', '-')} must be from 1 to {_MOST}, not {value}")
        mean_file, mean_values = read_mean_option(self.mean)
        if mean_file is not None:
            # Only to see that it is one.
            read_binaryproto(mean_file)
        return {**{k: v for k, v in asdict(self).items() if k != "mean"}, "mean_file": mean_file, "mean_values": mean_values}

    def with_dataset(self, card: DatasetCard | None) -> DataOptions:
        """These options, and the dataset's sources and mean where they give none."""
        if card is None:
            return self
        train, val = self.train_source or str(card.train_lmdb), self.val_source or str(card.val_lmdb)
        return replace(self, train_source=train, val_source=val, mean=self.mean or mean_of(card))


def read_mean_option(mean: str | None) -> tuple[str | None, list[float] | None]:
    """Return a mean as people give it: (file, None) or (None, values). Raises :class:`DataError` where it is neither."""
    if mean is None:
        return None, None
    number = r"\s*-?\d+(?:\.\d*)?\s*"
    if re.fullmatch(rf"{number}(,{number})*", mean):
        return None, [float(value) for value in mean.split(",")]
    if Path(mean).is_dir():
        raise DataError("this is a folder, and a mean file is expected", path=mean)
    if not Path(mean).is_file():
        raise DataError(f"{mean}: no such mean file, and no list of values like 104,117,123")
    return mean, None


def set_data_sources(
    net: NetParameter,
    *,
    train_source: str | None = None,
    val_source: str | None = None,
    mean_file: str | None = None,
    mean_values: Sequence[float] | None = None,
    train_batch: int | None = None,
    val_batch: int | None = None,
    crop: int | None = None,
) -> list[Change]:
    """Set what is given in the data layers of ``net``, in place, and return what changed.

    Args:
        net: A ``NetParameter`` in today's form.
        train_source: The database (or list, for layers that read lists) of the TRAIN phase.
        val_source: The same of the TEST phase.
        mean_file: A binaryproto that replaces the present mean.
        mean_values: The new mean's values instead, one a channel, blue first.
        train_batch: Images per batch in the TRAIN phase.
        val_batch: Images per batch in the TEST phase.
        crop: The side of the square that is cut out of each image, in pixels.

    Raises:
        DataError: A source that is there is not a database.
        NetError: There is no data layer of that phase that reads a source, or only such as take neither mean nor crop.
    """
    changes: list[Change] = []
    given = "--crop" if crop is not None else "--mean" if mean_file is not None or mean_values is not None else ""
    both = [layer for phase in (TRAIN, TEST) for layer in data_layers(net, phase)]
    if given and both and not any(traits(layer).transforms for layer in both):
        raise NetError(f"reads HDF5 files, whose data are taken as they are; leave {given} out", layer=both[0].name)
    for phase, source, batch in ((TRAIN, train_source, train_batch), (TEST, val_source, val_batch)):
        layers = data_layers(net, phase)
        if (source is not None or batch is not None) and not layers:
            name = "TRAIN" if phase == TRAIN else "TEST"
            raise NetError(f"the net '{net.name}' has no data layer of the {name} phase whose source could be set")
        for layer in layers:
            _set_source(layer, source, batch, changes)
            _set_mean(layer, mean_file, mean_values, changes)
            _set_crop(layer, crop, changes)
    return list(dict.fromkeys(changes))


def _set_source(layer: LayerParameter, source: str | None, batch: int | None, changes: list[Change]) -> None:
    param = source_param(layer)
    if source is not None and layer.type == Data.TYPE and Path(source).exists() and not may_be_database(source):
        open_database(source).close()  # says what is there
    if source is not None and param.source != source:
        changes.append(Change(layer.name, "source", param.source, source))
        param.source = source
        if "backend" in param.DESCRIPTOR.fields_by_name:
            param.backend = param.LEVELDB if _is_leveldb(Path(source)) else param.LMDB
    if batch is not None and param.batch_size != batch:
        changes.append(Change(layer.name, "batch_size", str(param.batch_size), str(batch)))
        param.batch_size = batch


def _set_mean(layer: LayerParameter, mean_file: str | None, mean_values: Sequence[float] | None, changes: list[Change]) -> None:
    if not traits(layer).transforms or (mean_file is None and mean_values is None):
        return
    transform = layer.transform_param
    before = transform.mean_file or ", ".join(map(number, transform.mean_value))
    transform.ClearField("mean_file")
    transform.ClearField("mean_value")
    if mean_file is not None:
        transform.mean_file = mean_file
    else:
        transform.mean_value.extend(mean_values or ())
    after = transform.mean_file or ", ".join(map(number, transform.mean_value))
    if after != before:
        changes.append(Change(layer.name, "mean", before, after))


def _set_crop(layer: LayerParameter, crop: int | None, changes: list[Change]) -> None:
    before = layer.transform_param.crop_size
    if crop is None or not traits(layer).transforms or before == crop:
        return
    layer.transform_param.crop_size = crop
    changes.append(Change(layer.name, "crop_size", str(before), str(crop)))


def _is_leveldb(path: Path) -> bool:
    return (path / "CURRENT").is_file() and not (path / "data.mdb").exists()


def classes_of(card: DatasetCard, classes: int | None) -> int:
    """Return the number of classes: the dataset's. Raises :class:`CaffeToolsError` where another one was asked for."""
    if classes is not None and classes != len(card.classes):
        raise CaffeToolsError(
            f"{classes} classes are asked for, but the dataset {card.folder} has {len(card.classes)} (--classes, --dataset)"
        )
    return len(card.classes)


def mean_of(card: DatasetCard) -> str:
    """Return the dataset's mean as ``--mean`` takes it: its file, or the values where its pictures differ in size."""
    return str(card.mean_file) if card.mean_file else ",".join(f"{value:g}" for value in card.mean_values)


def convert_imagedata_to_data(net: NetParameter) -> list[Change]:
    """Let data layers that read lists of pictures read databases instead, in place; crop, mean and batch are kept.

    Raises:
        NetError: a data layer reads something else, which a dataset of pictures cannot stand for.
    """
    changes = []
    for phase in (TRAIN, TEST):
        for layer in data_layers(net, phase):
            if layer.type not in (Data.TYPE, ImageData.TYPE):
                raise NetError(f"reads {layer.type}, which a dataset of pictures and labels cannot replace (--dataset)", layer=layer.name)
            if layer.type == ImageData.TYPE:
                layer.type = Data.TYPE
                layer.data_param.batch_size = layer.image_data_param.batch_size
                layer.ClearField("image_data_param")
                changes.append(Change(layer.name, "type", ImageData.TYPE, Data.TYPE))
    return list(dict.fromkeys(changes))


def fit_batches(net: NetParameter, card: DatasetCard, *, train: bool = True, val: bool = True) -> list[Change]:
    """Limit batch sizes to the dataset's size; in the TEST phase to one of which a whole number is every image once, where there is one.

    Args:
        net: A ``NetParameter`` in today's form; it is changed in place.
        card: The dataset.
        train: Whether the TRAIN phase's batch size may be changed.
        val: Whether the TEST phase's may.

    Returns:
        The changes.
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
    """Return the largest batch from ``least`` to ``most`` of which a whole number is ``count`` pictures; ``most`` where there is none."""
    return next((size for size in range(most, least - 1, -1) if count % size == 0), most)


def check_crops(net: NetParameter, card: DatasetCard) -> None:
    """Raise :class:`DataError` where a data layer cuts more out of a picture than there is."""
    for phase in (TRAIN, TEST):
        for layer in data_layers(net, phase):
            crop = layer.transform_param.crop_size
            if card.width and crop > min(card.width, card.height):
                raise DataError(
                    f"layer '{layer.name}' crops {crop} x {crop}, but the pictures of {card.folder} are {card.width} x {card.height}; "
                    f"build the dataset with --size {crop} or more, or give a smaller --crop"
                )
