"""HTML built from elements: plain strings are escaped wherever they go, so no text of the user can become markup."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from caffetools.visualize import style
from caffetools.visualize.thumbnails import data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VOID = frozenset({"img", "meta", "source", "br"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | Html | None


def el(tag: str, *children: Child, **attributes: str | int | bool | None) -> Html:
    """An element. Children that are not :class:`Html` are escaped, None is left out.

    Attributes: ``_`` becomes ``-`` and a trailing one is dropped (``class_``); None and False are left out, True is the bare name.
    """
    parts = [f"<{tag}"]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        parts.append(f" {name.rstrip('_').replace('_', '-')}")
        if value is not True:
            parts.append(f'="{_escaped(str(value))}"')
    parts.append(">")
    if tag not in _VOID:
        parts += [text(child) for child in children if child is not None]
        parts.append(f"</{tag}>")
    return Html("".join(parts))


def text(child: str) -> Html:
    """``child`` as markup: escaped unless it is :class:`Html`."""
    return child if isinstance(child, Html) else Html(_escaped(child))


def join(children: Iterable[Child]) -> Html:
    """The children one after the other."""
    return Html("".join(text(child) for child in children if child is not None))


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Child]], *, numbers: Sequence[int] = (), foot: Sequence[Child] = ()
) -> Html:
    """A table in a box that scrolls sideways on a narrow window; the first cell of a row is its heading.

    Args:
        numbers: The columns that hold numbers: set to the right.
        foot: A last row of totals.
    """

    def cells(row: Sequence[Child], first: str) -> Html:
        return join(
            el(first if i == 0 else "td", cell or "", scope="row" if i == 0 else None, class_="n" if i in numbers else None)
            for i, cell in enumerate(row)
        )

    top = el("tr", join(el("th", name, scope="col", class_="n" if i in numbers else None) for i, name in enumerate(head)))
    body = join(el("tr", cells(row, "th")) for row in rows)
    parts = [el("caption", caption), el("thead", top), el("tbody", body)]
    if foot:
        parts.append(el("tfoot", el("tr", cells(foot, "th"))))
    return el("div", el("table", *parts), class_="scroll", tabindex=0, role="region", aria_label=caption)


def figure(draw: Callable[[style.Theme], Figure], alt: str) -> Html:
    """A figure drawn by ``draw`` as SVG for light and for dark pages; ``alt`` is what a reader who does not see it is told."""
    width, height = (round(96 * inches) for inches in draw(style.LIGHT).get_size_inches())
    return themed(lambda theme: _svg_uri(draw(theme)), alt, width, height)


def themed(uri: Callable[[style.Theme], str], alt: str, width: int, height: int, caption: Child = None) -> Html:
    """A picture in two versions, of which the browser shows the one that fits the page; ``uri`` gives the data URI of each."""
    dark = el("source", srcset=uri(style.DARK), media="(prefers-color-scheme: dark)")
    image = el("img", src=uri(style.LIGHT), alt=alt, width=width, height=height, loading="lazy")
    return el("figure", el("picture", dark, image), el("figcaption", caption) if caption else None)


def _svg_uri(drawn: Figure) -> str:
    data = style.render(drawn, "svg")
    # The page's own fonts, which the reader's system has in all its scripts.
    return data_uri(data.replace(b"'DejaVu Sans'", b"system-ui, 'Segoe UI', 'DejaVu Sans'"), "image/svg+xml")


def _escaped(words: str) -> str:
    # Names of files may hold bytes that are no text; a page is always valid UTF-8.
    clean = words.encode("utf-8", "replace").decode("utf-8")
    return html.escape("".join(c for c in clean if ord(c) >= 32 or c in "\n\t"), quote=True)
