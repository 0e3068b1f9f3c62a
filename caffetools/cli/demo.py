"""``caffetools demo``: the whole way on real digits, without a network connection."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.narrate import ConsoleNarrator
from caffetools.cli.show import console


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for everything; an earlier demo there is replaced.")] = Path(
        "caffetools-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="What the split, the weights and the order are drawn with.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
) -> None:
    """Walk the whole way on real handwritten digits: pictures to LMDB, LeNet trained, retargeted, fine-tuned, exported, drawn.

    Each step is printed with the command that does the same. It takes about a minute and needs no network connection.
    """
    from caffetools.project.demo import run_demo

    done = run_demo(out, ConsoleNarrator(), seed=seed, device=device)
    if done.report is None:
        sys.stderr.write("caffetools: stopped; give the same command again to begin anew\n")
        raise typer.Exit(130)
    console.print()
    for phase, name in zip(done.phases, ("digits 0 to 4", "digits 5 to 9"), strict=True):
        confusion = phase.evaluation.confusion
        console.print(f"{name}: {confusion.accuracy:.2%} of {confusion.total} held-out pictures right", markup=False)
    console.print(f"Report: {done.report.resolve().as_uri()}", markup=False)
