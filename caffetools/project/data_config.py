"""Pointing a net for training at other data: sources, mean and batch sizes of its data layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caffetools.errors import NetError
from caffetools.graph.inputs import is_data_layer, source_param
from caffetools.layers.registry import traits
from caffetools.net.phases import layer_included, make_state
from caffetools.proto.schema import TEST, TRAIN
from caffetools.surgery.changes import Change, number


def set_data_sources(
    net: Any,
    *,
    train_source: str | None = None,
    val_source: str | None = None,
    mean_file: str | None = None,
    mean_values: Sequence[float] | None = None,
    train_batch: int | None = None,
    val_batch: int | None = None,
    crop: int | None = None,
) -> list[Change]:
    """Set what is given in the data layers of ``net``, in place, and say what changed.

    Args:
        net: A ``NetParameter`` in today's form.
        train_source, val_source: databases (or lists, for layers that read lists) of the TRAIN and of the TEST phase.
        mean_file, mean_values: one of them; it takes the place of whatever mean there was. Values are one a channel, blue first.
        train_batch, val_batch: pictures a batch. crop: the side of the square that is cut out of each picture.

    Raises:
        NetError: there is no data layer of that phase that reads a source, or only such as take neither mean nor crop.
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


def data_layers(net: Any, phase: int) -> list[Any]:
    """The data layers of ``phase`` that read a source: Data, ImageData, HDF5Data and WindowData."""
    state = make_state(phase)
    layers = [layer for layer in net.layer if is_data_layer(layer) and layer_included(layer, state)]
    return [layer for layer in layers if traits(layer).file_source]


def _set_source(layer: Any, source: str | None, batch: int | None, changes: list[Change]) -> None:
    param = source_param(layer)
    if source is not None and param.source != source:
        changes.append(Change(layer.name, "source", param.source, source))
        param.source = source
        if "backend" in param.DESCRIPTOR.fields_by_name:
            param.backend = param.LEVELDB if _is_leveldb(Path(source)) else param.LMDB
    if batch is not None and param.batch_size != batch:
        changes.append(Change(layer.name, "batch_size", str(param.batch_size), str(batch)))
        param.batch_size = batch


def _set_mean(layer: Any, mean_file: str | None, mean_values: Sequence[float] | None, changes: list[Change]) -> None:
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


def _set_crop(layer: Any, crop: int | None, changes: list[Change]) -> None:
    before = layer.transform_param.crop_size
    if crop is None or not traits(layer).transforms or before == crop:
        return
    layer.transform_param.crop_size = crop
    changes.append(Change(layer.name, "crop_size", str(before), str(crop)))


def _is_leveldb(path: Path) -> bool:
    return (path / "CURRENT").is_file() and not (path / "data.mdb").exists()
