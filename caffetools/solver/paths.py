"""Where the files that a solver names are: from the working directory, as in Caffe, else from the folder that they were written for.

Solvers name their net from the folder in which Caffe is meant to run. A solver that is started from its own folder would not find it.
So where the net is not found from the working directory, the base of all its relative names is the nearest of the solver's folder and
the folders above it from which the net is found.
"""

from __future__ import annotations

import os
from pathlib import Path

from caffetools.errors import PrototxtError
from caffetools.proto.file_names import folders_above
from caffetools.proto.schema import SolverParameter
from caffetools.solver.control import Log
from caffetools.solver.errors import SolverError


def find_base(param: SolverParameter, path: Path | None) -> Path | None:
    """Return the folder that a solver's relative names count from; None for the working directory.

    Args:
        param: A ``SolverParameter``.
        path: Its file; None if it came from no file.
    """
    name = next((name for name in (param.net, param.train_net, *param.test_net) if name), "")
    if not name or path is None or Path(name).exists():
        return None
    return next((base for base in folders_above(path) if (base / name).exists()), None)


def find_net(name: str, base: Path | None, path: Path | None, log: Log) -> Path:
    """Return the path of a net that a solver names.

    Args:
        name: As the solver has it.
        base: From :func:`find_base`.
        path: The solver's file.
        log: Receives a line if it is not found from the working directory.

    Raises:
        PrototxtError: It is not found; names all places.
    """
    places = [Path(name)]
    if base is not None:
        places.append(base / name)
    if path is not None:
        places += [path.parent / name, path.parent / Path(name).name]
    for place in dict.fromkeys(places):
        if place.exists():
            if place != places[0]:
                log("solver.cpp:100", f"{name} is not in the working directory; reading {place}")
            return place
    looked = list(dict.fromkeys(map(str, places)))
    hint = f"looked for {', '.join(looked)}; run it from the folder that {name} is in" if len(looked) > 1 else None
    raise PrototxtError("cannot read: No such file or directory", path=name, hint=hint)


def snapshot_prefix(param: SolverParameter, path: Path | None) -> str:
    """Return the prefix of a solver's snapshots.

    Where the solver gives none, it is the solver's file name without its ending; where it gives a folder, that name in the folder.

    Raises:
        SolverError: A folder is given, and there is no file to name the snapshots after.
    """
    given = str(param.snapshot_prefix)
    base = find_base(param, path)
    if given and base is not None and not Path(given).is_absolute():
        ending = os.sep if given.endswith(("/", os.sep)) else ""
        given = os.path.relpath(base / given) + ending
    prefix = given or (str(path.with_suffix("")) if path is not None else "")
    if not prefix or not Path(prefix).is_dir():
        return prefix
    if path is None:
        raise SolverError(f"snapshot_prefix '{prefix}' is a folder; add the beginning of a file name", field="snapshot_prefix")
    return str(Path(prefix) / path.stem)
