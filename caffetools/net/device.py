"""The device that a net runs on, by the names that the command line takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from caffetools.errors import CaffeToolsError
from caffetools.util.process_settings import shared_setting


def find_device(wanted: str, *, on_cpu: bool = False, index: int = 0) -> torch.device:
    """Return the device of a name.

    Args:
        wanted: ``cpu``, ``cuda``, ``cuda:1`` …, or ``auto``: a GPU where there is one.
        on_cpu: ``auto`` is the CPU in any case.
        index: Which GPU ``auto`` takes.

    Raises:
        CaffeToolsError: The name is another one, or the machine does not have this device.
    """
    name = str(wanted)
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


@contextmanager
def float32_products(device: torch.device, *, tf32: bool = False, autotune: bool | None = None) -> Iterator[None]:
    """Set how CUDA multiplies float32 numbers during the block, and restore torch's settings at its end; nothing happens on the CPU.

    torch's own default rounds the factors of convolutions to TF32, which has 10 bits in place of 23; Caffe does not.

    Args:
        device: Where the block computes.
        tf32: Allow TF32.
        autotune: Whether cuDNN tries its algorithms for each new shape and keeps the fastest; None: as it is set.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
        cudnn.benchmark = before[2] if autotune is None else autotune
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute each operation on the CPU in one thread during the block, so that sums do not depend on the number of threads."""

    def change() -> Callable[[], object]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        return lambda: torch.set_num_threads(before)

    with shared_setting("torch's threads", change):
        yield
