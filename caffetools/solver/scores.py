"""The numbers that a net gives, read from its output blobs, and their means over many batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from caffetools.net.net import Net
from caffetools.solver.control import Output


def read_outputs(net: Net, blobs: Mapping[str, Tensor]) -> list[Output]:
    """Return every number of ``net``'s output blobs, of any shape, in order. All are fetched from the device at once."""
    names = [name for name in net.outputs if name in blobs]
    if not names:
        return []
    values = torch.cat([blobs[name].detach().float().reshape(-1) for name in names]).tolist()
    labels = [name for name in names for _ in range(blobs[name].numel())]
    return [Output(name, value, net.loss_weights.get(name, 0.0)) for name, value in zip(labels, values, strict=True)]


class Scores:
    """The mean over batches of each number that a net's outputs hold, and of its loss; nothing is read before :meth:`means`."""

    def __init__(self, net: Net):
        self._net = net
        self._sums: dict[str, Tensor] = {}
        self._loss = torch.zeros((), device=net.device)
        self.batches = 0

    def add(self, blobs: Mapping[str, Tensor]) -> None:
        """Count the outputs of one more batch, blobs of any shape."""
        for name in self._net.outputs:
            # Added up as doubles: a mean over thousands of batches must not lose digits.
            value = blobs[name].detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._loss = self._loss + self._net.total_loss(blobs).detach()
        self.batches += 1

    def means(self) -> list[Output]:
        """Return the mean of every output; empty before the first batch."""
        return read_outputs(self._net, {name: total / self.batches for name, total in self._sums.items()})

    def loss(self) -> float:
        """Return the mean of the weighted loss."""
        return float(self._loss) / max(self.batches, 1)
