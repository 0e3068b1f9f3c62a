"""``caffetools engine``: environments for engines that cannot share ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.show import console

app = typer.Typer(help="Add engines that need a Python environment of their own.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="opencv4 or caffe.", show_default=False)],
    python: Annotated[Path | None, typer.Option(help="An interpreter that has it already; else one is made.", show_default=False)] = None,
) -> None:
    """Make the environment of an engine with uv or pip: opencv4 (OpenCV's Caffe importer) or caffe (a real Caffe on Python 3.9).

    The packages come from the package index that pip is set up with.
    """
    from caffetools.engines.environments import add_environment

    environment = add_environment(name, python, lambda line: console.print(line, markup=False))
    console.print(f"Added {name}: {environment.python}", markup=False)


@app.command("list")
def list_engines() -> None:
    """List the engines and the interpreters that were added for them."""
    from caffetools.engines.base import EngineError
    from caffetools.engines.environments import RECIPES, find_environment

    for name in RECIPES:
        try:
            place = str(find_environment(name).python)
        except EngineError as error:
            place = str(error.hint or error)
        console.print(f"{name}: {place}", markup=False)
