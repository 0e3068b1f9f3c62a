"""``caffetools visualize``: pictures of weights, activations, graphs and training, and explanations of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.curves import curves
from caffetools.cli.explain import COMMANDS
from caffetools.cli.models import ModelCommand, complete_model, net_file, weights_file
from caffetools.cli.options import Device, Dialect, Labels, Mean, Plugin, Resize, Scale, Stage
from caffetools.cli.show import note, open_file, print_json, progress_sink
from caffetools.cli.visualize_common import Deploy, Out, Picture, Show, Weights, drawing, emit, open_net, report_written
from caffetools.errors import DataError, NetError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from caffetools.layers.base import Shape
    from caffetools.visualize.net_graph import NetGraph
    from caffetools.visualize.style import Theme


app = typer.Typer(
    name="visualize", help="Draw weights, activations, graphs and training curves, and explain a net's answers.", no_args_is_help=True
)


WeightsFile = Annotated[
    Path,
    typer.Argument(
        metavar="WEIGHTS",
        help="A .caffemodel; or a network of the zoo, whose weights are fetched on use.",
        show_default=False,
        autocompletion=complete_model,
    ),
]


def filters(
    weights: WeightsFile,
    out: Out = None,
    layer: Annotated[
        str | None, typer.Option(help="The layer whose weights to draw; by default the first convolution with filters.")
    ] = None,
    before: Annotated[
        Path | None, typer.Option(metavar="WEIGHTS", help="Earlier weights: draw before, after and the change side by side.")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Scale all filters alike, not each by its own largest weight.")] = False,
    rgb: Annotated[bool, typer.Option("--rgb", help="The network reads RGB pictures; Caffe's tools give it BGR.")] = False,
    picture: Annotated[
        str | None, typer.Option(help="For an InnerProduct that reads a picture: its shape, as 1x28x28. Otherwise a histogram is drawn.")
    ] = None,
    show: Show = False,
) -> None:
    """Draw a layer's filters as tiles: in colour for the first layer of a colour network, else a gray tile for each channel."""
    from caffetools.visualize.filters import filter_changes_figure, filters_figure, find_weights

    shape = _shape(picture) if picture else None
    new = find_weights(weights_file(weights), layer)
    old = find_weights(weights_file(before), new.name) if before else None
    scaling, order = "common" if common else "each", "rgb" if rgb else "bgr"

    def draw(theme: Theme) -> tuple[Figure, str]:
        if old is not None:
            return filter_changes_figure(old, new, normalize=scaling, channel_order=order, theme=theme)  # type: ignore[arg-type]
        return filters_figure(new, normalize=scaling, channel_order=order, picture_shape=shape, theme=theme)  # type: ignore[arg-type]

    emit(draw, out, show, f"Filters of {new.name}")


