"""A run as one page: what was done, how well it went, and how to do it again, in a single HTML file without anything external."""

from __future__ import annotations

from pathlib import Path

import caffetools
from caffetools.util.files import write_text
from caffetools.visualize import sections
from caffetools.visualize.markup import Html, el, join
from caffetools.visualize.model import Report
from caffetools.visualize.style import PathLike


def write_report(path: PathLike, report: Report) -> None:
    """Write ``report`` as one HTML file that loads nothing else: figures and pictures are inside, for light and dark screens.

    Raises:
        DataError: a sample is no picture, a log is empty, or weights are not finite. RunFailed: the file cannot be written.
    """
    write_text(path, report_html(report))


def report_html(report: Report) -> str:
    """The page that :func:`write_report` writes. Raises :class:`DataError` as it does."""
    parts: list[tuple[str, str, Html]] = []
    if report.steps:
        parts.append(("steps", "What was done", sections.steps(report.steps)))
    for number, phase in enumerate(report.phases, 1):
        parts.append((f"phase-{number}", phase.title, sections.phase(phase)))
    if report.network:
        parts.append(("network", "The network", sections.network(report.network)))
    if report.onnx:
        parts.append(("onnx", "ONNX verification", sections.onnx(report.onnx)))
    if report.files:
        parts.append(("files", "Files", sections.files(report.files)))
    if report.repeat or report.environment:
        parts.append(("repeat", "How to repeat this", sections.repeat(report.repeat, report.environment)))
    body = join(
        el("section", el("h2", title, id=f"{key}-title"), content, id=key, aria_labelledby=f"{key}-title") for key, title, content in parts
    )
    menu = el("nav", el("ul", join(el("li", el("a", title, href=f"#{key}")) for key, title, _ in parts)), aria_label="Contents")
    head = sections.header(report.title, report.summary, report.created, report.figures)
    foot = el(
        "footer",
        el("p", f"Made with caffetools {caffetools.__version__}. This file is complete in itself and loads nothing from elsewhere."),
    )
    page = el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("title", report.title),
            el("style", Html((Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8"))),
        ),
        el("body", head, menu if len(parts) > 2 else None, el("main", body), foot),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"
