"""``caffetools dataset preview``: a sheet of augmented pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.options import AsJson, Force, check_output
from caffetools.cli.show import console, print_json
from caffetools.util.arguments import MOST_SEED


def preview(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A database or dataset, a folder of pictures, or a picture.", show_default=False)
    ],
    augment: Annotated[Path, typer.Option("--augment", metavar="CONF", help="Augmentation settings (augment.yaml).", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The image file to write.")] = Path("preview.png"),
    count: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 6,
    variants: Annotated[int, typer.Option(min=1, help="Augmented variants of each picture.")] = 6,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Random seed.")] = 1,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw a sheet of augmented pictures, each row with the picture itself first, to see what a configuration does."""
    from caffetools.data.augment import load_augment
    from caffetools.data.preview import draw_preview

    check_output(out, force=force)
    width, height = draw_preview(source, out, load_augment(augment), count=count, variants=variants, seed=seed)
    if as_json:
        print_json({"file": str(out), "width": width, "height": height})
        return
    console.print(f"Wrote {out} ({width} x {height})", markup=False)
