"""What the commands of ``caffetools visualize`` share: arguments, opening a net, writing a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.show import console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from caffetools.visualize.picture_net import PictureNet
    from caffetools.visualize.style import Theme

Deploy = Annotated[Path, typer.Argument(metavar="DEPLOY", help="The deploy prototxt.", show_default=False)]
Weights = Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Its .caffemodel.", show_default=False)]
Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture file.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="What to write: .png, .svg or .html.", show_default=False)]
Show = Annotated[bool, typer.Option("--show", help="Open the picture in the system's viewer.")]


def open_net(
    deploy: Path, weights: Path, mean: str | None, scale: float | None, resize: str | None, labels: Path | None, device: str
) -> PictureNet:
    """Open a deployed net with the options that prepare its pictures."""
    from caffetools.data.images import parse_size
    from caffetools.infer.classifier import Options
    from caffetools.visualize.picture_net import PictureNet

    options = Options(mean=mean, labels=labels, scale=scale, resize=parse_size(resize) if resize else None)
    return PictureNet(deploy, weights, options, device=device)


def emit(draw: Callable[[Theme], tuple[Figure, str]], out: Path | None, show: bool, title: str, *, quiet: bool = False) -> None:
    """Write the figure that ``draw`` makes for a theme to ``out``, print its caption, and open it where ``show`` is set."""
    import tempfile

    from caffetools.visualize.output import save_picture

    if out is None and not show:
        raise typer.BadParameter("name a file to write with -o, or give --show", param_hint="-o")
    path = out or Path(tempfile.mkdtemp(prefix="caffetools-")) / "picture.png"
    caption = save_picture(path, draw, title=title)
    if not quiet:
        console.print(f"{path}: {caption}", markup=False)
    if show:
        typer.launch(str(path))
