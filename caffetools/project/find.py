"""Find the nets of a folder, and the data that a net reads."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from caffetools.errors import CaffeToolsError
from caffetools.graph.inputs import data_layers, source_param
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import read_net, read_solver
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.surgery.losses import losses_of


def training_nets(folder: Path) -> list[Path]:
    """Return the nets for training in a folder: train_val.prototxt; else those its solvers name; else all trainable prototxts.

    Args:
        folder: The folder; its subfolders are not searched.
    """
    usual = folder / "train_val.prototxt"
    if usual.is_file():
        return [usual]
    prototxts = sorted(folder.glob("*.prototxt"))
    solvers = [path for path in prototxts if "solver" in path.stem]
    named: list[Path] = []
    for path in solvers:
        with suppress(CaffeToolsError):
            net = Path(read_solver(path).net)
            named += [found for found in (net, path.parent / net.name) if found.is_file()][:1]
    return list(dict.fromkeys(named)) or [path for path in prototxts if path not in solvers and _is_trainable(path)]


def solvers(folder: Path) -> list[Path]:
    """Return the solvers of a folder: solver.prototxt; else prototxts called *solver*; else the solver.prototxt of its subfolders.

    Args:
        folder: The folder.
    """
    usual = folder / "solver.prototxt"
    if usual.is_file():
        return [usual]
    named = [path for path in sorted(folder.glob("*solver*.prototxt")) if path.is_file()]
    return named or sorted(path for path in folder.glob("*/solver.prototxt") if path.is_file())


def missing_sources(net: NetParameter) -> list[str]:
    """Return the sources of a net's data layers that do not exist, as they are written.

    Args:
        net: A ``NetParameter`` in today's form.
    """
    sources = [source_param(layer).source for phase in (TRAIN, TEST) for layer in data_layers(net, phase)]
    return [source for source in dict.fromkeys(sources) if source and not Path(source).exists()]


def _is_trainable(path: Path) -> bool:
    with suppress(CaffeToolsError):
        return bool(losses_of(upgrade_net(read_net(path))))
    return False
