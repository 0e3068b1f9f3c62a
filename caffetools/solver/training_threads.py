"""On whose threads a training pass on the CPU runs: the native library's, where little is left to torch, else OpenMP's for both."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch

from caffetools.layers import native, native_conv
from caffetools.net.net import Net

# The time in which a value of a bottom or top is read or written by torch's operators in both passes, in multiply-adds of the native
# library; and the share of a pass by which torch's operators may delay it on one thread.
_VALUE, _MOST_DELAY = 100, 0.1


class TrainingThreads:
    """The threads of a net's training passes and updates.

    Args:
        net: The net.

    Attributes:
        in_torch: Whether the passes are torch's in any case (half precision, torch.compile).
    """

    def __init__(self, net: Net):
        self._net = net
        self.in_torch = False
        self._known: dict[tuple[int, ...], bool] = {}

    def used(self) -> AbstractContextManager[object]:
        """Return the context to compute in."""
        if self.in_torch or self._net.device.type != "cpu":
            return nullcontext()
        threads = torch.get_num_threads()
        key = (threads, *(size for name in self._net.inputs for size in self._net.blob_shapes[name]))
        if key not in self._known:
            self._known[key] = prefers_own_threads(self._net, threads)
        return native.own_threads() if self._known[key] else nullcontext()


def prefers_own_threads(net: Net, threads: int) -> bool:
    """Return whether training passes over ``net`` run on the native library's threads, ``threads`` of them, and torch's operators on one."""
    steps = net.training_steps
    if threads == 1 or steps is None or not native_conv.available() or not native_conv.has_wide_vectors():
        return False
    in_torch = in_all = 0
    for index, (layer, gradients) in enumerate(zip(net.layers, net.gradients, strict=True)):
        if index in steps.joined or layer.IS_DATA:
            continue
        values = sum(map(math.prod, (*layer.bottom_shapes, *layer.top_shapes)))
        macs, share = layer.native_training(bool(gradients) and gradients[0])
        in_all += 3 * layer.macs() + _VALUE * values
        in_torch += 3 * layer.macs() - macs + int(_VALUE * values * (1 - share))
    return (threads - 1) * in_torch <= _MOST_DELAY * in_all
