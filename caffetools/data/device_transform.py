"""The transformer's arithmetic on a device: pictures travel as bytes, a quarter of their size as float32."""

from __future__ import annotations

import torch
from torch import Tensor

from caffetools.data.transformer import DeferredBatch, Transformer


class DeviceTransform:
    """Subtract the mean, flip and scale on a device, with the numbers of :class:`Transformer`, bit for bit.

    Args:
        transformer: The settings.
        device: The device of the result.
    """

    def __init__(self, transformer: Transformer, device: torch.device):
        self.device = device
        self.mirror = transformer.mirror
        self.scale = float(transformer.scale)
        self.mean = None if transformer.mean is None else torch.tensor(transformer.mean, device=device)
        self.values = torch.tensor(transformer.values, device=device).reshape(-1, 1, 1) if transformer.values.size else None

    def __call__(self, batch: DeviceBatch) -> Tensor:
        """Return the batch (N, C, h, w), float32, channels-last in memory."""
        pixels = batch.pixels.to(self.device, non_blocking=True)
        values = pixels.to(torch.float32, memory_format=torch.channels_last)
        if self.mean is not None:
            values = values - self._mean_crops(self.mean, batch)
        if self.mirror:
            flips = batch.flips.to(self.device, non_blocking=True).bool().reshape(-1, 1, 1, 1)
            values = torch.where(flips, values.flip(3), values)
        if self.values is not None:
            values = values - self.values
        if self.scale != 1:
            values = values * self.scale
        return values.contiguous(memory_format=torch.channels_last)

    def _mean_crops(self, mean: Tensor, batch: DeviceBatch) -> Tensor:
        """Return the mean picture at the place of each crop: (N, C, h, w)."""
        height, width = batch.pixels.shape[2:]
        tops, lefts = (t.to(self.device, non_blocking=True) for t in (batch.tops, batch.lefts))
        rows = tops.reshape(-1, 1) + torch.arange(height, device=self.device)
        columns = lefts.reshape(-1, 1) + torch.arange(width, device=self.device)
        return mean[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


class DeviceBatch:
    """A :class:`DeferredBatch` as tensors.

    Args:
        batch: The batch.
        pinned: Use pinned memory, from which copying to a device is asynchronous.
    """

    def __init__(self, batch: DeferredBatch, *, pinned: bool):
        tensors = [torch.from_numpy(array) for array in (batch.pixels, batch.tops, batch.lefts, batch.flips)]
        self.pixels, self.tops, self.lefts, self.flips = [t.pin_memory() for t in tensors] if pinned else tensors
