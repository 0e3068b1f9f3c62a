"""ReLUs of training passes that run after the max pooling above them rather than before it, on a quarter of the values.

The largest value of a window is the same in both orders, max(0, max(x)) = max(max(0, x)), and so is the value that gets its gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from caffetools.layers.activation import ReLU
from caffetools.layers.base import Layer
from caffetools.layers.concat import Concat
from caffetools.layers.pooling import Pooling


@dataclass(frozen=True)
class LateReLUs:
    """A max pooling, and the ReLUs below it whose tops nothing else reads.

    Attributes:
        pooling: The index of the pooling layer.
        relus: The indices of the ReLU layers.
        between: The indices of all layers whose tops the pass then lacks: the ReLUs, and the concatenation of their tops if there is one.
    """

    pooling: int
    relus: tuple[int, ...]
    between: tuple[int, ...]

    def apply_to(self, layers: Sequence[Layer], wanted: Collection[str]) -> Pooling | None:
        """Return the pooling of a pass over ``layers`` that applies the ReLU itself; None if this pass has to run them in order.

        Args:
            layers: The layers of a net, configured for the pass.
            wanted: The blobs that the pass returns.
        """
        pooling = layers[self.pooling]
        involved = [layers[index] for index in (*self.between, self.pooling)]
        if not isinstance(pooling, Pooling) or pooling.window.has_empty_window:
            return None
        if any(layer._forward_hooks or layer._forward_pre_hooks for layer in involved):
            return None
        if any(top in wanted for index in self.between for top in layers[index].tops):
            return None
        pooling = copy.copy(pooling)
        pooling.rectifies = True
        return pooling


def plan_late_relus(layers: Sequence[Layer], gradients: Sequence[Sequence[bool]]) -> list[LateReLUs]:
    """Find the ReLUs that may run after a max pooling.

    Args:
        layers: The layers of a net, in order.
        gradients: For each of them, which bottoms get a gradient.
    """
    producer: dict[str, int] = {}
    sources: list[list[int | None]] = []
    readers: list[list[int]] = [[] for _ in layers]
    for index, layer in enumerate(layers):
        sources.append([producer.get(bottom) for bottom in layer.bottoms])
        for source in sources[-1]:
            if source is not None:
                readers[source].append(index)
        producer.update(dict.fromkeys(layer.tops, index))

    def is_late(index: int | None, reader: int) -> bool:
        """Return whether layer ``index`` is a ReLU that ``reader`` alone reads."""
        if index is None or readers[index] != [reader]:
            return False
        layer = layers[index]
        return type(layer) is ReLU and not layer.param.relu_param.negative_slope and all(gradients[index])

    found = []
    for index, layer in enumerate(layers):
        if type(layer) is not Pooling or layer.method != "MAX" or len(layer.tops) > 1:
            continue
        below = sources[index][0]
        if below is None or readers[below] != [index]:
            continue
        if is_late(below, index):
            found.append(LateReLUs(index, (below,), (below,)))
        elif type(layers[below]) is Concat and all(is_late(source, below) for source in sources[below]):
            relus = tuple(source for source in sources[below] if source is not None)
            found.append(LateReLUs(index, relus, (*relus, below)))
    return found
