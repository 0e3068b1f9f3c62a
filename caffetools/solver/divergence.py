"""Find where a run diverged: the iteration, and the layer that gave the first values that are not finite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.layers.base import Layer
from caffetools.net.net import Net
from caffetools.solver.control import TrainingRun


@dataclass(frozen=True)
class NonFinite:
    """The first layer of a pass that gave NaN or infinite values.

    Attributes:
        layer: The layer.
        top: The top blob with such values.
        parameters: Whether a parameter of the layer is not finite, too.
    """

    layer: Layer
    top: str
    parameters: bool


class BatchRecorder:
    """Keep the last batch of a net's data layers, so that the pass can be repeated.

    Attributes:
        blobs: Their tops by name.
    """

    def __init__(self, net: Net):
        self.blobs: dict[str, Tensor] = {}
        for layer in net.layers:
            if layer.IS_DATA:
                layer.register_forward_hook(self._record)

    def _record(self, layer: Layer, inputs: object, tops: Tensor | Sequence[Tensor]) -> None:
        self.blobs.update(zip(layer.tops, (tops,) if isinstance(tops, Tensor) else tops, strict=False))


def find_first_nonfinite(net: Net, batch: Mapping[str, Tensor]) -> NonFinite | None:
    """Run ``net`` once more over ``batch`` (inputs by name, (N, …)); return the first layer with a top that is not finite, or None."""
    for layer in net.layers:
        for top in layer.tops if layer.IS_DATA else []:
            if top in batch and not _finite(batch[top]):
                return NonFinite(layer, top, False)
    found: list[NonFinite] = []
    hooks = [layer.register_forward_hook(partial(_check_outputs, found)) for layer in net.layers if not layer.IS_DATA]
    try:
        # A failure here must not hide the error that is being explained.
        with torch.no_grad(), contextlib.suppress(CaffeToolsError, RuntimeError):
            net({name: values for name, values in batch.items() if name in net.inputs})
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def check_loss(loss: float, what: str, run: TrainingRun, net: Net, batch: Mapping[str, Tensor]) -> None:
    """Raise :class:`RunFailed` if the scalar ``loss`` is NaN or infinite, naming the first layer with such values.

    Args:
        loss: Loss of a pass of ``net`` over ``batch``.
        what: Name of the loss, for the message.
        run: The run.
        net: The net.
        batch: Input and data blobs by name.
    """
    if math.isfinite(loss):
        return
    start = f"the snapshot of iteration {run.saved}" if run.saved else "the beginning"
    advice = f"lower base_lr (it is {run.param.base_lr:g}) or set clip_gradients"
    place = ""
    broken = find_first_nonfinite(net, batch)
    if broken is not None:
        own = ", whose parameters are no longer finite" if broken.parameters else ""
        place = f"; the first values that are not finite are in blob '{broken.top}' of layer '{broken.layer.name}'{own}"
        if broken.layer.IS_DATA:
            advice = "look for the record that holds them"
    raise RunFailed(f"iteration {run.iteration}: {what} is {loss}, so training has diverged{place}; {advice}, and resume from {start}")


def _check_outputs(found: list[NonFinite], layer: Layer, inputs: object, tops: Tensor | Sequence[Tensor]) -> None:
    if found:
        return
    for name, top in zip(layer.tops, (tops,) if isinstance(tops, Tensor) else tops, strict=False):
        if not _finite(top):
            found.append(NonFinite(layer, name, not all(_finite(blob) for blob in layer.blobs)))
            return


def _finite(values: Tensor) -> bool:
    return not values.is_floating_point() or bool(torch.isfinite(values).all())
