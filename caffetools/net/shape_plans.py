"""Layers configured for a set of input shapes: what a forward pass runs, so that passes of several shapes may run at once."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from torch import Tensor

from caffetools.layers.base import Layer, Shape

# Plans that are kept: a web page or a fully convolutional net may ask for any number of sizes.
_MAX_PLANS = 16
_MAX_VIEWS = 256

V = TypeVar("V")

# Read from many layers at every pass: by functions in C, which touch little memory.
_OBSERVED = [attrgetter(name) for name in ("training", "_forward_hooks", "_forward_pre_hooks")]


@dataclass(frozen=True)
class ShapePlan:
    """The layers of a net for one set of input shapes; never changed once it is made, so any number of threads may run it.

    Attributes:
        layers: One for each layer of the net, configured; they share parameters, hooks and options with the net's own layers.
        blob_shapes: The shape of every blob.
    """

    layers: tuple[Layer, ...]
    blob_shapes: Mapping[str, Shape]


class ShapePlans:
    """The plans of a net by input shapes, made when first needed.

    Args:
        layers: The net's layers in order.

    Attributes:
        exclusive: A lock for layers that keep a state between passes (data layers, recurrent ones, users' Python code).
    """

    def __init__(self, layers: Sequence[Layer]):
        self._layers = layers
        self._plans: OrderedDict[tuple[Any, ...], ShapePlan] = OrderedDict()
        self._views: OrderedDict[tuple[Any, ...], Layer] = OrderedDict()
        self._lock = threading.Lock()
        self.exclusive = threading.RLock()
        # Only behind such a layer may a blob have another shape than the plan's.
        self.dynamic = any(layer.DYNAMIC_SHAPE for layer in layers)

    def plan(self, input_shapes: Mapping[str, Shape]) -> ShapePlan:
        """Return the plan for these shapes of the data layers' tops. Raises :class:`NetError` where they do not fit the net."""
        key = tuple(input_shapes.items())
        with self._lock:
            if (known := _recent(self._plans, key)) is not None:
                return known
        made = self._make(input_shapes)
        with self._lock:
            _keep(self._plans, key, made, _MAX_PLANS)
        return made

    def configured(self, layer: Layer, index: int, bottoms: Sequence[Tensor]) -> Layer:
        """Return ``layer`` (number ``index``, of a plan) for the shapes that its bottoms have; another view if the plan's differ."""
        shapes = [tuple(bottom.shape) for bottom in bottoms]
        if shapes == list(map(tuple, layer.bottom_shapes)):
            return layer
        if is_exclusive(layer):
            with self.exclusive:
                layer.configure(shapes)
            return layer
        key = (index, *shapes)
        with self._lock:
            if (known := _recent(self._views, key)) is not None:
                return known
        made = layer_view(self._layers[index])
        made.configure(shapes)
        with self._lock:
            _keep(self._views, key, made, _MAX_VIEWS)
        return made

    def clear(self) -> None:
        """Drop all plans: the layers were changed."""
        with self._lock:
            self._plans.clear()
            self._views.clear()

    def _make(self, input_shapes: Mapping[str, Shape]) -> ShapePlan:
        shapes: dict[str, Shape] = {}
        layers: list[Layer] = []
        for layer in self._layers:
            if layer.IS_DATA:
                layers.append(layer)
                shapes.update((top, input_shapes[top]) for top in layer.tops)
                continue
            bottoms = [shapes[bottom] for bottom in layer.bottoms]
            if is_exclusive(layer):
                layers.append(layer)
                with self.exclusive:
                    tops = layer.configure(bottoms)
            else:
                layers.append(layer_view(layer))
                tops = layers[-1].configure(bottoms)
            shapes.update(zip(layer.tops, tops, strict=True))
        return ShapePlan(tuple(layers), shapes)

    def __deepcopy__(self, memo: dict[int, Any]) -> ShapePlans:
        return ShapePlans(copy.deepcopy(self._layers, memo))

    def __reduce__(self) -> Any:
        return ShapePlans, (self._layers,)


def is_exclusive(layer: Layer) -> bool:
    """Return whether ``layer`` may run in one thread at a time only, and is the same object in every plan."""
    return layer.IS_DATA or layer.STATEFUL or hasattr(type(layer), "get_state")


def runs_unobserved(layers: Sequence[Layer]) -> bool:
    """Return whether no layer is set to training or has a hook, so that a plan or recording may stand for running them one by one."""
    return not any(any(map(field, layers)) for field in _OBSERVED)


def layer_view(layer: Layer) -> Layer:
    """Return a copy of ``layer`` that shares its parameters and hooks, to be configured for other shapes; the layer itself if exclusive."""
    return layer if is_exclusive(layer) else copy.copy(layer)


def _recent(kept: OrderedDict[Any, V], key: Hashable) -> V | None:
    found = kept.get(key)
    if found is not None:
        kept.move_to_end(key)
    return found


def _keep(kept: OrderedDict[Any, V], key: Hashable, value: V, most: int) -> None:
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)
