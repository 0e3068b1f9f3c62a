"""The files that surgery writes into a folder: prototxts of nets and solvers, and weights to start from."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from caffetools.data.databases import may_be_database, open_database
from caffetools.data.layers.data import Data
from caffetools.errors import CaffeToolsError
from caffetools.graph.graph import phases_present
from caffetools.graph.inputs import data_layers, source_param
from caffetools.project.config import FILES
from caffetools.project.solver_config import solver_for
from caffetools.proto.binary import write_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TEST, TRAIN, NetParameter, SolverParameter
from caffetools.proto.text import format_text
from caffetools.util.files import atomic_files

PathLike = str | os.PathLike[str]

WEIGHTS = "weights.caffemodel"


def check_free(folder: PathLike, *, force: bool = False, weights: bool = False, files: Iterable[str] = FILES) -> None:
    """Raise :class:`CaffeToolsError` where one of the ``files`` of a project is in ``folder`` already and ``force`` is not set."""
    taken = [name for name in (*files, *([WEIGHTS] if weights else [])) if (Path(folder) / name).exists()]
    if taken and not force:
        raise CaffeToolsError("already exists", path=Path(folder) / taken[0], hint="give another folder, or --force to replace it")


def solver_in(
    net: NetParameter, folder: Path, *, epochs: int, base_lr: float | None, seed: int | None, like: SolverParameter | None
) -> SolverParameter:
    """Return the solver for ``net`` that is to lie in ``folder``; see :func:`~caffetools.project.solver_config.solver_for`."""
    train, val = (_batches(net, phase) for phase in (TRAIN, TEST))
    return solver_for(
        str(folder / FILES[0]),
        train_count=train[0],
        val_count=val[0],
        train_batch=train[1],
        val_batch=val[1],
        epochs=epochs,
        base_lr=base_lr,
        seed=seed,
        like=like,
        snapshot_prefix=str(folder / "snapshot"),
        tested=TEST in phases_present(net),
    )


_PLANNED = "# Next: "


def planned_command(solver: Path) -> str:
    """Return the command that the first lines of a solver's file give, with its weights; "" if they give none.

    It was written for the folder that ``retarget`` ran in; its paths are given as seen from the present one.

    Args:
        solver: A solver that :func:`write_messages` wrote.
    """
    with contextlib.suppress(OSError), solver.open(encoding="utf-8", errors="replace") as stream:
        for line in itertools.takewhile(lambda line: line.startswith("#"), stream):
            if line.startswith(_PLANNED):
                return _from_here(line.removeprefix(_PLANNED).strip(), solver)
    return ""


def _from_here(planned: str, solver: Path) -> str:
    """Return a command that names a solver, written for another folder, with the solver's present path and the files next to it."""
    with contextlib.suppress(ValueError):
        program, verb, named, *rest = shlex.split(planned)
        parts = Path(named).parts
        place = solver.resolve()
        if place.parts[-len(parts) :] != parts:
            return ""
        base = Path(*place.parts[: -len(parts)])
        words = [os.path.relpath(base / word) if not Path(word).exists() and (base / word).exists() else word for word in rest]
        return shlex.join([program, verb, str(solver), *words])
    return planned


def write_messages(
    messages: Mapping[str, Any], folder: PathLike, head: str, weights: Caffemodel | None = None, *, planned: str = ""
) -> list[Path]:
    """Write messages under names of :data:`FILES`, and the weights, all or none.

    Args:
        messages: By file name.
        folder: Created if missing.
        head: Comment lines at the beginning of each file.
        weights: Written as :data:`WEIGHTS`, if given.
        planned: Command that trains the net, for the solver's head.

    Returns:
        The paths written.
    """
    paths = [Path(folder) / name for name in messages]
    with atomic_files() as write:
        for path, message in zip(paths, messages.values(), strict=True):
            more = f"{_PLANNED}{planned}\n" if planned and path.name == FILES[1] else ""
            write(path, (head + more + format_text(message)).encode())
        if weights is not None:
            paths.append(Path(folder) / WEIGHTS)
            write_caffemodel(paths[-1], weights)
    return paths


def _batches(net: NetParameter, phase: int) -> tuple[int | None, int]:
    """Return (number of pictures, where the source is a database; pictures a batch) of a phase's first data layer."""
    layers = data_layers(net, phase)
    if not layers:
        return None, 1
    param = source_param(layers[0])
    count = None
    # A folder of other files has the name by chance; training reports that.
    if layers[0].type == Data.TYPE and param.source and may_be_database(param.source):
        with contextlib.closing(open_database(param.source)) as database:
            count = len(database)
    return count, param.batch_size or 1
