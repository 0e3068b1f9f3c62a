"""Tables whose lines stay whole: as wide as their content, in a pipe as in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from caffetools.cli.show import console


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout, with two spaces between columns; one whose name starts with ``>`` stands at the right."""
    from rich.cells import cell_len

    right = [column.startswith(">") for column in columns]
    lines = [[column.removeprefix(">") for column in columns], *map(list, rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    for index, line in enumerate(lines):
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        cells = [gap + cell if to_right else cell + gap for cell, gap, to_right in zip(line, gaps, right, strict=True)]
        console.print("  ".join(cells).rstrip(), style="bold" if index == 0 else None, markup=False)


def shortened(number: float, unit: str = "") -> str:
    """Return a number as people read it: ``61.0 M``, ``1.6 G``, ``512``; with the unit B ``3.2 MB``, ``600 B``."""
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f} {prefix}{unit}"
    return f"{number:.0f} {unit}".rstrip()
