"""One folder, one project: dataset, nets, training, deployment and export, as an object."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffetools.cancel import CancelToken
from caffetools.data.datasets.build import build_dataset
from caffetools.data.datasets.card import DatasetCard, load_card
from caffetools.errors import CaffeToolsError, DataError
from caffetools.events import EventSink, ignore, reporter
from caffetools.graph.stages import Stages
from caffetools.infer.classifier import ClassificationResult, Classifier, ImageLike, as_images
from caffetools.infer.data_preprocessing import known_preprocessing, update_preprocessing
from caffetools.infer.export import export_deployed
from caffetools.infer.sidecar import read_preprocessing
from caffetools.layers.base import Shape
from caffetools.onnx.verify import Verification
from caffetools.project.config import command
from caffetools.project.data_config import DataOptions, classes_of
from caffetools.project.evaluate import Evaluation, evaluate
from caffetools.project.history import read_config, read_history
from caffetools.project.next_step import after_deploy, after_export, dataset_command, find_dataset, has_onnx_form, lacks_data
from caffetools.project.output import planned_command
from caffetools.project.retargeting import RetargetResult, prepare_retarget, write_retarget
from caffetools.project.surroundings import after_dataset
from caffetools.proto.file_names import read_net_near_files
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import format_text, read_net, read_solver
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.results import Preprocessing
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.control import Snapshot
from caffetools.solver.logs.training_log import read_log
from caffetools.solver.paths import snapshot_prefix
from caffetools.solver.run import TrainResult, train
from caffetools.surgery.deploy import deploy_from
from caffetools.surgery.freezing import Tuning
from caffetools.surgery.layer_edits import LayerEdits
from caffetools.surgery.retarget import HEAD_LR_MULT
from caffetools.util.arguments import file_path
from caffetools.util.files import write_text
from caffetools.zoo.names import is_model
from caffetools.zoo.networks import prototxt_path

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ProjectStatus:
    """What a project has, and what to do next.

    Attributes:
        folder: The project's folder.
        net: Name of the net, or its path where it has no name; "" if there is none.
        classes: Number of classes of the dataset; 0 if there is none.
        images: Training and validation images.
        iteration: Iteration of the newest snapshot.
        max_iter: Iterations of the whole training.
        scores: Output name → value of the last test.
        weights: The newest weights.
        onnx: The exported model.
        next_command: The command to run next.
    """

    folder: Path
    net: str = ""
    classes: int = 0
    images: tuple[int, int] = (0, 0)
    iteration: int = 0
    max_iter: int = 0
    scores: tuple[tuple[str, float], ...] = ()
    weights: Path | None = None
    onnx: Path | None = None
    next_command: str = ""


class Project:
    """A folder with a dataset, a net, its training and its exported model, as ``finetune`` and ``retarget`` write them.

    Args:
        folder: The project's folder. A folder with a solver.prototxt of its own is a project whose nets are in it.

    Attributes:
        folder: The project's folder.
        data: Folder of the dataset.
        nets: Folder of the prototxts, snapshots and logs.

    Example:
        >>> project = Project("run")
        >>> project.status().next_command
        'caffetools dataset build PICTURES run/data'
    """

    def __init__(self, folder: PathLike):
        self.folder = file_path("folder", folder)
        self.data = self.folder / "data"
        self.nets = self.folder if (self.folder / "solver.prototxt").is_file() else self.folder / "net"

    def __repr__(self) -> str:
        return f"Project({os.fspath(self.folder)!r})"

    @classmethod
    def open(cls, folder: PathLike) -> Project:
        """Open an existing project.

        Raises:
            CaffeToolsError: The folder does not exist, or has neither a dataset nor a solver.
        """
        project = cls(folder)
        if not project.solver.is_file() and project.dataset is None:
            raise CaffeToolsError(
                "no project is here: neither data/dataset.json nor net/solver.prototxt exists",
                path=folder,
                hint="caffetools finetune, dataset build or retarget makes one, and Project.create in Python",
            )
        return project

    @classmethod
    def create(
        cls,
        folder: PathLike,
        pictures: PathLike,
        *,
        size: str = "256",
        val: float = 0.2,
        seed: int = 1,
        gray: bool = False,
        events: EventSink = ignore,
        cancel: CancelToken | None = None,
    ) -> Project:
        """Create a project with a dataset from a folder with one subfolder of images per class.

        Args:
            folder: The project's folder.
            pictures: The folder of images.
            size: Size to store images at: ``"256"`` or ``"320x240"``.
            val: Fraction of each class that is held out.
            seed: Seed of the split and the order.
            gray: Store one channel.
            events: Receives ``Progress`` events.
            cancel: Checked between images.

        Raises:
            DataError: There are no usable images, or the project has a dataset already.
            Cancelled: ``cancel`` was set; the project has no dataset then.
        """
        project = cls(folder)
        report = reporter(events, "dataset", "images", cancel)
        build_dataset(Path(pictures), project.data, size=size, val=val, seed=seed, gray=gray, progress=report)
        return project

    @property
    def dataset(self) -> DatasetCard | None:
        """The dataset's card; None if there is no dataset."""
        with suppress(DataError):
            return load_card(self.data)
        return None

    @property
    def train_val(self) -> Path:
        """Path of the net for training."""
        return self.nets / "train_val.prototxt"

    @property
    def solver(self) -> Path:
        """Path of the solver."""
        return self.nets / "solver.prototxt"

    @property
    def deploy_prototxt(self) -> Path:
        """Path of the deploy net."""
        return self.nets / "deploy.prototxt"

    @property
    def onnx(self) -> Path:
        """Path of the exported model."""
        return self.folder / "model.onnx"

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest complete snapshot, or None."""
        if not self.solver.is_file():
            return None
        return newest_snapshot(self._prefix())

    @property
    def weights(self) -> Path | None:
        """The newest trained weights, or None."""
        found = self.snapshot
        return found.weights if found is not None else None

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared for the deploy net; None if not known."""
        return read_preprocessing(self.deploy_prototxt)

    def retarget(
        self,
        net: PathLike,
        *,
        classes: int | None = None,
        weights: PathLike | None = None,
        head_lr_mult: float = HEAD_LR_MULT,
        heads: Iterable[str] | None = None,
        data: DataOptions | None = None,
        tuning: Tuning | None = None,
        edits: LayerEdits | None = None,
        epochs: int = 20,
        base_lr: float | None = None,
        seed: int | None = None,
        input_shape: Shape | Mapping[str, Shape] | None = None,
        stages: Stages | None = None,
        trained_by: PathLike | None = None,
    ) -> RetargetResult:
        """Retarget a net to the dataset's classes, and write it into the project.

        Args:
            net: A train_val prototxt, or a model of the zoo.
            classes: Number of classes; by default the dataset's.
            weights: The .caffemodel that training will start from.
            head_lr_mult: Factor of the learning rates of new classifiers.
            heads: Names of the classifiers to replace; by default all that the losses over classes read.
            data: Sources, mean and batch sizes, where they are not the dataset's.
            tuning: Which layers learn, and how fast.
            edits: Layers to remove and to insert.
            epochs: Passes over the training images.
            base_lr: Base learning rate; by default chosen from the net and the weights.
            seed: Random seed of the solver; by default a different one in each run.
            input_shape: (N, C, H, W) or (C, H, W) of the deploy net's input, or shapes by blob, if the data layers do not give them.
            stages: Stages of training, testing and use, where the net's rules name stages.
            trained_by: The solver's prototxt that the net was trained with; a model of the zoo has its own.

        Returns:
            The nets, the solver and the changes, as they were written.

        Raises:
            NetError: The net cannot be retargeted.
            PrototxtError: It cannot be read.
            CaffeToolsError: There is no dataset and ``classes`` is not given, or they differ.
        """
        model = is_model(os.fspath(net))
        source = prototxt_path(os.fspath(net)) if model else Path(net)
        card = self.dataset
        if card is None and classes is None:
            raise CaffeToolsError(
                "the project has no dataset, so the number of classes is not known", path=self.folder, hint="give classes"
            )
        count = classes_of(card, classes) if card is not None else int(classes or 0)
        if model and trained_by is None:
            trained_by = prototxt_path(os.fspath(net), "solver")
        result = prepare_retarget(
            source,
            count,
            self.nets,
            trained_by=None if trained_by is None else Path(trained_by),
            head_lr_mult=head_lr_mult,
            heads=heads,
            data=data,
            dataset=card,
            tuning=tuning,
            edits=edits,
            epochs=epochs,
            base_lr=base_lr,
            seed=seed,
            input_shape=input_shape,
            weights=weights,
            stages=stages,
        )
        write_retarget(result, self.nets)
        return result

    def train(
        self,
        *,
        weights: PathLike | None = None,
        device: str = "auto",
        events: EventSink = ignore,
        cancel: CancelToken | None = None,
        compute: ComputeOptions = ComputeOptions(),
    ) -> TrainResult:
        """Train, or resume from the newest complete snapshot.

        Args:
            weights: The .caffemodel to start from, if there is no snapshot yet.
            device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
            events: Receives the events of the training.
            cancel: Stops the training with a snapshot.
            compute: Precision, compiling, memory and CUDA graphs.

        Returns:
            The result; ``stopped`` is true after a cancellation.

        Raises:
            PrototxtError: The project has no solver, or it or its net cannot be read.
            RunFailed: Training diverged, or a snapshot cannot be written.
            CaffeToolsError: The solver, the net, the weights or the data are wrong.
        """
        found = self.snapshot
        start: dict[str, Any] = {"snapshot": found.state} if found is not None else {"weights": [weights] if weights is not None else []}
        return train(self.solver, device=device, events=events, cancel=cancel, compute=compute, **start)

    def deploy(self) -> Path:
        """Write the deploy net and its preprocessing from the net for training; return its path.

        Raises:
            NetError: The net cannot be deployed.
        """
        param = upgrade_net(read_net_near_files(self.train_val))
        deploy = deploy_from(param)
        write_text(self.deploy_prototxt, format_text(deploy))
        update_preprocessing(self.deploy_prototxt, known_preprocessing(self.train_val, param, deploy))
        return self.deploy_prototxt

    def classifier(self, *, device: str = "cpu") -> Classifier:
        """Return a classifier of the deploy net with the newest weights.

        Raises:
            CaffeToolsError: The project is not trained yet.
        """
        return Classifier(self.deploy_prototxt, self._trained(), device=device)

    def classify(
        self, images: ImageLike | Iterable[ImageLike], *, top: int = 5, events: EventSink = ignore, cancel: CancelToken | None = None
    ) -> list[ClassificationResult]:
        """Classify images with the newest weights.

        Args:
            images: As for :func:`caffetools.classify`.
            top: Number of classes for each image.
            events: Receives ``Progress`` events, in images.
            cancel: Checked before every batch.

        Returns:
            One result an image, in their order; ``error`` in that of a file that cannot be read.

        Raises:
            CaffeToolsError: The project is not trained yet, or one of ``images`` is not an image.
            Cancelled: ``cancel`` was set.
        """
        return self.classifier().classify(as_images(images), top=top, events=events, cancel=cancel)

    def evaluate(self, *, events: EventSink = ignore, cancel: CancelToken | None = None) -> Evaluation:
        """Classify every held-out image of the dataset.

        Args:
            events: Receives ``Progress`` events.
            cancel: Checked before every batch.

        Raises:
            CaffeToolsError: There is no dataset, or the project is not trained yet.
        """
        card = self.dataset
        if card is None:
            raise CaffeToolsError("the project has no dataset to evaluate on", path=self.folder)
        return evaluate(self.classifier(), card, events=events, cancel=cancel)

    def export(self, path: PathLike | None = None, *, events: EventSink = ignore, cancel: CancelToken | None = None) -> Verification:
        """Export the deploy net with the newest weights as ONNX, verified.

        Args:
            path: The ONNX file; by default ``model.onnx`` in the project.
            events: Receives the events of the export.
            cancel: Checked before the export.

        Returns:
            The largest differences found.

        Raises:
            CaffeToolsError: The project is not trained yet, or a file cannot be read.
            ExportError: The net has no exact ONNX form, or the exported model gives other numbers.
            Cancelled: ``cancel`` was set.
        """
        return export_deployed(self.deploy_prototxt, self._trained(), path or self.onnx, events=events, cancel=cancel)

    def status(self) -> ProjectStatus:
        """Return what the project has, and what to do next."""
        card = self.dataset or (find_dataset(self.train_val) if self.train_val.is_file() else None)
        found = self.snapshot
        solver = read_solver(self.solver) if self.solver.is_file() else None
        onnx = next((path for path in (self.onnx, self.nets / "model.onnx", *self._model_above()) if path.is_file()), None)
        return ProjectStatus(
            self.folder,
            net=(read_net(self.train_val).name or str(self.train_val)) if self.train_val.is_file() else "",
            classes=len(card.classes) if card is not None else 0,
            images=(card.train_count, card.val_count) if card is not None else (0, 0),
            iteration=found.iteration if found is not None else 0,
            max_iter=solver.max_iter if solver is not None else 0,
            scores=self._scores(),
            weights=found.weights if found is not None else None,
            onnx=onnx,
            next_command=self._next(card, solver, found, onnx),
        )

    def _model_above(self) -> list[Path]:
        """Return where the model of a run is for a project that is the run's net folder, seen from inside it."""
        folder = self.folder.absolute()
        return [Path(os.path.relpath(folder.parent / "model.onnx"))] if self.nets == self.folder and folder.name == "net" else []

    def _trained(self) -> Path:
        weights = self.weights
        if weights is None:
            raise CaffeToolsError("the project is not trained yet", path=self.folder, hint=f"run {command('train', self.solver)}")
        return weights

    def _prefix(self) -> str:
        """Return the prefix of the snapshots, also where the project was trained from another folder."""
        solver = read_solver(self.solver)
        return snapshot_prefix(solver, self.solver) if solver.snapshot_prefix else str(self.nets / "snapshot")

    def _scores(self) -> tuple[tuple[str, float], ...]:
        if not self.solver.is_file():
            return ()
        log = Path(f"{self._prefix()}.log")
        if not log.is_file():
            return ()
        with suppress(CaffeToolsError):
            tests = read_log(log).test
            return tuple((name, float(value)) for name, value in tests[-1].outputs.items()) if tests else ()
        return ()

    def _resume_run(self) -> str:
        """Return the command that does what is left of a run of ``finetune``; empty for another project."""
        with suppress(CaffeToolsError):
            return read_config(self.folder, read_history(self.folder)).command()
        return ""

    def _next(self, card: DatasetCard | None, solver: SolverParameter | None, found: Snapshot | None, onnx: Path | None) -> str:
        if (solver is None or found is None or found.iteration < solver.max_iter) and (again := self._resume_run()):
            return again
        if solver is None or (found is None and lacks_data(self.train_val)):
            if card is not None:
                return after_dataset(card)
            return dataset_command(self.data) or command("dataset", "build", "PICTURES", self.data)
        if found is None:
            return planned_command(self.solver) or command("train", self.solver)
        if found.iteration < solver.max_iter:
            return command("train", self.solver, "--resume", "auto")
        if onnx is None and not has_onnx_form(self.deploy_prototxt):
            return after_deploy(self.deploy_prototxt, self.train_val)
        if onnx is None:
            return command("export", self.deploy_prototxt, found.weights, "-o", self.onnx)
        return after_export(self.deploy_prototxt, found.weights, onnx)
