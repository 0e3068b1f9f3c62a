"""The part of a run's state that is each process' own, where several train together: random states and the data's places."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from caffetools.data.layers.batch_source import ReadingLayer
from caffetools.solver.checkpoints import run_state as runstate
from caffetools.solver.checkpoints.run_state import RunState, read_run_state, run_state_path
from caffetools.solver.control import Snapshot

if TYPE_CHECKING:
    from caffetools.net.net import Net
    from caffetools.solver.control import TrainingRun
    from caffetools.solver.strategy import Strategy

# One for each process, by rank: its ``precision``, and for all but the main one ``random`` and ``layers``.
States = list[dict[str, Any]]


def with_others(run: RunState, strategy: Strategy, precision: Mapping[str, float]) -> RunState:
    """Return the main process's ``run`` with the states of all processes as ``processes``; all of them call this, each with its own."""
    if strategy.size == 1 and not precision:
        return run
    mine = {"precision": dict(precision)}
    if not strategy.is_main:
        mine.update(random=run["random"], layers=run["nets"][0])
    return {**run, "processes": [_read(text) for text in strategy.gather(_text(mine))]}


def stored(path: str | os.PathLike[str]) -> States:
    """Return the processes' states next to the .solverstate ``path``; empty where one process in float32 wrote it."""
    states = read_run_state(run_state_path(path)).get("processes")
    return states if isinstance(states, list) else []


def share(strategy: Strategy, states: States | None) -> States:
    """Return the main process's ``states`` in every process."""
    text = strategy.broadcast(_text(states or []) if strategy.is_main else None)
    return list(_read(text))


def own(states: States | None, rank: int) -> Mapping[str, Any]:
    """Return what ``states`` holds for process ``rank``; empty where nothing."""
    return states[rank] if states is not None and rank < len(states) else {}


def names(written: Snapshot | None) -> dict[str, Any] | None:
    """Return a snapshot as JSON can hold it."""
    return None if written is None else {"iteration": written.iteration, "weights": str(written.weights), "state": str(written.state)}


def layer_states(net: Net) -> str:
    """Return where the data of ``net`` stand, as text for the other processes."""
    return _text({key: layer.get_state() for key, layer in net.layers_by_key.items() if isinstance(layer, ReadingLayer)})


def follow(states: States, root_layers: str, strategy: Strategy, run: TrainingRun) -> None:
    """Put a process that is not the main one where its run stood.

    Where the snapshot was taken by another number of processes, its data resume from the main process's position, with new crops and flips.
    """
    if len(states) == strategy.size:
        mine = states[strategy.rank]
        runstate.set_layer_states(run.net, mine["layers"], lambda text: run.log("caffe.cpp:235", text, "W"))
        run.random.set_states(mine["random"])
        return
    places = _read(root_layers)
    for key, layer in run.net.layers_by_key.items():
        if isinstance(layer, ReadingLayer) and key in places:
            place = places[key]
            layer.set_state({**place, "rng": np.random.default_rng([int(place["seed"]), strategy.rank, 1]).bit_generator.state})


def _text(value: object) -> str:
    return json.dumps(value, default=runstate.encode_array)


def _read(text: str) -> Any:
    return json.loads(text, object_hook=runstate.decode_array)
