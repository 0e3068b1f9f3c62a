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
from caffetools.visualize.inline_svg import inline_svg
from caffetools.visualize.style import DARK, LIGHT, PathLike, Theme

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
class Shown:
    """A picture as a page holds it: a drawing as SVG, or a bitmap, each for light and for dark pages.

    Attributes:
        alt: What it shows.
        width, height: In CSS pixels.
        svg: What is inside the drawing's ``svg`` element.
        view: The ``viewBox`` of the drawing.
        uri: Data URI of the bitmap.
        dark: Data URI of the bitmap for dark pages; "" where ``uri`` fits both.
        caption, name: Below it.
    """

    alt: str
    width: int
    height: int
    svg: Markup | None = None
    view: str = ""
    uri: str = ""
    dark: str = ""
    caption: str = ""
    name: str = ""


@dataclass(frozen=True)
class Part:
    """A section of a page: its anchor, its heading, and drawings."""

    key: str
    title: str
    drawings: Sequence[Shown] = ()


def write_page(path: PathLike, title: str, drawings: Sequence[Drawing], *, summary: str = "") -> None:
    """Write drawings as one HTML file that loads nothing else. Raises :class:`RunFailed` where it cannot be written."""
    parts = [Part(f"part-{index}", drawing.alt, [shown_figure(drawing, f"d{index}-")]) for index, drawing in enumerate(drawings, 1)]
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


def shown_figure(drawing: Drawing, key: str) -> Shown:
    """Draw a figure for light and dark pages, as one SVG; ``key`` begins its ids and is its own on the page."""
    light = drawing.draw(LIGHT)
    width, height = light.get_size_inches()
    svg = Markup(inline_svg(light, drawing.draw(DARK), key))  # noqa: S704 (matplotlib escaped all text)
    view = f"0 0 {72 * width:.7g} {72 * height:.7g}"
    return Shown(drawing.alt, round(96 * width), round(96 * height), svg, view, caption=drawing.caption)


def _clean(value: object) -> Any:
    """Names may hold bytes that are not text, control characters and marks of direction; a page is always valid UTF-8."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = style.without_direction_marks(value.encode("utf-8", "replace").decode("utf-8"))
    return "".join(c for c in text if ord(c) >= 32 or c in "\n\t")
