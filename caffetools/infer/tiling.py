"""Run a fully convolutional net over a large picture tile by tile, with the numbers of one pass over the whole picture.

Each tile is a window of the picture, wide enough that the values kept of it have their whole receptive field inside. Windows start
at multiples of the net's stride and have a size that differs from the picture's by such a multiple, so that every blob of a tile lies
on the whole blob's grid. Before anything runs, it is checked for each tile and blob that no kept value depends on padding that the
whole picture would not have there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.errors import CaffeToolsError, NetError
from caffetools.events import EventSink, Progress, ignore
from caffetools.layers.base import Layer, format_shape
from caffetools.layers.windows import AxisWindow
from caffetools.net.net import Net
from caffetools.proto.blobs import Array

# Positions from the first (included) to the second (not).
Range = tuple[int, int]
# Gives the net's input for rows and columns of the picture: (N, C, height, width) float32.
Window = Callable[[Range, Range], Array]
# Makes the array of a blob, of a name and a shape.
MakeArray = Callable[[str, tuple[int, ...]], NDArray[np.float32]]


@dataclass(frozen=True)
class _Step:
    """A layer over values, which are counted: a blob that several layers write in place is several values."""

    layer: int
    windows: tuple[AxisWindow, AxisWindow]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True)
class _Trace:
    """The layers between the picture (value 0) and the outputs.

    Attributes:
        steps: In order.
        strides: For each value, input pixels from one position to the next, for height and width.
        outputs: The value of each wanted blob.
    """

    steps: tuple[_Step, ...]
    strides: tuple[tuple[Fraction, Fraction], ...]
    outputs: Mapping[str, int]


@dataclass(frozen=True)
class AxisTile:
    """One tile along one axis.

    Attributes:
        window: The part of the picture that the net gets.
        kept: For each output blob the positions that are taken from this tile, counted in the whole blob.
        start: For each output blob the whole blob's position of the tile's position 0.
    """

    window: Range
    kept: Mapping[str, Range]
    start: Mapping[str, int]


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut.

    Attributes:
        rows, columns: The tiles along height and width.
        shapes: The shape of each whole output blob.
    """

    rows: tuple[AxisTile, ...]
    columns: tuple[AxisTile, ...]
    shapes: Mapping[str, tuple[int, ...]]


def plan_tiles(net: Net, source: str, outputs: Sequence[str], picture: tuple[int, ...], size: int) -> Tiling:
    """Cut a picture into tiles.

    Args:
        net: Fully convolutional; every layer of it is run.
        source: Its input blob.
        outputs: The blobs to compute.
        picture: The shape of the whole input, (N, C, H, W).
        size: Most pixels of a side that the net gets at once.

    Raises:
        NetError: A layer depends on the whole picture; names it.
        CaffeToolsError: ``size`` is too small for the outputs' receptive field or for a layer's kernel; names a size that is enough.
    """
    trace = _trace(net, source, outputs)
    aligned = [math.lcm(*(stride[axis].numerator for stride in trace.strides)) for axis in (0, 1)]
    sides = [_window_side(length, size, step) for length, step in zip(picture[2:], aligned, strict=True)]
    if min(sides) < 1:
        raise CaffeToolsError(f"tiles of {size} pixels are too small for this net, whose stride is {format_shape(aligned)}")
    first = (*picture[:2], *sides)
    try:
        layers = net.plan({source: first}).layers
    except NetError:
        # A kernel does not fit the maps of such a tile; that of the whole picture is the picture's fault.
        if sides == list(picture[2:]):
            raise
        enough = max(_Axis(trace, axis, picture[2 + axis], sides[axis], aligned[axis], ()).enough() for axis in (0, 1))
        raise CaffeToolsError(
            f"tiles of {size} pixels are too small for this net: its layers do not fit maps of {format_shape(sides)} pixels; "
            f"take at least {max(enough, size + 1)}"
        ) from None
    shapes = _value_shapes(trace, layers, first)
    axes = []
    for axis in (0, 1):
        sizes = [
            shape[2 + axis] + int((picture[2 + axis] - sides[axis]) / stride[axis])
            for shape, stride in zip(shapes, trace.strides, strict=True)
        ]
        axes.append((_Axis(trace, axis, picture[2 + axis], sides[axis], aligned[axis], tuple(sizes)), sizes))
    whole = {name: (*shapes[value][:2], axes[0][1][value], axes[1][1][value]) for name, value in trace.outputs.items()}
    return Tiling(tuple(axes[0][0].tiles(size)), tuple(axes[1][0].tiles(size)), whole)


