"""Draw the README's badges from what is true of the tree: python docs/make_badges.py (a test compares them)."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "pictures" / "badges.svg"


def page() -> str:
    """Return the SVG of all badges: Python versions and licence of pyproject.toml, and the cases that real Caffe computed."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)\"", pyproject)
    (licence,) = re.findall(r'^license = "([^"]+)"', pyproject, re.MULTILINE)
    cases = json.loads((ROOT / "tests" / "golden" / "layers" / "index.json").read_text(encoding="utf-8"))["cases"]
    badges = [
        ("Python", f"{versions[0]} – {versions[-1]}", "#1f6f3f"),
        ("licence", licence, "#1d5fa8"),
        ("compared with Caffe 1.0", f"{len(cases)} layer cases", "#7a3e9d"),
    ]
    return draw(badges)


def draw(badges: list[tuple[str, str, str]]) -> str:
    """Return the SVG of badges, each a label, a value and the value's colour."""
    parts, x = [], 0.0
    for label, value, colour in badges:
        left, right = 14 + 6.6 * len(label), 14 + 6.6 * len(value)
        parts.append(
            f'<g transform="translate({x:.1f})"><rect width="{left + right:.1f}" height="20" rx="4" fill="{colour}"/>'
            f'<path d="M4 0h{left - 4:.1f}v20H4a4 4 0 0 1-4-4V4a4 4 0 0 1 4-4z" fill="#444b54"/>'
            f'<text x="{left / 2:.1f}" y="14" textLength="{left - 14:.1f}">{label}</text>'
            f'<text x="{left + right / 2:.1f}" y="14" textLength="{right - 14:.1f}">{value}</text></g>'
        )
        x += left + right + 8
    title = "; ".join(f"{label}: {value}" for label, value, _ in badges)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x - 8:.0f}" height="20" role="img" aria-label="{title}"><title>{title}</title>'
        f'<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{"".join(parts)}</g></svg>\n'
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
