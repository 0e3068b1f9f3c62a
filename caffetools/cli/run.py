"""``caffetools run``: a script or notebook written for Caffe, unchanged."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer


def run(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A Python script or a Jupyter notebook that imports caffe.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGUMENTS", help="Arguments of the script itself.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run on caffetools even where a real Caffe is installed.")] = False,
    py2: Annotated[
        bool, typer.Option("--py2", help="Convert a script written for Python 2, and the modules in its folder, while they run.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log: layers run from Python code, training.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error, caffetools' frames included.")] = False,
) -> None:
    """Run a script written for Caffe: [bold]import caffe[/bold] imports caffetools.

    Options of this command stand before SCRIPT; all that comes after it is passed to the script.
    """
    import caffetools
    from caffetools.net.malloc_tuning import disable_malloc_trim
    from caffetools.pycaffe.mode import init_log
    from caffetools.pycaffe.script import ScriptFailed, run_script

    caffetools.install_as_caffe(force=force)
    init_log(0 if verbose else 1)
    disable_malloc_trim()
    try:
        run_script(script, arguments or [], convert_python2=py2)
    except ScriptFailed as error:
        if debug:
            traceback.print_exception(error.__cause__)
        else:
            sys.stderr.write(f"{error}\n")
        raise typer.Exit(error.exit_code) from None
