"""What pycaffe keeps for the whole process: CPU or GPU, the random seed, logging."""

from __future__ import annotations

import logging
import random
import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from caffetools.errors import NetError
from caffetools.layers.registry import layer_types
from caffetools.pycaffe.errors import also
from caffetools.pycaffe.vectors import StringVec

if TYPE_CHECKING:
    from caffetools.solver.random_streams import RandomStream

logger = logging.getLogger("caffetools.pycaffe")

# What the nets of the solvers in this process draw from. Generators themselves have no weak references in torch 2.6.
solver_streams: weakref.WeakSet[RandomStream] = weakref.WeakSet()

_state = {"gpu": False, "device": 0, "solvers": 1, "rank": 0}


def set_mode_cpu() -> None:
    """Compute on the CPU; the default."""
    _state["gpu"] = False


def set_mode_gpu() -> None:
    """Compute on the GPU of :func:`set_device`; without a GPU the log has a warning, and nets run on the CPU."""
    _state["gpu"] = torch.cuda.is_available()
    if not _state["gpu"]:
        logger.warning("set_mode_gpu: torch finds no GPU here, so nets run on the CPU, with the same results")


def set_device(device: int) -> None:
    """Choose the GPU for :func:`set_mode_gpu`. Raises :class:`NetError` where there are GPUs, but not this one."""
    if torch.cuda.is_available() and not 0 <= device < torch.cuda.device_count():
        error = NetError(f"set_device({device}): there is no such GPU; they are numbered 0 to {torch.cuda.device_count() - 1}")
        raise also(error, RuntimeError)
    _state["device"] = device


def set_devices(devices: Sequence[int]) -> None:
    """Choose the GPUs, as in NVCaffe; nets of a script run on the first. Raises :class:`NetError` as :func:`set_device`."""
    if devices:
        set_device(devices[0])


def device() -> torch.device:
    """Return the device that nets run on now."""
    return torch.device("cuda", _state["device"]) if _state["gpu"] else torch.device("cpu")


def set_random_seed(seed: int) -> None:
    """Seed fillers, dropout and data augmentation. The generators are not Caffe's, so the numbers drawn differ from Caffe's."""
    seed = int(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    for stream in list(solver_streams):
        stream.generator.manual_seed(seed)


def layer_type_list() -> StringVec:
    """Return the types of all layers, sorted."""
    return StringVec(layer_types())


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Write the log (``caffetools``, of Python's logging) to stderr.

    Args:
        level: The lowest level to write, as glog counts: 0 info, 1 warning, 2 error, 3 fatal.
        stderr: False only sets the level.
    """
    root = logging.getLogger("caffetools")
    root.setLevel([logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL][min(max(int(level), 0), 3)])
    if stderr and not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
        root.addHandler(handler)


def set_logging_disabled() -> None:
    """Write no more log lines, as FlowNet's and TSN's forks do. Errors are still raised."""
    logging.getLogger("caffetools").setLevel(logging.CRITICAL + 1)


def log(message: str) -> None:
    """Write ``message`` to the log at level info."""
    logger.info("%s", message)


def warn(message: str) -> None:
    """Write ``message`` to the log as a warning."""
    logger.warning("%s", message)


def solver_count() -> int:
    """Return how many solvers train together; 1 unless a script has set another number."""
    return _state["solvers"]


def set_solver_count(number: int) -> None:
    """Set how many solvers train together, for scripts that start one process a solver."""
    _state["solvers"] = int(number)


def solver_rank() -> int:
    """Return this solver's rank among them."""
    return _state["rank"]


def set_solver_rank(rank: int) -> None:
    """Set this solver's rank."""
    _state["rank"] = int(rank)


def set_multiprocess(several: bool) -> None:
    """Accepted without effect, for scripts that train in several processes; Caffe's NCCL is not available: use torchrun."""


def has_nccl() -> bool:
    """Return False: Caffe's NCCL class is not available; several processes train under torchrun."""
    return False
