"""A fine-tuning run with everything resolved: its inputs, and the paths of what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caffetools.data.datasets.card import DatasetCard
from caffetools.onnx.verify import Verification
from caffetools.project.config import FinetuneConfig
from caffetools.project.evaluate import Evaluation
from caffetools.project.remarks import remarks_on_run
from caffetools.project.retargeting import RetargetResult
from caffetools.project.training_schedule import TrainingSchedule
from caffetools.solver.logs.training_log import TrainingLog
from caffetools.visualize.filters import LayerWeights


@dataclass(frozen=True)
class FinetuneRun:
    """The settings of a run, and what they resolve to.

    Attributes:
        config: The user's settings.
        net: The train_val prototxt to retarget.
        model: Name of the network, which selects default settings.
        weights: The .caffemodel to start from; None trains from scratch.
        size: Size to store the images at, as for ``dataset build``.
        gray: Whether the images have one channel.
        mean: Mean values (BGR) as text, for weights that expect them; None for the dataset's own mean.
        trained_by: Solver that a network of the zoo was published with.
    """

    config: FinetuneConfig
    net: Path
    model: str
    weights: Path | None
    size: str
    gray: bool
    mean: str | None
    trained_by: Path | None

    @property
    def data(self) -> Path:
        """Folder of the dataset."""
        return self.config.out / "data"

    @property
    def nets(self) -> Path:
        """Folder of the prototxts, the snapshots and the log."""
        return self.config.out / "net"

    @property
    def train_val(self) -> Path:
        """The retargeted net for training."""
        return self.nets / "train_val.prototxt"

    @property
    def solver(self) -> Path:
        """The solver's prototxt."""
        return self.nets / "solver.prototxt"

    @property
    def deploy(self) -> Path:
        """The deploy net."""
        return self.nets / "deploy.prototxt"

    @property
    def onnx(self) -> Path:
        """The exported model."""
        return self.config.out / "model.onnx"

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.config.out / "figures"


@dataclass
class FinetuneResult:
    """Result of a fine-tuning run.

    Attributes:
        run: The resolved settings and paths.
        card: The dataset.
        schedule: Training settings.
        project: The retargeted net.
        deploy: The deploy prototxt; ``deploy.json`` next to it has the preprocessing.
        weights: The trained .caffemodel.
        log: The training log.
        evaluation: Confusion and samples on the held-out images.
        verification: Comparison of the ONNX file with the net.
        agreeing: Held-out images for which both give the same class.
        filters: Weights of the first convolution, for the report.
    """

    run: FinetuneRun
    card: DatasetCard
    schedule: TrainingSchedule
    project: RetargetResult
    deploy: Path
    weights: Path
    log: TrainingLog
    evaluation: Evaluation
    verification: Verification
    agreeing: int
    filters: LayerWeights

    @property
    def remarks(self) -> list[str]:
        """What a user should know about the result, in sentences; empty if there is nothing."""
        scratch = self.run.weights is None
        return remarks_on_run(self.evaluation.confusion, self.log, self.card, from_scratch=scratch, loss=self.evaluation.loss)
