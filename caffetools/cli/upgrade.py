"""``caffetools upgrade``: networks, weights and solvers of Caffe's first years, written in today's form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.show import console


def upgrade(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A net's or solver's prototxt, or a .caffemodel.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; it may be IN itself with --force.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write an old network, its weights or its solver in today's form, as Caffe's upgrade tools do.

    Everything here reads old files as they are; other tools do not. The kind of file is recognized from its content.
    """
    from caffetools.errors import CaffeToolsError
    from caffetools.proto.upgrades.files import upgrade_file

    if out.exists() and not force:
        raise CaffeToolsError(f"{out} exists; give another name, or --force to replace it")
    done = upgrade_file(source, out)
    state = "was old and is now of today's form" if done.changed else "was of today's form already"
    console.print(f"{source}: {done.kind}; it {state}\nWrote {out}", markup=False)
