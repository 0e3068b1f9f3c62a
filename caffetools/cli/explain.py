"""Commands of ``caffetools visualize`` that explain answers, compare them with labels, and synthesize pictures."""

from __future__ import annotations

from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.models import net_file, weights_file
from caffetools.cli.numbers import MOST_SCALE
from caffetools.cli.options import Device, Dialect, Labels, Mean, Plugin, Resize, Scale
from caffetools.cli.show import console, note, open_file, print_json, progress_sink
from caffetools.cli.visualize_common import Deploy, Out, Picture, Show, Weights, emit, open_net, report_written
from caffetools.errors import DataError
from caffetools.results import share_text
from caffetools.util.arguments import MOST_SEED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from caffetools.visualize.picture_net import PictureNet
    from caffetools.visualize.predictions import Predictions
    from caffetools.visualize.style import Theme

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="A dataset folder (its held-out pictures), a folder of class folders, or a list file.", show_default=False
    ),
]
Blob = Annotated[str | None, typer.Option("--blob", help="The blob of the unit; by default the scores of the net's output.")]
UnitOption = Annotated[
    str | None, typer.Option("--unit", help="A unit: 3, or channel,y,x of a blob with positions. By default the largest.", metavar="UNIT")
]
_METHODS_HELP = (
    "saliency, guided-backprop, deconvnet, integrated-gradients, smooth-grad, occlusion, grad-cam or grad-cam++. May be repeated. "
    "By default all but occlusion."
)
LivePictures = Annotated[
    list[str] | None,
    typer.Option(
        "--pictures", metavar="FOLDER", help="Pictures to show, and to look for a unit's top nine in; by default those that RUN holds out."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=MOST_SEED, help="Random seed.")]


