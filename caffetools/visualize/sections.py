"""The parts of the report's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from caffetools.results import ClassScore, Confusion
from caffetools.visualize import style
from caffetools.visualize.confusion import confusion_figure
from caffetools.visualize.curves import PANELS, curves_figure, series
from caffetools.visualize.filters import LayerWeights, describe, filters_figure, layer_sheet
from caffetools.visualize.markup import Html, el, figure, join, table, themed
from caffetools.visualize.thumbnails import png, thumbnail

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from caffetools.results import Sample, Step
    from caffetools.solver.logs.training_log import TrainingLog
    from caffetools.visualize.model import FileEntry, KeyFigure, LayerRow, OnnxCheck, Phase

_MOST_ROWS = 30  # longer tables start with the rows that matter and unfold
_FIRST_ROWS = 12
_MOST_TILES = 256


def header(title: str, summary: str, created: str, figures: Sequence[KeyFigure]) -> Html:
    """The head of the page: what it is about, and the numbers to take home."""
    numbers = el(
        "dl", join(el("div", el("dt", f.label), el("dd", f.value), el("dd", f.note, class_="note") if f.note else None) for f in figures)
    )
    return el(
        "header",
        el("p", "caffetools", class_="brand"),
        el("h1", title),
        el("p", summary, class_="lead") if summary else None,
        el("p", created, class_="note") if created else None,
        numbers if figures else None,
    )


def steps(done: Sequence[Step]) -> Html:
    """The steps in order, each with its command."""
    return el("ol", join(_step(step) for step in done), class_="steps")


def _step(step: Step) -> Html:
    return el(
        "li",
        el("h3", step.title, el("span", duration(step.seconds), class_="time") if step.seconds is not None else None),
        el("p", step.detail) if step.detail else None,
        el("pre", el("code", step.command)) if step.command else None,
    )


def phase(part: Phase) -> Html:
    """One training: its note, the scores and the matrix, samples, curves and filters."""
    return join(
        (
            el("p", part.note) if part.note else None,
            _confusion(part.confusion) if part.confusion else None,
            _samples(part.samples) if part.samples else None,
            _curves(part.logs) if part.logs else None,
            _filters(part.filters) if part.filters else None,
        )
    )


def network(rows: Sequence[LayerRow]) -> Html:
    """The table of layers with totals."""
    cells = [
        (
            row.name,
            row.type,
            " × ".join(map(str, row.shape)),
            f"{row.parameters:,}" if row.parameters else "",
            f"{row.macs:,}" if row.macs else "",
        )
        for row in rows
    ]
    foot = ("Together", f"{len(rows)} layers", "", f"{sum(r.parameters for r in rows):,}", f"{sum(r.macs for r in rows):,}")
    caption = "Layers, with the shape of their first top blob, parameters and multiply–accumulates of one pass"
    whole = table(caption, ("Layer", "Type", "Shape", "Parameters", "MACs"), cells, numbers=(3, 4), foot=foot)
    if len(rows) <= _MOST_ROWS + 10:
        return el("div", whole, class_="card")
    total = f"{len(rows)} layers, {foot[3]} parameters, {foot[4]} multiply–accumulates"
    return el("div", el("details", el("summary", total), whole), class_="card")


def onnx(check: OnnxCheck) -> Html:
    """The verdict first, then what it rests on."""
    word, kind = ("Verified", "good") if check.passed else ("Not verified", "bad")
    sentence = f"the largest difference is {check.largest_difference:.2g}, with {check.tolerance:.2g} allowed"
    rows = [
        ("File", check.file),
        ("Operator set", str(check.opset)),
        ("Run by", check.runtime),
        ("Pictures compared", f"{check.pictures:,}"),
        ("Same class given", f"{check.agreeing:,} of {check.pictures:,}"),
        ("Largest difference of an output", f"{check.largest_difference:.3g}"),
    ]
    return el(
        "div",
        el("p", el("strong", f"{'✓' if check.passed else '✗'} {word}", class_=f"verdict {kind}"), f": {sentence}."),
        table("The exported network against caffetools", ("What", "Value"), rows),
        class_="card",
    )


def files(entries: Sequence[FileEntry]) -> Html:
    """What was written, with sizes."""
    rows = [(el("code", entry.path), entry.what, size(entry.size)) for entry in entries]
    foot = ("Together", "", size(sum(entry.size for entry in entries)))
    return el("div", table("Files that the run wrote", ("File", "What it is", "Size"), rows, numbers=(2,), foot=foot), class_="card")


def repeat(commands: Sequence[str], environment: Mapping[str, str]) -> Html:
    """The commands, and what they were run with."""
    return el(
        "div",
        el("pre", el("code", "\n".join(commands))) if commands else None,
        table("What it was run with", ("What", "Value"), list(environment.items())) if environment else None,
        class_="card",
    )


def _confusion(confusion: Confusion) -> Html:
    pairs = confusion.most_confused(8)
    alt = f"Confusion matrix of {len(confusion.names)} classes: {confusion.right} of {confusion.total} pictures right."
    if pairs:
        alt += f" Most often {pairs[0].true} was taken for {pairs[0].predicted}: {pairs[0].count} times."
    picture = figure(lambda theme: confusion_figure(confusion, theme=theme), alt)
    mistakes = [(pair.true, pair.predicted, f"{pair.count:,}", f"{pair.share:.1%}") for pair in pairs]
    confused = table("Most confused", ("True class", "Taken for", "Pictures", "Of its class"), mistakes, numbers=(2, 3)) if pairs else None
    left = el("div", el("h3", "Confusion matrix"), picture, class_="card")
    right = el("div", el("h3", "Accuracy of each class"), _scores(confusion.scores()), confused, class_="card")
    return el("div", left, right, class_="pair" if len(confusion.names) <= 12 else None)


def _scores(scores: Sequence[ClassScore]) -> Html:
    head = ("Class", "Pictures", "Right", "Accuracy", "Precision")
    ordered = scores if len(scores) <= _MOST_ROWS else sorted(scores, key=lambda s: (s.accuracy is None, s.accuracy))
    rows = [
        (s.name, f"{s.pictures:,}", f"{s.right:,}", _bar(s.accuracy), "–" if s.precision is None else f"{s.precision:.1%}") for s in ordered
    ]
    if len(rows) <= _MOST_ROWS:
        return table("Accuracy: of the class's pictures; precision: of those given its name", head, rows, numbers=(1, 2, 3, 4))
    first = table(f"The {_FIRST_ROWS} classes least often recognised", head, rows[:_FIRST_ROWS], numbers=(1, 2, 3, 4))
    rest = table("All classes, the least often recognised first", head, rows, numbers=(1, 2, 3, 4))
    return join((first, el("details", el("summary", f"All {len(rows)} classes"), rest)))


def _bar(share: float | None) -> Html | str:
    if share is None:
        return "–"
    bar = el("span", el("span", style=f"width:{100 * share:.1f}%"), class_="bar", aria_hidden="true")
    return join((bar, el("span", f"{share:.1%}", class_="share")))


def _samples(samples: Sequence[Sample]) -> Html:
    return el("div", el("h3", "Sample predictions"), el("ul", join(_sample(sample) for sample in samples), class_="samples"), class_="card")


def _sample(sample: Sample) -> Html:
    uri, small = thumbnail(sample.picture)
    what = f"Picture {sample.name}" if sample.name else "Picture"
    if sample.true is not None:
        what += f" of {sample.true}"
    verdict: Html | None = None
    if sample.wrong:
        verdict = el("span", f"✗ is {sample.true}", class_="bad")
    elif sample.true is not None:
        verdict = el("span", "✓ right", class_="good")
    return el(
        "li",
        el("img", src=uri, alt=f"{what}, classified as {sample.predicted}", class_="dots" if small else None, loading="lazy"),
        el("span", el("strong", sample.predicted), el("span", f"{sample.probability:.1%}", class_="note"), class_="answer"),
        verdict,
        el("span", sample.name, class_="note name", title=sample.name) if sample.name else None,
        class_="wrong" if sample.wrong else None,
    )


def _curves(logs: Mapping[str, TrainingLog]) -> Html:
    lines = series(logs)
    pictures = []
    for panel in PANELS:
        shown = [line for line in lines if line.panel == panel]
        if not shown:
            continue
        told = "; ".join(f"{line.run} {line.phase} {line.name} from {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in shown)

        def draw(theme: style.Theme, panel: str = panel) -> Figure:
            drawn = curves_figure(logs, panels=(panel,), size=(4.5, 3.4), theme=theme)
            assert drawn is not None  # noqa: S101 (the panel has lines)
            return drawn

        pictures.append(figure(draw, f"Curve over iterations: {told}."))
    return el("div", el("h3", "Training curves"), el("div", *pictures, class_="figures"), class_="card")


def _filters(layers: Sequence[LayerWeights]) -> Html:
    return el("div", el("h3", "Filters"), el("div", join(_filter(layer) for layer in layers), class_="figures filters"), class_="card")


def _filter(layer: LayerWeights) -> Html:
    sheet = layer_sheet(layer, most_tiles=_MOST_TILES)
    if sheet is None:
        _, caption = filters_figure(layer)
        return figure(lambda theme: filters_figure(layer, theme=theme)[0], f"Histogram of {layer.name}: {caption}")

    def draw(theme: style.Theme) -> str:
        drawn = layer_sheet(layer, most_tiles=_MOST_TILES, theme=theme)
        assert drawn is not None  # noqa: S101 (it was not, a moment ago)
        return png(drawn.image)

    caption = join((el("strong", layer.name), f" · {describe(layer)}. {sheet.caption}"))
    height, width = (round(side / 1.6) for side in sheet.image.shape[:2])
    return themed(draw, f"Weights of {layer.name} as tiles", width, height, caption)


def duration(seconds: float) -> str:
    """``< 0.1 s``, ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """``512 B``, ``1.7 MB``: bytes in steps of 1000."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
