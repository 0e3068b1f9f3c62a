"""The device that a net runs on, by the names that the command line takes."""

from __future__ import annotations

import torch

from caffetools.errors import CaffeToolsError


def find_device(wanted: str, *, on_cpu: bool = False, index: int = 0) -> torch.device:
    """Return the device of a name.

    Args:
        wanted: ``cpu``, ``cuda``, ``cuda:1`` …, or ``auto``: a GPU where there is one.
        on_cpu: ``auto`` is the CPU in any case.
        index: Which GPU ``auto`` takes.

    Raises:
        CaffeToolsError: The name is another one, or the machine does not have this device.
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
