"""Positions for the boxes and arrows of a net's graph: by Graphviz where it is installed, else by a layered layout of our own.

The own layout follows Sugiyama, Tagawa, Toda (1981): ranks by the longest path, order by medians, then horizontal positions that
bring each box near its neighbours, found for one rank at a time by isotonic regression.
"""

from __future__ import annotations

import itertools
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import RunFailed

Point = tuple[float, float]

RANK_GAP, BOX_GAP, LANE = 46.0, 26.0, 14.0  # between ranks, between boxes, width of a passing arrow
_SWEEPS = 12
_DOT_SECONDS = 60


@dataclass(frozen=True)
class Layout:
    """Where things are, in pixels from the top left.

    Attributes:
        width, height: Of the drawing.
        boxes: (left, top) of each box.
        arrows: For each arrow cubic Bézier points: a start and
            three more for each piece.
    """

    width: float
    height: float
    boxes: list[Point]
    arrows: list[list[Point]]


def lay_out(sizes: Sequence[Point], arrows: Sequence[tuple[int, int]], *, engine: str = "auto") -> Layout:
    """Place boxes of ``sizes`` (width, height) so that arrows (source, target) point down.

    Args:
        sizes: Of each box.
        arrows: Pairs of boxes; sources come before targets.
        engine: ``"dot"``, ``"own"``, or ``"auto"``: dot where it is installed and answers within a minute.

    Raises:
        RunFailed: ``engine`` is ``"dot"``, which is not installed or does not answer.
    """
    program = shutil.which("dot") if engine != "own" else None
    placed = _by_dot(program, sizes, arrows) if program is not None else None
    if placed is not None:
        return placed
    if engine == "dot":
        why = "is not installed" if program is None else f"({program}) failed, or took more than {_DOT_SECONDS} seconds"
        raise RunFailed(f"Graphviz's dot {why}; leave --layout at auto or set it to own")
    return _layered(sizes, arrows)


