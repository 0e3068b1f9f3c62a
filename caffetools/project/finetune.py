"""``caffetools finetune``: a network learns the user's own classes, in a folder that remembers what is being made in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from caffetools.data.datasets.listing import Listing, list_pictures
from caffetools.errors import CaffeToolsError, ZooError
from caffetools.project.checks import check_job, net_crop
from caffetools.project.manifest import LOCK, remember, state_of, state_of_file, tidied
from caffetools.project.progress import ProgressReporter, Recorder
from caffetools.project.report import make_report
from caffetools.project.run_finetune import Job, Learned, command, learn
from caffetools.solver.checkpoints.lock import prefix_lock
from caffetools.visualize.report import write_report
from caffetools.zoo.cards import ModelCard, get_card
from caffetools.zoo.fetch import fetch
from caffetools.zoo.networks import MODELS

# The usual size of the pictures that smaller squares are cut from.
STORED_SIZE = 256


@dataclass(frozen=True)
class Request:
    """What a user asks for; None leaves the choice to us.

    Attributes:
        model: A network of the zoo, or the path of a train_val prototxt.
        weights: A .caffemodel; where it is None and ``from_scratch`` is not set, the zoo's published weights.
        size: As for ``dataset build``. crop: the side of the squares that the net sees. mean: a file, or values as text.
    """

    pictures: Path
    out: Path
    model: str = "squeezenet_v1.1"
    weights: Path | None = None
    from_scratch: bool = False
    classes: int | None = None
    epochs: int | None = None
    batch: int | None = None
    size: str | None = None
    crop: int | None = None
    gray: bool = False
    mean: str | None = None
    val: float = 0.2
    seed: int = 1
    device: str = "auto"


def finetune(request: Request, narrator: ProgressReporter) -> tuple[Learned, Path] | None:
    """Do all that ``request`` asks for, and write a report.

    A folder in which the same request was interrupted is gone on with: what is finished stays.

    Returns:
        What came of it and the report's path; None where the user stopped the training.

    Raises:
        CaffeToolsError: the request makes no sense, or the folder holds another run. ZooError: the weights cannot be had.
    """
    check_request(request)
    listing = list_pictures(request.pictures)
    recorder = Recorder(narrator)
    # Before the folder is made: what cannot be had or does not fit leaves nothing behind.
    job = make_job(request, recorder)
    check_job(job, listing)
    with tidied(request.out), prefix_lock(request.out / LOCK, what=f"at work in {request.out}", hint="choose another folder (-o)"):
        remember(request.out, settings_of(request), inputs_of(job, listing))
        learned = learn(job, recorder)
        if learned is None:
            return None
        classes = len(learned.card.classes)
        summary = f"{request.model} learned {classes} classes from {learned.card.train_count} pictures."
        report = request.out / "report.html"
        again = command(*_words(request))
        write_report(report, make_report(f"{request.model} on {classes} classes", summary, [learned], ["training"], recorder.steps, again))
    return learned, report


def check_request(request: Request) -> None:
    """Raise :class:`CaffeToolsError` for what can be seen to be wrong before anything is made."""
    if request.weights is not None and request.from_scratch:
        raise CaffeToolsError("give either --weights to start from or --from-scratch, not both")
    if not request.pictures.is_dir():
        raise CaffeToolsError(f"{request.pictures}: no such folder; a folder of pictures for each class is expected in it")
    if request.weights is not None and not request.weights.is_file():
        what = "a folder" if request.weights.is_dir() else "no such file"
        raise CaffeToolsError(f"{request.weights}: {what}; a .caffemodel is expected")
    if request.out.exists() and not request.out.is_dir():
        raise CaffeToolsError(f"{request.out} is a file; choose a folder for the run (-o)")


def settings_of(request: Request) -> dict[str, Any]:
    """What a request asks for, as plain values; where it is computed makes no other run of it."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(request).items()}
    settings.pop("device")
    return settings


def inputs_of(job: Job, listing: Listing) -> dict[str, str]:
    """What the job is made of, by the names that a message gives it."""
    inputs = {f"the pictures in {job.pictures}": state_of(listing), f"the net {job.net}": sha256(job.net.read_bytes()).hexdigest()}
    if job.weights is not None:
        inputs[f"the weights {job.weights}"] = state_of_file(job.weights)
    return inputs


def make_job(request: Request, recorder: Recorder) -> Job:
    """The job of a request: the net's file, its weights (fetched where they are the zoo's), sizes and mean."""
    card = get_card(request.model) if request.model in MODELS or not Path(request.model).exists() else None
    net = card.network("train_val") if card else Path(request.model)
    crop = net_crop(net)
    size = request.size or str(_size(request, card, crop))
    weights = request.weights
    if weights is None and not request.from_scratch:
        weights = _fetched(request, card, recorder)
    mean = request.mean
    if mean is None and weights is not None and card is not None and card.input.mean:
        mean = ",".join(f"{value:g}" for value in card.input.mean)
    return Job(
        pictures=request.pictures,
        out=request.out,
        net=net,
        model=request.model if card else net.stem,
        weights=weights,
        size=size,
        gray=request.gray or (card is not None and card.input.shape[0] == 1),
        mean=mean,
        crop=request.crop,
        trained_by=card.network("solver") if card else None,
        epochs=request.epochs,
        batch=request.batch,
        val=request.val,
        seed=request.seed,
        device=request.device,
        classes=request.classes,
    )


def _fetched(request: Request, card: ModelCard | None, recorder: Recorder) -> Path:
    if card is None:
        raise CaffeToolsError(f"{request.model}: give the weights to start from (--weights), or --from-scratch")
    if card.weights is None:
        raise CaffeToolsError(f"{card.name} has no published weights; start from random ones (--from-scratch), or from a file (--weights)")
    with recorder.step(f"Fetch the published weights of {card.name}", command("zoo", "fetch", card.name)) as say:
        try:
            with recorder.narrator.progress("Fetching") as advance:
                fetched = fetch(card, progress=advance, say=say)
        except ZooError as error:
            raise ZooError(f"{error}; or start from another file (--weights), or from random weights (--from-scratch)") from None
        say(f"{fetched.path} ({fetched.verified})")
    return fetched.path


def _size(request: Request, card: ModelCard | None, crop: int) -> int:
    crop = request.crop or crop
    if crop:
        # What is cut from must be larger, by the usual proportion for small nets.
        return max(STORED_SIZE, crop) if crop > STORED_SIZE // 2 else round(crop * 8 / 7)
    if card is not None:
        return card.input.shape[1]
    raise CaffeToolsError(f"{request.model}: its data layers do not say how large pictures are to be; give --size")


def _words(request: Request) -> list[object]:
    words: list[object] = ["finetune", request.pictures, "--model", request.model, "-o", request.out]
    flags: list[tuple[str, Any, Callable[[Any], bool]]] = [
        ("--weights", request.weights, bool),
        ("--classes", request.classes, bool),
        ("--epochs", request.epochs, bool),
        ("--batch", request.batch, bool),
        ("--size", request.size, bool),
        ("--crop", request.crop, bool),
        ("--mean", request.mean, bool),
        ("--val", request.val, lambda value: value != 0.2),
        ("--seed", request.seed, lambda value: value != 1),
    ]
    for name, value, given in flags:
        words += [name, value] if given(value) else []
    return [*words, *(["--from-scratch"] if request.from_scratch else []), *(["--gray"] if request.gray else [])]
