"""A run as one page: what was done, how well it went, and how to do it again, in a single HTML file without anything external."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import caffetools
from caffetools.solver.logs.training_log import TrainingLog
from caffetools.util.files import write_text
from caffetools.visualize import sections
from caffetools.visualize.confusion import Confusion
from caffetools.visualize.filters import LayerWeights
from caffetools.visualize.markup import Html, el, join
from caffetools.visualize.style import PathLike
from caffetools.visualize.thumbnails import Picture


@dataclass(frozen=True)
class KeyFigure:
    """A number at the head of the page: ``KeyFigure("98.4 %", "accuracy", "885 of 899 held-out pictures")``."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One thing that was done: its title, the ``command`` that does the same by hand, how it went, and how long it took (s)."""

    title: str
    command: str = ""
    detail: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Sample:
    """A classified picture: its file or its RGB or grey dots, the class it was given, with which ``probability``, and the true class."""

    picture: Picture
    predicted: str
    probability: float
    true: str | None = None
    name: str = ""

    @property
    def wrong(self) -> bool:
        """Whether the true class is known and another."""
        return self.true is not None and self.true != self.predicted


@dataclass(frozen=True)
class Phase:
    """A training and what came of it. Everything but the title may be missing.

    Attributes:
        logs: The training logs by the run's name. confusion: The held-out pictures by true and predicted class.
        samples: Classified pictures to show. filters: Weights to draw.
    """

    title: str
    note: str = ""
    confusion: Confusion | None = None
    samples: Sequence[Sample] = ()
    logs: Mapping[str, TrainingLog] = field(default_factory=dict)
    filters: Sequence[LayerWeights] = ()


@dataclass(frozen=True)
class LayerRow:
    """A layer of the network: the shape of its first top, its parameters and its multiply–accumulates for one pass."""

    name: str
    type: str
    shape: Sequence[int]
    parameters: int = 0
    macs: int = 0


@dataclass(frozen=True)
class OnnxCheck:
    """How the exported network was held against Caffe's numbers.

    Attributes:
        file: The ONNX file's name. opset: Its operator set. runtime: What ran it, such as ``"onnxruntime 1.20"``.
        largest_difference: Of all outputs over all pictures, absolute. tolerance: What was allowed.
        pictures: How many were compared. agreeing: For how many both gave the same class.
    """

    file: str
    opset: int
    runtime: str
    largest_difference: float
    tolerance: float
    pictures: int
    agreeing: int

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance (one that is not a number is not)."""
        return self.largest_difference <= self.tolerance


@dataclass(frozen=True)
class FileEntry:
    """A file that the run wrote: its path as the reader knows it, its size in bytes, and what it is."""

    path: str
    size: int
    what: str = ""


@dataclass(frozen=True)
class Report:
    """What a report shows. Everything but the title may be missing; its part of the page then is, too.

    Attributes:
        title, summary: What was done, in a few words and in a sentence or two. created: When, as the reader should see it.
        figures: The numbers at the head. steps: What was done, in order. phases: Its trainings.
        network: The layers of the delivered network. onnx: Its verification.
        files: What was written. repeat: Commands that do it all again. environment: Versions, seeds, devices by name.
    """

    title: str
    summary: str = ""
    created: str = ""
    figures: Sequence[KeyFigure] = ()
    steps: Sequence[Step] = ()
    phases: Sequence[Phase] = ()
    network: Sequence[LayerRow] = ()
    onnx: OnnxCheck | None = None
    files: Sequence[FileEntry] = ()
    repeat: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


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
            el("style", Html((Path(__file__).parent / "page.css").read_text(encoding="utf-8"))),
        ),
        el("body", head, menu if len(parts) > 2 else None, el("main", body), foot),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"
