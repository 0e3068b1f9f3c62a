"""Where values flow in a net: which layer makes each of a blob's values, which layers read it, and which of them send gradients back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from caffetools.layers.base import Layer
from caffetools.net.net import Net


@dataclass
class Flow:
    """One value of a blob, from the layer that makes it to those that read it; a layer that works in place gives its blob a new one.

    Attributes:
        blob: the blob's name. loss_weight: what Caffe calls the loss weight of the top, or 0.
        senders: how many bottoms send a gradient back to this value. parts: the gradients that have come back, by layer and bottom.
    """

    blob: str
    loss_weight: float = 0.0
    senders: int = 0
    parts: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    total: Tensor | None = None

    def collect(self, sender: tuple[int, int], gradient: Tensor) -> Tensor:
        """Take ``sender``'s gradient; what all of them together (and the loss weight) give so far. Caffe's Split layers do this sum."""
        if self.senders == 1 and not self.loss_weight:
            return gradient
        again = sender in self.parts
        self.parts[sender] = gradient
        if again or self.total is None:
            parts = list(self.parts.values())
            self.total = torch.full_like(parts[0], self.loss_weight) if self.loss_weight else parts.pop(0)
            for part in parts:
                self.total = self.total + part
        else:
            self.total = self.total + gradient
        return self.total

    def clear(self) -> None:
        """Forget the gradients: the layer that makes this value has used them, or has made a new one."""
        self.parts.clear()
        self.total = None


@dataclass
class Step:
    """A layer in a run, and what comes back through it.

    Attributes:
        needs: which bottoms get a gradient. goes_back: whether the layer has a backward pass at all.
        reads, makes: the values of its bottoms and tops. changed_later: which bottoms' blobs are overwritten by this layer or a later one.
        leaves, tops: of the last forward pass, with the layer's own autograd graph between them; None when there is none.
    """

    layer: Layer
    index: int
    needs: list[bool]
    goes_back: bool
    reads: list[Flow]
    makes: list[Flow]
    changed_later: list[bool]
    leaves: list[Tensor] | None = None
    tops: tuple[Tensor, ...] = ()


def plan_steps(net: Net) -> list[Step]:
    """The steps of ``net``. As in Caffe, only what lies below a loss goes back, unless the net has ``force_backward``."""
    force = bool(net.param.force_backward)
    steps: list[Step] = []
    current: dict[str, Flow] = {}
    for index, layer in enumerate(net.layers):
        reads = [current[b] for b in layer.bottoms]
        weights = _loss_weights(net, layer)
        makes = [Flow(top, weight) for top, weight in zip(layer.tops, weights, strict=True)]
        current.update((flow.blob, flow) for flow in makes)
        steps.append(Step(layer, index, list(net.gradients[layer.name]), False, reads, makes, []))
    for step in reversed(steps):
        below_loss = force or any(flow.loss_weight or flow.senders for flow in step.makes)
        step.needs = [need and below_loss for need in step.needs]
        step.goes_back = below_loss and (any(step.needs) or any(p.requires_grad or force for p in step.layer.blobs))
        for flow, need in zip(step.reads, step.needs, strict=True):
            flow.senders += need
        step.changed_later = [any(bottom in later.layer.tops for later in steps[step.index :]) for bottom in step.layer.bottoms]
    return steps


def _loss_weights(net: Net, layer: Layer) -> list[float]:
    given = [float(weight) for weight in layer.param.loss_weight]
    if not given and layer.IS_LOSS:
        given = [1.0]
    return given + [0.0] * (len(layer.tops) - len(given))
