"""All drawings of a net on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caffetools.proto.text import read_net
from caffetools.visualize.activations import blob_values, channels_first, computable_blobs, overview_figure
from caffetools.visualize.explanations import ALL_METHODS, explain_all, explanations_figure
from caffetools.visualize.filters import filter_changes_figure, filters_figure, find_weights
from caffetools.visualize.graph_drawing import graph_figure, place_graph
from caffetools.visualize.net_graph import fold_repeats, net_graph
from caffetools.visualize.output import check_suffix
from caffetools.visualize.page import Drawing, write_page
from caffetools.visualize.picture_net import PathLike, PictureNet, Prepared
from caffetools.visualize.units import Progress, progress_of_part
from caffetools.visualize.weight_statistics import weight_statistics, weights_figure


def write_everything(
    path: PathLike,
    model: PictureNet,
    deploy: PathLike,
    weights: PathLike,
    pictures: Sequence[PathLike],
    *,
    before: PathLike | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a page with filters, weights and graph of a net, and activations and explanations of pictures.

    Args:
        path: The page, .html.
        model: The net.
        deploy: Its prototxt.
        weights: Its .caffemodel.
        pictures: Files.
        before: Earlier weights to compare with.
        progress: Called with (done, total).

    Returns:
        The number of drawings.

    Raises:
        DataError: another suffix, a picture cannot be read, or weights are not finite.
        RunFailed: the page cannot be written.
    """
    check_suffix(path, [".html"])
    name = model.net.name or Path(deploy).stem
    prepared = [model.prepare(picture) for picture in pictures]
    drawings = _weights(weights, before)
    for index, picture in enumerate(prepared):
        drawings += _picture(model, picture, progress_of_part(progress, index, len(prepared)))
    graph = fold_repeats(net_graph(read_net(deploy)))
    placed = place_graph(graph)
    facts = f"{', '.join(graph.facts)}."
    drawings.append(Drawing("Graph", lambda theme: graph_figure(placed, title=name, theme=theme), facts))
    write_page(path, name, drawings)
    return len(drawings)


def _weights(weights: PathLike, before: PathLike | None) -> list[Drawing]:
    new = find_weights(weights)
    statistics = weight_statistics(weights, before)
    distributions = Drawing(f"Weights of {Path(weights).name}", lambda theme: weights_figure(statistics, Path(weights).name, theme=theme))
    if before is None:
        return [Drawing(f"Filters of {new.name}", lambda theme: filters_figure(new, theme=theme)[0]), distributions]
    old = find_weights(before, new.name)
    return [Drawing(f"Filters of {new.name}", lambda theme: filter_changes_figure(old, new, theme=theme)[0]), distributions]


def _picture(model: PictureNet, prepared: Prepared, progress: Progress) -> list[Drawing]:
    names = [name for name in computable_blobs(model.net) if name != model.input]
    values = channels_first(model.net, blob_values(model.net, prepared.input, names))
    methods = [method for method in ALL_METHODS if method != "occlusion"]
    explained = explain_all(model, prepared, methods, progress=progress)
    title = f"Activations  ·  {prepared.name}"
    return [
        Drawing(
            f"Activations for {prepared.name}", lambda theme: overview_figure(values, picture=prepared.shown, title=title, theme=theme)[0]
        ),
        Drawing(f"Explanation of {prepared.name}", lambda theme: explanations_figure(model, prepared, explained, theme=theme)[0]),
    ]
