"""Self-contained HTML pages from Jinja2 templates, with every value escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import caffetools
from caffetools.util.files import write_text
from caffetools.visualize import style
from caffetools.visualize.style import DARK, LIGHT, PathLike, Theme
from caffetools.visualize.thumbnails import data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure for a page: ``draw`` makes it for a theme.

    Attributes:
        alt: What it shows, for readers who do not see it.
        draw: Makes the figure.
        caption: Below it.
    """

    alt: str
    draw: Callable[[Theme], Figure]
    caption: str = ""


@dataclass(frozen=True)
class Themed:
    """A picture in two versions, of which the browser shows the one that fits the page.

    Attributes:
        light, dark: Data URIs.
        alt: What it shows.
        width, height: In CSS pixels.
        caption, name: Below it.
    """

    light: str
    dark: str
    alt: str
    width: int
    height: int
    caption: str = ""
    name: str = ""


@dataclass(frozen=True)
class Part:
    """A section of a page: its anchor, its heading, and drawings."""

    key: str
    title: str
    drawings: Sequence[Themed] = ()


def write_page(path: PathLike, title: str, drawings: Sequence[Drawing], *, summary: str = "") -> None:
    """Write drawings as one HTML file that loads nothing else. Raises :class:`RunFailed` where it cannot be written."""
    parts = [Part(f"part-{index}", drawing.alt, [themed_figure(drawing)]) for index, drawing in enumerate(drawings, 1)]
    write_text(path, render_template("page.html.jinja", title=title, summary=summary, created="", parts=parts))


def render_template(name: str, **values: object) -> str:
    """Render one of our templates. Text in ``values`` is escaped wherever a template prints it."""
    return environment().get_template(name).render(version=caffetools.__version__, **values)


@cache
def environment() -> Environment:
    """Return the environment of our templates: autoescape, and an error for a name that is not given."""
    folder = Path(__file__).parent / "templates"
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def themed_figure(drawing: Drawing) -> Themed:
    """Draw a figure as SVG for light and for dark pages."""
    light = drawing.draw(LIGHT)
    width, height = (round(96 * inches) for inches in light.get_size_inches())
    return Themed(_svg_uri(light), _svg_uri(drawing.draw(DARK)), drawing.alt, width, height, drawing.caption)


def _svg_uri(figure: Figure) -> str:
    data = style.render(figure, "svg")
    # The page's own fonts, which the reader's system has in all its scripts.
    return data_uri(data.replace(b"'DejaVu Sans'", b"system-ui, 'Segoe UI', 'DejaVu Sans'"), "image/svg+xml")


def _clean(value: object) -> Any:
    """Names may hold bytes that are not text, control characters and marks of direction; a page is always valid UTF-8."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = style.without_direction_marks(value.encode("utf-8", "replace").decode("utf-8"))
    return "".join(c for c in text if ord(c) >= 32 or c in "\n\t")
