"""Draw ``docs/architecture.svg``: the rooms of caffetools, row by row, from the command line down to the file formats.

A room may import the rows below its own, and in its own row the rooms to its left; ``tests/test_architecture.py`` holds the rule and
``tests/test_docs.py`` compares the rows here with it. Run ``python docs/make_architecture.py`` after a change.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

PAGE = Path(__file__).parent / "architecture.svg"

# Title of the row → room → what it holds, in a few words.
ROWS: dict[str, dict[str, str]] = {
    "command line": {"cli": "one module a command"},
    "Python API": {"_api": "load_net, train, retarget, export_onnx …"},
    "Caffe's module": {"pycaffe": "import caffe"},
    "whole jobs": {"project": "images in, trained and exported net out"},
    "devices, pictures": {"bundle": "files for a device", "visualize": "figures, explanations, reports"},
    "using a net": {"infer": "preprocessing, classifier, features"},
    "tools": {
        "surgery": "retarget, deploy",
        "zoo": "published models",
        "engines": "torch, ORT, Caffe",
        "solver": "the training loop",
        "onnx": "export, import, verify",
        "quant": "int8, fp16",
    },
    "data and graphs": {"data": "databases, transforms, data layers", "graph": "summary, diff, rewrite passes"},
    "running a net": {"net": "Net, a torch.nn.Module; inference plans"},
    "layers": {"layers": "one class a type: shapes, numbers, traits, ONNX"},
    "files": {"proto": "schema, prototxt, caffemodel, forks, upgrades"},
    "base": {"util": "atomic files, locks, threads; with errors, events, cancel, results"},
}
_WIDTH, _LEFT, _HEIGHT, _GAP = 1060, 160, 52, 14
_STYLE = (
    "rect{fill:#f4f7fb;stroke:#7a93b8}.n{font-weight:600;font-size:15px;fill:#12263f}.d{font-size:11.5px;fill:#47597a}"
    ".r{font-size:12px;fill:#5b6b85}path{stroke:#7a93b8;fill:none}"
    "@media(prefers-color-scheme:dark){rect{fill:#16233a;stroke:#5d7aa8}.n{fill:#e8eef8}.d{fill:#aebdd6}.r{fill:#9dadca}}"
)


def page() -> str:
    """Return the drawing as SVG."""
    pitch = _HEIGHT + 26
    height = len(ROWS) * pitch + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" role="img" '
        'aria-label="The rooms of caffetools from the command line down to the file formats; imports go downwards only">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8"/></marker></defs>',
    ]
    for number, (title, rooms) in enumerate(ROWS.items()):
        parts += _row(title, rooms, 10 + number * pitch, last=number == len(ROWS) - 1)
    return "\n".join([*parts, "</svg>", ""])


def _row(title: str, rooms: dict[str, str], top: int, *, last: bool) -> list[str]:
    """Return the boxes of one row, and the arrow to the next."""
    space = _WIDTH - _LEFT - 16
    width = (space - _GAP * (len(rooms) - 1)) / len(rooms)
    parts = [f'<text class="r" x="8" y="{top + 31}">{escape(title)}</text>']
    for index, (name, text) in enumerate(rooms.items()):
        left = _LEFT + index * (width + _GAP)
        middle = left + width / 2
        parts.append(
            f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{_HEIGHT}" rx="8"/>'
            f'<text class="n" x="{middle:.0f}" y="{top + 22}" text-anchor="middle">{escape(name)}</text>'
            f'<text class="d" x="{middle:.0f}" y="{top + 41}" text-anchor="middle">{escape(text)}</text>'
        )
    if not last:
        centre = _LEFT + space // 2
        parts.append(f'<path d="M{centre} {top + _HEIGHT + 3}V{top + _HEIGHT + 22}" marker-end="url(#a)"/>')
    return parts


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
