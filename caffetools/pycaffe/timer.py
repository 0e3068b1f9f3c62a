"""``Timer`` and ``NCCL``, which Caffe's own train.py uses."""

from __future__ import annotations

import time

import torch

from caffetools.errors import CaffeToolsError


class Timer:
    """A stopwatch; on a GPU it waits for the work that was started before."""

    def __init__(self) -> None:
        self._start = self._stop = 0.0

    def start(self) -> None:
        """Start the measurement."""
        self._start = self._stop = _now()

    def stop(self) -> None:
        """End the measurement."""
        self._stop = _now()

    @property
    def ms(self) -> float:
        """The time between start and stop in milliseconds."""
        return (self._stop - self._start) * 1000.0


class NCCL:
    """Refused: several GPUs train in one process each, under torchrun."""

    def __init__(self, *arguments: object):
        raise CaffeToolsError(
            "caffe.NCCL is not available: several GPUs train through torch.distributed; run the solver with "
            "`torchrun --nproc-per-node N -m caffetools train --solver SOLVER`"
        )

    @staticmethod
    def new_uid() -> str:
        """Refused as the class."""
        NCCL()
        return ""


def _now() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()
