"""What is said of a run whose loss is no longer a number: at which iteration, and in which layer it began."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.layers.base import Layer
from caffetools.net.net import Net

if TYPE_CHECKING:
    from caffetools.solver.solver import Solver


@dataclass(frozen=True)
class Broken:
    """The first layer of a pass that gave NaN or infinite values, the blob it gave them in, and whether a parameter of it is so too."""

    layer: Layer
    top: str
    parameters: bool


class BatchRecorder:
    """Holds on to what the data layers of a net gave last, so that the pass can be repeated.

    Attributes:
        blobs: their tops by name, as they gave them.
    """

    def __init__(self, net: Net):
        self.blobs: dict[str, Tensor] = {}
        for layer in net.layers:
            if layer.IS_DATA:
                layer.register_forward_hook(self._given)

    def _given(self, layer: Any, inputs: Any, tops: Any) -> None:
        self.blobs.update(zip(layer.tops, (tops,) if isinstance(tops, Tensor) else tops, strict=False))


def find_first_nonfinite(net: Net, batch: Mapping[str, Tensor]) -> Broken | None:
    """The first layer of ``net`` with a top that is not finite in one more pass over ``batch``; None where all are."""
    for layer in net.layers:
        for top in layer.tops if layer.IS_DATA else []:
            if top in batch and not _finite(batch[top]):
                return Broken(layer, top, False)
    found: list[Broken] = []
    hooks = [layer.register_forward_hook(partial(_look, found)) for layer in net.layers if not layer.IS_DATA]
    try:
        # Whatever fails here must not hide the error that is being explained.
        with torch.no_grad(), contextlib.suppress(CaffeToolsError, RuntimeError):
            net({name: values for name, values in batch.items() if name in net.inputs})
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def check_loss(loss: float, what: str, solver: Solver, net: Net, batch: Mapping[str, Tensor]) -> None:
    """Raise :class:`RunFailed` where ``loss`` (of a pass of ``net`` over ``batch``) is NaN or infinite: says since which layer."""
    if math.isfinite(loss):
        return
    start = f"the snapshot of iteration {solver.saved}" if solver.saved else "the beginning"
    advice = f"lower base_lr (it is {solver.param.base_lr:g}) or set clip_gradients"
    place = ""
    broken = find_first_nonfinite(net, batch)
    if broken is not None:
        own = ", whose parameters are no longer finite" if broken.parameters else ""
        place = f"; the first values that are not finite are in blob '{broken.top}' of layer '{broken.layer.name}'{own}"
        if broken.layer.IS_DATA:
            advice = "look for the record that holds them"
    raise RunFailed(f"iteration {solver.iteration}: {what} is {loss}, so training has diverged{place}; {advice}, and go on from {start}")


def _look(found: list[Broken], layer: Any, inputs: Any, tops: Any) -> None:
    if found:
        return
    for name, top in zip(layer.tops, (tops,) if isinstance(tops, Tensor) else tops, strict=False):
        if not _finite(top):
            found.append(Broken(layer, name, not all(_finite(blob) for blob in layer.blobs)))
            return


def _finite(values: Tensor) -> bool:
    return not values.is_floating_point() or bool(torch.isfinite(values).all())
