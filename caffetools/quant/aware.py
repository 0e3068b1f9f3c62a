"""Quantization-aware training: a callback under which the nets of a solver compute with simulated int8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from caffetools.errors import CaffeToolsError
from caffetools.layers.base import Layer
from caffetools.net.net import Net
from caffetools.quant.fake import (
    Bounds,
    quantizable,
    quantized_activation,
    quantized_weight,
    ranges_path,
    read_ranges,
    swap_weight,
    write_ranges,
)
from caffetools.solver.callbacks import Callback
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.control import RunControl, Snapshot
from caffetools.solver.solver import Solver


def training_callbacks(quantize: str, compute: ComputeOptions) -> list[Callback]:
    """Return the callbacks of a run that is asked to train with ``int8``, or with "" for none.

    Raises:
        CaffeToolsError: It is another precision, or ``compute`` is not float32 with all activations kept.
    """
    if not quantize:
        return []
    if quantize != "int8":
        raise CaffeToolsError(f"'{quantize}' is not a precision of quantization-aware training; int8 is")
    if not compute.plain:
        raise CaffeToolsError(
            "quantization-aware training computes in float32 and keeps all activations; leave out --precision, --compile and --checkpoint-memory"
        )
    return [QuantizationAware()]


class QuantizationAware(Callback):
    """Let convolutions and inner products compute with weights and inputs rounded to int8, in training and in tests.

    The parameters, their gradients and the snapshots stay float32: a snapshot is an ordinary caffemodel. Weights are rounded channel by
    channel; inputs to 256 levels of a moving range (lowest and highest of each batch, averaged exponentially; Jacob et al.,
    Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018). Tests use the ranges of
    training. Each snapshot has its ranges next to it (``PREFIX_iter_N.ranges.json``), from which a resumed run continues.

    Args:
        momentum: Weight of the range so far, 0 to 1; smaller in the first iterations n, (1 + n) / (10 + n), so that ranges that grow
            while a net begins to learn are followed.
    """

    def __init__(self, momentum: float = 0.99):
        self.momentum = momentum
        self.ranges: dict[str, Bounds] = {}
        self._handles: list[RemovableHandle] = []
        self._run: RunControl | None = None

    def on_train_begin(self, run: RunControl) -> None:
        """Attach to the solver's nets, and read the ranges of the snapshot that was resumed.

        Raises:
            CaffeToolsError: Real Caffe, or a net without anything to quantize.
        """
        if not isinstance(run, Solver):
            raise CaffeToolsError("real Caffe cannot train with simulated int8; leave out --engine caffe or --quantize")
        if not quantizable(run.net):
            raise CaffeToolsError(f"the net '{run.net_name}' has no convolution or inner product to quantize")
        if run.resumed_from:
            path = ranges_path(run.resumed_from)
            if path.exists():
                self.ranges = read_ranges(path)
        self._run = run
        self._attach(run.net, observe=True)
        for net in run.test_nets:
            self._attach(net, observe=False)

    def on_checkpoint(self, run: RunControl, snapshot: Snapshot) -> None:
        """Write the ranges next to the snapshot."""
        write_ranges(ranges_path(snapshot.state), self.ranges)

    def on_train_end(self, run: RunControl, stopped: bool) -> None:
        """Let the nets compute in float again."""
        self.remove()

    def remove(self) -> None:
        """Let the nets compute in float again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._run = None

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
            done = 0 if self._run is None else self._run.iteration
            m = min(self.momentum, (1 + done) / (10 + done))
            seen = m * known[0] + (1 - m) * seen[0], m * known[1] + (1 - m) * seen[1]
        self.ranges[name] = seen
        return seen


def _after(own: list[Tensor]) -> Callable[..., Any]:
    def hook(layer: Layer, bottoms: tuple[Tensor, ...], tops: object) -> None:
        if own:
            swap_weight(layer, own.pop())

    return hook
