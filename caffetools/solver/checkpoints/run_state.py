"""What a run depends on besides Caffe's two files: random states, the data layers' places, the losses of the smoothed one.

It is next to a snapshot as ``PREFIX_iter_N.runstate.json``, which Caffe does not look at. With it a run resumes bit for bit; without
it (a snapshot of real Caffe) only weights and history are resumed; data and randomness start over.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from caffetools.data.layers.batch_source import ReadingLayer
from caffetools.errors import DataError, ModelFileError
from caffetools.net.net import Net
from caffetools.solver.control import TrainingRun
from caffetools.solver.random_streams import check_random_states
from caffetools.util.files import write_text

PathLike = str | os.PathLike[str]
RunState = dict[str, Any]

_FORMAT = 1
_DTYPES = ("uint8", "uint32", "float32")
_BLOCK = 1 << 22
# A file that changes once more within the step of its file system's clock keeps its times.
_SETTLED_NS = 2_000_000_000
_OWN_CHECKSUM = re.compile(r', "own_crc32": (\d+)\}\s*\Z')
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "run": str,
    "time": (int, float),
    "iteration": int,
    "random": dict,
    "losses": list,
    "nets": list,
    "weights_crc32": int,
}


@runtime_checkable
class Stateful(Protocol):
    """A layer whose next pass depends on more than its bottoms and parameters."""

    name: str

    def get_state(self) -> dict[str, Any]:
        """Return what to give :meth:`set_state`: numbers, texts, arrays."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`get_state` was called, maybe in another process."""


def capture_run_state(solver: TrainingRun) -> RunState:
    """Return the state of ``solver``'s run as it is now: plain numbers, texts and arrays.

    Keys: ``format``, ``run`` (which run it is), ``time`` (seconds since 1970), ``iteration``, ``random`` (torch, CUDA, NumPy, Python),
    ``losses`` (the last average_loss ones), ``nets``: for the training net and each test net its layers' states by name.
    """
    return {
        "format": _FORMAT,
        "run": solver.run_id,
        "time": time.time(),
        "iteration": solver.iteration,
        "random": solver.random.get_states(),
        "losses": [float(loss) for loss in solver.losses],
        "nets": [_layer_states(net) for net in (solver.net, *solver.test_nets)],
    }


def apply(state: RunState, solver: TrainingRun, warn: Callable[[str], None]) -> None:
    """Put ``solver``'s run where ``state`` was captured; ``warn`` receives a message for each part that does not fit this run and starts over."""
    solver.run_id = str(state["run"])
    solver.losses.extend(torch.tensor(loss, device=solver.net.device) for loss in state["losses"])
    nets = [solver.net, *solver.test_nets]
    if len(nets) != len(state["nets"]):
        warn(f"the run had {len(state['nets']) - 1} test net(s), this one has {len(nets) - 1}; the data of further ones start over")
    for net, layers in zip(nets, state["nets"], strict=False):
        set_layer_states(net, layers, warn)
    # Last, since opening files may draw random numbers.
    solver.random.set_states(state["random"])


def write_run_state(path: PathLike, run: RunState, state: PathLike, weights: PathLike) -> None:
    """Write a run state atomically, with the CRC-32 of the snapshot's files and, at its end, its own.

    Args:
        path: Where to write it.
        run: The run state.
        state: The .solverstate.
        weights: The .caffemodel.

    Raises:
        RunFailed: It cannot be written.
    """
    text = dumps({**run, "weights_crc32": checksum(weights), "state_crc32": checksum(state)})
    write_text(path, f'{text[:-1]}, "own_crc32": {zlib.crc32(text.encode())}}}\n')


