"""Quantization-aware training: a callback under which the nets of a solver compute with simulated int8."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from caffetools.errors import CaffeToolsError, DataError
from caffetools.layers.base import Layer
from caffetools.net.net import Net
from caffetools.quant.fake import quantizable, quantized_activation, quantized_weight, swap_weight
from caffetools.solver.callbacks import Callback
from caffetools.solver.control import RunControl, Snapshot
from caffetools.solver.solver import Solver
from caffetools.util.files import write_text

Bounds = tuple[float, float]


class QuantizationAware(Callback):
    """Let convolutions and inner products compute with weights and inputs rounded to int8, in training and in tests.

    The parameters, their gradients and the snapshots stay float32: a snapshot is an ordinary caffemodel. Weights are rounded channel by
    channel; inputs to 256 levels of a moving range (lowest and highest of each batch, averaged exponentially; Jacob et al.,
    Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018). Tests use the ranges of
    training. Each snapshot has its ranges next to it (``PREFIX_iter_N.ranges.json``), from which a resumed run continues.

    Args:
        momentum: Weight of the range so far, 0 to 1.
    """

    def __init__(self, momentum: float = 0.99):
        self.momentum = momentum
        self.ranges: dict[str, Bounds] = {}
        self._handles: list[RemovableHandle] = []

    def on_train_begin(self, run: RunControl) -> None:
        """Attach to the solver's nets, and read the ranges of the snapshot that was resumed."""
        if not isinstance(run, Solver):
            raise CaffeToolsError("real Caffe cannot train with simulated int8; leave out --engine caffe or --quantize")
        if not quantizable(run.net):
            raise CaffeToolsError(f"the net '{run.net_name}' has no convolution or inner product to quantize")
        if run.resumed_from:
            path = ranges_path(run.resumed_from)
            if path.exists():
                self.ranges = _read(path)
        self._attach(run.net, observe=True)
        for net in run.test_nets:
            self._attach(net, observe=False)

    def on_checkpoint(self, run: RunControl, snapshot: Snapshot) -> None:
        """Write the ranges next to the snapshot."""
        write_text(ranges_path(snapshot.state), json.dumps(self.ranges, indent=1) + "\n")

    def on_train_end(self, run: RunControl, stopped: bool) -> None:
        """Let the nets compute in float again."""
        self.remove()

    def remove(self) -> None:
        """Let the nets compute in float again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _attach(self, net: Net, *, observe: bool) -> None:
        for layer in quantizable(net):
            own: list[Tensor] = []
            self._handles.append(layer.register_forward_pre_hook(self._before(layer.name, own, observe)))
            self._handles.append(layer.register_forward_hook(_after(own), always_call=True))

    def _before(self, name: str, own: list[Tensor], observe: bool) -> Callable[..., Any]:
        def hook(layer: Layer, bottoms: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            bounds = self._bounds(name, bottoms, observe=observe)
            rounded = tuple(quantized_activation(x, *bounds) for x in bottoms)
            own.append(swap_weight(layer, quantized_weight(layer)))
            return rounded

        return hook

    def _bounds(self, name: str, bottoms: tuple[Tensor, ...], *, observe: bool) -> Bounds:
        known = self.ranges.get(name)
        if known is not None and not observe:
            return known
        low = min(float(x.detach().min()) for x in bottoms)
        high = max(float(x.detach().max()) for x in bottoms)
        seen = min(low, 0.0), max(high, 0.0)
        if not observe:
            return seen
        if known is not None:
            m = self.momentum
            seen = m * known[0] + (1 - m) * seen[0], m * known[1] + (1 - m) * seen[1]
        self.ranges[name] = seen
        return seen


def ranges_path(state: str | Path) -> Path:
    """Return the file of the ranges of a snapshot with this .solverstate (or .solverstate.h5)."""
    return Path(str(state).removesuffix(".h5")).with_suffix(".ranges.json")


def _after(own: list[Tensor]) -> Callable[..., Any]:
    def hook(layer: Layer, bottoms: tuple[Tensor, ...], tops: object) -> None:
        if own:
            swap_weight(layer, own.pop())

    return hook


def _read(path: Path) -> dict[str, Bounds]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): (float(low), float(high)) for name, (low, high) in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise DataError(
            "the ranges of quantization-aware training are damaged", path=path, hint="remove it to measure them again"
        ) from None
