"""What pycaffe keeps for the whole process: CPU or GPU, the random seed, logging."""

from __future__ import annotations

import logging
import random
import sys

import torch

from caffetools.errors import NetError
from caffetools.layers.registry import layer_types

log = logging.getLogger("caffetools.pycaffe")

_state = {"gpu": False, "device": 0, "solvers": 1, "rank": 0}


def set_mode_cpu() -> None:
    """Compute on the CPU; the default."""
    _state["gpu"] = False


def set_mode_gpu() -> None:
    """Compute on the GPU that :func:`set_device` names; without a GPU, say so in the log and stay on the CPU."""
    _state["gpu"] = torch.cuda.is_available()
    if not _state["gpu"]:
        log.warning("set_mode_gpu: torch finds no GPU here, so nets run on the CPU, with the same results")


def set_device(device: int) -> None:
    """Choose the GPU for :func:`set_mode_gpu`. Raises :class:`NetError` where there are GPUs, but not this one."""
    if torch.cuda.is_available() and not 0 <= device < torch.cuda.device_count():
        raise NetError(f"set_device({device}): there is no such GPU; they are numbered 0 to {torch.cuda.device_count() - 1}")
    _state["device"] = device


def device() -> torch.device:
    """Where nets run now."""
    return torch.device("cuda", _state["device"]) if _state["gpu"] else torch.device("cpu")


def set_random_seed(seed: int) -> None:
    """Seed fillers, dropout and data augmentation. The streams are not Caffe's, so the numbers drawn differ from Caffe's."""
    torch.manual_seed(seed)
    random.seed(seed)


def layer_type_list() -> list[str]:
    """The types of all layers there are, sorted."""
    return list(layer_types())


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Write the log (``caffetools``, of Python's logging) to stderr from glog's ``level`` on: 0 info, 1 warning, 2 error."""
    logger = logging.getLogger("caffetools")
    logger.setLevel([logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL][min(max(int(level), 0), 3)])
    if stderr and not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
        logger.addHandler(handler)


def write_log(message: str) -> None:
    """Write ``message`` to the log at level info."""
    log.info("%s", message)


def solver_count() -> int:
    """How many solvers train together; 1 unless a script has set another number."""
    return _state["solvers"]


def set_solver_count(number: int) -> None:
    """Say how many solvers train together, for scripts that start one process a solver."""
    _state["solvers"] = int(number)


def solver_rank() -> int:
    """This solver's number among them."""
    return _state["rank"]


def set_solver_rank(rank: int) -> None:
    """Set this solver's number."""
    _state["rank"] = int(rank)


def set_multiprocess(several: bool) -> None:
    """Accepted for scripts that train in several processes; Caffe's NCCL is not here: use torchrun."""


def has_nccl() -> bool:
    """False: Caffe's NCCL class is not here; several processes train under torchrun."""
    return False