def explain(
    deploy: Deploy,
    weights: Weights,
    picture: Picture,
    out: Out = None,
    method: Annotated[list[str] | None, typer.Option("--method", help=_METHODS_HELP)] = None,
    blob: Blob = None,
    unit: UnitOption = None,
    layer: Annotated[str | None, typer.Option(help="For Grad-CAM: the layer; by default the last one with positions.")] = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    labels: Labels = None,
    device: Device = "auto",
    show: Show = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Explain a net's answer for a picture: which pixels speak for a unit, by one or several methods."""
    from caffetools.visualize.explanations import ALL_METHODS, explain_all, explanations_figure

    model = open_net(deploy, weights, mean, scale, resize, labels, device)
    prepared = model.prepare(picture)
    methods = method or [name for name in ALL_METHODS if name != "occlusion"]
    chosen = parse_unit(unit)

    with progress_sink("Explaining") as sink:
        found = explain_all(model, prepared, methods, blob=blob, unit=chosen, layer=layer, events=sink)

    def draw(theme: Theme) -> tuple[Figure, str]:
        return explanations_figure(model, prepared, found, theme=theme)

    emit(draw, out, show, f"Explanation of {prepared.name}")


def occlusion(
    deploy: Deploy,
    weights: Weights,
    picture: Picture,
    out: Out = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1, help="Side of the covering window, in pixels; by default 16, or a quarter of small pictures.", show_default=False
        ),
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Step of the window; by default half of it.", show_default=False)] = None,
    value: Annotated[
        float, typer.Option(min=-MOST_SCALE, max=MOST_SCALE, help="Value that fills the window, after preprocessing: 0 is the mean.")
    ] = 0.0,
    blob: Blob = None,
    unit: UnitOption = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    labels: Labels = None,
    device: Device = "auto",
    show: Show = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Cover parts of a picture and draw how much the answer falls."""
    from caffetools.visualize.explanations import explain_all, explanations_figure

    model = open_net(deploy, weights, mean, scale, resize, labels, device)
    prepared = model.prepare(picture)
    chosen, options = parse_unit(unit), {"window": window, "stride": stride, "value": value}

    with progress_sink("Covering parts") as sink:
        found = explain_all(model, prepared, ["occlusion"], blob=blob, unit=chosen, options=options, events=sink)

    def draw(theme: Theme) -> tuple[Figure, str]:
        return explanations_figure(model, prepared, found, theme=theme)

    emit(draw, out, show, f"Occlusion of {prepared.name}")


def receptive_field(
    net: Annotated[Path, typer.Argument(metavar="NET", help="A deploy prototxt; or a network of the zoo.", show_default=False)],
    out: Out = None,
    json: Annotated[bool, typer.Option("--json", help="Print the fields as JSON.")] = False,
    show: Show = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """List and draw the receptive field of every blob: the part of the input that one of its values depends on."""
    from caffetools.net.net import Net
    from caffetools.visualize.receptive_field import receptive_field_figure, receptive_fields

    built = Net.from_file(net_file(net, "deploy"), fill=False)
    fields = receptive_fields(built)
    if json:
        print_json([
            {"blob": f.blob, "size": None if f.whole else list(f.size), "stride": list(f.stride), "positions": list(f.positions), "rearranged": f.rearranged}
            for f in fields.values()
        ])  # fmt: skip
    else:
        for field in fields.values():
            order = "values rearranged" if field.rearranged else f"stride {field.stride[0]:g}"
            size = "the whole picture" if field.whole else f"{field.size[0]} x {field.size[1]}, {order}"
            console.print(f"{field.blob}: {size}", markup=False)
    if out or show:
        emit(lambda theme: receptive_field_figure(built, theme=theme), out, show, f"Receptive fields of {net.name}", quiet=json)


def confusion(
    deploy: Deploy, weights: Weights, data: Data, out: Out = None, mean: Mean = None, scale: Scale = None, resize: Resize = None,
    device: Device = "auto", show: Show = False, dialect: Dialect = None, plugin: Plugin = None,
) -> None:  # fmt: skip
    """Classify labelled pictures and draw which class was predicted as which."""
    from caffetools.visualize.confusion import confusion_figure

    _, predictions = _predictions(deploy, weights, data, mean, scale, resize, device)
    matrix = predictions.confusion()
    caption = f"{matrix.right} of {matrix.total} pictures correct ({share_text(matrix.accuracy, '.2%')})."
    emit(lambda theme: (confusion_figure(matrix, theme=theme), caption), out, show, "Confusion matrix")


def roc(
    deploy: Deploy, weights: Weights, data: Data, out: Out = None, mean: Mean = None, scale: Scale = None, resize: Resize = None,
    device: Device = "auto", show: Show = False, dialect: Dialect = None, plugin: Plugin = None,
) -> None:  # fmt: skip
    """Classify labelled pictures and draw ROC curves, each class against all others."""
    from caffetools.visualize.evaluation_figures import roc_figure

    _, predictions = _predictions(deploy, weights, data, mean, scale, resize, device)
    emit(lambda theme: roc_figure(predictions, theme=theme), out, show, "ROC curves")


def errors(
    deploy: Deploy, weights: Weights, data: Data, out: Out = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Pictures on the sheet at most.")] = 60,
    mean: Mean = None, scale: Scale = None, resize: Resize = None,
    device: Device = "auto", show: Show = False, dialect: Dialect = None, plugin: Plugin = None,
) -> None:  # fmt: skip
    """Draw the wrongly classified pictures, the most confident first, with their three most probable classes."""
    from caffetools.visualize.evaluation_figures import errors_figure

    model, predictions = _predictions(deploy, weights, data, mean, scale, resize, device)
    emit(lambda theme: errors_figure(model, predictions, most=most, theme=theme), out, show, "Errors")


def embedding(
    deploy: Deploy, weights: Weights, data: Data, out: Out = None,
    blob: Annotated[str | None, typer.Option(help="The blob of the features; by default what the classifier reads.")] = None,
    method: Annotated[str, typer.Option(help="pca, tsne (scikit-learn) or umap (umap-learn).")] = "pca",
    seed: Seed = 0, mean: Mean = None, scale: Scale = None, resize: Resize = None,
    device: Device = "auto", show: Show = False, dialect: Dialect = None, plugin: Plugin = None,
) -> None:  # fmt: skip
    """Project the features of labelled pictures to a plane, coloured by class; an .html page has the pictures on hover."""
    from caffetools.visualize.embedding_page import write_embedding_page
    from caffetools.visualize.evaluation_figures import check_projection, embedding_figure, project_features
    from caffetools.visualize.predictions import feature_blob

    check_projection(method)
    model = open_net(deploy, weights, mean, scale, resize, None, device)
    features = blob or feature_blob(model.net)
    predictions = _predict(model, data, features)
    assert predictions.features is not None  # noqa: S101 (a blob was asked for)
    points = project_features(predictions.features, method, seed=seed)
    if out is not None and out.suffix.lower() == ".html":
        write_embedding_page(out, points, predictions, model, method=method, blob=features)
        report_written(out, f"{len(points)} pictures")
        return
    emit(lambda theme: embedding_figure(points, predictions, method=method, blob=features, theme=theme), out, show, "Embedding")


def top_images(
    deploy: Deploy, weights: Weights,
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="Pictures, folders of them, or patterns.", show_default=False)],
    blob: Annotated[str, typer.Option(help="The blob whose units to look at.")],
    out: Out = None,
    units: Annotated[str, typer.Option(help="Units to draw, as 0-15 or 3,7,12.")] = "0-15",
    top: Annotated[int, typer.Option(min=1, help="Pictures for each unit.")] = 9,
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 16,
    state: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="Keep what was found here; an interrupted pass resumes from it.")] = None,
    mean: Mean = None, scale: Scale = None, resize: Resize = None,
    device: Device = "auto", show: Show = False, dialect: Dialect = None, plugin: Plugin = None,
) -> None:  # fmt: skip
    """Find the pictures that activate each unit most, and draw the crops of their receptive fields."""
    from caffetools.visualize.top_images import check_units, find_top_images, top_images_figure

    model = open_net(deploy, weights, mean, scale, resize, None, device)
    files = _pictures_of(pictures)
    shape = model.net.blob_shapes.get(blob, ())
    # Before the pictures are run; a blob that is not there is reported by that.
    chosen = parse_units(units, shape[1]) if len(shape) > 1 else []
    if chosen:
        check_units(blob, chosen, shape[1])
    with progress_sink("Top images") as sink:
        found = find_top_images(model, files, blob, top=min(top, len(files)), batch=batch, state=state, events=sink)
    emit(lambda theme: top_images_figure(model, files, found, chosen, theme=theme), out, show, f"Top pictures of {blob}")


def synthesize(
    deploy: Deploy, weights: Weights, out: Out = None, blob: Blob = None,
    unit: Annotated[list[str] | None, typer.Option(help="A unit: 3, or channel,y,x; by default units 0 to 3. May be repeated.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of ascent.")] = 200,
    octaves: Annotated[int, typer.Option(min=1, help="Sizes from small to full.")] = 1,
    jitter: Annotated[int, typer.Option(min=0, help="Random shift before each step, in pixels.")] = 4,
    blur: Annotated[float, typer.Option(min=0, help="Standard deviation of the blur every fourth step, in pixels.")] = 0.5,
    decay: Annotated[float, typer.Option(min=0, max=1, help="Share of the distance to the mean that each step takes back (L2).")] = 0.01,
    seed: Seed = 0, mean: Mean = None, scale: Scale = None, labels: Labels = None,
    device: Device = "auto", show: Show = False, dialect: Dialect = None, plugin: Plugin = None,
) -> None:  # fmt: skip
    """Make pictures that a unit prefers, by regularized gradient ascent."""
    from caffetools.visualize.explanations import score_blob, unit_name
    from caffetools.visualize.panels import Panel, enlarge, panels_figure
    from caffetools.visualize.synthesis import preferred_part
    from caffetools.visualize.synthesis import synthesize as make

    model = open_net(deploy, weights, mean, scale, None, labels, device)
    name = blob or score_blob(model.net)
    panels = []
    for chosen in (parse_unit(text) for text in unit or ["0", "1", "2", "3"]):
        with progress_sink(f"Unit {chosen}") as sink:
            pixels = make(
                model,
                blob=name,
                unit=chosen,
                steps=steps,
                octaves=octaves,
                jitter=jitter,
                blur=blur,
                decay=decay,
                seed=seed,
                events=sink,
            )
        part = preferred_part(model, pixels, name, chosen)
        panels.append(Panel(enlarge(part, 284), unit_name(model, name, chosen), f"{part.shape[0]} × {part.shape[1]}"))
    caption = f"{len(panels)} {'picture' if len(panels) == 1 else 'pictures'} of {steps} steps for units of blob '{name}'"
    caption += ", cropped to the receptive field." if part.shape != pixels.shape else "."
    emit(lambda theme: (panels_figure(panels, f"What units prefer  ·  {name}", caption, theme=theme), caption), out, show, "Units")


def deepdream(
    deploy: Deploy, weights: Weights, picture: Picture,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.png", help="The picture to write.", show_default=False)],
    blob: Annotated[str, typer.Option(help="The blob whose values to increase.")],
    unit: UnitOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps in each octave.")] = 10,
    octaves: Annotated[int, typer.Option(min=1, help="Sizes, each 1.4 times the one before.")] = 4,
    seed: Seed = 0, mean: Mean = None, scale: Scale = None,
    device: Device = "auto", dialect: Dialect = None, plugin: Plugin = None,
) -> None:  # fmt: skip
    """Exaggerate in a picture what a blob of the net detects (DeepDream)."""
    from caffetools.visualize.output import read_rgb, save_pixels
    from caffetools.visualize.synthesis import deep_dream

    model = open_net(deploy, weights, mean, scale, None, None, device)
    pixels = read_rgb(picture)
    with progress_sink("Dreaming") as sink:
        made = deep_dream(model, pixels, blob=blob, unit=parse_unit(unit), steps=steps, octaves=octaves, seed=seed, events=sink)
    save_pixels(out, made)
    report_written(out, f"{made.shape[1]} x {made.shape[0]}")


def style(
    deploy: Deploy, weights: Weights, picture: Picture,
    style_picture: Annotated[Path, typer.Argument(metavar="STYLE", help="The picture whose style to take.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.png", help="The picture to write.", show_default=False)],
    content_blob: Annotated[str | None, typer.Option(help="The blob whose values are kept.")] = None,
    style_blob: Annotated[list[str] | None, typer.Option(help="A blob whose Gram matrix is matched. May be repeated.")] = None,
    weight: Annotated[float, typer.Option(min=0, max=1e9, help="Weight of style against content.")] = 10.0,
    steps: Annotated[int, typer.Option(min=1, help="Evaluations of the net by the optimizer (L-BFGS).")] = 150,
    mean: Mean = None, scale: Scale = None,
    device: Device = "auto", dialect: Dialect = None, plugin: Plugin = None,
) -> None:  # fmt: skip
    """Draw a picture in the style of another (Gatys et al. 2016)."""
    from caffetools.visualize.output import read_rgb, save_pixels
    from caffetools.visualize.synthesis import style_transfer

    model = open_net(deploy, weights, mean, scale, None, None, device)
    content, other = read_rgb(picture), read_rgb(style_picture)
    with progress_sink("Drawing") as sink:
        made = style_transfer(
            model, content, other, content_blob=content_blob, style_blobs=style_blob, weight=weight, steps=steps, events=sink
        )
    save_pixels(out, made)
    report_written(out, f"{made.shape[1]} x {made.shape[0]}")


def live(
    deploy: Deploy, weights: Weights,
    pictures: LivePictures = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="A run's folder, a solver, or a snapshot prefix: follow its training.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    mean: Mean = None, scale: Scale = None, resize: Resize = None, labels: Labels = None,
    device: Device = "auto", dialect: Dialect = None, plugin: Plugin = None,
) -> None:  # fmt: skip
    """Open a page that shows what the net does with the webcam, a video or pictures, live; only this computer can reach it."""
    from caffetools.data.datasets.card import CARD
    from caffetools.visualize.live_model import LiveModel, run_prefix
    from caffetools.visualize.live_server import LiveServer
    from caffetools.visualize.predictions import labelled_pictures

    model = open_net(deploy, weights, mean, scale, resize, labels, device)
    files = _pictures_of(pictures or [])
    if missing := next((file for file in files if not file.exists()), None):
        raise DataError(f"{missing}: there is no such picture or folder")
    prefix = run_prefix(run) if run is not None else None
    if not files and run is not None and (run / "data" / CARD).is_file():
        files = list(labelled_pictures(run / "data").paths)  # the held-out ones of a fine-tuning run
    if prefix is not None and not any(prefix.parent.glob(f"{escape(prefix.name)}[._]*")):
        note(f"there are no files of a training at {prefix} yet; the page follows it when they are written")
    shown = LiveModel(model, files, run)
    if run is not None:
        shown.follow()  # snapshots of another net are refused here, not in the page again and again
    with LiveServer(shown, port=port) as server:
        console.print(f"Open {server.url}  (Ctrl-C ends it)", markup=False)
        if browser:
            open_file(server.url)
        server.serve_forever()
    console.print("Closed from the page.")


def everything(
    deploy: Deploy, weights: Weights,
    pictures: Annotated[list[Path] | None, typer.Argument(metavar="[PICTURE]...", help="Pictures to show and explain.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.html", help="The page to write.")] = Path("visualize.html"),
    before: Annotated[Path | None, typer.Option(metavar="WEIGHTS", help="Earlier weights to compare with.")] = None,
    mean: Mean = None, scale: Scale = None, resize: Resize = None, labels: Labels = None,
    device: Device = "auto", show: Show = False, dialect: Dialect = None, plugin: Plugin = None,
) -> None:  # fmt: skip
    """Write one self-contained page with a net's graph, filters and weights, and activations and explanations of pictures."""
    from caffetools.visualize.everything import write_everything

    model = open_net(deploy, weights, mean, scale, resize, labels, device)
    net, parameters = net_file(deploy, "deploy"), weights_file(weights)
    earlier = weights_file(before) if before else None
    with progress_sink("Drawing") as sink:
        count = write_everything(out, model, net, parameters, pictures or [], before=earlier, events=sink)
    report_written(out, f"{count} drawings")
    if show:
        open_file(out)


def parse_unit(text: str | None) -> int | tuple[int, ...] | None:
    """Return a unit from ``3`` or ``3,1,2``; None for None."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(f"'{text}' is not a unit; write 3, or channel,y,x as 3,10,12", param_hint="--unit")
    numbers = tuple(int(part) for part in parts)
    return numbers[0] if len(numbers) == 1 else numbers


def parse_units(text: str, count: int) -> list[int]:
    """Return units from ``0-15`` or ``3,7,12``; a range ends with the last unit there is."""
    units: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not low.strip().isdecimal() or (dash and not high.strip().isdecimal()):
            raise typer.BadParameter(f"'{text}' is not a list of units; write 0-15 or 3,7,12", param_hint="--units")
        # A range behind the last unit is kept as its first one, to be reported.
        units += range(int(low), min(int(high), count - 1) + 1) if dash and int(low) < count else [int(low)]
    return units


def _pictures_of(names: list[str]) -> list[Path]:
    """Return the pictures of files, folders and patterns; of a dataset's folder those that it holds out, as all commands take it."""
    from caffetools.data.datasets.card import CARD
    from caffetools.infer.classifier import find_pictures
    from caffetools.visualize.predictions import labelled_pictures

    found: list[Path] = []
    for name in names:
        found += labelled_pictures(name).paths if (Path(name) / CARD).is_file() else map(Path, find_pictures([name]))
    return found


def _predictions(deploy: Path, weights: Path, data: Path, mean: str | None, scale: float | None, resize: str | None, device: str) -> Any:
    model = open_net(deploy, weights, mean, scale, resize, None, device)
    return model, _predict(model, data, None)


def _predict(model: PictureNet, data: Path, features: str | None) -> Predictions:
    from caffetools.visualize.predictions import labelled_pictures, predict

    with progress_sink("Classifying") as sink:
        return predict(model, labelled_pictures(data), features=features, events=sink)


COMMANDS: dict[str, Callable[..., None]] = {
    "explain": explain,
    "occlusion": occlusion,
    "receptive-field": receptive_field,
    "confusion": confusion,
    "roc": roc,
    "errors": errors,
    "embedding": embedding,
    "top-images": top_images,
    "synthesize": synthesize,
    "deepdream": deepdream,
    "style": style,
    "live": live,
    "all": everything,
}
