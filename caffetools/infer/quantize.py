"""Quantize a deployed net on a folder of pictures or a database, through its own preprocessing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.databases import open_database, shown_key
from caffetools.data.datasets.listing import list_pictures
from caffetools.data.datum import parse_datum, record_to_array
from caffetools.data.picture_lists import read_lines, read_list
from caffetools.data.shards import is_index
from caffetools.errors import CaffeToolsError, DataError, NetError, did_you_mean
from caffetools.events import EventSink, Warned, ignore
from caffetools.graph.passes.fold_batch_norm import fold_batch_norm
from caffetools.infer.classifier import UNKNOWN_MEAN, PreprocessOptions, find_pictures, spread
from caffetools.infer.export import ExportOptions, build_deployed, find_preprocessing, model_card
from caffetools.infer.preprocess import Preprocessor
from caffetools.infer.sidecar import read_preprocessing
from caffetools.layers.normalization import BatchNorm
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, read_weights
from caffetools.proto.schema import TEST
from caffetools.proto.upgrades.v1 import upgrade_caffemodel
from caffetools.quant.fake import Bounds, ranges_path, read_ranges
from caffetools.quant.quantize import Quantization, QuantizeOptions, quantize_net
from caffetools.results import Preprocessing
from caffetools.util.files import check_not_read, fingerprint_of_file

PathLike = str | os.PathLike[str]
DEFAULT_IMAGES = 500
# Endings of lists of pictures, and the label at the end of a line.
_LISTS = (".txt", ".lst", ".list")
_LABEL = re.compile(r"\s+-?\d+$")


class PictureImages:
    """Image files, prepared for a net.

    Args:
        blob: The net's input.
        preprocessor: Prepares a picture.
        paths: The files.
        labels: Their classes, where they are known.
    """

    def __init__(self, blob: str, preprocessor: Preprocessor, paths: Sequence[str], labels: Sequence[int] = ()):
        self.blob, self._preprocessor, self._paths = blob, preprocessor, list(paths)
        self._labels = np.array(labels, np.int64)
        self.identity = _digest(preprocessor, *(f"{path} {fingerprint_of_file(path)}" for path in self._paths))

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return images ``start`` to ``stop`` - 1 as (N, C, H, W). Raises :class:`DataError` naming the file."""
        made = [self._preprocessor.centre(self._preprocessor.read(path)) for path in self._paths[start:stop]]
        return np.concatenate(made)

    def labels(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the classes of images ``start`` to ``stop`` - 1 as (N,)."""
        return self._labels[start:stop]


class RecordImages:
    """Records of an LMDB or LevelDB, prepared for a net.

    Args:
        blob: The net's input.
        preprocessor: Prepares a picture.
        path: The database.
        limit: The most records to take, spread evenly over all; None for all.
    """

    def __init__(self, blob: str, preprocessor: Preprocessor, path: PathLike, limit: int | None):
        self.blob, self._preprocessor = blob, preprocessor
        self._database = open_database(path)
        self._numbers = spread(range(len(self._database)), limit or len(self._database))
        self.identity = _digest(preprocessor, f"{Path(path).resolve()} {len(self._database)} {limit}", *self._fingerprints(path))

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return images ``start`` to ``stop`` - 1 as (N, C, H, W). Raises :class:`DataError` naming the record."""
        return np.concatenate([self._one(number) for number in self._numbers[start:stop]])

    def labels(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the classes of images ``start`` to ``stop`` - 1 as (N,)."""
        records = (self._database.item(number) for number in self._numbers[start:stop])
        return np.array([parse_datum(value, key.decode("utf-8", "replace")).label for key, value in records], np.int64)

    def _fingerprints(self, path: PathLike) -> list[str]:
        """Return texts that differ for another database at the same path: those of an LMDB's file and of three records.

        A LevelDB's files may change when it is opened.
        """
        places = (0, len(self._numbers) // 2, -1) if self._numbers else ()
        records = [self._database.item(self._numbers[place]) for place in places]
        return [fingerprint_of_file(Path(path) / "data.mdb"), *(hashlib.sha256(key + b"\0" + value).hexdigest() for key, value in records)]

    def _one(self, number: int) -> NDArray[np.float32]:
        key, value = self._database.item(number)
        name = key.decode("utf-8", "replace")
        channels = self._preprocessor.channels
        planes, _ = record_to_array(value, color=channels == 3, what=shown_key(self._database.path, key))
        if planes.dtype != np.uint8:
            raise DataError("holds numbers that are not 8-bit pixels", path=self._database.path, record=name)
        if planes.shape[0] != channels:
            raise DataError(f"has {planes.shape[0]} channel(s), but the net's input has {channels}", path=self._database.path, record=name)
        pixels = planes[0] if channels == 1 else planes.transpose(1, 2, 0)
        return self._preprocessor.centre(np.ascontiguousarray(pixels))


def quantize_deployed(
    deploy: PathLike,
    weights: PathLike,
    path: PathLike,
    calibration: PathLike | Sequence[PathLike],
    options: PreprocessOptions | None = None,
    how: QuantizeOptions | None = None,
    *,
    test: PathLike | None = None,
    images: int = DEFAULT_IMAGES,
    ranges: PathLike | None = None,
    outputs: Sequence[str] = (),
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Quantization:
    """Write a deployed net in lower precision; see :func:`~caffetools.quant.quantize.quantize_net`.

    Args:
        deploy: The deploy prototxt; pictures are prepared by ``deploy.json`` next to it.
        weights: Its .caffemodel.
        path: The ONNX file to write.
        calibration: A folder of pictures, an LMDB or LevelDB, or several files, folders, patterns and lists (``.txt``, ``.lst``: a path
            on each line, maybe with a label).
        options: Mean, labels, scale and size in place of those of ``deploy.json``.
        how: Precision, calibration and layers to keep.
        test: An LMDB or LevelDB, a list with labels, or a folder with a folder of pictures for each class (or ``val`` or ``test`` with
            such folders), on which the accuracy of both models is measured.
        images: The most pictures to take, spread evenly over all.
        ranges: The ranges of the layers' inputs that quantization-aware training wrote; by default those next to ``weights``, if there
            are any; ``none`` for none.
        outputs: Blobs to end the net at in place of its outputs; layers behind them are left out.
        events: Receives the events of the work.
        cancel: Checked between batches.

    Raises:
        CaffeToolsError: A file cannot be read, the net takes no pictures, or an option is wrong.
        Cancelled: ``cancel`` was set; ``how.resume`` continues.
    """
    if images < 1:
        raise CaffeToolsError(f"the number of images must be at least 1, not {images}")
    check_not_read(path, [deploy, weights, test, ranges, *([calibration] if isinstance(calibration, str | os.PathLike) else calibration)])
    # A missing folder is found before the net is built.
    files = None if _is_database(calibration) else _files(calibration)
    net = _fold(build_deployed(deploy, weights, ExportOptions(outputs=tuple(outputs))), weights, events)
    found = find_preprocessing(net, read_preprocessing(deploy) or Preprocessing(), options or PreprocessOptions())
    if found is None:
        raise DataError("the net has no single input for pictures, so it cannot be calibrated", path=deploy)
    blob, preprocessor = found
    if not preprocessor.how.mean_known:
        events(Warned(task="calibrate", message=UNKNOWN_MEAN))
    card = model_card(net, deploy, weights) | preprocessor.how.to_properties()
    if files is None:
        source: PictureImages | RecordImages = RecordImages(blob, preprocessor, _single(calibration), images)
    else:
        source = PictureImages(blob, preprocessor, spread(files, images))
    labelled = None if test is None else _labelled(test, blob, preprocessor)
    how = replace(how or QuantizeOptions(), trained=_trained(weights, ranges, how, events))
    return quantize_net(net, source, path, how, test=labelled, properties=card, events=events, cancel=cancel)


def _trained(weights: PathLike, ranges: PathLike | None, how: QuantizeOptions | None, events: EventSink) -> dict[str, Bounds]:
    """Return the ranges that quantization-aware training learned; none where there are none or they are not asked for."""
    if how is not None and how.precision != "int8":
        return {}
    if ranges is not None:
        return {} if os.fspath(ranges) == "none" else read_ranges(ranges)
    path = ranges_path(weights)
    if not path.is_file():
        return {}
    events(
        Warned(
            task="calibrate",
            message=f"the layers' inputs have the ranges that training learned, of {path.name} (--ranges none counts them)",
        )
    )
    return read_ranges(path)


def _labelled(test: PathLike, blob: str, preprocessor: Preprocessor) -> PictureImages | RecordImages:
    """Return the labelled images of a database, or of a folder with a folder for each class."""
    if _is_database(test):
        return RecordImages(blob, preprocessor, test, None)
    if _is_list(test):
        entries = read_list(test)
        return PictureImages(blob, preprocessor, _files_of_list(test, [name for name, _ in entries]), [label for _, label in entries])
    listing = list_pictures(test, fewest=1)
    known = preprocessor.how.labels
    if known and (unknown := [name for name in listing.classes if name not in known]):
        raise DataError(f"the class '{unknown[0]}' is not one of the net's labels{did_you_mean(unknown[0], known)}", path=test)
    number = [known.index(name) if known else index for index, name in enumerate(listing.classes)]
    chosen = [picture for pictures in listing.test or listing.val or listing.pictures for picture in pictures]
    paths = [str(listing.root / picture.path) for picture in chosen]
    return PictureImages(blob, preprocessor, paths, [number[picture.label] for picture in chosen])


def _fold(net: Net, weights: PathLike, events: EventSink) -> Net:
    """Return the net with its batch normalizations folded; between int8 layers they would be computed in float, slowly."""
    if not any(isinstance(layer, BatchNorm) for layer in net.layers):
        return net
    try:
        folded = fold_batch_norm(net.param, upgrade_caffemodel(read_weights(weights)))
    except NetError as error:
        events(Warned(task="calibrate", message=f"batch normalization is not folded, so the model is slower: {error}"))
        return net
    made = Net(folded.net, TEST, fill=False)
    load_weights(made, folded.weights)
    count = sum(map(len, folded.layers.values()))
    events(Warned(task="calibrate", message=f"{count} BatchNorm and Scale layers were folded into the layers before them"))
    return made


def _single(calibration: PathLike | Sequence[PathLike]) -> PathLike:
    if isinstance(calibration, str | os.PathLike):
        return calibration
    return calibration[0] if len(calibration) == 1 else ""


def _is_database(calibration: PathLike | Sequence[PathLike]) -> bool:
    folder = Path(_single(calibration))
    return (folder / "data.mdb").exists() or (folder / "CURRENT").is_file() or is_index(folder)


def _files(calibration: PathLike | Sequence[PathLike]) -> list[str]:
    names = [calibration] if isinstance(calibration, str | os.PathLike) else list(calibration)
    if database := next((name for name in names if _is_database(name)), None):
        raise DataError("a database is calibrated on alone, not with other pictures", path=database)
    found = [picture for name in names for picture in (_listed(name) if _is_list(name) else find_pictures([name]))]
    for name in found:
        if not Path(name).exists():
            raise DataError("no such file or folder", path=name)
    if not found:
        raise DataError("there are no calibration pictures")
    return found


def _is_list(name: PathLike) -> bool:
    return Path(name).suffix.lower() in _LISTS and Path(name).is_file()


def _listed(path: PathLike) -> list[str]:
    """Return the pictures of a list: a path on each line, with or without a label behind it."""
    names = [line.lstrip() for _, line in read_lines(path)]
    if names and all(_LABEL.search(name) for name in names):
        names = [_LABEL.sub("", name) for name in names]
    return _files_of_list(path, names)


def _files_of_list(path: PathLike, names: Sequence[str]) -> list[str]:
    """Return the files that a list names: from its folder, or from the working directory if its first one is there."""
    root = Path(path).parent
    return [str(root / name) for name in names] if names and (root / names[0]).exists() else list(names)


def _digest(preprocessor: Preprocessor, *parts: str) -> str:
    how = preprocessor.how.to_properties()
    text = "\n".join([*parts, repr(sorted(how.items())), repr(preprocessor.shape[1:]), repr(preprocessor.size)])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
