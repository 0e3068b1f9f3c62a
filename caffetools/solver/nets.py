"""The nets of a solver: one to train, any number to test, which share its parameters (Caffe's InitTrainNet and InitTestNets)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from caffetools.errors import NetError
from caffetools.layers.base import Layer, format_shape
from caffetools.layers.fillers import fill
from caffetools.net.gradients import check_gradient_scale, check_gradients
from caffetools.net.net import Net, error_context
from caffetools.net.weights import layers_by_name
from caffetools.proto.file_names import find_data_base, rebase_sources
from caffetools.proto.schema import TEST, TRAIN, NetParameter, NetState, SolverParameter
from caffetools.proto.text import format_text, read_net
from caffetools.solver.control import Log
from caffetools.solver.errors import SolverError
from caffetools.solver.logs.caffe_log import log_net
from caffetools.solver.paths import find_net


@dataclass(frozen=True)
class Places:
    """Where the files that a solver names are looked for.

    Attributes:
        solver: The solver's file; None if it came from no file.
        base: Folder of relative names; None for the working directory.
    """

    solver: Path | None = None
    base: Path | None = None


@dataclass(frozen=True)
class Source:
    """Where a net comes from: a file, or a field of the solver. ``described`` is how Caffe's log names it."""

    described: str
    param: NetParameter
    path: Path | None = None


# Entered while a net is built: gives its layers their random stream.
Building = Callable[[NetParameter], AbstractContextManager[None]]


def train_net(solver: SolverParameter, places: Places, log: Log, building: Building) -> Net:
    """Build the net to train, from whichever of net, net_param, train_net and train_net_param is given.

    Args:
        solver: A ``SolverParameter``.
        places: Where files are looked for.
        log: Receives lines in Caffe's words.
        building: Entered with the net's parameter while the net is built.

    Raises:
        CaffeToolsError: none or several of the fields are given.
        PrototxtError, NetError: the net is wrong.
    """
    given = [name for name in ("train_net_param", "train_net", "net_param", "net") if solver.HasField(name)]
    if len(given) != 1:
        what = f"gives {' and '.join(given)}" if given else "names no net to train"
        raise SolverError(f"{what}; give exactly one of net, net_param, train_net, train_net_param")
    source = _field(solver, given[0], places, log)
    log("solver.cpp:102", f"Creating training net {source.described}")
    return _build(source, _state(TRAIN, source.param, solver.train_state), log, building)


def test_nets(solver: SolverParameter, places: Places, log: Log, building: Building) -> list[Net]:
    """Build the nets to test on: test_net_param's, test_net's, then net or net_param as often as test_iter has further entries.

    Their parameters are not filled: see :func:`share_parameters`. Arguments as for :func:`train_net`.

    Raises:
        CaffeToolsError: the numbers of nets, test_iter and test_state entries do not fit, or test_interval is missing.
    """
    own = len(solver.test_net_param) + len(solver.test_net)
    generic = "net_param" if solver.HasField("net_param") else "net" if solver.HasField("net") else None
    count = len(solver.test_iter)
    if count < own or (generic is None and count != own):
        raise SolverError(f"{count} test_iter value(s) for {own} test net(s); give one for each", field="test_iter")
    if len(solver.test_state) not in (0, count):
        raise SolverError(
            f"{len(solver.test_state)} test_state block(s) for {count} test net(s); give one for each, or none", field="test_state"
        )
    if count and solver.test_interval <= 0:
        raise SolverError("test_iter is given, so test_interval must be above 0", field="test_interval")
    if any(iterations < 0 for iterations in solver.test_iter):
        raise SolverError("every test_iter must be at least 0", field="test_iter")
    sources = [Source("specified by test_net_param", param) for param in solver.test_net_param]
    sources += [_file(path, "specified by test_net file: {}", places, log) for path in solver.test_net]
    if generic is not None:
        sources += [_field(solver, generic, places, log, test=True)] * (count - own)
    nets = []
    for index, source in enumerate(sources):
        state = solver.test_state[index] if solver.test_state else NetState()
        log("solver.cpp:190", f"Creating test net (#{index}) {source.described}")
        nets.append(_build(source, _state(TEST, source.param, state), log, building, filled=False))
    return nets


def share_parameters(target: Net, source: Net) -> list[str]:
    """Let ``target``, whose parameters are unset, hold the parameters of ``source``'s layers of the same names; fill the others.

    Returns:
        The layers with parameters of which ``source`` has none.

    Raises:
        NetError: a layer's parameters differ in number or shape.
    """
    # As in Caffe: of several layers of one name, the first here takes the parameters of the last there.
    theirs = {layer.name: layer for layer in source.layers}
    named = layers_by_name(target)
    own: list[str] = []
    for layer in target.layers:
        if not len(layer.blobs):
            continue
        if named[layer.name] is layer and layer.name in theirs and len(theirs[layer.name].blobs):
            _adopt(layer, theirs[layer.name])
        else:
            own.append(layer.name)
            with torch.no_grad():
                for parameter, spec in zip(layer.blobs, layer.specs, strict=True):
                    fill(parameter, spec.filler, layer.generator)
    return own


def _adopt(layer: Layer, other: Layer) -> None:
    mine, theirs = [tuple(b.shape) for b in layer.blobs], [tuple(b.shape) for b in other.blobs]
    if mine != theirs:
        raise NetError(
            f"its parameters are {', '.join(map(format_shape, mine))} in the test net but {', '.join(map(format_shape, theirs))} in the training net",
            layer=layer.name,
        )
    for index, parameter in enumerate(other.blobs):
        layer.blobs[index] = parameter


def _field(solver: SolverParameter, name: str, places: Places, log: Log, *, test: bool = False) -> Source:
    """Return the source that the field ``name`` gives; Caffe logs "specified by net file" of test nets and "from net file" of others."""
    words = "specified by" if test else "from" if not name.endswith("_param") else "specified in"
    if name.endswith("_param"):
        return Source(f"{words} {name}.", getattr(solver, name))
    return _file(getattr(solver, name), f"{words} {name} file: {{}}", places, log)


def _file(name: str, origin: str, places: Places, log: Log) -> Source:
    path = find_net(name, places.base, places.solver, log)
    param = read_net(path)
    rebase_sources(param, places.base, log)
    rebase_sources(param, find_data_base(param, path), log)
    return Source(origin.format(path), param, path)


def _state(phase: int, net: NetParameter, extra: NetState) -> NetState:
    """Return the state that a net is filtered by: the phase, then the state in the net's prototxt, then that in the solver."""
    state = NetState(phase=phase)
    state.MergeFrom(net.state)
    state.MergeFrom(extra)
    return state


def _build(source: Source, state: NetState, log: Log, building: Building, *, filled: bool = True) -> Net:
    with _placed(source.path), building(source.param):
        net = Net(source.param, state.phase, level=state.level, stages=list(state.stage), fill=filled)
        if state.phase == TRAIN:
            check_gradients(net.layers, force=bool(net.param.force_backward))
            check_gradient_scale(net.param, net.layers)
    shown_param = type(source.param)()
    shown_param.CopyFrom(net.param)
    shown_param.state.CopyFrom(state)
    log_net(log, net, format_text(shown_param))
    return net


@contextlib.contextmanager
def _placed(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with error_context(path):
        yield
