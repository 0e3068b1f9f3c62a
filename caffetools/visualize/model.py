"""The content of a report, as plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from caffetools.results import Confusion, Sample, Step
from caffetools.solver.logs.training_log import TrainingLog
from caffetools.visualize.filters import LayerWeights


@dataclass(frozen=True)
class KeyFigure:
    """A number at the head of the page: ``KeyFigure("98.4 %", "accuracy", "885 of 899 held-out pictures")``."""

    value: str
    label: str
    note: str = ""


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