def _by_dot(program: str, sizes: Sequence[Point], arrows: Sequence[tuple[int, int]]) -> Layout | None:
    lines = [f'digraph g {{ ranksep={RANK_GAP / 72:.3f}; nodesep={BOX_GAP / 72:.3f}; node [shape=box fixedsize=true label=""];']
    lines += [f"n{i} [width={w / 72:.4f} height={h / 72:.4f}];" for i, (w, h) in enumerate(sizes)]
    lines += [f"n{a} -> n{b} [headport=n tailport=s arrowhead=none];" for a, b in arrows]
    try:
        done = subprocess.run(
            [program, "-Tplain"], input="\n".join([*lines, "}"]), capture_output=True, text=True, timeout=_DOT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    return _read_plain(done.stdout, sizes, arrows)


def _read_plain(text: str, sizes: Sequence[Point], arrows: Sequence[tuple[int, int]]) -> Layout | None:
    width = height = 0.0
    boxes: list[Point] = [(0.0, 0.0)] * len(sizes)
    curves: dict[tuple[int, int], list[list[Point]]] = {}
    for line in text.splitlines():
        words = shlex.split(line)
        if not words:
            continue
        if words[0] == "graph":
            width, height = float(words[2]) * 72, float(words[3]) * 72
        elif words[0] == "node":
            index = int(words[1][1:])
            w, h = sizes[index]
            # Rounded to five digits, the first box may begin a little above the drawing.
            boxes[index] = (max(0.0, float(words[2]) * 72 - w / 2), max(0.0, height - float(words[3]) * 72 - h / 2))
        elif words[0] == "edge":
            numbers = [float(word) * 72 for word in words[4 : 4 + 2 * int(words[3])]]
            points = [(x, height - y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
            curves.setdefault((int(words[1][1:]), int(words[2][1:])), []).append(points)
    try:
        return Layout(width, height, boxes, [curves[arrow].pop(0) for arrow in arrows])
    except (KeyError, IndexError):
        return None


def _layered(sizes: Sequence[Point], arrows: Sequence[tuple[int, int]]) -> Layout:
    ranks = _ranks(len(sizes), arrows)
    nodes = list(ranks)
    widths = [size[0] for size in sizes]
    chains: list[list[int]] = []
    for source, target in arrows:
        chain = [source]
        for rank in range(ranks[source] + 1, ranks[target]):
            chain.append(len(nodes))
            nodes.append(rank)
            widths.append(LANE)
        chains.append([*chain, target])
    up: list[list[int]] = [[] for _ in nodes]
    down: list[list[int]] = [[] for _ in nodes]
    for chain in chains:
        for a, b in itertools.pairwise(chain):
            down[a].append(b)
            up[b].append(a)
    rows = _ordered(nodes, up, down)
    x = _positions(rows, widths, up, down)
    tops, height = _heights(rows, sizes)
    left = min((x[i] - widths[i] / 2 for i in range(len(nodes))), default=0.0)
    width = max((x[i] + widths[i] / 2 for i in range(len(nodes))), default=0.0) - left
    boxes = [(x[i] - left - sizes[i][0] / 2, tops[nodes[i]]) for i in range(len(sizes))]
    bands = [(tops[rank], tops[rank] + max((sizes[i][1] for i in row if i < len(sizes)), default=0.0)) for rank, row in enumerate(rows)]
    return Layout(width, height, boxes, [_curve(chain, nodes, x, left, boxes, sizes, bands) for chain in chains])


def _ranks(count: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from the top; boxes without inputs move down to just above what reads them."""
    ranks = [0] * count
    has_input = [False] * count
    for source, target in sorted(arrows, key=lambda arrow: arrow[1]):
        ranks[target] = max(ranks[target], ranks[source] + 1)
        has_input[target] = True
    for index in range(count):
        readers = [ranks[target] for source, target in arrows if source == index] if not has_input[index] else []
        if readers:
            ranks[index] = min(readers) - 1
    return ranks


def _ordered(nodes: Sequence[int], up: Sequence[Sequence[int]], down: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the nodes of each rank from left to right, with few crossings: medians of the neighbours above and below in turn."""
    rows: list[list[int]] = [[] for _ in range(max(nodes, default=-1) + 1)]
    for node, rank in enumerate(nodes):
        rows[rank].append(node)
    place = {node: float(i) for row in rows for i, node in enumerate(row)}
    for sweep in range(_SWEEPS):
        order = rows if sweep % 2 == 0 else rows[::-1]
        near = up if sweep % 2 == 0 else down
        for row in order:
            keys = {node: _median([place[other] for other in near[node]], place[node]) for node in row}
            row.sort(key=lambda node: (keys[node], place[node]))
            place.update((node, float(i)) for i, node in enumerate(row))
    return rows


def _median(values: list[float], default: float) -> float:
    return float(np.median(values)) if values else default


def _positions(
    rows: Sequence[Sequence[int]], widths: Sequence[float], up: Sequence[Sequence[int]], down: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Return the centre of each node: as near to the mean of its neighbours as order and widths allow."""
    x = np.zeros(len(widths))
    offsets = [_offsets([widths[node] for node in row]) for row in rows]
    for row, offset in zip(rows, offsets, strict=True):
        x[list(row)] = offset - (offset.mean() if len(offset) else 0)
    for sweep in range(_SWEEPS):
        down_sweep = sweep % 2 == 0
        near = up if down_sweep else down
        indices = range(len(rows)) if down_sweep else range(len(rows) - 1, -1, -1)
        for rank in indices:
            row = list(rows[rank])
            wanted = np.array([np.mean([x[other] for other in near[node]]) if near[node] else x[node] for node in row])
            # A box without neighbours on this side may be anywhere. Others count alike: a preference for passing arrows would
            # move each block of a chain of blocks a little further to one side.
            weight = np.array([1.0 if near[node] else 0.05 for node in row])
            x[row] = _isotonic(wanted - offsets[rank], weight) + offsets[rank]
    return x


def _offsets(widths: Sequence[float]) -> NDArray[np.float64]:
    """Return the smallest distances from the first centre."""
    gaps = [0.0] + [(a + b) / 2 + BOX_GAP for a, b in itertools.pairwise(widths)]
    return np.cumsum(gaps)


def _isotonic(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-decreasing sequence nearest to ``values`` in the weighted squares (pool adjacent violators)."""
    blocks: list[list[float]] = []  # mean, weight, count
    for value, weight in zip(values, weights, strict=True):
        blocks.append([float(value), float(weight), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, w, n = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * w) / (last[1] + w)
            last[1], last[2] = last[1] + w, last[2] + n
    return np.repeat([block[0] for block in blocks], [int(block[2]) for block in blocks])


def _heights(rows: Sequence[Sequence[int]], sizes: Sequence[Point]) -> tuple[list[float], float]:
    tops, y = [], 0.0
    for row in rows:
        tops.append(y)
        y += max((sizes[node][1] for node in row if node < len(sizes)), default=0.0) + RANK_GAP
    return tops, max(0.0, y - RANK_GAP)


def _curve(
    chain: Sequence[int],
    ranks: Sequence[int],
    x: NDArray[np.float64],
    left: float,
    boxes: Sequence[Point],
    sizes: Sequence[Point],
    bands: Sequence[Point],
) -> list[Point]:
    """From the bottom of the first box to the top of the last; straight down through the ranks between.

    Also down to the lower edge of its own rank, where a higher box may stand next to the first one.
    """
    source, target = chain[0], chain[-1]
    here = (float(x[source]) - left, boxes[source][1] + sizes[source][1])
    edge = bands[ranks[source]][1]
    points = [here, *(_bend(here, (here[0], edge)) if edge > here[1] else ())]
    for node in chain[1:]:
        across = float(x[node]) - left
        top, bottom = bands[ranks[node]]
        points += _bend(points[-1], (across, boxes[target][1] if node == target else top))
        if node != target:
            points += _bend(points[-1], (across, bottom))
    return points


def _bend(start: Point, end: Point) -> list[Point]:
    middle = (start[1] + end[1]) / 2
    return [(start[0], middle), (end[0], middle), end]
