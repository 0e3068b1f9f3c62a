"""All drawings of a net on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from caffetools.cancel import CancelToken
from caffetools.errors import NetError
from caffetools.events import ArtifactWritten, EventSink, Warned, ignore, on_progress, reporter, reporting
from caffetools.proto.text import read_net
from caffetools.visualize.activations import blob_values, channels_first, computable_blobs, overview_figure
from caffetools.visualize.explanations import ALL_METHODS, explain_all, explanations_figure
from caffetools.visualize.filters import filter_changes_figure, filters_figure, find_weights
from caffetools.visualize.graph_drawing import graph_figure, place_graph
from caffetools.visualize.net_graph import fold_repeats, net_graph
from caffetools.visualize.output import check_suffix
from caffetools.visualize.page import Drawing, write_page
from caffetools.visualize.panels import PANEL_SIDE
from caffetools.visualize.picture_net import PathLike, PictureNet, Prepared
from caffetools.visualize.style import Theme
from caffetools.visualize.units import progress_of_part
from caffetools.visualize.weight_statistics import WeightStatistics, weight_statistics, weights_figure

_MOST_BLOBS = 64  # of all pictures of a page together
_LARGE_PICTURES = 4  # pictures up to which panels have their full size
_LEAST_SIDE = 48  # pixels of a panel
_MOST_LAYERS = 160  # rows of the weights' drawing


@reporting("visualize", "Draw a net on one page")
def write_everything(
    path: PathLike,
    model: PictureNet,
    deploy: PathLike,
    weights: PathLike,
    pictures: Sequence[PathLike],
    *,
    before: PathLike | None = None,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> int:
    """Write a page with filters, weights and graph of a net, and activations and explanations of pictures.

    Pictures of a net with several outputs, or with further inputs that its output depends on, are not explained.

    Args:
        path: The page, .html.
        model: The net.
        deploy: Its prototxt.
        weights: Its .caffemodel.
        pictures: Files.
        before: Earlier weights to compare with.
        events: Receives the progress in percent, the page as an artifact, and a warning for each picture that is not explained.
        cancel: Stops between pictures, and between the batches of an explanation; no page is written.

    Returns:
        The number of drawings.

    Raises:
        DataError: another suffix, a picture cannot be read, or weights are not finite.
        RunFailed: the page cannot be written.
        Cancelled: ``cancel`` was called.
    """
    check_suffix(path, [".html"])
    name = model.net.name or Path(deploy).stem
    prepared = [model.prepare(picture) for picture in pictures]
    drawings, report = _weights(weights, before, cancel), reporter(events, "visualize", "percent", cancel)
    size = _Size.of(len(prepared))
    for index, picture in enumerate(prepared):
        sink = on_progress(progress_of_part(report, index, len(prepared)))
        drawings.append(_activations(model, picture, size))
        try:
            drawings.append(_explanation(model, picture, size, sink, cancel))
        except NetError as error:
            # Which of several outputs to explain, or what other inputs hold, a page of everything cannot know.
            events(Warned(task="visualize", message=f"{picture.name} is not explained: {error}"))
    graph = fold_repeats(net_graph(read_net(deploy)))
    placed = place_graph(graph)
    facts = f"{', '.join(graph.facts)}."
    drawings.append(Drawing("Graph", lambda theme: graph_figure(placed, title=name, theme=theme), facts))
    if cancel is not None:
        cancel.raise_if_cancelled("visualize")
    write_page(path, name, drawings)
    events(ArtifactWritten(task="visualize", path=str(path), what="page"))
    return len(drawings)


def _weights(weights: PathLike, before: PathLike | None, cancel: CancelToken | None) -> list[Drawing]:
    new = find_weights(weights)
    statistics = weight_statistics(weights, before, cancel=cancel)
    rows, note = _rows(statistics)
    distributions = Drawing(
        f"Weights of {Path(weights).name}", lambda theme: weights_figure(rows, Path(weights).name, note=note, theme=theme)
    )
    if before is None:
        return [Drawing(f"Filters of {new.name}", lambda theme: filters_figure(new, theme=theme)[0]), distributions]
    old = find_weights(before, new.name)
    return [Drawing(f"Filters of {new.name}", lambda theme: filter_changes_figure(old, new, theme=theme)[0]), distributions]


def _rows(statistics: Sequence[WeightStatistics]) -> tuple[list[WeightStatistics], str]:
    """Return the layers that a page shows, and a sentence on those that it leaves out: of many layers first the vectors."""
    shown = list(statistics)
    if len(shown) > _MOST_LAYERS:
        shown = [item for item in shown if len(item.shape) > 1] or shown
    if len(shown) > _MOST_LAYERS:
        shown = [shown[round(index)] for index in np.linspace(0, len(shown) - 1, _MOST_LAYERS)]
    hidden = len(statistics) - len(shown)
    return shown, f"{hidden} more layers are left out; `caffetools visualize weights` draws all." if hidden else ""


@dataclass(frozen=True)
class _Size:
    """How much of each picture a page shows, so that the page stays below 5 MB.

    Attributes:
        side: Pixels of a panel's longer side.
        blobs: Blobs with their activations.
    """

    side: int
    blobs: int

    @classmethod
    def of(cls, pictures: int) -> _Size:
        """Return what each of ``pictures`` gets: of more than four, panels of a smaller area, and its share of the blobs."""
        count = max(1, pictures)
        return cls(max(_LEAST_SIDE, min(PANEL_SIDE, int(PANEL_SIDE * (_LARGE_PICTURES / count) ** 0.5))), max(1, _MOST_BLOBS // count))


def _activations(model: PictureNet, prepared: Prepared, size: _Size) -> Drawing:
    names = [name for name in computable_blobs(model.net, model.others) if name != model.input]
    values = channels_first(model.net, blob_values(model.net, prepared.input, names, model.others))

    def draw(theme: Theme) -> Figure:
        title = f"Activations  ·  {prepared.name}"
        return overview_figure(values, picture=prepared.shown, title=title, most=size.blobs, side=size.side, theme=theme)[0]

    return Drawing(f"Activations for {prepared.name}", draw)


def _explanation(model: PictureNet, prepared: Prepared, size: _Size, events: EventSink, cancel: CancelToken | None) -> Drawing:
    methods = [method for method in ALL_METHODS if method != "occlusion"]
    explained = explain_all(model, prepared, methods, events=events, cancel=cancel)
    return Drawing(
        f"Explanation of {prepared.name}",
        lambda theme: explanations_figure(model, prepared, explained, side=size.side, theme=theme)[0],
    )
