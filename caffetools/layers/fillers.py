"""How parameters start: Caffe's fillers (filler.hpp), drawn from torch's current random state or from a generator.

The values follow the same distributions as Caffe's; the random streams differ. Fans are Caffe's: for a blob of shape
(a, b, …), fan_in = count / a and fan_out = count / b, for axes of any meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from caffetools.errors import NetError
from caffetools.proto.schema import FillerParameter, enum_name


def fill(data: Tensor, filler: FillerParameter | None, generator: torch.Generator | None = None) -> None:
    """Fill ``data`` in place.

    Args:
        data: Any shape, float32.
        filler: A ``FillerParameter``; None is zeros.
        generator: What random values are drawn from; None is torch's global state.

    Raises:
        NetError: The filler's type is unknown.
    """
    if filler is None:
        data.zero_()
        return
    if filler.type not in _FILLERS:
        raise NetError(f"unknown filler type '{filler.type}'; known are {', '.join(_FILLERS)}")
    if filler.sparse != -1 and filler.type != "gaussian":
        raise NetError(f"filler '{filler.type}' does not support 'sparse'; only gaussian does")
    _FILLERS[filler.type](data, filler, generator)


def _constant(data: Tensor, filler: FillerParameter, generator: torch.Generator | None) -> None:
    data.fill_(filler.value)


def _uniform(data: Tensor, filler: FillerParameter, generator: torch.Generator | None) -> None:
    data.uniform_(filler.min, filler.max, generator=generator)


def _gaussian(data: Tensor, filler: FillerParameter, generator: torch.Generator | None) -> None:
    data.normal_(filler.mean, filler.std, generator=generator)
    if filler.sparse >= 0:
        # About `sparse` of a row's inputs stay; the first axis counts the outputs.
        keep = min(1.0, filler.sparse / _outputs(data))
        data.mul_(torch.empty_like(data).bernoulli_(keep, generator=generator))


def _positive_unitball(data: Tensor, filler: FillerParameter, generator: torch.Generator | None) -> None:
    data.uniform_(0, 1, generator=generator)
    rows = data.reshape(_outputs(data), -1)
    data.copy_((rows / rows.sum(dim=1, keepdim=True)).reshape(data.shape))


def _xavier(data: Tensor, filler: FillerParameter, generator: torch.Generator | None) -> None:
    bound = math.sqrt(3.0 / _fan(data, filler))
    data.uniform_(-bound, bound, generator=generator)


def _msra(data: Tensor, filler: FillerParameter, generator: torch.Generator | None) -> None:
    data.normal_(0, math.sqrt(2.0 / _fan(data, filler)), generator=generator)


def _bilinear(data: Tensor, filler: FillerParameter, generator: torch.Generator | None) -> None:
    if data.dim() != 4 or data.shape[2] != data.shape[3]:
        raise NetError(f"filler 'bilinear' needs a blob of 4 axes with square kernels, not {tuple(data.shape)}")
    size = data.shape[3]
    f = math.ceil(size / 2.0)
    centre = (size - 1) / (2.0 * f)
    ramp = 1 - (torch.arange(size, dtype=torch.float32) / f - centre).abs()
    data.copy_((ramp[:, None] * ramp[None, :]).expand_as(data))


def _outputs(data: Tensor) -> int:
    """Return the length of the first axis; 1 for a blob without axes, as Caffe's legacy ``num`` has it."""
    return data.shape[0] if data.dim() else 1


def _fan(data: Tensor, filler: FillerParameter) -> float:
    fan_in = data.numel() / _outputs(data)
    fan_out = data.numel() / data.shape[1] if data.dim() > 1 else float(data.numel())
    norm = enum_name(filler, "variance_norm")
    return {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2.0}[norm]


_FILLERS: dict[str, Callable[[Tensor, FillerParameter, torch.Generator | None], None]] = {
    "constant": _constant,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "uniform": _uniform,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
}
