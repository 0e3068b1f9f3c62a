"""The net behind the live page: activations, explanations and preferred pictures of its units, and the training run it follows."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.images import decode_image
from caffetools.errors import CaffeToolsError, DataError
from caffetools.net.probe import run_items
from caffetools.net.weights import load_weights
from caffetools.proto.text import read_solver
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.logs.training_log import read_log
from caffetools.solver.paths import snapshot_prefix
from caffetools.visualize.activations import computable_blobs
from caffetools.visualize.attribution import BACKWARD_RULES, backward_signal
from caffetools.visualize.colormaps import heat_of, scaled_colours
from caffetools.visualize.curves import series
from caffetools.visualize.explanations import ALL_METHODS, explain, score_blob
from caffetools.visualize.filters import find_weights, layer_sheet
from caffetools.visualize.panels import enlarge
from caffetools.visualize.picture_net import PictureNet, Prepared
from caffetools.visualize.receptive_field import receptive_fields
from caffetools.visualize.synthesis import preferred_part, synthesize
from caffetools.visualize.top_images import TopImages, find_top_images
from caffetools.visualize.units import Unit

Pixels = NDArray[np.uint8]
_MOST_TILES = 400
_MOST_PICTURES = 1000  # that top pictures are looked for in
_STEPS = 120  # of a synthesized picture
_MOST_PAGES = 16  # whose last pictures are kept
_MOST_POINTS = 500  # of a curve


@dataclass(frozen=True)
class View:
    """How the channels of a blob are shown.

    Attributes:
        gamma: Exponent of the values' share of the largest one; below 1 weak values are brighter.
        common: Scale all channels alike, not each by its own largest value.
        back: (method, blob, unit) whose backward signal is shown instead of the activations; None for the activations.
    """

    gamma: float = 1.0
    common: bool = False
    back: tuple[str, str, int] | None = None


@dataclass(frozen=True)
class Frame:
    """The net's view of one picture.

    Attributes:
        sheet: (H, W, 3) RGB: the channels of the blob as tiles.
        columns: Tiles in a row.
        rows: Rows of tiles.
        side: (height, width) of a tile with its gap.
        unit: (H, W, 3) RGB: the selected channel, enlarged.
        value: Its largest value; NaN where it has one.
        predictions: (class name, probability), the most probable first.
    """

    sheet: Pixels
    columns: int
    rows: int
    side: tuple[int, int]
    unit: Pixels
    value: float
    predictions: list[tuple[str, float]]


@dataclass
class LiveModel:
    """A net and the last picture that each of its pages gave it. Its methods may be called from several threads.

    Attributes:
        model: The net.
        pictures: Files to show one after the other; top pictures are looked for among them.
        run: A training run's folder or snapshot prefix to follow.
        cancel: Stops a search for top pictures and a synthesis.
    """

    model: PictureNet
    pictures: Sequence[Path] = ()
    run: Path | None = None
    cancel: CancelToken = field(default_factory=CancelToken)
    _last: OrderedDict[str, Prepared] = field(default_factory=OrderedDict)
    _top: dict[str, TopImages] = field(default_factory=dict)
    _iteration: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def describe(self) -> dict[str, Any]:
        """Return what the page needs to know at its start, as plain values. Raises :class:`DataError` for a net without blobs to show."""
        net = self.model.net
        blobs = []
        for name in computable_blobs(net, self.model.others):
            shape = net.blob_shapes[name]
            if len(shape) >= 2 and name != self.model.input:
                maps = len(shape) == 4 and shape[2] * shape[3] > 1
                blobs.append({"name": name, "units": shape[1], "shape": " × ".join(map(str, shape[1:])), "maps": maps})
        if not blobs:
            raise DataError(f"the net '{net.name}' computes no blobs from its pictures")
        methods = [name for name in ALL_METHODS if name != "occlusion"]
        return {
            "name": net.name,
            "blobs": blobs,
            "methods": methods,
            "size": [self.model.preprocessor.width, self.model.preprocessor.height],
            "pictures": len(self.pictures),
            "backward": list(BACKWARD_RULES),
            "hasRun": self.run is not None,
        }

    def picture(self, index: int) -> tuple[str, bytes]:
        """Return the name and the contents of one of the picture files.

        Raises:
            DataError: there is no such picture, or it cannot be read.
        """
        if not 0 <= index < len(self.pictures):
            raise DataError(f"there are {len(self.pictures)} pictures, so there is no number {index}")
        path = Path(self.pictures[index])
        try:
            return path.name, path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None

    def frame(self, data: bytes, blob: str, unit: int, view: View = View(), *, page: str = "") -> Frame:
        """Run the net on an encoded picture (JPEG, PNG), which is then the last one of ``page``.

        Raises:
            DataError: it is not a picture.
            NetError: the net has no such blob, or the unit of the backward signal does not depend on it.
        """
        pixels = decode_image(data, color=self.model.preprocessor.channels == 3, what="the frame")
        return self.show(self.model.prepare_pixels(pixels), blob, unit, view, page=page)

    def show(self, prepared: Prepared, blob: str, unit: int, view: View = View(), *, page: str = "") -> Frame:
        """Run the net on a prepared picture; raises as :meth:`frame`."""
        with self._lock:
            self._last[page] = prepared
            self._last.move_to_end(page)
            if len(self._last) > _MOST_PAGES:
                self._last.popitem(last=False)
        outputs = self.model.net.outputs[:1]
        batch, others = torch.from_numpy(prepared.input)[None], self.model.others
        (items,) = run_items(self.model.net, batch, others=others, blobs=[blob, *outputs])
        values = items.values.blobs
        maps = values[blob][0].float().cpu().numpy()
        if view.back is not None:
            method, origin, of = view.back
            maps = backward_signal(self.model.net, prepared.input, at=blob, method=method, blob=origin, unit=of, inputs=others)
        maps = maps.reshape(len(maps), maps.shape[1] if maps.ndim > 2 else 1, -1)
        unit = min(max(unit, 0), len(maps) - 1)
        sheet, columns, side = _sheet(maps[:_MOST_TILES], view)
        chosen = maps[unit]
        rows = sheet.shape[0] // side[0]
        large = enlarge(scaled_colours(np.nan_to_num(chosen)), 260)
        return Frame(sheet, columns, rows, side, large, float(chosen.max()), self._predictions(values[outputs[0]][:1]))

    def explain(self, method: str, blob: str, unit: int, *, colour: bool = False, page: str = "") -> Pixels:
        """Return the map of a unit for the last picture of a page, (H, W, 3) RGB.

        Args:
            method: One of the methods of :func:`~caffetools.visualize.explanations.explain`.
            blob: Of the unit.
            unit: Its index.
            colour: Show an attribution of each channel as such, grey where it is 0, not its largest value over the channels.
            page: Which page asks; several may show pictures of their own.

        Raises:
            DataError: no picture was given yet.
        """
        prepared = self._last.get(page)
        if prepared is None:
            raise DataError("no picture was given yet")
        chosen: Unit = unit
        found = np.nan_to_num(explain(self.model, prepared, method, blob=blob, unit=chosen))
        if colour and found.ndim == 3 and len(found) == 3:
            grey = 127.5 + 127.5 * found[::-1].transpose(1, 2, 0) / (np.abs(found).max() or 1.0)  # the net's pictures are BGR
            return enlarge(np.rint(grey).astype(np.uint8), 260)
        heat = heat_of(found)
        if heat.shape != prepared.shown.shape[:2]:
            heat = np.asarray(cv2.resize(heat, prepared.shown.shape[1::-1], interpolation=cv2.INTER_LINEAR))
        return enlarge(scaled_colours(heat), 260)

    def top(self, blob: str, unit: int) -> list[Pixels]:
        """Return the crops, (H, W, 3) uint8, of the nine pictures that activate a unit most. Raises :class:`DataError` without pictures."""
        if not self.pictures:
            raise DataError("give --pictures FOLDER to see the pictures that activate a unit most")
        with self._lock:
            if blob not in self._top:
                self._top[blob] = find_top_images(self.model, list(self.pictures[:_MOST_PICTURES]), blob, top=9, cancel=self.cancel)
            found = self._top[blob]
        area = receptive_fields(self.model.net).get(blob)
        crops = []
        for index, (y, x) in zip(found.pictures[unit], found.places[unit], strict=True):
            if index < 0:
                continue
            shown = self.model.prepare(self.pictures[int(index)]).shown
            top, left, bottom, right = area.box(int(y), int(x), shown.shape[:2]) if area else (0, 0, *shown.shape[:2])
            crops.append(enlarge(np.ascontiguousarray(shown[top:bottom, left:right]), 84))
        return crops

    def synthesize(self, blob: str, unit: int) -> Pixels:
        """Return the part that a unit sees of a picture that it prefers, (H, W, 3) RGB; units of probabilities are those of the scores before them."""
        if blob in self.model.net.outputs:
            blob = score_blob(self.model.net)
        made = synthesize(self.model, blob=blob, unit=unit, steps=_STEPS, cancel=self.cancel)
        return enlarge(preferred_part(self.model, made, blob, unit), 260)

    def follow(self, seen: int | None = None) -> dict[str, Any]:
        """Load the run's newest snapshot where there is a new one, and return its curves and its iteration as plain values.

        Args:
            seen: The iteration whose weights the page has shown; "changed" says whether those loaded are of another one.

        Raises:
            DataError: no run is followed.
        """
        if self.run is None:
            raise DataError("no run is followed; give --run")
        prefix = run_prefix(self.run)
        lines: list[dict[str, Any]] = []
        try:
            log = read_log(Path(f"{prefix}.log"))
            lines = [
                {"phase": s.phase, "name": s.name, "panel": s.panel, "x": _thin(s.x), "y": [_finite(y) for y in _thin(s.y)]}
                for s in series({"run": log})
            ]
        except DataError:
            pass  # The first lines are not written yet.
        snapshot = newest_snapshot(prefix)
        if snapshot is not None and snapshot.iteration != self._iteration:
            with self._lock:
                load_weights(self.model.net, snapshot.weights)
                self._iteration = snapshot.iteration
                self._top.clear()
        return {"lines": lines, "iteration": self._iteration, "changed": self._iteration != seen}

    def filters(self) -> Pixels | None:
        """Return the first layer's filters as tiles, (H, W, 3) RGB; None where they are not filters."""
        net = self.model.net
        weights = {layer.name: [layer.blobs[0].detach().cpu().numpy()] for layer in net.layers if len(layer.blobs)}
        try:
            sheet = layer_sheet(find_weights(weights))
        except CaffeToolsError:
            return None
        return sheet.image if sheet is not None else None

    def _predictions(self, scores: torch.Tensor) -> list[tuple[str, float]]:
        row = scores[0].float().cpu().numpy().reshape(-1)
        labels = self.model.labels if len(self.model.labels) == len(row) else ()
        order = np.argsort(-row, kind="stable")[:5]
        return [(labels[i] if labels else f"class {i}", float(row[i])) for i in order]