def run_tiles(
    net: Net,
    source: str,
    tiling: Tiling,
    window: Window,
    make: MakeArray,
    *,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Run a net over all tiles.

    Args:
        net: As for :func:`plan_tiles`, with its weights, in the TEST phase.
        source: Its input blob.
        tiling: From :func:`plan_tiles`.
        window: Gives the input for rows and columns of the picture.
        make: Makes the array of each output blob, which may be a file mapped to memory.
        events: Receives a ``Progress`` event for each tile.
        cancel: Checked before every tile.

    Returns:
        The whole output blobs by name.

    Raises:
        Cancelled: ``cancel`` was set.
    """
    results = {name: make(name, shape) for name, shape in tiling.shapes.items()}
    total = len(tiling.rows) * len(tiling.columns)
    for number, (row, column) in enumerate((r, c) for r in tiling.rows for c in tiling.columns):
        if cancel is not None:
            cancel.raise_if_cancelled("inference")
        batch = torch.from_numpy(np.ascontiguousarray(window(row.window, column.window), np.float32))
        with torch.inference_mode():
            blobs = net({source: batch}, keep=list(results))
        for name, whole in results.items():
            (top, bottom), (left, right) = row.kept[name], column.kept[name]
            y, x = row.start[name], column.start[name]
            part = blobs[name][:, :, top - y : bottom - y, left - x : right - x]
            whole[:, :, top:bottom, left:right] = part.float().cpu().numpy()
        events(Progress(task="infer", done=number + 1, total=total, unit="tiles"))
    return results


def _trace(net: Net, source: str, outputs: Sequence[str]) -> _Trace:
    current = {source: 0}
    strides = [(Fraction(1), Fraction(1))]
    steps = []
    for index, layer in enumerate(net.layers):
        if layer.IS_DATA:
            continue
        windows = _local_windows(layer, current)
        reads = tuple(current[name] for name in layer.bottoms)
        if len({strides[value] for value in reads}) > 1:
            raise layer.error("its bottoms have different strides, so it cannot run tile by tile")
        stride = strides[reads[0]][0] * windows[0].scale, strides[reads[0]][1] * windows[1].scale
        writes = tuple(range(len(strides), len(strides) + len(layer.tops)))
        strides += [stride] * len(writes)
        steps.append(_Step(index, windows, reads, writes))
        current.update(zip(layer.tops, writes, strict=True))
    return _Trace(tuple(steps), tuple(strides), {name: current[name] for name in outputs})


def _local_windows(layer: Layer, known: Mapping[str, int]) -> tuple[AxisWindow, AxisWindow]:
    for name in layer.bottoms:
        if name not in known:
            raise layer.error(f"its bottom '{name}' is not computed from the picture, so it cannot run tile by tile")
    flat = [shape for shape in (*layer.bottom_shapes, *layer.top_shapes) if len(shape) != 4]
    if flat or (windows := layer.spatial_windows()) is None:
        raise NetError(
            f"({layer.type_name}) one of its values may depend on the whole picture, so it cannot run tile by tile",
            layer=layer.name,
            hint="choose blobs before it with --outputs, or run without --tile",
        )
    return windows


def _window_side(length: int, size: int, step: int) -> int:
    """Return the side of the tiles' windows: at most ``size``, and less than ``length`` by a multiple of ``step``."""
    return length if length <= size else length - -(-(length - size) // step) * step


def _value_shapes(trace: _Trace, layers: Sequence[Layer], first: tuple[int, ...]) -> list[tuple[int, ...]]:
    shapes = [first]
    for step in trace.steps:
        shapes += [tuple(shape) for shape in layers[step.layer].top_shapes]
    return shapes


@dataclass(frozen=True)
class _Axis:
    """One axis: the picture's length, the windows' side, the step that keeps all grids aligned, and the values' whole sizes."""

    trace: _Trace
    axis: int
    length: int
    side: int
    step: int
    sizes: tuple[int, ...]

    def tiles(self, size: int) -> Iterator[AxisTile]:
        """Yield the tiles; ``size`` is what the user asked for."""
        core = self._core(size)
        count = -(-self.length // core)
        for number in range(count):
            kept = {name: self._kept(value, number, core, last=number == count - 1) for name, value in self.trace.outputs.items()}
            needed = self._needed({self.trace.outputs[name]: part for name, part in kept.items() if part[0] < part[1]}, clip=True)
            if needed is None:
                continue
            start = min(needed[0] // self.step * self.step, self.length - self.side)
            self._check(start, kept)
            starts = {name: int(start / self._stride(value)) for name, value in self.trace.outputs.items()}
            yield AxisTile((start, start + self.side), kept, starts)

    def _stride(self, value: int) -> Fraction:
        return self.trace.strides[value][self.axis]

    def enough(self) -> int:
        """Return a side of tiles that is enough for any picture."""
        return self._field() + 2 * self.step

    def _field(self) -> int:
        """Return how many pixels the outputs of one ``step`` depend on."""
        wanted = {value: (0, int(self.step / self._stride(value))) for value in self.trace.outputs.values()}
        low, high = self._needed(wanted, clip=False) or (0, 0)
        return high - low

    def _core(self, size: int) -> int:
        """Return the pixels from one tile to the next."""
        if self.side == self.length:
            return self.length
        field = self._field()
        core = (self.side - field + 1) // self.step * self.step
        if core < self.step:
            raise CaffeToolsError(
                f"tiles of {size} pixels are too small for this net: its outputs of {self.step} pixels of a side depend on {field}; "
                f"take at least {self.enough()}"
            )
        return core

    def _kept(self, value: int, number: int, core: int, *, last: bool) -> Range:
        stride, size = self._stride(value), self.sizes[value]
        start, end = int(number * core / stride), int((number + 1) * core / stride)
        return min(start, size), size if last else min(end, size)

    def _needed(self, wanted: Mapping[int, Range], *, clip: bool) -> Range | None:
        """Return the pixels that positions of values depend on; with ``clip`` those of the picture, else padding counts as well."""
        ranges: dict[int, Range] = dict(wanted)
        for step in reversed(self.trace.steps):
            window = step.windows[self.axis]
            for top in step.writes:
                if top not in ranges:
                    continue
                low, high = window.span(ranges[top][0])[0], window.span(ranges[top][1] - 1)[1] + 1
                for bottom in step.reads:
                    part = (low, high)
                    if clip:
                        # A window that lies in the padding alone needs no pixel; the nearest one does no harm.
                        last = self.sizes[bottom] - 1
                        part = min(max(low, 0), last), max(min(high, last + 1), 1)
                    known = ranges.get(bottom, part)
                    ranges[bottom] = min(known[0], part[0]), max(known[1], part[1])
        return ranges.get(0)

    def _check(self, start: int, kept: Mapping[str, Range]) -> None:
        """Check that a window at ``start`` gives the whole picture's values at the positions that are kept."""
        right: dict[int, Range] = {0: (start, start + self.side)}
        for step in self.trace.steps:
            for top in step.writes:
                offset = int(start / self._stride(top))
                end = self.sizes[top] - int((self.length - self.side - start) / self._stride(top))
                parts = [self._right(step.windows[self.axis], right[bottom], self.sizes[bottom], (offset, end)) for bottom in step.reads]
                right[top] = max(part[0] for part in parts), min(part[1] for part in parts)
        for name, value in self.trace.outputs.items():
            (low, high), (first, last) = kept[name], right[value]
            if low < high and not (first <= low and high <= last):
                raise NetError(f"blob '{name}' cannot be computed tile by tile: positions {low} to {high} need more of the picture")

    @staticmethod
    def _right(window: AxisWindow, bottom: Range, size: int, positions: Range) -> Range:
        """Return which of the tile's ``positions`` of a top have right values, where the bottom, of ``size``, has right ones in a range."""
        low, high = positions
        while low < high and not (bottom[0] == 0 or window.span(low)[0] >= bottom[0]):
            low += 1
        while high > low and not (bottom[1] == size or window.span(high - 1)[1] < bottom[1]):
            high -= 1
        return low, high


def describe(tiling: Tiling) -> str:
    """Return the tiling in words: ``12 tiles of 512 x 512``."""
    (top, bottom), (left, right) = tiling.rows[0].window, tiling.columns[0].window
    return f"{len(tiling.rows) * len(tiling.columns)} tiles of {format_shape((bottom - top, right - left))}"
