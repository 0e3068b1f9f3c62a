"""Training logs as CSV files with the names and columns of Caffe's parse_log.py."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

from caffetools.solver.logs.training_log import LogRow, TrainingLog
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]


def csv_paths(log: PathLike, folder: PathLike) -> tuple[Path, Path]:
    """Return the paths that parse_log.py writes to: LOG.train and LOG.test in a folder.

    Args:
        log: Path of the log.
        folder: Folder of the CSV files.
    """
    name = Path(log).name if os.fspath(log) != "-" else "stdin"
    return Path(folder) / f"{name}.train", Path(folder) / f"{name}.test"


def write_csv(log: TrainingLog, paths: tuple[Path, Path], *, delimiter: str = ",") -> None:
    """Write the rows of training and of tests, each a line of NumIters, Seconds, LearningRate and the outputs.

    A first row whose learning rate is not known yet gets that of the second, as in parse_log.py.

    Args:
        log: The log.
        paths: Where to write the rows of training and of tests; see :func:`csv_paths`.
        delimiter: Between the columns.

    Raises:
        RunFailed: A file cannot be written.
    """
    for path, rows in zip(paths, (log.train, log.test), strict=True):
        _write(path, rows, delimiter)


def _write(path: Path, rows: Sequence[LogRow], delimiter: str) -> None:
    outputs = list(dict.fromkeys(name for row in rows for name in row.outputs))
    rates = [row.lr for row in rows]
    if len(rates) > 1 and math.isnan(rates[0]):
        rates[0] = rates[1]
    with atomic_write(path, "w") as stream:
        if not rows:
            return
        writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        writer.writerow(["NumIters", "Seconds", "LearningRate", *outputs])
        for row, rate in zip(rows, rates, strict=True):
            writer.writerow([float(row.iteration), row.seconds, rate, *(row.outputs.get(name, "") for name in outputs)])
