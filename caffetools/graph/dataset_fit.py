"""Whether a database fits a net: channels, sizes and labels against what the net's layers expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caffetools.data.datasets.hdf5 import Hdf5Summary
from caffetools.data.datasets.inspect import DatabaseSummary
from caffetools.errors import NetError
from caffetools.graph.classifiers import Head, find_heads
from caffetools.graph.inputs import data_shape, is_data_layer, is_input, source_param
from caffetools.proto.schema import LayerParameter, NetParameter


@dataclass
class DatasetFit:
    """The result of :func:`dataset_fit`.

    Attributes:
        input_layer: Name of the layer that takes the pictures.
        shape: (C, H, W) that the net takes after cropping; None for what its own data decides.
        classes: Classifier layer → number of classes.
        problems: What does not fit, one sentence each.
        notes: What works but is worth knowing.
    """

    input_layer: str
    shape: tuple[int, ...] | None
    classes: dict[str, int]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        shape = None if self.shape is None else list(self.shape)
        return {"input_layer": self.input_layer, "shape": shape, "classes": self.classes, "problems": self.problems, "notes": self.notes}


def dataset_fit(summary: DatabaseSummary, param: NetParameter, *, layer: str | None = None) -> DatasetFit:
    """Compare a database with the input and the classifiers of a net.

    Args:
        summary: The database, from :func:`~caffetools.data.datasets.inspect.inspect_database`.
        param: A ``NetParameter`` in today's form, for training or deployment.
        layer: Name of the data layer to compare with; by default the one whose source is this database, or else the first.

    Raises:
        NetError: The net has no input for pictures, or no layer ``layer``.
    """
    source = _input_layer(param, layer, Path(summary.path))
    try:
        shape: tuple[int, ...] | None = _expected(param, source)
    except NetError:
        shape = None
    try:
        heads: Sequence[Head] = find_heads(param)
    except NetError:
        heads = ()
    name = source.name if source is not None else param.input[0]
    fit = DatasetFit(name, shape, {head.layer: head.classes for head in heads})
    _compare_sizes(fit, summary, source, [tuple(int(n) for n in text.split("x")) for text in summary.shapes])
    _compare_labels(fit, summary)
    if summary.damaged:
        fit.problems.append(f"{summary.damaged} of {summary.records} records cannot be decoded (see dataset verify).")
    return fit


def hdf5_fit(summary: Hdf5Summary, param: NetParameter, *, layer: str | None = None) -> DatasetFit:
    """Compare HDF5 files with the tops, the input and the classifiers of a net.

    Args:
        summary: The files, from :func:`~caffetools.data.datasets.hdf5.inspect_hdf5`.
        param: A ``NetParameter`` in today's form, for training or deployment.
        layer: Name of the data layer to compare with, as for :func:`dataset_fit`.

    Raises:
        NetError: The net has no input for pictures, or no layer ``layer``.
    """
    source = _input_layer(param, layer, Path(summary.path))
    reads = source if source is not None and source.HasField("hdf5_data_param") else None
    tops = list(reads.top) if reads is not None else ["data", "label"]
    fit = dataset_fit(summary.as_database(tops[0], tops[1] if len(tops) > 1 else ""), param, layer=layer)
    missing = [top for top in tops if top not in summary.datasets]
    if reads is not None and missing:
        has = ", ".join(f"'{name}'" for name in summary.datasets)
        fit.problems.append(f"The layer '{reads.name}' reads {', '.join(missing)}, which the files do not have; they have {has}.")
    rows = {name: dataset.rows for name, dataset in summary.datasets.items() if name in tops}
    if len(set(rows.values())) > 1:
        fit.problems.append(f"The datasets have different numbers of rows: {', '.join(f'{name} {count}' for name, count in rows.items())}.")
    if fit.shape is not None and tops[0] in summary.datasets and tuple(summary.datasets[tops[0]].row_shape) != fit.shape:
        fit.problems.append(
            f"The net takes {'x'.join(map(str, fit.shape))}; the rows are {summary.datasets[tops[0]].shape}, the first axis being N."
        )
        fit.notes = [note for note in fit.notes if "must be cropped or resized" not in note]
    return fit


def _input_layer(param: NetParameter, name: str | None, path: Path) -> LayerParameter | None:
    """Return the layer that takes the pictures; None if the net states its inputs outside of layers."""
    found = [layer for layer in param.layer if is_data_layer(layer) or is_input(layer)]
    if name is not None:
        named = [layer for layer in found if layer.name == name]
        if not named:
            raise NetError(f"the net has no data or input layer '{name}'", hint=f"it has {', '.join(x.name for x in found) or 'none'}")
        return named[0]
    if found:
        same = [layer for layer in found if _source(layer) and Path(_source(layer)).resolve() == path.resolve()]
        return (same or found)[0]
    if param.input:
        return None
    raise NetError(f"the net '{param.name}' has no data layer and no input to compare the database with")


def _source(layer: LayerParameter) -> str:
    settings = source_param(layer) if is_data_layer(layer) else None
    return str(getattr(settings, "source", ""))


def _expected(param: NetParameter, layer: LayerParameter | None) -> tuple[int, ...] | None:
    if layer is None:
        dims = tuple(param.input_shape[0].dim) if param.input_shape else tuple(param.input_dim[:4])
    elif is_input(layer):
        dims = tuple(layer.input_param.shape[0].dim) if layer.input_param.shape else ()
    else:
        dims = data_shape(layer)
    return tuple(int(n) for n in dims[1:]) if len(dims) == 4 else None


def _compare_sizes(fit: DatasetFit, summary: DatabaseSummary, layer: LayerParameter | None, shapes: list[tuple[int, ...]]) -> None:
    transform = layer.transform_param if layer is not None and not is_input(layer) else None
    crop = int(transform.crop_size) if transform is not None else 0
    forced = transform is not None and (transform.force_color or transform.force_gray)
    resized = transform is not None and transform.resize_param.height and transform.resize_param.width
    deep = sum(count for encoding, count in summary.encodings.items() if encoding.endswith(" uint16"))
    if deep and not forced:
        fit.problems.append(f"{deep} record(s) are pictures of 16 bits a channel, which Caffe reads only with force_color or force_gray.")
    if fit.shape is not None and not forced:
        wrong = sorted({shape[0] for shape in shapes} - {fit.shape[0]})
        if wrong:
            fit.problems.append(f"The net takes {fit.shape[0]} channel(s); there are records of {', '.join(map(str, wrong))}.")
    if crop:
        small = sum(count for count, shape in zip(summary.shapes.values(), shapes, strict=True) if min(shape[1:]) < crop)
        if small and not resized:
            fit.problems.append(f"The layer '{fit.input_layer}' crops to {crop} x {crop}; {small} record(s) are smaller.")
    elif len(summary.shapes) > 1 and not resized and transform is not None:
        fit.problems.append(
            f"The records have {len(summary.shapes)} sizes, and '{fit.input_layer}' has no crop_size: only batch_size 1 works."
        )
    elif fit.shape is not None and any(shape[1:] != fit.shape[1:] for shape in shapes) and not resized:
        text = f"The net takes {fit.shape[1]} x {fit.shape[2]} (height x width); the records have other sizes"
        fit.notes.append(f"{text} and must be cropped or resized to that.")


def _compare_labels(fit: DatasetFit, summary: DatabaseSummary) -> None:
    negative = sum(count for label, count in summary.labels.items() if label < 0)
    if negative:
        fit.problems.append(f"{negative} record(s) have a negative label.")
    if not fit.classes:
        fit.notes.append("The net has no classifier to compare the labels with.")
    for layer, classes in fit.classes.items():
        high = [label for label in summary.labels if label >= classes]
        if high:
            count = sum(summary.labels[label] for label in high)
            fit.problems.append(
                f"The layer '{layer}' has {classes} outputs; {count} record(s) have labels from {min(high)} to {max(high)}."
            )
        elif summary.labels and max(summary.labels) + 1 < classes:
            fit.notes.append(f"The layer '{layer}' has {classes} outputs; the highest label is {max(summary.labels)}.")
    if summary.unlabelled and fit.classes and not summary.boxes:
        fit.notes.append(f"{summary.unlabelled} record(s) have no label, which Caffe reads as 0.")
