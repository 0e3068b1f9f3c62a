"""Calibration: the float model runs over pictures in onnxruntime, and the range of each of its values is counted."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from caffetools.cancel import CancelToken
from caffetools.engines.onnxruntime import Session, open_session
from caffetools.errors import DataError
from caffetools.events import EventSink, Progress, Warned, ignore
from caffetools.onnx.model import OnnxModel
from caffetools.quant.histograms import BINS, ValueRange
from caffetools.util.files import atomic_write, unfinished

PathLike = str | os.PathLike[str]

# Batches between two saves of the state, which a killed run resumes from.
_SAVE_EVERY = 16


class Images(Protocol):
    """Calibration images, prepared for the net's input.

    Attributes:
        blob: The input blob.
        identity: Text that differs for other images or other preprocessing.
    """

    blob: str
    identity: str

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return images ``start`` to ``stop`` - 1 as (N, C, H, W) float32. Raises :class:`DataError` naming the file or record."""


class LabelledImages(Images, Protocol):
    """Images whose classes are known."""

    def labels(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the classes of images ``start`` to ``stop`` - 1 as (N,)."""


@dataclass
class Ranges:
    """What calibration has counted so far.

    Attributes:
        values: Name of a value of the ONNX model → its range.
        images: Number of images counted.
    """

    values: dict[str, ValueRange] = field(default_factory=dict)
    images: int = 0

    def add(self, batch: dict[str, NDArray[Any]], images: int) -> None:
        """Count a batch of all values, arrays of any shape."""
        for name, array in batch.items():
            if array.dtype == np.float32:
                self.values.setdefault(name, ValueRange()).add(array, name=name)
        self.images += images

    def save(self, path: PathLike, fingerprint: str) -> None:
        """Write the state to ``path`` (NumPy's .npz)."""
        names = list(self.values)
        table = [(value.lowest, value.highest, value.width) for value in self.values.values()]
        head = json.dumps({"fingerprint": fingerprint, "images": self.images, "names": names})
        with atomic_write(path) as stream:
            np.savez_compressed(
                stream,
                head=np.frombuffer(head.encode(), np.uint8),
                numbers=np.array(table, np.float64).reshape(-1, 3),
                counts=np.array([value.counts for value in self.values.values()], np.int64).reshape(-1, BINS),
            )

    @classmethod
    def load(cls, path: PathLike, fingerprint: str) -> Ranges:
        """Read a state that :meth:`save` wrote.

        Raises:
            DataError: It is damaged, or of another model, other images or another batch size.
        """
        hint = "leave out --resume to start from the first image"
        try:
            with np.load(path, allow_pickle=False) as saved:
                head = json.loads(saved["head"].tobytes())
                numbers, counts = saved["numbers"].tolist(), saved["counts"]
                values = {
                    name: ValueRange(low, high, width, counts[index].copy())
                    for index, (name, (low, high, width)) in enumerate(zip(head["names"], numbers, strict=True))
                }
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            raise DataError("the saved calibration is damaged", path=path, hint=hint) from None
        if head["fingerprint"] != fingerprint:
            raise DataError("the saved calibration is of another model, of other images or of another batch size", path=path, hint=hint)
        return cls(values, int(head["images"]))


def state_path(out: PathLike) -> Path:
    """Return the file, next to the model to be written, that holds the calibration until the model is there."""
    return Path(out).with_name(f".{Path(out).name}.calibration.npz")


def remove_state(out: PathLike) -> None:
    """Remove the calibration that is kept next to a model, and what a killed run had half written of it."""
    state = state_path(out)
    state.unlink(missing_ok=True)
    for path in unfinished(state):
        path.unlink(missing_ok=True)


def calibrate(
    model: OnnxModel,
    images: Images,
    *,
    batch: int = 8,
    state: PathLike | None = None,
    resume: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Ranges:
    """Count the range of every value of ``model`` over ``images``.

    Args:
        model: The float model.
        images: What it runs on.
        batch: Images a run.
        state: File that keeps the counts; the caller removes it when it needs them no more.
        resume: Continue from ``state`` where it exists.
        events: Receives ``Progress`` in images; ``Warned`` says how many were counted before.
        cancel: Checked before each batch.

    Raises:
        DataError: An image cannot be read, or ``state`` does not fit.
        NetError: A value is not finite.
        Cancelled: ``cancel`` was set; ``state`` holds what was counted.
    """
    fingerprint = _fingerprint(model, images, batch) if state is not None else ""
    ranges = Ranges.load(state, fingerprint) if state is not None and resume and Path(state).exists() else Ranges()
    if ranges.images:
        events(Warned(task="calibrate", message=f"resumed after {ranges.images} of {len(images)} images"))
    session = _session_of_all_values(model)
    saved = ranges.images
    try:
        for number, start in enumerate(range(ranges.images, len(images), batch), 1):
            if cancel is not None:
                cancel.raise_if_cancelled("calibration")
            given = {images.blob: images.read(start, min(start + batch, len(images)))}
            ranges.add(given | session.run(given), len(given[images.blob]))
            events(Progress(task="calibrate", done=ranges.images, total=len(images), unit="images"))
            if state is not None and number % _SAVE_EVERY == 0:
                ranges.save(state, fingerprint)
                saved = ranges.images
    finally:
        if state is not None and saved < ranges.images:
            ranges.save(state, fingerprint)
    return ranges


def _session_of_all_values(model: OnnxModel) -> Session:
    proto = model.to_proto()
    known = {value.name for value in proto.graph.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    names = [name for node in proto.graph.node for name in node.output if name and kinds.get(name) == TensorProto.FLOAT]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    return open_session(proto)


def _fingerprint(model: OnnxModel, images: Images, batch: int) -> str:
    digest = hashlib.sha256(model.proto.SerializeToString(deterministic=True))
    for name, array in sorted(model.weights.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update(f"{images.identity} {len(images)} {batch}".encode())
    return digest.hexdigest()
