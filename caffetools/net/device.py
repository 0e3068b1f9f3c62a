"""The device that a net is to run on, as people name it."""

from __future__ import annotations

import torch

from caffetools.errors import CaffeToolsError


def find_device(wanted: str, *, on_cpu: bool = False, index: int = 0) -> torch.device:
    """The device that ``wanted`` names: ``cpu``, ``cuda``, ``cuda:1`` …, or ``auto``: a GPU where there is one.

    Args:
        on_cpu: ``auto`` is the CPU in any case. index: which GPU ``auto`` takes.

    Raises:
        CaffeToolsError: it is none of these, or there is no such device here.
    """
    name = wanted
    if wanted == "auto":
        name = "cpu" if on_cpu or not torch.cuda.is_available() else f"cuda:{index}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise CaffeToolsError(f"unknown device '{wanted}'; it is one of cpu, cuda, cuda:N, auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CaffeToolsError(f"there is no device '{name}' here: torch sees {torch.cuda.device_count()} GPU(s); use cpu or auto")
    return device
