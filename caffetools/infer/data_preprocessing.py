"""The preprocessing that a net was trained with, taken from its data layers and from the dataset that they read."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from caffetools.data.datasets.card import DatasetCard, load_card
from caffetools.errors import CaffeToolsError, DataError
from caffetools.graph.inputs import data_layers, is_input, source_param, stored_item
from caffetools.infer.sidecar import read_preprocessing, sidecar_path, write_preprocessing
from caffetools.layers.registry import traits
from caffetools.proto.binary import read_binaryproto
from caffetools.proto.file_names import read_net_near_files
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter, TransformationParameter
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.results import Preprocessing

PathLike = str | os.PathLike[str]


def preprocessing_of(net: NetParameter, *, channels: int | None = None) -> Preprocessing | None:
    """Return how the TEST data layer of a net for training prepares images (the TRAIN one's if there is no other).

    Mean and scale come from ``transform_param``. The size before the crop comes from the dataset's card, the database or the layer,
    labels come from the card; both are unknown if these do not exist.

    Args:
        net: A ``NetParameter`` in today's form, with data layers.
        channels: Channels of the deploy net's input; 1 is gray.

    Returns:
        None for a net without a data layer for images. ``mean_known`` is false if the mean file does not exist.
    """
    layers = [layer for phase in (TEST, TRAIN) for layer in data_layers(net, phase) if traits(layer).transforms]
    if not layers:
        return None
    layer = layers[0]
    transform = layer.transform_param
    card = card_of(layer)
    mean_values, mean_image = _mean(transform)
    return Preprocessing(
        channel_order="GRAY" if channels == 1 or transform.force_gray else "BGR",
        mean_values=mean_values,
        mean_image=mean_image,
        scale=float(transform.scale),
        resize=_resize(layer, card),
        labels=tuple(card.classes) if card is not None else (),
    )


def known_preprocessing(source: PathLike, net: NetParameter, deploy: NetParameter) -> Preprocessing | None:
    """Return how images are prepared for ``deploy``: by the data layers of ``net``, and what only a ``deploy.json`` still has.

    That is the one of a net without data layers (its own), or of the ``deploy.prototxt`` in the folder of a net for training: a mean,
    labels and a size whose files are not here any more.

    Args:
        source: The prototxt that ``net`` was read from.
        net: A ``NetParameter`` in today's form.
        deploy: The deploy net made of it.

    Raises:
        DataError, ModelFileError: as :func:`~caffetools.infer.sidecar.read_preprocessing`.
    """
    found = preprocessing_of(net, channels=input_channels(deploy))
    if found is None:
        return read_preprocessing(source)
    earlier = read_preprocessing(Path(source).with_name("deploy.prototxt"))
    if earlier is None:
        return found
    if not found.mean_known:
        found = replace(found, mean_values=earlier.mean_values, mean_image=earlier.mean_image)
    return replace(found, labels=found.labels or earlier.labels, resize=found.resize or earlier.resize)


def preprocessing_near(prototxt: PathLike) -> Preprocessing | None:
    """Return how images are prepared for the net of a file: what ``deploy.json`` next to it has, else its data layers, if it has any.

    Args:
        prototxt: A deploy prototxt, or a net for training.

    Raises:
        DataError, ModelFileError: As :func:`~caffetools.infer.sidecar.read_preprocessing`.
        PrototxtError: The net cannot be read.
    """
    known = read_preprocessing(prototxt)
    if known is not None:
        return known
    net = upgrade_net(read_net_near_files(prototxt))
    return known_preprocessing(prototxt, net, NetParameter()) if data_layers(net, TEST) or data_layers(net, TRAIN) else None


def missing_sources(net: NetParameter) -> list[str]:
    """Return the sources of the TEST data layers of images (the TRAIN ones' if there are no others) that are not here."""
    for phase in (TEST, TRAIN):
        layers = [layer for layer in data_layers(net, phase) if traits(layer).transforms and traits(layer).file_source]
        if layers:
            return [source for layer in layers if (source := source_param(layer).source) and not Path(source).exists()]
    return []


def input_channels(deploy: NetParameter) -> int | None:
    """Return the channels of a deploy net's first input, or None if its shape is not four axes."""
    for layer in deploy.layer:
        if is_input(layer) and layer.input_param.shape:
            dims = layer.input_param.shape[0].dim
            return int(dims[1]) if len(dims) == 4 else None
    return None


def update_preprocessing(deploy: PathLike, how: Preprocessing | None) -> list[Path]:
    """Write ``deploy.json`` for a deploy prototxt that has just been written; remove an older one if nothing is known.

    Args:
        deploy: The deploy prototxt.
        how: The preprocessing, or None.

    Returns:
        The paths written.
    """
    if how is not None:
        return write_preprocessing(deploy, how)
    with suppress(DataError):
        if read_preprocessing(deploy) is not None:
            sidecar_path(deploy).unlink(missing_ok=True)
    return []


def card_of(layer: LayerParameter) -> DatasetCard | None:
    """Return the card of the dataset that a data layer reads, or None if its source is not a dataset of caffetools."""
    source = getattr(source_param(layer), "source", "")
    if not source:
        return None
    with suppress(DataError):
        return load_card(Path(source).parent)
    return None


def _mean(transform: TransformationParameter) -> tuple[tuple[float, ...] | None, Any]:
    """Return (values, image): values are () if there is no mean, and None if the mean file does not exist."""
    if not transform.mean_file:
        return tuple(float(value) for value in transform.mean_value), None
    if not Path(transform.mean_file).is_file():
        return None, None
    mean = read_binaryproto(transform.mean_file)
    return None, np.ascontiguousarray(mean[0] if mean.ndim == 4 else mean, np.float32)


def _resize(layer: LayerParameter, card: DatasetCard | None) -> tuple[int, int] | None:
    """Return (width, height) of the images that the layer crops, if they all have one size."""
    if card is not None:
        return (card.width, card.height) if card.width else None
    with suppress(CaffeToolsError):
        resized = layer.transform_param.resize_param
        if resized.height and resized.width:
            return (resized.width, resized.height)
        stored = stored_item(layer)
        return None if stored is None else (stored[2], stored[1])
    return None
