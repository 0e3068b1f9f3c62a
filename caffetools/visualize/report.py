"""A run as one HTML file that loads nothing else: its results first, then how they came about and how to repeat them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffetools.results import Confusion, Sample, share_text
from caffetools.util.files import write_text
from caffetools.visualize import charts, style
from caffetools.visualize.confusion import confusion_figure
from caffetools.visualize.filters import LayerWeights, describe, filters_figure, layer_sheet
from caffetools.visualize.model import Explanation, FilterChange, LayerRow, Phase, Report
from caffetools.visualize.page import Drawing, Shown, render_template, shown_figure
from caffetools.visualize.panels import enlarge, text_width
from caffetools.visualize.style import DARK, LIGHT, PathLike
from caffetools.visualize.thumbnails import lossless, one_for_both_themes, thumbnail
from caffetools.visualize.tiles import Sheet, change_sheet

_MOST_ROWS = 30  # longer tables start with the rows that matter and unfold
_FIRST_ROWS = 12
_MOST_PRINTED = 120  # rows of a closed table that is printed all the same
_MOST_TILES = 256
_EXTREMES = 5  # best and worst classes
_LABEL = 13  # pixels of a class's name at the matrix
_MOST_LETTERS = 16  # of a class's name next to the matrix


@dataclass(frozen=True)
class _Part:
    key: str
    title: str
    kind: str
    content: Any


def write_report(path: PathLike, report: Report) -> None:
    """Write ``report`` as one HTML file: figures and pictures are inside, for light and dark screens.

    Raises:
        DataError: a sample is not a picture, a log is empty, or weights are not finite.
        RunFailed: the file cannot be written.
    """
    write_text(path, report_html(report))


def report_html(report: Report) -> str:
    """Return the page that :func:`write_report` writes. Raises :class:`DataError` as it does."""
    parts = [_Part(f"phase-{number}", phase.title, "phase", _phase(phase, number)) for number, phase in enumerate(report.phases, 1)]
    if report.next_steps:
        parts.append(_Part("next", "Next steps", "next", report.next_steps))
    if report.card:
        parts.append(_Part("card", "Model card", "card", list(report.card.items())))
    if report.network:
        parts.append(_Part("network", "The network", "network", _network(report.network)))
    if report.onnx:
        parts.append(_Part("onnx", "ONNX verification", "onnx", report.onnx))
    if report.files:
        parts.append(_Part("files", "Files", "files", _files(report)))
    if report.steps or report.repeat or report.environment:
        parts.append(_Part("repeat", "How to repeat this", "repeat", report))
    return render_template(
        "report.html.jinja",
        title=report.title,
        summary=report.summary,
        created=report.created,
        report=report,
        parts=parts,
        duration=duration,
        most_printed=_MOST_PRINTED,
        chart_size=(charts.WIDTH, charts.HEIGHT),
        light=LIGHT.series,
        dark=DARK.series,
    )


def _phase(phase: Phase, number: int) -> dict[str, Any]:
    return {
        "note": phase.note,
        "charts": charts.curve_charts(phase.logs) if phase.logs else [],
        "confusion": _confusion(phase.confusion, phase.losses, f"p{number}-matrix") if phase.confusion else None,
        "calibration": phase.calibration,
        "calibration_chart": charts.calibration_chart(phase.calibration) if phase.calibration else None,
        "samples": [_sample(sample) for sample in phase.samples],
        "explanations": [_explanation(item) for item in phase.explanations],
        "filters": [drawn for at, layer in enumerate(phase.filters) for drawn in _filters(layer, f"p{number}-filters{at}")],
    }


def _confusion(confusion: Confusion, losses: Sequence[float | None], key: str) -> dict[str, Any]:
    pairs = confusion.most_confused(8)
    alt = f"Confusion matrix of {len(confusion.names)} classes: {confusion.right} of {confusion.total} pictures correct."
    if pairs:
        alt += f" Most often {pairs[0].true} was predicted as {pairs[0].predicted}: {pairs[0].count} times."
    small = len(confusion.names) <= charts.MOST_CELLS
    labels = style.shorten_all(confusion.names, 18)
    return {
        "alt": alt,
        "names": labels,
        "label_width": 20 + round(max(text_width(label, _LABEL / 2) for label in labels)),
        "cells": charts.confusion_cells(confusion) if small else [],
        "figure": None if small else shown_figure(Drawing(alt, lambda theme: confusion_figure(confusion, theme=theme)), key),
        # The table of classes needs the page's width for long names.
        "wide": len(confusion.names) > 12 or max(map(len, confusion.names)) > _MOST_LETTERS,
        "pairs": [(pair.true, pair.predicted, f"{pair.count:,}", share_text(pair.share)) for pair in pairs],
        **_scores(confusion, losses),
    }


def _scores(confusion: Confusion, losses: Sequence[float | None]) -> dict[str, Any]:
    scores = confusion.scores()
    loss = dict(zip(confusion.names, losses, strict=False))
    ordered = scores if len(scores) <= _MOST_ROWS else sorted(scores, key=lambda s: (s.accuracy is None, s.accuracy))
    rows = [
        (
            s.name,
            f"{s.pictures:,}",
            f"{s.right:,}",
            "–" if s.accuracy is None else {"share": s.accuracy, "text": share_text(s.accuracy)},
            "–" if s.precision is None else share_text(s.precision),
            *([_loss_text(loss.get(s.name))] if losses else []),
        )
        for s in ordered
    ]
    known = [(s.accuracy, s) for s in scores if s.accuracy is not None]
    ranked = [s for _, s in sorted(known, key=lambda pair: pair[0])]
    extremes = (
        (
            [s for s in ranked[:_EXTREMES] if s.accuracy != ranked[-1].accuracy],
            [s for s in ranked[::-1][:_EXTREMES] if s.accuracy != ranked[0].accuracy],
        )
        if len(ranked) > 2 * _EXTREMES
        else ([], [])
    )
    caption = "Accuracy: share of the class's images; precision: share of those predicted as it"
    return {
        "head": ("Class", "Images", "Correct", "Accuracy", "Precision", *(["Loss"] if losses else [])),
        "caption": caption + ("; loss: mean of −log(probability of the true class)" if losses else ""),
        "rows": rows if len(rows) <= _MOST_ROWS else rows[:_FIRST_ROWS],
        "all_rows": [] if len(rows) <= _MOST_ROWS else rows,
        "worst": [(s.name, share_text(s.accuracy or 0.0)) for s in extremes[0]],
        "best": [(s.name, share_text(s.accuracy or 0.0)) for s in extremes[1]],
    }


def _loss_text(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.3f}"


def _sample(sample: Sample) -> dict[str, Any]:
    uri, small = thumbnail(sample.picture)
    what = f"Picture {sample.name}" if sample.name else "Picture"
    if sample.true is not None:
        what += f" of {sample.true}"
    return {"sample": sample, "uri": uri, "small": small, "alt": f"{what}, classified as {sample.predicted}"}


def _explanation(item: Explanation) -> dict[str, Any]:
    small = max(item.picture.shape[:2]) <= 64
    uris = [thumbnail(enlarge(image, 168) if small else image)[0] for image in (item.picture, item.overlay)]
    return {"item": item, "picture": uris[0], "overlay": uris[1], "small": small}


def _filters(layer: LayerWeights | FilterChange, key: str) -> list[Shown]:
    if isinstance(layer, LayerWeights):
        return [_filter(layer, key)]
    drawn = [_filter(layer.before, f"{key}-before", "before: "), _filter(layer.after, f"{key}-after", "after: ")]
    old, new = np.asarray(layer.before.weights), np.asarray(layer.after.weights)
    if old.shape != new.shape or old.ndim != 4:
        return drawn
    colour = old.shape[1] == 3 and layer.after.group == 1
    light, dark = (
        change_sheet(old, new, colour=colour, gap=style.rgb(theme.background), most_tiles=_MOST_TILES) for theme in (LIGHT, DARK)
    )
    return [*drawn, _sheet(light, dark, f"Change of the weights of {layer.after.name} as tiles", light.caption, layer.after.name)]


def _filter(layer: LayerWeights, key: str, when: str = "") -> Shown:
    light, dark = (layer_sheet(layer, most_tiles=_MOST_TILES, theme=theme) for theme in (LIGHT, DARK))
    if light is None or dark is None:
        _, caption = filters_figure(layer)
        return shown_figure(Drawing(f"Histogram of {layer.name}: {caption}", lambda theme: filters_figure(layer, theme=theme)[0]), key)
    return _sheet(light, dark, f"Weights of {layer.name} as tiles", f"{when}{describe(layer)}. {light.caption}", layer.name)


def _sheet(light: Sheet, dark: Sheet, alt: str, caption: str, name: str) -> Shown:
    height, width = _displayed(light)
    one = one_for_both_themes(light.image, dark.image)
    uri, other = (lossless(light.image), lossless(dark.image)) if one is None else (lossless(one), "")
    return Shown(alt, width, height, uri=uri, dark=other, caption=caption, name=name)


def _displayed(sheet: Sheet) -> tuple[int, int]:
    """Return the height and width of a sheet of tiles on the page, in CSS pixels: large ones are shown finer than their dots."""
    height, width = sheet.image.shape[:2]
    factor = 1.6 if max(height, width) > 720 else 1.0
    return round(height / factor), round(width / factor)


def _network(rows: Sequence[LayerRow]) -> dict[str, Any]:
    parameters, macs = sum(r.parameters for r in rows), sum(r.macs for r in rows)
    cells = [
        (
            row.name,
            row.type,
            " × ".join(map(str, row.shape)),
            f"{row.parameters:,}" if row.parameters else "",
            {"share": row.macs / macs, "text": f"{row.macs:,}"} if row.macs else "",
        )
        for row in rows
    ]
    costly = sorted((row for row in rows if row.macs), key=lambda row: -row.macs)[:8]
    return {
        "rows": cells,
        "foot": ("Together", f"{len(rows)} layers", "", f"{parameters:,}", f"{macs:,}"),
        "long": len(rows) > _MOST_ROWS + 10,
        "summary": f"{len(rows)} layers, {parameters:,} parameters, {macs:,} multiply–accumulates",
        "costly": [
            (row.name, row.type, {"share": row.macs / macs, "text": f"{row.macs / macs:.1%}"}, f"{row.parameters:,}") for row in costly
        ],
    }


def _files(report: Report) -> dict[str, Any]:
    return {
        "rows": [({"code": entry.path}, entry.what, size(entry.size)) for entry in report.files],
        "foot": ("Together", "", size(sum(entry.size for entry in report.files))),
    }


def duration(seconds: float) -> str:
    """Return ``< 0.1 s``, ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Return ``512 B``, ``1.7 MB``: bytes in steps of 1000."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