def _thin(values: Sequence[float]) -> list[float]:
    """Return at most so many values as a small curve can show, the last one among them."""
    step = -(-len(values) // _MOST_POINTS)
    return list(values[::-1][:: max(1, step)][::-1])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sheet(maps: NDArray[np.float32], view: View) -> tuple[Pixels, int, tuple[int, int]]:
    maps = np.nan_to_num(maps)
    count, height, width = maps.shape
    columns = max(1, int(np.ceil(count**0.5 * 1.3)))
    target = 56 if count <= 100 else 38 if count <= 200 else 28
    peak = np.abs(maps).reshape(count, -1).max(1).reshape(-1, 1, 1)
    peak = np.full_like(peak, peak.max()) if view.common else peak
    unit = maps / np.where(peak > 0, peak, 1)
    if view.gamma != 1:
        unit = np.sign(unit) * np.abs(unit) ** view.gamma
    colours = scaled_colours(unit, 1.0)
    if max(height, width) > target:
        factor = -(-max(height, width) // target)
        colours = colours[:, ::factor, ::factor]
    else:
        factor = max(1, target // max(height, width))
        colours = colours.repeat(factor, axis=1).repeat(factor, axis=2) if factor > 1 else colours
    high, wide = colours.shape[1] + 2, colours.shape[2] + 2
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, high, wide, 3), np.uint8)
    padded[:count, :-2, :-2] = colours
    sheet = padded.reshape(rows, columns, high, wide, 3).swapaxes(1, 2).reshape(rows * high, columns * wide, 3)
    return np.ascontiguousarray(sheet), columns, (high, wide)


def run_prefix(run: Path) -> Path:
    """Return the snapshot prefix of a run.

    Args:
        run: The folder of a fine-tuning run or of snapshots, a solver prototxt, or the prefix itself.

    Raises:
        DataError: it is another file.
        PrototxtError: the solver cannot be read.
    """
    if run.is_file():
        if run.suffix != ".prototxt":
            raise DataError(f"{run}: a run to follow is a folder, a solver's prototxt or a prefix of snapshots, not such a file")
        return Path(snapshot_prefix(read_solver(run), run))
    if not run.is_dir():
        return run
    folder = run / "net" if (run / "net").is_dir() else run
    states = sorted(folder.glob("*_iter_*.solverstate*"), key=lambda path: path.stat().st_mtime)
    return folder / (states[-1].name.rpartition("_iter_")[0] if states else "snapshot")
