"""``caffetools report``: the report of a run, made again from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.options import AsJson, Force, check_output
from caffetools.cli.show import console, note, open_file, print_json, print_next, progress_sink


def report(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="The folder of a fine-tuning run; by default this one, or the newest in it.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.html", help="The page; by default report.html in the folder, which is replaced."),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    show: Annotated[bool, typer.Option("--show", help="Open the page in the browser.")] = False,
) -> None:
    """Write the report of a run as it is now: results, curves, confusion, calibration, explanations, filters, costs.

    Works while the run is being trained, too: the newest snapshot is classified again.
    """
    from caffetools.project.project import Project
    from caffetools.project.report_run import report_run

    # The report in the run's own folder is there to be brought up to date.
    check_output(out, force=force)
    run = _run_here() if run is None else run
    with progress_sink("Reading the held-out images") as events:
        page = report_run(run, out, events=events)
    if as_json:
        print_json({"report": str(page)})
    else:
        console.print(f"Report: {page.resolve().as_uri()}", markup=False)
        print_next(Project.open(run).status().next_command)
    if show:
        open_file(page)


def _run_here() -> Path:
    """Return the run of this folder: itself, or the newest in it, which a note names."""
    from caffetools.errors import CaffeToolsError
    from caffetools.project.manifest import SETTINGS
    from caffetools.project.next_step import in_place_of_a_report
    from caffetools.project.surroundings import projects

    found = projects(Path())
    runs = [folder for folder in found if (folder / SETTINGS).is_file()]
    if not runs:
        hint = next(filter(None, map(in_place_of_a_report, found)), None)
        raise CaffeToolsError("no run of caffetools finetune is in this folder; give its folder as RUN", hint=hint)
    if runs[0] != Path():
        note(f"{runs[0]}: the {'newest' if len(runs) > 1 else 'only'} run here")
    return runs[0]
