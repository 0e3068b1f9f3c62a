"""A figure as SVG inside a page: drawn for both themes, stored once, with colours that follow the reader's theme."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from caffetools.visualize import style
from caffetools.visualize.thumbnails import lossless, one_for_both_themes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Text and attributes of matplotlib's SVG hold no bare < and >, so that a tag ends with the first >.
_TAG = re.compile(r"(<[^>]*>)")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'(?<=url\(#)[^)]*(?=\))|(?<=href="#)[^"]*(?=")')
_IMAGE = re.compile(r'<image xlink:href="data:image/png;base64,([^"]*)"')
_NOT_NEEDED = re.compile(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
_PATH = re.compile(r'(?<= d=")[^"]*(?=")')
_FRACTION = re.compile(r"\d+\.\d{3,}")
_FONTS = re.compile(r" ?font-family: [^;\"]*;?")


def inline_svg(light: Figure, dark: Figure, key: str) -> str:
    """Return the contents of an ``svg`` element that shows one figure in the theme of the page.

    What differs between the two drawings is their colours, which become CSS variables, and the gaps in their bitmaps, which
    become transparent; another bitmap is stored for both themes. Should the drawings differ otherwise, both are stored.

    Args:
        light: The figure on light ground.
        dark: The same figure on dark ground.
        key: What ids begin with; different for each figure of a page.
    """
    one, other = (_contents(figure) for figure in (light, dark))
    if [_bare(piece) for piece in _numbered(one, key)] != [_bare(piece) for piece in _numbered(other, key)]:
        first, second = "".join(_numbered(one, f"{key}l")), "".join(_numbered(other, f"{key}d"))
        return f'<g class="on-light">{first}</g><g class="on-dark">{second}</g>'
    inks: dict[tuple[str, str], str] = {}
    body = "".join(_merged(a, b, inks) for a, b in zip(_numbered(one, key), _numbered(other, key), strict=True))
    return _ink_rules(inks) + body


def _contents(figure: Figure) -> list[str]:
    """Return what is inside the figure's ``svg`` element, text and tags in turn, without fonts, metadata and space between tags."""
    text = style.render(figure, "svg").decode("utf-8")
    start = text.index(">", text.index("<svg")) + 1
    pieces = _TAG.split(_NOT_NEEDED.sub("", text[start : text.rindex("</svg>")]))
    return [_shortened(piece) if index % 2 else piece if piece.strip() else "" for index, piece in enumerate(pieces)]


def _shortened(tag: str) -> str:
    """Return a tag without fonts and line ends; curves keep hundredths of a point."""
    tag = _FONTS.sub("", " ".join(tag.split()))
    return _PATH.sub(lambda path: _FRACTION.sub(lambda number: f"{float(number[0]):.2f}", path[0]), tag)


def _numbered(pieces: Sequence[str], key: str) -> list[str]:
    """Return the pieces with ids that begin with ``key``, where they are used, and without the others."""
    used = dict.fromkeys(name for tag in pieces[1::2] for name in _REFERENCE.findall(tag))
    short = {name: f"{key}{number}" for number, name in enumerate(used)}

    def renamed(tag: str) -> str:
        tag = _ID.sub(lambda found: f' id="{short[found[1]]}"' if found[1] in short else "", tag)
        return _REFERENCE.sub(lambda found: short[found[0]], tag)

    return [renamed(piece) if index % 2 else piece for index, piece in enumerate(pieces)]


def _bare(piece: str) -> str:
    """Return a piece without what may differ between the themes: colours and bitmaps."""
    if not piece.startswith("<"):
        return piece
    return _COLOUR.sub("#", _IMAGE.sub("<image", piece))


def _merged(light: str, dark: str, inks: dict[tuple[str, str], str]) -> str:
    if not light.startswith("<"):
        return light
    if (found := _IMAGE.match(light)) and (twin := _IMAGE.match(dark)):
        return "".join(_images(light[found.end() :], found[1], twin[1]))
    if light == dark:
        return light
    others = iter(_COLOUR.findall(dark))

    def ink(found: re.Match[str]) -> str:
        pair = found[0], next(others)
        return pair[0] if pair[0] == pair[1] else f"var({inks.setdefault(pair, f'--{pair[0][1:]}-{pair[1][1:]}')})"

    return _COLOUR.sub(ink, light)


def _images(rest: str, light: str, dark: str) -> Iterator[str]:
    """Give the ``image`` elements of a bitmap: one for both themes where that is possible."""
    pixels = [_pixels(data) for data in (light, dark)]
    one = one_for_both_themes(*pixels)
    if one is not None:
        yield f'<image xlink:href="{lossless(one)}"{rest}'
        return
    for image, theme in zip(pixels, ("light", "dark"), strict=True):
        yield f'<image class="on-{theme}" xlink:href="{lossless(image)}"{rest}'


def _pixels(data: str) -> NDArray[np.uint8]:
    """Return (H, W, 3 or 4) RGB or RGBA of a PNG file in base64."""
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None and image.ndim == 3  # noqa: S101 (matplotlib wrote it)
    return np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]], np.uint8)


def _ink_rules(inks: dict[tuple[str, str], str]) -> str:
    """Return a style element that gives each ink its colour; a page may hold the same rule several times."""
    if not inks:
        return ""
    rules = [";".join(f"{name}:{pair[theme]}" for pair, name in inks.items()) for theme in range(2)]
    return f"<style>:root{{{rules[0]}}}@media (prefers-color-scheme:dark){{:root{{{rules[1]}}}}}</style>"
