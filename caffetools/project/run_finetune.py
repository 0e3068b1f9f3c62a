"""From a folder of pictures to a verified network: data set, retargeted net, training, deploy net, evaluation, ONNX, figures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffetools.data.databases import open_database
from caffetools.data.datasets.build import build_dataset
from caffetools.data.datasets.card import DatasetCard, load_card
from caffetools.errors import DataError
from caffetools.infer.classifier import Classifier, Options
from caffetools.infer.export import export_deployed
from caffetools.layers.registry import traits
from caffetools.onnx.verify import Verification
from caffetools.project.dataset_config import mean_of
from caffetools.project.evaluate import Evaluation, evaluate, held_out
from caffetools.project.progress import Recorder
from caffetools.project.retargeting import DataOptions, RetargetResult, prepare_retarget, write_retarget
from caffetools.project.training_schedule import Plan, plan_training
from caffetools.proto.binary import read_caffemodel
from caffetools.proto.text import read_solver
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.logs.training_log import TrainingLog, read_log
from caffetools.solver.run import train
from caffetools.surgery.retarget import HEAD_LR_MULT
from caffetools.util.folders import remove
from caffetools.visualize.confusion import draw_confusion
from caffetools.visualize.curves import draw_curves
from caffetools.visualize.filters import LayerWeights, draw_filters, find_weights

# How many held-out pictures the ONNX file is verified on, besides the classification of all of them.
VERIFIED_PICTURES = 16


@dataclass(frozen=True)
class Job:
    """What to learn.

    Attributes:
        pictures: A folder of pictures for each class. out: The folder for everything that is made.
        net: The train_val prototxt to retarget. model: What it is called, for the choice of settings.
        weights: A .caffemodel to start from; None trains from scratch.
        size, gray: What the pictures are stored as. mean: Values (BGR) as text for nets whose weights expect them, or None for the
            data set's own mean. crop: The side of the square cut out of each picture, where the net's data layers have none.
        trained_by: For a network of the zoo, the solver that it was published with.
        classes: How many the user expects; None takes what there are. epochs, batch: In place of what is chosen.
        val, seed, device: as for ``dataset build`` and ``train``.
    """

    pictures: Path
    out: Path
    net: Path
    model: str
    weights: Path | None = None
    size: str = "256"
    gray: bool = False
    mean: str | None = None
    crop: int | None = None
    trained_by: Path | None = None
    epochs: int | None = None
    batch: int | None = None
    val: float = 0.2
    seed: int = 1
    device: str = "auto"
    classes: int | None = None

    @property
    def data(self) -> Path:
        """The data set's folder."""
        return self.out / "data"

    @property
    def nets(self) -> Path:
        """The folder of the prototxts, the snapshots and the log."""
        return self.out / "net"

    @property
    def onnx(self) -> Path:
        """The exported model."""
        return self.out / "model.onnx"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.out / "figures"


@dataclass
class Learned:
    """What came of a job: the data set, the settings, the deployed net and its weights, how well it does, and the ONNX check."""

    job: Job
    card: DatasetCard
    plan: Plan
    project: RetargetResult
    options: Options
    deploy: Path
    weights: Path
    log: TrainingLog
    evaluation: Evaluation
    verification: Verification
    agreeing: int
    filters: LayerWeights


def learn(job: Job, recorder: Recorder) -> Learned | None:
    """Do the whole of ``job``; steps that an earlier, interrupted run has finished are taken as they are.

    Returns:
        What came of it; None where training was stopped by the user (a snapshot is there to go on from).

    Raises:
        CaffeToolsError: pictures, net or weights do not fit; what is finished stays.
    """
    card = _dataset(job, recorder)
    plan = plan_training(
        job.model, card.train_count, card.val_count, fine_tuning=job.weights is not None, epochs=job.epochs, batch=job.batch
    )
    project = _networks(job, recorder, card, plan)
    weights = _train(job, recorder)
    if weights is None:
        return None
    options = _options(job, card, project)
    deploy = job.nets / "deploy.prototxt"
    with recorder.step("Write the deploy network", command("deploy", job.nets / "train_val.prototxt", "-o", deploy, "--force")) as say:
        say(f"{deploy}: {len(project.deploy.layer)} layers, input {_input(project)}, output prob")
    evaluation = _evaluate(job, recorder, card, options, deploy, weights)
    verification, agreeing = _export(job, recorder, card, options, deploy, weights, evaluation)
    log, filters = _draw(job, recorder, weights, evaluation)
    return Learned(job, card, plan, project, options, deploy, weights, log, evaluation, verification, agreeing, filters)


