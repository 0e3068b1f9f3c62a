"""``caffetools visualize``: pictures of weights and of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.curves import curves
from caffetools.cli.show import console
from caffetools.errors import DataError

app = typer.Typer(name="visualize", help="Pictures of a network's filters and of training curves.", no_args_is_help=True)

_OUT = typer.Option("--out", "-o", help="The picture to write: .png or .svg.")


@app.command()
def filters(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A .caffemodel.")],
    out: Annotated[Path, _OUT],
    layer: Annotated[
        str | None, typer.Option(help="The layer whose weights to draw; by default the first convolution with filters.")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Scale all filters alike, not each by its own largest weight.")] = False,
    rgb: Annotated[bool, typer.Option("--rgb", help="The network reads RGB pictures; Caffe's tools give it BGR.")] = False,
    picture: Annotated[
        str | None, typer.Option(help="For an InnerProduct that reads a picture: its shape, as 1x28x28. Otherwise a histogram is drawn.")
    ] = None,
) -> None:
    """Draw a layer's filters as tiles: in colour for the first layer of a colour network, else a grey tile for each channel."""
    from caffetools.visualize.filters import draw_filters

    caption = draw_filters(
        weights,
        layer,
        out,
        normalise="common" if common else "each",
        channel_order="rgb" if rgb else "bgr",
        picture_shape=_shape(picture) if picture else None,
    )
    console.print(f"{out}: {caption}", markup=False)


app.command()(curves)


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise DataError(f"--picture {text}: a shape of channels x height x width is expected, such as 1x28x28")
    return int(parts[0]), int(parts[1]), int(parts[2])
