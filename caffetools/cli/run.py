"""``caffetools run``: a script or notebook written for Caffe, unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A Python script or a Jupyter notebook that imports caffe.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENTS", help="What the script itself gets as its arguments.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run on caffetools even where a real Caffe is installed.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log: layers run from Python code, training.")] = False,
) -> None:
    """Run a script written for Caffe: [bold]import caffe[/bold] means caffetools in it.

    Options of this command stand before SCRIPT; all that comes after it goes to the script.
    """
    import caffetools
    from caffetools.pycaffe.mode import init_log
    from caffetools.pycaffe.script import run_script

    caffetools.install_as_caffe(force=force)
    init_log(0 if verbose else 1)
    run_script(script, arguments or [])
