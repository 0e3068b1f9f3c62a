"""The content of a report, as plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffetools.results import Calibration, Confusion, Sample, Step
from caffetools.solver.logs.training_log import TrainingLog

if TYPE_CHECKING:
    # Matplotlib takes half a second, and what only describes a project draws nothing.
    from caffetools.visualize.filters import LayerWeights


@dataclass(frozen=True)
class KeyFigure:
    """A number at the head of the page: ``KeyFigure("98.4 %", "accuracy", "885 of 899 held-out pictures")``."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class FilterChange:
    """Weights of a layer before and after a training."""

    before: LayerWeights
    after: LayerWeights


@dataclass(frozen=True)
class Explanation:
    """A picture with the parts that speak for its predicted class.

    Attributes:
        picture: (H, W, 3) RGB uint8.
        overlay: Likewise, with the map laid over it.
        method: Such as ``Grad-CAM at conv5``.
        predicted: The class.
        probability: Of it, 0 to 1.
        true: The label's class, where known.
        name: The picture's.
    """

    picture: NDArray[np.uint8]
    overlay: NDArray[np.uint8]
    method: str
    predicted: str
    probability: float
    true: str | None = None
    name: str = ""


@dataclass(frozen=True)
class Phase:
    """A training and its results. Everything but the title may be missing.

    Attributes:
        title: A few words.
        note: A sentence below it.
        confusion: The held-out pictures by true and predicted class.
        samples: Classified pictures to show.
        logs: The training logs by the run's name.
        filters: Weights to draw, or their change.
        calibration: Of the held-out pictures.
        explanations: Of some of them.
        losses: The mean loss of each class's held-out images; None for a class without any.
    """

    title: str
    note: str = ""
    confusion: Confusion | None = None
    samples: Sequence[Sample] = ()
    logs: Mapping[str, TrainingLog] = field(default_factory=dict)
    filters: Sequence[LayerWeights | FilterChange] = ()
    calibration: Calibration | None = None
    explanations: Sequence[Explanation] = ()
    losses: Sequence[float | None] = ()


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
        file: The ONNX file's name.
        opset: Its operator set.
        runtime: What ran it, such as ``"onnxruntime 1.20"``.
        largest_difference: Of all outputs over all pictures, absolute.
        tolerance: What was allowed.
        pictures: How many were compared.
        agreeing: For how many both gave the same class.
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
    """The content of a report. Everything but the title may be missing; its part of the page is then missing too.

    Attributes:
        title: In a few words.
        summary: In a sentence or two.
        created: When, as the reader should see it.
        verdict: The result in a sentence.
        good: Whether it is a good one; None leaves that open.
        remarks: What the reader should know about the result, a sentence each.
        figures: The numbers at the head.
        phases: The trainings, with their results.
        network: The layers of the delivered network.
        card: Facts for users of the model, by name.
        next_steps: What to do with the model, each with its command.
        folder: The folder that relative paths in commands start from.
        steps_folder: The same of the commands of ``steps``, where it is another one.
        onnx: The check of the exported file.
        files: What was written.
        steps: What was done, in order.
        repeat: Commands that do it all again.
        environment: Versions, seeds, devices by name.
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
    verdict: str = ""
    good: bool | None = None
    remarks: Sequence[str] = ()
    card: Mapping[str, str] = field(default_factory=dict)
    next_steps: Sequence[Step] = ()
    folder: str = ""
    steps_folder: str = ""
