"""``caffetools report``: the report of a run, made again from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.options import AsJson, Force, check_output
from caffetools.cli.show import console, print_json, print_next


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a fine-tuning run.", show_default=False)],
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
    page = report_run(run, out)
    if as_json:
        print_json({"report": str(page)})
    else:
        console.print(f"Report: {page.resolve().as_uri()}", markup=False)
        print_next(Project.open(run).status().next_command)
    if show:
        typer.launch(str(page))