def command(*words: object) -> str:
    """A command line of caffetools, quoted where a shell needs it."""
    return shlex.join(["caffetools", *(str(word) for word in words)])


def _dataset(job: Job, recorder: Recorder) -> DatasetCard:
    words = ["dataset", "build", job.pictures, job.data, "--size", job.size, "--val", job.val, "--seed", job.seed]
    with recorder.step("Build databases, labels and mean", command(*words, *(["--gray"] if job.gray else []))) as say:
        card = _whole(job.data)
        if card is not None:
            say("already built;")
        else:
            # What is left of a damaged one.
            remove(job.data)
            with recorder.narrator.progress("Reading pictures") as advance:
                card = build_dataset(job.pictures, job.data, size=job.size, val=job.val, seed=job.seed, gray=job.gray, progress=advance)
        say(f"{len(card.classes)} classes, {card.train_count} pictures to learn from, {card.val_count} held out")
        for note in card.notes:
            say(note)
        if card.skipped:
            say(f"{len(card.skipped)} pictures could not be used; {job.data / 'dataset.json'} lists them")
    return card


def _whole(data: Path) -> DatasetCard | None:
    """The card of the data set in the folder ``data``; None where a part of it is missing or damaged."""
    try:
        card = load_card(data)
        if not all(path is None or path.is_file() for path in (card.labels_file, card.mean_file, data / "train.txt", data / "val.txt")):
            return None
        for path, count in ((card.train_lmdb, card.train_count), (card.val_lmdb, card.val_count)):
            with closing(open_database(path)) as database:
                if len(database) != count:
                    return None
    except DataError:
        return None
    return card


def _networks(job: Job, recorder: Recorder, card: DatasetCard, plan: Plan) -> RetargetResult:
    data = DataOptions(str(card.train_lmdb), str(card.val_lmdb), _mean(job, card), plan.batch, plan.val_batch, job.crop)
    source: list[object] = ["--model", job.model] if job.trained_by else [job.net]
    words: list[object] = ["retarget", *source, "--classes", len(card.classes), "-o", job.nets]
    words += ["--train-source", data.train_source, "--val-source", data.val_source]
    words += ["--mean", data.mean] if data.mean else []
    words += ["--train-batch", plan.batch, "--val-batch", plan.val_batch, "--epochs", plan.epochs, "--base-lr", f"{plan.base_lr:g}"]
    # From random weights the classifier has no lead to catch up with, and at a high rate it can die.
    head_lr_mult = HEAD_LR_MULT if job.weights else 1.0
    words += ["--weights", job.weights] if job.weights else ["--head-lr-mult", "1"]
    words += ["--seed", job.seed, *(["--crop", job.crop] if job.crop else [])]
    with recorder.step(f"Retarget {job.model} to {len(card.classes)} classes", command(*words)) as say:
        project = prepare_retarget(
            job.net,
            len(card.classes),
            job.nets,
            trained_by=job.trained_by,
            data=data,
            head_lr_mult=head_lr_mult,
            epochs=plan.epochs,
            base_lr=plan.base_lr,
            seed=job.seed,
            weights=job.weights,
        )
        write_retarget(project, job.nets)
        say(", ".join(f"{old} → {new}" for old, new in project.retargeted.renamed.items() if old != new) + ";")
        say(
            f"batch {plan.batch}, {plan.epochs} epochs of {plan.epoch} iterations = {plan.updates} updates, "
            f"learning rate {plan.base_lr:g}, a tenth of it from two thirds on"
        )
    return project


def _train(job: Job, recorder: Recorder) -> Path | None:
    path = job.nets / "solver.prototxt"
    solver = read_solver(path)
    found = newest_snapshot(solver.snapshot_prefix)
    words: list[object] = ["train", path, *(["--weights", job.weights] if job.weights else []), "--device", job.device]
    with recorder.step("Fine-tune" if job.weights else "Train from scratch", command(*words)) as say:
        if found is not None and found.iteration >= solver.max_iter:
            say(f"already trained: {found.weights}")
            return found.weights
        with recorder.narrator.training() as events:
            done = train(
                path,
                weights=[job.weights] if job.weights and found is None else [],
                snapshot=found.state if found is not None else None,
                device=job.device,
                events=events,
            )
        if done.stopped or done.snapshot is None:
            say(f"stopped at iteration {done.solver.iteration}")
            return None
        scores = ", ".join(f"{o.name} {o.value:.4g}" for o in done.history.test[-1].outputs) if done.history.test else ""
        say(f"{done.solver.iteration} iterations; test: {scores}; weights {done.snapshot.weights}")
        return done.snapshot.weights


