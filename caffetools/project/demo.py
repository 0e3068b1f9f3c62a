"""``caffetools demo``: LeNet learns the digits 0 to 4, is retargeted to 5 to 9, and is exported to ONNX, without a network connection."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from caffetools.cancel import CancelToken
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, ignore
from caffetools.project.config import FinetuneConfig
from caffetools.project.digits import write_digits
from caffetools.project.finetune import run_finetune
from caffetools.project.report import make_report
from caffetools.project.run import FinetuneResult, FinetuneRun
from caffetools.project.steps import Steps
from caffetools.solver.run import choose_device
from caffetools.util.arguments import MOST_SEED
from caffetools.util.files import write_text
from caffetools.visualize.report import write_report
from caffetools.zoo.networks import prototxt_path

# Left in a demo's folder, so that a later run knows that it may replace what is there.
MARK = ".caffetools-demo"

_ABOUT = (
    "LeNet learned the handwritten digits 0 to 4 from scratch; then its last layer was replaced for the digits 5 to 9, and it was "
    "fine-tuned from its own weights. Both networks were measured on pictures they had never seen."
)


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo: both training phases, and the report."""

    phases: list[FinetuneResult]
    report: Path


def run_demo(
    out: Path, events: EventSink = ignore, *, seed: int = 1, device: str = "auto", cancel: CancelToken | None = None
) -> DemoResult:
    """Run the demo in a folder; an earlier demo in it is replaced.

    Args:
        out: The folder.
        events: Receives the events of all steps.
        seed: Seed of the split, the weights and the order.
        device: As for ``finetune``.
        cancel: Stops the demo.

    Raises:
        CaffeToolsError: ``out`` holds other files, or scikit-learn is missing.
        RunFailed: A file cannot be written.
        Cancelled: The demo was cancelled or stopped.
    """
    if not 0 <= seed <= MOST_SEED:
        raise CaffeToolsError(f"--seed must be from 0 to {MOST_SEED}, not {seed}")
    choose_device(device)
    _clear(out)
    steps = Steps(events, cancel)
    first = _run(out, "digits-0-4", seed, device)
    second = _run(out, "digits-5-9", seed, device)
    with steps.step("digits", "Write the digits that scikit-learn ships as folders of PNGs", "") as note:
        counts = [write_digits(run.config.pictures, digits) for run, digits in ((first, range(5)), (second, range(5, 10)))]
        note(f"{sum(counts)} pictures of 8 x 8 dots: {first.config.pictures}, {second.config.pictures}")
    phases = [run_finetune(first, steps)]
    second = _run(out, "digits-5-9", seed, device, net=first.train_val, weights=phases[0].weights)
    phases.append(run_finetune(second, steps))
    report = out / "report.html"
    titles = ["digits 0 to 4", "digits 5 to 9"]
    repeat = f"caffetools demo -o {out} --seed {seed}"
    write_report(report, make_report("From pictures to ONNX: the caffetools demo", _ABOUT, phases, titles, steps.done, repeat))
    return DemoResult(phases, report)


def _run(out: Path, name: str, seed: int, device: str, *, net: Path | None = None, weights: Path | None = None) -> FinetuneRun:
    config = FinetuneConfig(
        pictures=out / "pictures" / name,
        out=out / name,
        model="lenet" if net is None else str(net),
        weights=weights,
        from_scratch=weights is None,
        size="32",
        gray=True,
        crop=28,
        seed=seed,
        device=device,
        epochs=20,
    )
    return FinetuneRun(
        config,
        net=net or prototxt_path("lenet"),
        model="lenet",
        weights=weights,
        size="32",
        gray=True,
        mean=None,
        trained_by=None if net else prototxt_path("lenet", "solver"),
    )


def _clear(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CaffeToolsError(f"{out} is a file; choose a folder for the demo (-o)")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise CaffeToolsError(f"{out} holds files that are not the demo's; choose another folder (-o)")
    for name in ("pictures", "digits-0-4", "digits-5-9"):
        shutil.rmtree(out / name, ignore_errors=True)
    write_text(out / MARK, "The folder of a caffetools demo: the next one replaces it.\n")