def activations(
    deploy: Deploy,
    weights: Weights,
    picture: Picture,
    out: Out = None,
    blob: Annotated[
        str | None, typer.Option(help="Draw all channels of this blob; by default some channels of every blob with positions.")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Scale all channels alike, not each by its own largest value.")] = False,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    labels: Labels = None,
    device: Device = "auto",
    show: Show = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Draw what the blobs of a net hold for a picture: feature maps as tiles, vectors as bars."""
    from caffetools.visualize.activations import activations_figure, blob_values, channels_first, computable_blobs, overview_figure

    model = open_net(deploy, weights, mean, scale, resize, labels, device)
    prepared = model.prepare(picture)
    blobs = [blob] if blob else computable_blobs(model.net, model.others)
    values = channels_first(model.net, blob_values(model.net, prepared.input, blobs, model.others))

    def draw(theme: Theme) -> tuple[Figure, str]:
        if blob:
            return activations_figure(values[blob], blob, common=common, labels=model.labels, picture=prepared.name, theme=theme)
        title = f"Activations  ·  {model.net.name or deploy.name}  ·  {prepared.name}"
        shown = {name: array for name, array in values.items() if name != model.input}
        return overview_figure(shown, picture=prepared.shown, title=title, theme=theme)

    emit(draw, out, show, f"Activations for {prepared.name}")


def weights(
    weights: WeightsFile,
    out: Out = None,
    before: Annotated[Path | None, typer.Option(metavar="WEIGHTS", help="Earlier weights to compare norms with.")] = None,
    spectra: Annotated[bool, typer.Option("--spectra/--no-spectra", help="Compute singular values; slow for very large layers.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    show: Show = False,
) -> None:
    """Draw the distribution and the spectrum of each layer's weights, with dead units and norm ratios to earlier weights."""
    from caffetools.visualize.weight_statistics import statistics_table, weight_statistics, weights_figure

    file, earlier = weights_file(weights), weights_file(before) if before else None
    with progress_sink("Weights") as events:
        statistics = weight_statistics(file, earlier, spectra=spectra, events=events)
    if json:
        print_json(statistics_table(statistics))
    if not json or out or show:
        dead = sum(item.dead for item in statistics)
        count = sum(item.count for item in statistics)
        caption = f"{len(statistics)} layers, {count:,} weights, {dead} dead units."
        title = f"Weights  ·  {weights.name}" + (f"  ·  compared with {before.name}" if before else "")
        emit(lambda theme: (weights_figure(statistics, title, theme=theme), caption), out, show, f"Weights of {weights.name}", quiet=json)


def graph(
    net: Annotated[
        Path,
        typer.Argument(
            metavar="NET",
            help="The net's prototxt; or a network of the zoo.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write: .svg, .png, or .html to explore it.")],
    phase: Annotated[
        str | None,
        typer.Option(help="train or test; by default test, or train for a net that has data in training only.", show_default=False),
    ] = None,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help="Draw repeated blocks once; a page has both forms.")] = True,
    layout: Annotated[str, typer.Option(help="dot, own, or auto: Graphviz's dot where it is installed.")] = "auto",
    weights: Annotated[
        Path | None,
        typer.Option(metavar="WEIGHTS", help="A .caffemodel: a page then has statistics and first values of each layer's weights."),
    ] = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="Shape of the net's input, 1x3x227x227, or NAME=SHAPE for one of several. May be repeated.")
    ] = None,
    stage: Stage = None,
    show: Show = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Draw a net's layers and blobs: coloured by family, with shapes, repeated blocks folded."""
    from caffetools.graph.inputs import parse_shapes
    from caffetools.proto.binary import read_caffemodel
    from caffetools.visualize.graph_drawing import draw_graph

    for value, allowed, name in ((phase or "test", ("train", "test"), "--phase"), (layout, ("auto", "dot", "own"), "--layout")):
        if value not in allowed:
            raise typer.BadParameter(f"'{value}' is not one of {', '.join(allowed)}", param_hint=name)
    drawn = _graph_of(net, phase, stage, parse_shapes(input_shape or []))
    values = read_caffemodel(weights_file(weights)).blobs if weights else {}
    if values and not any(row.layer in values for box in drawn.boxes for row in box.rows):
        names = ", ".join(list(values)[:3]) + (", …" if len(values) > 3 else "")
        raise DataError(f"{weights}: none of its layers ({names}) is one of {net}")
    folder = net.resolve().parent.name
    title = drawn.name or (f"{folder}/{net.stem}" if net.suffix and folder else net.stem)
    caption = draw_graph(drawn, out, title=title, fold=fold, engine=layout, weights=values)
    report_written(out, caption)
    if show:
        open_file(out)


def _graph_of(net: Path, phase: str | None, stage: list[str] | None, shapes: Mapping[str, Shape]) -> NetGraph:
    """Return the graph of a net in a phase; None takes TEST, or TRAIN where only that has data."""
    from caffetools.graph.stages import choose_stages
    from caffetools.net.net import error_context
    from caffetools.proto.file_names import read_net_near_files
    from caffetools.proto.schema import TEST, TRAIN
    from caffetools.proto.upgrades.v1 import upgrade_net
    from caffetools.visualize.net_graph import data_in_training_only, net_graph
    from caffetools.zoo.cards import get_card
    from caffetools.zoo.names import is_model

    path = net_file(net, "train_val")
    with error_context(path):
        chosen = choose_stages(upgrade_net(read_net_near_files(path)), stage, shapes)
        try:
            drawn = net_graph(chosen.net, TRAIN if phase == "train" else TEST, shapes=shapes)
        except NetError:
            if phase is not None or not data_in_training_only(chosen.net):
                raise
            drawn = net_graph(chosen.net, TRAIN, shapes=shapes)
        if drawn.unknown and is_model(str(net)) and not shapes:
            # A net that does not say how large its pictures are: its card does.
            card = {"": (1, *get_card(str(net)).input.shape)}
            drawn = net_graph(chosen.net, TRAIN if phase == "train" else TEST, shapes=card)
    if chosen.stages and not stage:
        note(f"{net}: drawn in the stages {', '.join(chosen.stages)}; choose others by --stage")
    for cause in drawn.unknown:
        note(f"{net}: layer {cause}")
    return drawn


_DRAWINGS: dict[str, Callable[..., None]] = {
    "filters": filters, "activations": activations, "weights": weights, "graph": graph, "curves": curves, **COMMANDS,
}  # fmt: skip
# What commands write that do not draw figures.
_SUFFIXES = {"deepdream": (".png",), "style": (".png",), "all": (".html",)}
for name, command in _DRAWINGS.items():
    takes = {"deploy", "weights"} <= set(signature(command).parameters)
    app.command(name, cls=ModelCommand if takes else None)(
        command if name == "curves" else drawing(command, _SUFFIXES.get(name, ()), writes=name != "live")
    )


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise DataError(f"--picture {text}: a shape of channels x height x width is expected, such as 1x28x28")
    return int(parts[0]), int(parts[1]), int(parts[2])
