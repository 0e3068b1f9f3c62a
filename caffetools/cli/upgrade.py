"""``caffetools upgrade``: networks, weights and solvers of Caffe's first years, written in today's form."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from caffetools.cli.models import prototxt
from caffetools.cli.options import AsJson, Force, check_output
from caffetools.cli.show import console, print_json, print_next


def upgrade(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A net's or solver's prototxt, or a .caffemodel.", show_default=False)],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The file to write, or - for standard output; it may be IN itself with --force.", show_default=False
        ),
    ],
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write an old network, its weights or its solver in today's form, as Caffe's upgrade tools do.

    Everything here reads old files as they are; other tools do not. The kind of file is recognized from its content.
    """
    from caffetools.errors import CaffeToolsError
    from caffetools.infer.data_preprocessing import update_preprocessing
    from caffetools.infer.sidecar import read_preprocessing
    from caffetools.project.config import command
    from caffetools.proto.upgrades.files import upgrade_file

    if str(out) == "-":
        if as_json:
            raise CaffeToolsError("--json and OUT '-' both want standard output; leave out --json, or name a file to write")
        _print_upgraded(prototxt(source))
        return
    check_output(out, force=force, in_place=True)
    done = upgrade_file(prototxt(source), out)
    if done.kind == "a net" and out.resolve() != source.resolve():
        update_preprocessing(out, read_preprocessing(source))
    if as_json:
        print_json({"file": str(out), "kind": done.kind, "changed": done.changed})
        return
    state = "upgraded to the current format" if done.changed else "already in the current format"
    console.print(f"{source}: {done.kind}, {state}\nWrote {out}", markup=False)
    if done.kind == "a net":
        print_next(command("inspect", out))


def _print_upgraded(source: Path) -> None:
    """Print an upgraded prototxt; weights are not text."""
    from caffetools.errors import CaffeToolsError
    from caffetools.proto.upgrades.files import upgrade_file

    with TemporaryDirectory(prefix="caffetools-") as folder:
        out = Path(folder) / "upgraded"
        if upgrade_file(source, out).kind == "weights":
            raise CaffeToolsError("weights are not text; name a file to write them to", path=source)
        typer.echo(out.read_text(encoding="utf-8"), nl=False)