def _evaluate(job: Job, recorder: Recorder, card: DatasetCard, options: Options, deploy: Path, weights: Path) -> Evaluation:
    held = command("classify", deploy, weights, job.pictures, *_preprocessing(options))
    with recorder.step("Classify the held-out pictures", held) as say:
        classifier = Classifier(deploy, weights, options)
        with recorder.narrator.progress("Classifying") as advance:
            evaluation = evaluate(classifier, card, progress=advance)
        confusion = evaluation.confusion
        say(f"{confusion.right} of {confusion.total} right: {confusion.accuracy:.2%}")
    return evaluation


def _export(
    job: Job, recorder: Recorder, card: DatasetCard, options: Options, deploy: Path, weights: Path, evaluation: Evaluation
) -> tuple[Verification, int]:
    pictures = [path for path, _ in held_out(card)]
    sample = pictures[:: max(1, len(pictures) // VERIFIED_PICTURES)][:VERIFIED_PICTURES]
    words = command("export", deploy, weights, "-o", job.onnx, *_preprocessing(options), "--pictures", job.pictures)
    with recorder.step("Export to ONNX and verify", words) as say:
        verification = export_deployed(deploy, weights, job.onnx, options, pictures=sample)
        say(f"{job.onnx}: {verification.describe()};")
        with recorder.narrator.progress("Classifying with onnxruntime") as advance:
            again = evaluate(Classifier(job.onnx), card, progress=advance)
        agreeing = sum(a == b for a, b in zip(again.predicted, evaluation.predicted, strict=True))
        say(f"the same class for {agreeing} of all {again.confusion.total} held-out pictures")
    return verification, agreeing


def _draw(job: Job, recorder: Recorder, weights: Path, evaluation: Evaluation) -> tuple[TrainingLog, LayerWeights]:
    log_file = Path(f"{read_solver(job.nets / 'solver.prototxt').snapshot_prefix}.log")
    drawn = [job.figures / name for name in ("filters.png", "curves.png", "confusion.png")]
    words = f"{command('visualize', 'filters', weights, '-o', drawn[0])}; {command('visualize', 'curves', log_file, '-o', drawn[1])}"
    with recorder.step("Draw filters, curves and the confusion matrix", words) as say:
        model, log = read_caffemodel(weights), read_log(log_file)
        draw_filters(model, None, drawn[0])
        draw_curves({job.model: log}, drawn[1])
        draw_confusion(evaluation.confusion, drawn[2])
        say(", ".join(str(path) for path in drawn))
    return log, find_weights(model)


def _mean(job: Job, card: DatasetCard) -> str:
    return job.mean or mean_of(card)


def _options(job: Job, card: DatasetCard, project: RetargetResult) -> Options:
    """How pictures must be prepared for the deployed net: as its data layer of the TEST phase did."""
    data = next(layer for layer in project.retargeted.train_val.layer if traits(layer).transforms)
    mean: Any = _mean(job, card)
    if mean and not Path(mean).exists():
        mean = tuple(float(value) for value in mean.split(","))
    resize = (card.width, card.height) if card.width else None
    scale = data.transform_param.scale
    return Options(mean=mean, labels=card.labels_file, scale=scale if scale != 1 else None, resize=resize)


def _preprocessing(options: Options) -> Sequence[object]:
    words: list[object] = []
    if options.mean is not None:
        values = options.mean
        words += ["--mean", ",".join(f"{v:g}" for v in values) if isinstance(values, tuple) else values]
    if options.scale is not None:
        words += ["--scale", f"{options.scale:.9g}"]
    if options.resize is not None:
        words += ["--resize", f"{options.resize[0]}x{options.resize[1]}"]
    return [*words, "--labels", options.labels]


def _input(project: RetargetResult) -> str:
    shape = project.deploy.layer[0].input_param.shape
    return " x ".join(str(n) for n in shape[0].dim) if shape else "?"
