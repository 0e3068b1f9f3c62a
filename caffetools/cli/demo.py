"""``caffetools demo``: the whole pipeline on real digits, without a network connection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.narrate import TerminalSink
from caffetools.cli.show import console
from caffetools.errors import Cancelled


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything; an earlier demo in it is replaced.")] = Path(
        "caffetools-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, the initial weights and the order.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
) -> None:
    """Run everything on real handwritten digits: images to LMDB, LeNet trained, retargeted, fine-tuned, exported, drawn.

    Each step is printed with the command that does the same. It takes about a minute and needs no network connection.
    """
    from caffetools.project.demo import run_demo

    try:
        with TerminalSink() as terminal:
            done = run_demo(out, terminal, seed=seed, device=device)
    except Cancelled:
        # Each demo replaces an earlier one, so there is nothing to resume.
        raise Cancelled("stopped; give the same command again to start over") from None
    console.print()
    for phase, name in zip(done.phases, ("digits 0 to 4", "digits 5 to 9"), strict=True):
        confusion = phase.evaluation.confusion
        console.print(f"{name}: {confusion.accuracy:.2%} of {confusion.total} held-out pictures right", markup=False)
    console.print(f"Report: {done.report.resolve().as_uri()}", markup=False)
