"""``caffetools engine``: environments for engines that cannot share ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.options import AsJson
from caffetools.cli.show import console, print_json

app = typer.Typer(help="Add engines that need a Python environment of their own.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="opencv4 or caffe.", show_default=False)],
    python: Annotated[
        Path | None, typer.Option(help="Interpreter of an environment that has it; by default one is made.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the environment of an engine with uv or pip: opencv4 (OpenCV's Caffe importer) or caffe (a real Caffe on Python 3.9).

    The packages come from the package index that pip is set up with.
    """
    from caffetools.engines.environments import add_environment

    environment = add_environment(name, python, lambda line: None if as_json else console.print(line, markup=False))
    if as_json:
        print_json({"engine": name, "python": str(environment.python)})
    else:
        console.print(f"Added {name}: {environment.python}", markup=False)


@app.command("list")
def list_engines(as_json: AsJson = False) -> None:
    """List the engines and the interpreters that were added for them."""
    from caffetools.engines.base import EngineError
    from caffetools.engines.environments import RECIPES, find_environment

    rows: dict[str, str | None] = {}
    for name in RECIPES:
        try:
            rows[name] = str(find_environment(name).python)
        except EngineError as error:
            rows[name] = None
            if not as_json:
                console.print(f"{name}: {error.hint or error}", markup=False)
        else:
            if not as_json:
                console.print(f"{name}: {rows[name]}", markup=False)
    if as_json:
        print_json(rows)
