"""Rows of ``benchmarks/inference.py``: kept as JSON, shown as text and as a table in Markdown."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

AFTER_PAUSE, BACK_TO_BACK, CPU = "after a pause", "back to back", "CPU"
PEAK, IMPORT = "peak MB", "import MB"


@dataclass(frozen=True)
class Figure:
    """Milliseconds over the rounds: median, first and third quartile, and the median over that of caffetools."""

    median: float
    first: float
    third: float
    ratio: float

    @classmethod
    def of(cls, times: list[float], ours: list[float]) -> Figure:
        first, median, third = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        return cls(median, first, third, median / statistics.median(ours))


@dataclass(frozen=True)
class Row:
    """A net at a batch: the figures and the memory (MB) of each side, the least milliseconds by multiply-adds, and the rounds."""

    times: dict[str, dict[str, Figure]]
    memory: dict[str, dict[str, float]]
    limit: float
    rounds: int

    def record(self) -> dict[str, object]:
        """For JSON."""
        sides = {who: {**{what: asdict(f) for what, f in times.items()}, **self.memory[who]} for who, times in self.times.items()}
        return {**sides, "limit": {"ms": self.limit}, "rounds": self.rounds}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Row:
        """Read what :meth:`record` gave."""
        sides = {who: side for who, side in record.items() if isinstance(side, dict) and PEAK in side}
        times = {who: {what: Figure(**side[what]) for what in (AFTER_PAUSE, BACK_TO_BACK, CPU)} for who, side in sides.items()}
        memory = {who: {what: float(side[what]) for what in (PEAK, IMPORT)} for who, side in sides.items()}
        return cls(times, memory, float(record["limit"]["ms"]), int(record["rounds"]))


def table(title: str, row: Row) -> str:
    """The figures of a net as text."""
    lines = [
        f"{title:26}"
        + "".join(f"{what + ': ms':>22}{'quartiles':>18}{'/ ours':>8}" for what in (AFTER_PAUSE, BACK_TO_BACK))
        + f"{'CPU ms':>10}{PEAK:>10}{'/ ours':>8}{IMPORT:>11}"
    ]
    least = row.memory["caffetools"][PEAK]
    for who, figures in row.times.items():
        cells = (figures[what] for what in (AFTER_PAUSE, BACK_TO_BACK))
        text = "".join(f"{f.median:22.2f}{f'{f.first:.2f} to {f.third:.2f}':>18}{f.ratio:8.2f}" for f in cells)
        peak, imported = (row.memory[who][what] for what in (PEAK, IMPORT))
        lines.append(f"  {who:24}{text}{figures[CPU].median:10.2f}{peak:10.0f}{peak / least:8.2f}{imported:11.0f}")
    return "\n".join([*lines, f"  {'limit':24}{row.limit:22.2f}{f'({row.rounds} rounds)':>18}"])


def summary(rows: dict[str, Row]) -> str:
    """All rows as a table in Markdown: ratios back to back, in brackets after a pause, and peaks of memory, in brackets after the import."""
    who = list(dict.fromkeys(side for row in rows.values() for side in row.times))
    lines = [
        "| net, batch | " + " | ".join(["caffetools, ms", *who[1:], "rounds", *(f"{side}, MB" for side in who)]) + " |",
        "|---" * (2 * len(who) + 2) + "|",
    ]
    for title, row in rows.items():
        own = row.times["caffetools"]
        cells = [title.replace(", batch", ","), f"{own[BACK_TO_BACK].median:.3g} ({own[AFTER_PAUSE].median:.3g})"]
        for side in who[1:]:
            figures = row.times.get(side)
            cells.append(f"{figures[BACK_TO_BACK].ratio:.2f} ({figures[AFTER_PAUSE].ratio:.2f})" if figures else "–")
        cells.append(str(row.rounds))
        for side in who:
            memory = row.memory.get(side)
            cells.append(f"{memory[PEAK]:.0f} ({memory[IMPORT]:.0f})" if memory else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def saved_rows(path: Path, chosen_threads: int) -> dict[str, Row]:
    """Read the rows of an earlier run. Raises ValueError for a file that is none, or of another number of threads."""
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
        threads, rows = record["threads"], {title: Row.of(row) for title, row in record["results"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no rows of this script ({error!r}); name another file, or delete it") from error
    if threads != chosen_threads:
        raise ValueError(f"the rows in {path} were measured with {threads} threads, not {chosen_threads}; name another file")
    return rows


def report(rows: dict[str, Row], threads: int) -> str:
    """All rows as JSON."""
    return json.dumps({"threads": threads, "results": {title: row.record() for title, row in rows.items()}}, indent=2)
