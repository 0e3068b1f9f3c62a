"""``caffetools status``, and a bare ``caffetools`` in a project's folder: what there is, and what to do next."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.options import Dialect, Plugin
from caffetools.cli.show import console, note, print_json, print_next


def status(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="The project's folder; by default this one, or a project in it.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Show a project: its dataset, net, training and exported model, and the next command."""
    if folder is None:
        folder = _project_here(as_json=as_json)
    if folder is None:
        return
    # torch, which this imports, is not needed where there is no project yet.
    from caffetools.project.project import Project

    found = Project.open(folder).status()
    if as_json:
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in asdict(found).items()})
        return
    lines = [
        ("project", "" if folder == Path() else str(folder)),
        (
            "dataset",
            f"{found.classes} classes, {found.images[0]} training and {found.images[1]} held-out images" if found.classes else "none",
        ),
        ("net", found.net or "none"),
        ("trained", f"{found.iteration} of {found.max_iter} iterations" if found.max_iter else ""),
        ("last test", ", ".join(f"{name} {value:.4g}" for name, value in found.scores)),
        ("weights", str(found.weights or "")),
        ("ONNX", str(found.onnx or "")),
    ]
    for name, text in lines:
        if text:
            console.print(f"{name:<10} {text}", markup=False)
    if "PICTURES" in found.next_command.split():
        console.print(f"To begin, with a folder of pictures that has one subfolder for each class: {found.next_command}", markup=False)
    else:
        print_next(found.next_command)


def _project_here(*, as_json: bool) -> Path | None:
    """Return the project of this folder: itself, or the newest in it, of which a note names all; None where pictures are shown instead."""
    from caffetools.project.config import command
    from caffetools.project.surroundings import picture_folders, projects

    found = projects(Path())
    if len(found) > 1:
        note(f"projects here: {', '.join(map(str, found))}; this is {found[0]}, the newest")
    if found:
        return found[0]
    pictures = picture_folders(Path())
    if not pictures or as_json:
        return Path()
    console.print(f"no project yet; folders of pictures, one for each class: {', '.join(map(str, pictures))}", markup=False)
    print_next(command("finetune", pictures[0], "-o", "run"))
    return None
