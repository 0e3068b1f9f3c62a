"""``finetune``: from a folder of images to a verified model, in a folder that records what it is made of and can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from caffetools.cancel import CancelToken
from caffetools.data.databases import open_database
from caffetools.data.datasets.build import build_dataset
from caffetools.data.datasets.card import DatasetCard, load_card
from caffetools.data.datasets.listing import Listing, list_pictures
from caffetools.errors import CaffeToolsError, Cancelled, DataError, ZooError
from caffetools.events import ArtifactWritten, EventSink, ignore
from caffetools.graph.stages import Stages
from caffetools.infer.classifier import Classifier
from caffetools.infer.export import export_deployed
from caffetools.onnx.verify import Verification
from caffetools.project.checks import check_run, net_crop
from caffetools.project.config import FinetuneConfig, command
from caffetools.project.data_config import DataOptions, mean_of
from caffetools.project.evaluate import Evaluation, evaluate, held_out
from caffetools.project.history import RunHistory, describe_environment, digests, read_history, write_history
from caffetools.project.manifest import LOCK, check_or_write_manifest, fingerprint, rollback_if_empty
from caffetools.project.report import make_report, onnx_check, title_and_summary
from caffetools.project.retargeting import RetargetResult, prepare_retarget, write_retarget
from caffetools.project.run import FinetuneResult, FinetuneRun
from caffetools.project.steps import Steps
from caffetools.project.training_schedule import TrainingSchedule, plan_training
from caffetools.proto.binary import read_caffemodel
from caffetools.proto.sniff import wrong_kind
from caffetools.proto.text import read_solver
from caffetools.results import share_text
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.checkpoints.snapshots import prefix_lock
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.logs.training_log import TrainingLog, read_log
from caffetools.solver.run import train
from caffetools.surgery.retarget import HEAD_LR_MULT
from caffetools.util.files import check_writable, fingerprint_of_file
from caffetools.util.folders import remove
from caffetools.visualize.confusion import draw_confusion
from caffetools.visualize.curves import draw_curves
from caffetools.visualize.filters import LayerWeights, draw_filters, find_weights
from caffetools.visualize.report import write_report
from caffetools.zoo.cards import ModelCard, get_card
from caffetools.zoo.fetch import fetch_weights
from caffetools.zoo.names import find_model

# Held-out images on which the ONNX file is verified, besides the classification of all of them.
VERIFIED_PICTURES = 16
# Usual size of the images that smaller squares are cropped from.
STORED_SIZE = 256


def finetune(config: FinetuneConfig, events: EventSink = ignore, cancel: CancelToken | None = None) -> tuple[FinetuneResult, Path]:
    """Build a dataset, retarget, train, deploy, evaluate, export and verify, and write a report.

    In a folder in which the same run was interrupted, finished steps are kept and the training resumes from its last snapshot.

    Args:
        config: The settings.
        events: Receives the events of every step and of the work inside.
        cancel: Stops the run between images, iterations, batches and steps.

    Returns:
        The result, and the path of the report.

    Raises:
        CaffeToolsError: The settings do not fit, or the folder holds another run.
        ZooError: The weights cannot be fetched.
        Cancelled: The run was cancelled or stopped; the same call resumes it.
    """
    if not isinstance(config, FinetuneConfig):
        raise CaffeToolsError(f"config must be a FinetuneConfig, not {type(config).__name__}")
    check_config(config)
    listing = list_pictures(config.pictures)
    steps = Steps(events, cancel)
    # Before the folder is made: missing weights or settings that do not fit leave nothing behind.
    run = resolve(config, steps)
    check_run(run, listing)
    with rollback_if_empty(config.out), prefix_lock(config.out / LOCK, what=f"at work in {config.out}", hint="choose another folder (-o)"):
        check_or_write_manifest(config.out, config.identity(), inputs_of(run, listing))
        result = _run_recorded(run, steps)
        report = _write_report(result, steps)
    events(ArtifactWritten(task="report", path=str(report), what="report"))
    return result, report


def _run_recorded(run: FinetuneRun, steps: Steps) -> FinetuneResult:
    """Do all steps of a run, and write into its folder what ``caffetools report`` needs to know of them."""
    config = run.config
    before = read_history(config.out)
    if before is not None:
        steps.add_earlier(before.seconds)
    history = RunHistory(
        config.to_dict(),
        run.model,
        str(run.weights) if run.weights is not None else None,
        describe_environment(config.device, config.seed),
        steps.seconds,
        str(Path.cwd()),
        *((before.steps, before.onnx, before.digests) if before is not None else ()),
    )
    write_history(config.out, history)
    try:
        result = run_finetune(run, steps)
    except BaseException:
        # The reason why the run ended is what the user has to read.
        with suppress(CaffeToolsError):
            write_history(config.out, history)
        raise
    done = replace(history, steps=steps.done, onnx=onnx_check(result), digests=digests(result.weights, run.onnx))
    write_history(config.out, done)
    return result


def check_config(config: FinetuneConfig) -> None:
    """Raise :class:`CaffeToolsError` for settings that contradict each other or name missing files."""
    if config.weights is not None and config.from_scratch:
        raise CaffeToolsError("give either --weights to start from or --from-scratch, not both")
    if not config.pictures.is_dir():
        if other := wrong_kind(CaffeToolsError, config.pictures, "a folder with a folder of pictures for each class"):
            raise other
        raise CaffeToolsError("no such folder; a folder of pictures for each class is expected in it", path=config.pictures)
    if config.weights is not None and not config.weights.is_file():
        what = "a folder" if config.weights.is_dir() else "no such file"
        raise CaffeToolsError(f"{config.weights}: {what}; a .caffemodel is expected")
    if config.out.exists() and not config.out.is_dir():
        raise CaffeToolsError(f"{config.out} is a file; choose a folder for the run (-o)")
    check_writable(config.out)


def inputs_of(run: FinetuneRun, listing: Listing) -> dict[str, str]:
    """Return a fingerprint of each input, by the name that messages use for it."""
    inputs = {
        f"the pictures in {run.config.pictures}": fingerprint(listing),
        f"the net {run.net}": sha256(run.net.read_bytes()).hexdigest(),
    }
    if run.weights is not None:
        inputs[f"the weights {run.weights}"] = fingerprint_of_file(run.weights)
    return inputs


def resolve(config: FinetuneConfig, steps: Steps) -> FinetuneRun:
    """Resolve what the settings leave open: the net's file, its weights (fetched if they are the zoo's), sizes and mean."""
    name = find_model(config.model)
    card = get_card(name or config.model) if name is not None or not Path(config.model).exists() else None
    net = card.network("train_val") if card else Path(config.model)
    weights = config.weights
    if weights is None and not config.from_scratch:
        weights = _fetched(config, card, steps)
    mean = config.mean
    if mean is None and weights is not None and card is not None and card.input.mean:
        mean = ",".join(f"{value:g}" for value in card.input.mean)
    return FinetuneRun(
        config,
        net=net,
        model=card.name if card else net.stem,
        weights=weights,
        size=config.size or str(_size(config, card, net_crop(net, config.stage))),
        gray=config.gray or (card is not None and card.input.shape[0] == 1),
        mean=mean,
        trained_by=card.network("solver") if card else None,
    )


def run_finetune(run: FinetuneRun, steps: Steps) -> FinetuneResult:
    """Do all steps of a resolved run; steps that an earlier, interrupted run has finished are kept.

    Raises:
        CaffeToolsError: Images, net or weights do not fit; finished steps are kept.
        Cancelled: The run was cancelled or stopped by a signal.
    """
    card = _build_dataset(run, steps)
    config = run.config
    own_lr = read_solver(run.trained_by).base_lr if run.trained_by is not None else None
    schedule = plan_training(
        run.model,
        card.train_count,
        card.val_count,
        fine_tuning=run.weights is not None,
        epochs=config.epochs,
        batch=config.batch,
        base_lr=config.base_lr,
        own_lr=own_lr,
    )
    project = _retarget(run, steps, card, schedule)
    weights = _train(run, steps)
    with steps.step("deploy", "Write the deploy network", command("deploy", run.train_val, "-o", run.deploy, "--force")) as note:
        note(f"{run.deploy}: {len(project.deploy.layer)} layers, input {_input(project)}, output prob")
    evaluation = _evaluate(run, steps, card, weights)
    verification, agreeing = _export(run, steps, card, weights, evaluation)
    log, filters = _draw(run, steps, weights, evaluation)
    result = FinetuneResult(run, card, schedule, project, run.deploy, weights, log, evaluation, verification, agreeing, filters)
    for remark in result.remarks:
        steps.warn("evaluate", remark)
    return result


def _fetched(config: FinetuneConfig, card: ModelCard | None, steps: Steps) -> Path:
    if card is None:
        raise CaffeToolsError(f"{config.model}: give the weights to start from (--weights), or --from-scratch")
    if card.weights is None:
        raise CaffeToolsError(f"{card.name} has no published weights; start from random ones (--from-scratch), or from a file (--weights)")
    with steps.step("fetch", f"Fetch the published weights of {card.name}", command("zoo", "fetch", card.name)) as note:
        try:
            fetched = fetch_weights(card, progress=steps.progress("fetch", "bytes"), note=note, cancel=steps.cancel)
        except ZooError as error:
            raise ZooError(f"{error}; or start from another file (--weights), or from random weights (--from-scratch)") from None
        note(f"{fetched.path} ({fetched.verified})")
    return fetched.path


def _size(config: FinetuneConfig, card: ModelCard | None, crop: int) -> int:
    crop = config.crop or crop
    if crop:
        # Images must be larger than the crop, by the usual proportion for small nets.
        return max(STORED_SIZE, crop) if crop > STORED_SIZE // 2 else round(crop * 8 / 7)
    if card is not None:
        return card.input.shape[1]
    raise CaffeToolsError(f"{config.model}: its data layers do not give the size of the images; give --size")


def _build_dataset(run: FinetuneRun, steps: Steps) -> DatasetCard:
    config = run.config
    words: list[object] = ["dataset", "build", config.pictures, run.data, "--size", run.size, "--val", config.val, "--seed", config.seed]
    with steps.step("dataset", "Build databases, labels and mean", command(*words, *(["--gray"] if run.gray else []))) as note:
        card = _whole(run.data)
        if card is not None:
            note("already built;")
        else:
            # Remains of a damaged one.
            remove(run.data)
            report = steps.progress("dataset", "images")
            card = build_dataset(config.pictures, run.data, size=run.size, val=config.val, seed=config.seed, gray=run.gray, progress=report)
            steps.events(ArtifactWritten(task="dataset", path=str(run.data), what="lmdb"))
        note(f"{len(card.classes)} classes, {card.train_count} pictures to learn from, {card.val_count} held out")
        for remark in card.notes:
            note(remark)
        if card.skipped:
            note(f"{len(card.skipped)} pictures could not be used; {run.data / 'dataset.json'} lists them")
    return card


def _whole(data: Path) -> DatasetCard | None:
    """Return the card of the dataset in ``data``, or None if a part of it is missing or damaged."""
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


def _retarget(run: FinetuneRun, steps: Steps, card: DatasetCard, schedule: TrainingSchedule) -> RetargetResult:
    config = run.config
    data = DataOptions(str(card.train_lmdb), str(card.val_lmdb), run.mean or mean_of(card), schedule.batch, schedule.val_batch, config.crop)
    source: list[object] = [run.model] if run.trained_by else [run.net]
    words: list[object] = ["retarget", *source, "--classes", len(card.classes), "-o", run.nets]
    words += ["--train-source", data.train_source, "--val-source", data.val_source, "--mean", data.mean]
    words += ["--train-batch", schedule.batch, "--val-batch", schedule.val_batch]
    words += ["--epochs", schedule.epochs, "--base-lr", f"{schedule.base_lr:g}"]
    # With random weights everywhere the classifier needs no higher rate, and at a high rate it can die.
    head_lr_mult = HEAD_LR_MULT if run.weights else 1.0
    words += ["--weights", run.weights] if run.weights else ["--head-lr-mult", "1"]
    words += ["--stage", config.stage] if config.stage else []
    words += ["--seed", config.seed, *(["--crop", config.crop] if config.crop else [])]
    with steps.step("retarget", f"Retarget {run.model} to {len(card.classes)} classes", command(*words)) as note:
        project = prepare_retarget(
            run.net,
            len(card.classes),
            run.nets,
            trained_by=run.trained_by,
            data=data,
            head_lr_mult=head_lr_mult,
            epochs=schedule.epochs,
            base_lr=schedule.base_lr,
            seed=config.seed,
            weights=run.weights,
            stages=None if config.stage is None else Stages((config.stage,), (config.stage,)),
        )
        write_retarget(project, run.nets)
        steps.events(ArtifactWritten(task="retarget", path=str(run.train_val), what="train_val"))
        note(", ".join(f"{old} → {new}" for old, new in project.retargeted.renamed.items() if old != new) + ";")
        note(
            f"batch {schedule.batch}, {schedule.epochs} epoch{'' if schedule.epochs == 1 else 's'} of {schedule.epoch} iterations = {schedule.updates} updates, "
            f"learning rate {schedule.base_lr:g}, a tenth of it from two thirds on"
        )
    return project


def _train(run: FinetuneRun, steps: Steps) -> Path:
    solver = read_solver(run.solver)
    found = newest_snapshot(solver.snapshot_prefix)
    words: list[object] = ["train", run.solver, *(["--weights", run.weights] if run.weights else []), "--device", run.config.device]
    words += ["--precision", run.config.precision] if run.config.precision != "fp32" else []
    words += ["--checkpoint-memory"] if run.config.checkpoint_memory else []
    with steps.step("train", "Fine-tune" if run.weights else "Train from scratch", command(*words)) as note:
        if found is not None and found.iteration >= solver.max_iter:
            note(f"already trained: {found.weights}")
            return found.weights
        done = train(
            run.solver,
            weights=[run.weights] if run.weights and found is None else [],
            snapshot=found.state if found is not None else None,
            device=run.config.device,
            events=steps.events,
            cancel=steps.cancel,
            compute=ComputeOptions(run.config.precision, checkpoint_memory=run.config.checkpoint_memory),
        )
        if done.stopped or done.snapshot is None:
            raise Cancelled(f"stopped at iteration {done.solver.iteration}, with a snapshot; give the same command again to resume from it")
        scores = ", ".join(f"{o.name} {o.value:.4g}" for o in done.history.test[-1].outputs) if done.history.test else ""
        note(f"{done.solver.iteration} iterations; test: {scores}; weights {done.snapshot.weights}")
        return done.snapshot.weights


def _evaluate(run: FinetuneRun, steps: Steps, card: DatasetCard, weights: Path) -> Evaluation:
    held = command("classify", run.deploy, weights, run.config.pictures)
    with steps.step("evaluate", "Classify the held-out pictures", held) as note:
        evaluation = evaluate(Classifier(run.deploy, weights), card, events=steps.events, cancel=steps.cancel)
        confusion = evaluation.confusion
        note(f"{confusion.right} of {confusion.total} right: {share_text(confusion.accuracy, '.2%')}")
    return evaluation


def _export(run: FinetuneRun, steps: Steps, card: DatasetCard, weights: Path, evaluation: Evaluation) -> tuple[Verification, int]:
    pictures = [path for path, _ in held_out(card)]
    sample: Sequence[Path] = pictures[:: max(1, len(pictures) // VERIFIED_PICTURES)][:VERIFIED_PICTURES]
    words = command("export", run.deploy, weights, "-o", run.onnx, "--pictures", run.config.pictures)
    with steps.step("export", "Export to ONNX and verify", words) as note:
        verification = export_deployed(run.deploy, weights, run.onnx, pictures=sample, events=steps.events, cancel=steps.cancel)
        note(f"{run.onnx}: {verification.describe()};")
        again = evaluate(Classifier(run.onnx), card, events=steps.events, cancel=steps.cancel)
        agreeing = sum(a == b for a, b in zip(again.predicted, evaluation.predicted, strict=True))
        note(f"the same class for {agreeing} of all {again.confusion.total} held-out pictures")
    return verification, agreeing


def _draw(run: FinetuneRun, steps: Steps, weights: Path, evaluation: Evaluation) -> tuple[TrainingLog, LayerWeights]:
    log_file = Path(f"{read_solver(run.solver).snapshot_prefix}.log")
    drawn = [run.figures / name for name in ("filters.png", "curves.png", "confusion.png")]
    words = f"{command('visualize', 'filters', weights, '-o', drawn[0])}; {command('visualize', 'curves', log_file, '-o', drawn[1])}"
    with steps.step("draw", "Draw filters, curves and the confusion matrix", words) as note:
        model, log = read_caffemodel(weights), read_log(log_file)
        draw_filters(model, None, drawn[0])
        draw_curves({run.model: log}, drawn[1])
        draw_confusion(evaluation.confusion, drawn[2])
        for path in drawn:
            steps.events(ArtifactWritten(task="draw", path=str(path), what="figure"))
        note(", ".join(str(path) for path in drawn))
    return log, find_weights(model)


def _write_report(result: FinetuneResult, steps: Steps) -> Path:
    config = result.run.config
    report = config.out / "report.html"
    title, summary = title_and_summary(config, result.card)
    write_report(report, make_report(title, summary, [result], ["Results"], steps.done, config.command()))
    return report


def _input(project: RetargetResult) -> str:
    shape = project.deploy.layer[0].input_param.shape
    return " x ".join(str(n) for n in shape[0].dim) if shape else "?"
