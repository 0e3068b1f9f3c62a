"""``caffetools shims``: Caffe's program names and ``import caffe`` for old scripts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.options import AsJson, not_standard_output
from caffetools.cli.show import console, note, print_json

app = typer.Typer(
    help="Put caffe, its tools and a package caffe into this environment, for scripts written for Caffe.", no_args_is_help=True
)


@app.command()
def install(
    bin_folder: Annotated[
        Path | None,
        typer.Option(
            "--bin",
            metavar="DIR",
            callback=not_standard_output,
            help="The folder for the programs; by default this environment's.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write programs called caffe, convert_imageset, … and a package caffe, so that old shell and Python scripts run unchanged.

    Refused where a real Caffe is installed. `caffetools shims remove` removes exactly what was written.
    """
    import os

    from caffetools.pycaffe.shims import install as write

    paths = write(bin_folder)
    folder = paths[0].parent
    if as_json:
        print_json([str(path) for path in paths])
        return
    console.print(f"Wrote {len(paths) - 1} programs to {folder}: {', '.join(path.name for path in paths[:-1])}", markup=False)
    console.print(f"Wrote {paths[-1].parent}: import caffe is caffetools in this environment", markup=False)
    if str(folder) not in os.environ.get("PATH", "").split(os.pathsep):
        note(f"{folder} is not on PATH; add it: export PATH={shlex.quote(str(folder))}:$PATH")


@app.command()
def remove(as_json: AsJson = False) -> None:
    """Remove what `shims install` has written; files that were changed since are left."""
    from caffetools.pycaffe.shims import remove as take_away

    removed, left = take_away()
    if as_json:
        print_json({"removed": [str(path) for path in removed], "left": [str(path) for path in left]})
        return
    console.print(f"Removed {len(removed)} files" if removed else "No shims are installed")
    for path in left:
        note(f"{path}: changed since it was written, so it is left")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show which shims are installed, and whether a real Caffe is."""
    from caffetools.pycaffe.shims import status as read

    found = read()
    if as_json:
        lists = {name: [str(path) for path in getattr(found, name)] for name in ("files", "changed", "missing")}
        print_json({**lists, "package": str(found.package) if found.package else None, "real_caffe": found.real})
        return
    programs = [path for path in found.files if path != found.package]
    places = sorted({str(path.parent) for path in programs})
    console.print(f"programs      {len(programs)} in {', '.join(places)}" if programs else "programs      none", markup=False)
    console.print(
        f"import caffe  {'caffetools, by ' + str(found.package.parent) if found.package else found.real or 'not installed'}", markup=False
    )
    for name in ("changed", "missing"):
        for path in getattr(found, name):
            console.print(f"{name:<13} {path}", markup=False)
