"""Which pictures of a dataset activate each unit most, and where: one pass over the pictures for all units at once."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.errors import DataError
from caffetools.events import EventSink, ignore, reporter, reporting
from caffetools.net.probe import join_items, run_items
from caffetools.util.files import atomic_write
from caffetools.visualize import style
from caffetools.visualize.panels import Panel, enlarge, panels_figure
from caffetools.visualize.picture_net import PathLike, PictureNet
from caffetools.visualize.receptive_field import receptive_fields
from caffetools.visualize.style import LIGHT, Theme

_SAVE_EVERY = 50  # batches between two states on disk
_FORMAT = 1


@dataclass
class TopImages:
    """The pictures with the largest values of each unit (channel) of a blob.

    Attributes:
        blob: Its name.
        values: (C, N) float32, descending; -inf where there were fewer pictures.
        pictures: (C, N) int64: indices of the pictures, -1 likewise.
        places: (C, N, 2) int32: (y, x) of the largest value.
        done: How many pictures were seen.
    """

    blob: str
    values: NDArray[np.float32]
    pictures: NDArray[np.int64]
    places: NDArray[np.int32]
    done: int = 0

    def add(self, first: int, batch: NDArray[np.float32]) -> None:
        """Take the blob's values (B, C, H, W) or (B, C) for the pictures ``first``, ``first + 1``, ….

        Of equal values the earlier picture ranks higher, for every size of batches.
        """
        flat = batch.reshape(*batch.shape[:2], -1)
        where = flat.argmax(2)
        best = np.take_along_axis(flat, where[..., None], 2)[..., 0]
        width = batch.shape[3] if batch.ndim == 4 else 1
        count = len(batch)
        values = np.concatenate([self.values, best.T], 1)
        pictures = np.concatenate([self.pictures, np.broadcast_to(np.arange(first, first + count), (len(values), count))], 1)
        spots = np.stack([where.T // width, where.T % width], 2).astype(np.int32)
        places = np.concatenate([self.places, spots], 1)
        order = np.argsort(-values, axis=1, kind="stable")[:, : self.values.shape[1]]
        self.values = np.take_along_axis(values, order, 1)
        self.pictures = np.take_along_axis(pictures, order, 1)
        self.places = np.take_along_axis(places, order[..., None], 1)
        self.done = first + count


@reporting("top-images", "Find the pictures with the largest values")
def find_top_images(
    model: PictureNet,
    pictures: Sequence[PathLike],
    blob: str,
    *,
    top: int = 9,
    batch: int = 16,
    state: PathLike | None = None,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> TopImages:
    """Run the pictures once and keep the ``top`` of each channel. Memory does not grow with the number of pictures.

    Args:
        model: The net.
        pictures: Files.
        blob: Whose units.
        top: Pictures a unit.
        batch: Pictures at once.
        state: A file that keeps what was found; a pass that was interrupted resumes from it.
        events: Receives the progress in pictures.
        cancel: Stops between batches, after the state was written.

    Raises:
        DataError: there are no pictures, one cannot be read, or the state is that of other pictures, weights, blob or top.
        Cancelled: ``cancel`` was called.
    """
    if not pictures or top < 1:
        raise DataError("top images need at least one picture, and a number of at least 1 to keep")
    shape = model.net.blob_shapes.get(blob)
    channels = shape[1] if shape is not None and len(shape) > 1 else 0
    key = _fingerprint(model, pictures, blob, top) if state is not None else ""
    found = _load(state, key) if state is not None and Path(state).exists() else None
    if found is None:
        found = TopImages(
            blob, np.full((channels, top), -np.inf, np.float32), np.full((channels, top), -1), np.zeros((channels, top, 2), np.int32)
        )
    # The token is checked after the state was written.
    report = reporter(events, "top-images", "images")
    for number, first in enumerate(range(found.done, len(pictures), batch)):
        try:
            values = _values(model, pictures[first : first + batch], blob)
        except BaseException:
            # Ctrl-C, or a damaged picture: what was found remains for the next pass.
            if state is not None and found.done:
                _save(state, key, found)
            raise
        found.add(first, values)
        report(found.done, len(pictures))
        stopped = cancel is not None and cancel.cancelled
        if state is not None and (stopped or number % _SAVE_EVERY == _SAVE_EVERY - 1 or found.done == len(pictures)):
            _save(state, key, found)
        if cancel is not None:
            cancel.raise_if_cancelled("the search for top images")
    return found


def check_units(blob: str, units: Sequence[int], count: int) -> None:
    """Check units of a blob with ``count`` channels. Raises :class:`DataError` that names the first one that it does not have."""
    wrong = next((unit for unit in units if not 0 <= unit < count), None)
    if wrong is not None:
        raise DataError(f"blob '{blob}' has {count} channels, so it has no unit {wrong}")


def top_images_figure(
    model: PictureNet, pictures: Sequence[PathLike], found: TopImages, units: Sequence[int], *, side: int = 96, theme: Theme = LIGHT
) -> tuple[Figure, str]:
    """Draw a row for each of ``units``: the crops of its receptive field in its top pictures.

    Raises:
        DataError: there is no such unit, or a picture cannot be read any more.
    """
    check_units(found.blob, units, len(found.values))
    field = receptive_fields(model.net).get(found.blob)
    panels = []
    columns = min(found.values.shape[1], found.done)
    for unit in units:
        for rank in range(columns):
            index = int(found.pictures[unit, rank])
            if index < 0:
                image: NDArray[np.uint8] = np.full((side, side, 3), 128, np.uint8)
            else:
                shown = model.prepare(pictures[index]).shown
                y, x = (int(value) for value in found.places[unit, rank])
                top, left, bottom, right = field.box(y, x, shown.shape[:2]) if field else (0, 0, *shown.shape[:2])
                image = _centred(enlarge(np.ascontiguousarray(shown[top:bottom, left:right]), side), side, theme)
            title = f"unit {unit}" if rank == 0 else ""
            panels.append(Panel(image, title, f"{found.values[unit, rank]:.3g}" if index >= 0 else "–"))
    crop = f"cropped to the receptive field ({field.size[0]} × {field.size[1]} pixels)" if field and field.located else "whole"
    chosen = f"the {columns} pictures of {found.done} with" if columns < found.done else "the pictures by"
    caption = f"Blob '{found.blob}': {chosen} the largest value of each unit, {crop}."
    return panels_figure(panels, f"Top pictures  ·  {found.blob}", caption, columns=columns, theme=theme), caption


def _values(model: PictureNet, pictures: Sequence[PathLike], blob: str) -> NDArray[np.float32]:
    images = np.stack([model.prepare(picture).input for picture in pictures])
    values = join_items(run_items(model.net, torch.from_numpy(images), others=model.others, blobs=[blob]), blob)
    return np.ascontiguousarray(values.float().cpu().numpy())


def _centred(image: NDArray[np.uint8], side: int, theme: Theme) -> NDArray[np.uint8]:
    """Return the picture in the middle of a square: crops at the border of a picture are smaller."""
    square: NDArray[np.uint8] = np.empty((side, side, 3), np.uint8)
    square[:] = style.rgb(theme.grid)
    top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    return square


def _fingerprint(model: PictureNet, pictures: Sequence[PathLike], blob: str, top: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {blob} {top} {model.preprocessing}".encode())
    for name, value in sorted(model.others.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    for parameter in model.net.parameters():
        digest.update(np.ascontiguousarray(parameter.detach().cpu().numpy()).tobytes())
    for picture in pictures:
        digest.update(os.fsencode(os.fspath(picture)) + b"\0")
    return digest.hexdigest()


def _save(path: PathLike, key: str, found: TopImages) -> None:
    stream = io.BytesIO()
    np.savez(
        stream,
        key=np.array(key),
        blob=np.array(found.blob),
        values=found.values,
        pictures=found.pictures,
        places=found.places,
        done=found.done,
    )
    with atomic_write(path) as file:
        file.write(stream.getvalue())


def _load(path: PathLike, key: str) -> TopImages:
    try:
        with np.load(path, allow_pickle=False) as data:
            if str(data["key"]) != key:
                raise DataError(
                    f"{os.fspath(path)}: made with other pictures, weights, preprocessing, blob or number to keep; remove it to start again"
                )
            return TopImages(str(data["blob"]), data["values"], data["pictures"], data["places"], int(data["done"]))
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot read: {error.strerror or error}") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise DataError(f"{os.fspath(path)}: not a state of top images, or damaged; remove it to start again") from None