def read_run_state(path: PathLike) -> RunState:
    """Read what :func:`write_run_state` wrote. Raises :class:`ModelFileError` where it is missing, damaged or of a later format."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        state = loads(text)
        # Run states of earlier versions have no checksum of their own.
        seal = _OWN_CHECKSUM.search(text)
        whole = seal is None or zlib.crc32(f"{text[: seal.start()]}}}".encode()) == int(seal[1])
        complete = whole and all(isinstance(state.get(field), kind) for field, kind in _FIELDS.items())
    except OSError as error:
        raise ModelFileError(f"cannot read: {error.strerror}", path=path) from None
    except (ValueError, TypeError, KeyError, RecursionError):
        complete = False
    if not complete:
        raise ModelFileError("not a run's state, or a damaged one", path=path)
    if state["format"] != _FORMAT:
        raise ModelFileError(f"has format {state['format']}, which this version of caffetools does not know", path=path)
    try:
        check_random_states(state["random"])
        if not all(isinstance(loss, int | float) for loss in state["losses"]) or not all(isinstance(net, dict) for net in state["nets"]):
            raise ValueError("losses or layers' states are of another kind")
    except ValueError as error:
        raise ModelFileError(f"a damaged run's state: {error}", path=path) from None
    return state


def check_files(side: PathLike, state: PathLike, weights: PathLike) -> RunState | None:
    """Compare the files of a snapshot with the checksums in its run state.

    Args:
        side: The run state's file.
        state: The .solverstate.
        weights: The .caffemodel.

    Returns:
        The run state; None if both files were replaced since, as real Caffe does without knowing of the run state.

    Raises:
        ModelFileError: The run state cannot be read, or one of the files was changed since it was written.
    """
    run = read_run_state(side)
    # Run states of earlier versions have no checksum of the solverstate.
    same_state = "state_crc32" not in run or run["state_crc32"] == checksum(state)
    if run["weights_crc32"] == checksum(weights):
        if same_state:
            return run
        changed = state
    elif not same_state or "state_crc32" not in run:
        return None
    else:
        changed = weights
    raise ModelFileError(
        "damaged or changed since it was written (its checksum differs)",
        path=changed,
        hint=f"resume from another snapshot, or remove {os.fspath(side)} to use the file as it is",
    )


def run_state_path(state: PathLike) -> Path:
    """Return where the run's state lies for the .solverstate (or .solverstate.h5) ``state``."""
    path = Path(state)
    name = path.name.removesuffix(".h5").removesuffix(".solverstate")
    return path.with_name(f"{name}.runstate.json")


def checksum(path: PathLike) -> int:
    """Return the CRC-32 of a file's bytes; of a file that has not changed since it was last read, the one that was found then."""
    found = Path(path).stat()
    is_settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS
    read = _read_checksum if is_settled else _read_checksum.__wrapped__
    return read(os.fspath(path), (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@lru_cache(maxsize=16)
def _read_checksum(path: str, version: tuple[int, ...]) -> int:
    """Return the CRC-32 of a file, kept for its ``version``: a snapshot is checked when it is chosen and when it is resumed."""
    crc = 0
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def dumps(state: RunState) -> str:
    """Return ``state`` as JSON, arrays as base64."""
    return json.dumps(state, default=encode_array)


def loads(text: str) -> RunState:
    """Return what :func:`dumps` was given. Raises ``ValueError`` for other text."""
    return dict(json.loads(text, object_hook=decode_array))


# ---- layers ----


def _layer_states(net: Net) -> dict[str, Any]:
    return {key: layer.get_state() for key, layer in net.layers_by_key.items() if isinstance(layer, Stateful)}


def set_layer_states(net: Net, states: dict[str, Any], warn: Callable[[str], None]) -> None:
    """Set the states of a net's layers, by key; ``warn`` gets a line for each that has none or does not fit."""
    for key, layer in net.layers_by_key.items():
        if not isinstance(layer, Stateful):
            continue
        if key not in states:
            warn(f"layer '{layer.name}' was not there when the snapshot was taken, so it starts over")
            continue
        try:
            layer.set_state(states[key])
        except (DataError, KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(layer, ReadingLayer):
                layer.close()
            warn(f"layer '{layer.name}' is another one than when the snapshot was taken, so it starts over ({error})")


# ---- arrays in JSON ----


def encode_array(value: object) -> Any:
    """Return what JSON can hold in place of a tensor, an array (any shape) or a number of NumPy. Raises :class:`TypeError` for others."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype.name in _DTYPES:
        raw = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
        return {"dtype": value.dtype.name, "shape": list(value.shape), "base64": raw}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a run's state")


def decode_array(value: dict[str, Any]) -> Any:
    """Return the array that :func:`encode_array` was given, of its shape and dtype; other dictionaries as they are.

    Raises:
        ValueError: The text is not such an array.
    """
    if set(value) != {"dtype", "shape", "base64"}:
        return value
    if value["dtype"] not in _DTYPES:
        raise ValueError(value["dtype"])
    return np.frombuffer(base64.b64decode(value["base64"]), value["dtype"]).reshape(value["shape"]).copy()
