"""``caffetools demo``: the whole pipeline on real digits, without a network connection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.narrate import TerminalSink
from caffetools.cli.options import not_standard_output
from caffetools.cli.show import console, print_json, print_next
from caffetools.errors import Cancelled
from caffetools.events import ignore
from caffetools.results import share_text
from caffetools.util.arguments import MOST_SEED


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", callback=not_standard_output, help="Folder of the demo; an earlier demo in it is replaced.")
    ] = Path("caffetools-demo"),
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the split, the initial weights and the order.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")] = False,
) -> None:
    """Run everything on real handwritten digits: images to LMDB, LeNet trained, retargeted, fine-tuned, exported, drawn.

    Each step is printed with the command that does the same. It takes about a minute and needs no network connection.
    """
    from caffetools.net.malloc_tuning import disable_malloc_trim
    from caffetools.project.config import command
    from caffetools.project.demo import run_demo

    disable_malloc_trim()
    try:
        with TerminalSink() as terminal:
            done = run_demo(out, ignore if as_json else terminal, seed=seed, device=device)
    except Cancelled:
        # Each demo replaces an earlier one, so there is nothing to resume.
        raise Cancelled("stopped; give the same command again to start over") from None
    last = done.phases[-1]
    if as_json:
        accuracies = [phase.evaluation.confusion.accuracy for phase in done.phases]
        print_json({"accuracies": accuracies, "onnx": str(last.run.onnx), "report": str(done.report)})
        return
    console.print()
    for phase, name in zip(done.phases, ("digits 0 to 4", "digits 5 to 9"), strict=True):
        confusion = phase.evaluation.confusion
        console.print(f"{name}: {share_text(confusion.accuracy, '.2%')} of {confusion.total} held-out pictures right", markup=False)
    console.print(f"Report: {done.report.resolve().as_uri()}", markup=False)
    print_next(command("classify", last.run.onnx, last.evaluation.samples[0].picture))
