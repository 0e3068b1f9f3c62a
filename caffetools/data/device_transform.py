"""The transformer's arithmetic on a device: pictures travel as bytes, a quarter of their size as float32."""

from __future__ import annotations

import torch
from torch import Tensor

from caffetools.data.transformer import Cut, Transformer


class DeviceTransform:
    """Does on ``device`` what :class:`Transformer` does after cropping: mean, flip, scale. The numbers are the same, bit for bit.

    Args:
        transformer: Whose settings count.
        device: Where the result lies; any device of torch.
    """

    def __init__(self, transformer: Transformer, device: torch.device):
        self.device = device
        self.mirror = transformer.mirror
        self.scale = float(transformer.scale)
        self.mean = None if transformer.mean is None else torch.tensor(transformer.mean, device=device)
        self.values = torch.tensor(transformer.values, device=device).reshape(-1, 1, 1) if transformer.values.size else None

    def __call__(self, cut: DeviceCrop) -> Tensor:
        """The batch (N, C, h, w), float32, channels-last in memory."""
        pixels = cut.pixels.to(self.device, non_blocking=True)
        batch = pixels.to(torch.float32, memory_format=torch.channels_last)
        if self.mean is not None:
            batch = batch - self._below(self.mean, cut)
        if self.mirror:
            flips = cut.flips.to(self.device, non_blocking=True).bool().reshape(-1, 1, 1, 1)
            batch = torch.where(flips, batch.flip(3), batch)
        if self.values is not None:
            batch = batch - self.values
        if self.scale != 1:
            batch = batch * self.scale
        return batch.contiguous(memory_format=torch.channels_last)

    def _below(self, mean: Tensor, cut: DeviceCrop) -> Tensor:
        """The mean picture's part below each crop: (N, C, h, w)."""
        height, width = cut.pixels.shape[2:]
        tops, lefts = (t.to(self.device, non_blocking=True) for t in (cut.tops, cut.lefts))
        rows = tops.reshape(-1, 1) + torch.arange(height, device=self.device)
        columns = lefts.reshape(-1, 1) + torch.arange(width, device=self.device)
        return mean[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


class DeviceCrop:
    """A :class:`Cut` as tensors, in pinned memory where ``pinned``, so that copying it does not hold up the device."""

    def __init__(self, cut: Cut, *, pinned: bool):
        tensors = [torch.from_numpy(array) for array in (cut.pixels, cut.tops, cut.lefts, cut.flips)]
        self.pixels, self.tops, self.lefts, self.flips = [t.pin_memory() for t in tensors] if pinned else tensors
