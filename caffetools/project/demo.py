"""``caffetools demo``: LeNet learns the digits 0 to 4, is retargeted to 5 to 9, and gets out to ONNX, without a network connection."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from caffetools.errors import CaffeToolsError
from caffetools.project.digits import write_digits
from caffetools.project.progress import ProgressReporter, Recorder
from caffetools.project.report import make_report
from caffetools.project.run_finetune import Job, Learned, learn
from caffetools.project.solver_config import MOST_SEED
from caffetools.solver.run import choose_device
from caffetools.util.files import write_text
from caffetools.visualize.report import write_report
from caffetools.zoo.networks import prototxt_path

# Left in a demo's folder, so that a later run knows that it may replace what is there.
MARK = ".caffetools-demo"

_ABOUT = (
    "LeNet learned the handwritten digits 0 to 4 from scratch; then its last layer was made anew for the digits 5 to 9, and it was "
    "fine-tuned from its own weights. Both networks were measured on pictures they had never seen."
)


@dataclass(frozen=True)
class Demo:
    """What the demo made: both phases and the report. ``phases`` is short where the user stopped it."""

    phases: list[Learned]
    report: Path | None


def run_demo(out: Path, narrator: ProgressReporter, *, seed: int = 1, device: str = "auto") -> Demo:
    """Walk the whole way in the folder ``out``; what an earlier demo left there is replaced.

    Raises:
        CaffeToolsError: ``out`` holds other files, or scikit-learn is missing. RunFailed: something cannot be written.
    """
    if not 0 <= seed <= MOST_SEED:
        raise CaffeToolsError(f"--seed must be from 0 to {MOST_SEED}, not {seed}")
    choose_device(device)
    _clear(out)
    recorder = Recorder(narrator)
    first = _job(out, "digits-0-4", seed, device)
    second = _job(out, "digits-5-9", seed, device)
    with recorder.step("Write the digits that scikit-learn ships as folders of PNGs", "") as say:
        counts = [write_digits(job.pictures, digits) for job, digits in ((first, range(5)), (second, range(5, 10)))]
        say(f"{sum(counts)} pictures of 8 x 8 dots: {first.pictures}, {second.pictures}")
    phases: list[Learned] = []
    done = learn(first, recorder)
    if done is None:
        return Demo(phases, None)
    phases.append(done)
    second = _job(out, "digits-5-9", seed, device, net=first.nets / "train_val.prototxt", weights=done.weights)
    done = learn(second, recorder)
    if done is None:
        return Demo(phases, None)
    phases.append(done)
    report = out / "report.html"
    titles = ["digits 0 to 4", "digits 5 to 9"]
    repeat = f"caffetools demo -o {out} --seed {seed}"
    write_report(report, make_report("From pictures to ONNX: the caffetools demo", _ABOUT, phases, titles, recorder.steps, repeat))
    return Demo(phases, report)


def _job(out: Path, name: str, seed: int, device: str, *, net: Path | None = None, weights: Path | None = None) -> Job:
    return Job(
        pictures=out / "pictures" / name,
        out=out / name,
        net=net or prototxt_path("lenet"),
        model="lenet",
        trained_by=None if net else prototxt_path("lenet", "solver"),
        weights=weights,
        size="32",
        gray=True,
        crop=28,
        seed=seed,
        device=device,
        epochs=20,
    )


def _clear(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CaffeToolsError(f"{out} is a file; choose a folder for the demo (-o)")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise CaffeToolsError(f"{out} holds files that are not the demo's; choose another folder (-o)")
    for name in ("pictures", "digits-0-4", "digits-5-9"):
        shutil.rmtree(out / name, ignore_errors=True)
    write_text(out / MARK, "The folder of a caffetools demo: the next one replaces it.\n")
