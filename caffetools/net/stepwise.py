"""``Stepwise``: a net run layer by layer, as Caffe runs it, over named blobs that keep their data and their diff."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from caffetools.errors import NetError
from caffetools.layers.base import Layer, Shape, format_shape
from caffetools.net.blob_storage import Slot, shares_memory
from caffetools.net.blob_versions import Step, plan_steps
from caffetools.net.net import Net

log = logging.getLogger(__name__)


class Stepwise:
    """Runs the layers of a :class:`~caffetools.net.net.Net` one by one, forward and back, in ranges if asked.

    Each layer sees its bottoms as detached leaves, and going back asks only that layer for gradients. So every blob has a diff of
    its own that can be read and set, and everything between two layers can be looked at or changed before the next one runs. The
    numbers are those of the net run as a module.

    Blobs are :class:`~caffetools.net.blob_storage.Slot` objects by name, (N, C, H, W), float32; parameters keep their diffs in ``.grad``,
    where they add up until :meth:`clear_param_diffs`. The Split layers that Caffe inserts are not there: a blob that several
    layers read gets the sum of what they send back.

    Attributes:
        net: the net. blobs: its blobs by name. steps: its layers with what goes back through them.
        before_forward, after_forward, before_backward, after_backward: functions that are called with the index of each layer.
    """

    def __init__(self, net: Net):
        self.net = net
        self.device = net.device
        self.steps = plan_steps(net)
        self.blobs = {name: Slot(name, shape, self.device) for name, shape in net.blob_shapes.items()}
        self.force = bool(net.param.force_backward)
        self.before_forward: list[Callable[[int], None]] = []
        self.after_forward: list[Callable[[int], None]] = []
        self.before_backward: list[Callable[[int], None]] = []
        self.after_backward: list[Callable[[int], None]] = []
        self._given = [top for layer in net.layers if layer.TRAITS.role == "input" for top in layer.tops]
        self._set_loss_diffs()

    # ---- running ----

    def forward(self, start: int = 0, end: int | None = None, *, record: bool = True) -> float:
        """Run layers ``start`` to ``end`` (indices, both included; all by default).

        Args:
            record: Keep what :meth:`backward` needs. Without it a run takes less memory, and cannot be gone back through.

        Returns:
            The weighted sum of the losses among them.

        Raises:
            NetError: an index is outside of the net, or shapes do not fit; names the layer.
        """
        first, last = self._range(start, end, 0, len(self.steps) - 1)
        self._follow_inputs()
        total = 0.0
        for step in self.steps[first : last + 1]:
            for call in self.before_forward:
                call(step.index)
            self._run(step, record=record and step.goes_back)
            total += self._loss(step)
            for call in self.after_forward:
                call(step.index)
        return total

    def backward(self, start: int | None = None, end: int = 0, *, keep: bool = False) -> None:
        """Go back from layer ``start`` (the last by default) to ``end``, both included.

        The diffs of the tops are taken as they stand; those of losses hold their loss weight. Bottoms' diffs are overwritten,
        parameters' diffs added to.

        Args:
            keep: Keep what the layers remember of the forward pass, so that one can go back again. Otherwise the memory of
                each layer's activations is let go of as soon as it has been passed.

        Raises:
            NetError: a layer has not run forward since it was last gone back through.
        """
        first, last = self._range(start, end, len(self.steps) - 1, 0)
        if not any(step.goes_back for step in self.steps):
            log.warning("net '%s' has neither a loss nor force_backward, so nothing goes back through it", self.net.name)
        for step in reversed(self.steps[last : first + 1]):
            for call in self.before_backward:
                call(step.index)
            if step.goes_back:
                self._go_back(step, keep=keep)
            for flow in step.makes:
                flow.clear()
            for call in self.after_backward:
                call(step.index)

    def clear_param_diffs(self) -> None:
        """Set the diffs of all parameters to zero, in place."""
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                parameter.grad.data.zero_()

    def feed(self, inputs: Mapping[str, Tensor]) -> None:
        """Copy values into blobs, which take their shapes. Raises :class:`NetError` for a blob that is unknown."""
        for name, values in inputs.items():
            if name not in self.blobs:
                raise NetError(f"the net '{self.net.name}' has no blob '{name}'; it has {', '.join(self.blobs)}")
            self.blobs[name].reshape(tuple(values.shape))
            self.blobs[name].data.write(values.detach())

    def reshape(self) -> None:
        """Give every blob the shape that follows from those of the inputs. Raises :class:`NetError` where they do not fit."""
        self._follow_inputs()
        for name, shape in self.net.blob_shapes.items():
            self.blobs[name].reshape(shape)
        self._set_loss_diffs()

    def to(self, device: torch.device) -> None:
        """Move the net, and each blob at its next use."""
        if device != self.device:
            self.net.to(device)
            self.device = device
            for slot in self.blobs.values():
                slot.to(device)

    # ---- forward ----

    def _run(self, step: Step, *, record: bool) -> None:
        layer = step.layer
        step.leaves, step.tops = None, ()
        for flow in step.makes:
            flow.clear()
        kept = self._kept(layer)
        if layer.tops and kept.issuperset(layer.tops):
            return
        if not layer.IS_DATA:
            self._follow_bottoms(layer)
        leaves = [self._leaf(step, i, record=record) for i in range(len(layer.bottoms))]
        with _overwriting(layer, allowed=not record), self._learning(layer, record), torch.set_grad_enabled(record):
            tops = layer(*leaves)
        tops = (tops,) if isinstance(tops, Tensor) else tuple(tops)
        if record:
            step.leaves, step.tops = leaves, tops
        sources = [self.blobs[b].data for b in layer.bottoms]
        for name, top in zip(layer.tops, tops, strict=True):
            if name not in kept:
                self.blobs[name].data.store(top.to(self.device), sources)
        if layer.IS_DATA:
            self._follow_inputs()

    def _leaf(self, step: Step, index: int, *, record: bool) -> Tensor:
        memory = self.blobs[step.layer.bottoms[index]].data
        value = memory.value()
        if record and step.changed_later[index] and memory.looked_at:
            # The result of a layer that works in place will be copied here; going back needs what was here before.
            value = value.clone()
        return value.requires_grad_(record and step.needs[index])

    def _kept(self, layer: Layer) -> set[str]:
        """The tops that keep their values: those of Input layers, and those that Caffe's DummyData fills only once, with constants."""
        if layer.TRAITS.role == "input":
            return set(layer.tops)
        if layer.TRAITS.role != "constant":
            return set()
        fillers = list(layer.param.dummy_data_param.data_filler)
        fillers = fillers * len(layer.tops) if len(fillers) == 1 else fillers
        drawn = {top for top, filler in zip(layer.tops, fillers, strict=False) if filler.type != "constant"}
        return {top for top in layer.tops if top not in drawn and self.blobs[top].data.is_set}

    def _follow_inputs(self) -> None:
        """Run the shape rules again where data has come, or an input was given, another shape."""
        changed = {name: self.blobs[name].shape for name in self.net.inputs if self.blobs[name].shape != self.net.blob_shapes[name]}
        if changed:
            self.net.reshape(changed)

    def _follow_bottoms(self, layer: Layer) -> None:
        shapes: list[Shape] = [self.blobs[b].shape for b in layer.bottoms]
        if shapes != list(map(tuple, layer.bottom_shapes)):
            self.net.blob_shapes.update(zip(layer.tops, layer.configure(shapes), strict=True))

    def _loss(self, step: Step) -> float:
        total = 0.0
        for flow in step.makes:
            if not flow.loss_weight:
                continue
            slot = self.blobs[flow.blob]
            if flow.senders:
                total += flow.loss_weight * float(slot.data.value().sum())
                continue
            if slot.diff.shape != slot.shape:
                slot.diff.store(torch.full(slot.shape, flow.loss_weight, device=self.device))
            total += float((slot.data.value() * slot.diff.value()).sum())
        return total

    def _set_loss_diffs(self) -> None:
        for step in self.steps:
            for flow in step.makes:
                if flow.loss_weight and not flow.senders:
                    slot = self.blobs[flow.blob]
                    slot.diff.store(torch.full(slot.shape, flow.loss_weight, device=self.device))

    # ---- backward ----

    def _go_back(self, step: Step, *, keep: bool) -> None:
        layer = step.layer
        if step.leaves is None:
            raise NetError("has nothing to go back through; run the net forward over it first", layer=layer.name)
        leaves = [leaf for leaf, need in zip(step.leaves, step.needs, strict=True) if need]
        learned = self._learned(layer)
        outputs, diffs = self._top_diffs(step)
        gradients: list[Tensor | None] = [None] * (len(leaves) + len(learned))
        if outputs:
            with self._learning(layer, True):
                gradients = list(torch.autograd.grad(outputs, [*leaves, *learned], diffs, retain_graph=keep, allow_unused=True))
        for parameter, gradient in zip(learned, gradients[len(leaves) :], strict=True):
            if gradient is not None:
                _accumulate(parameter, gradient, diffs)
        self._store_diffs(step, leaves, gradients[: len(leaves)])
        if not keep:
            step.leaves, step.tops = None, ()

    def _top_diffs(self, step: Step) -> tuple[list[Tensor], list[Tensor]]:
        outputs, diffs = [], []
        for name, top in zip(step.layer.tops, step.tops, strict=True):
            if not top.requires_grad:
                continue
            slot = self.blobs[name]
            slot.diff.reshape(tuple(top.shape))
            outputs.append(top)
            diffs.append(slot.diff.value())
        return outputs, diffs

    def _store_diffs(self, step: Step, leaves: list[Tensor], gradients: list[Tensor | None]) -> None:
        tops = [self.blobs[name].diff for name in step.layer.tops]
        wanted = [i for i, need in enumerate(step.needs) if need]
        for index, leaf, gradient in zip(wanted, leaves, gradients, strict=True):
            if gradient is None:
                gradient = torch.zeros_like(leaf, requires_grad=False)
            slot = self.blobs[step.layer.bottoms[index]]
            slot.diff.store(step.reads[index].collect((step.index, index), gradient), tops)

    def _learned(self, layer: Layer) -> list[nn.Parameter]:
        """The parameters to compute gradients of: those that learn, or all that could where force_backward is set, as in Caffe."""
        specs = zip(layer.blobs, layer.specs, strict=True)
        return [p for p, spec in specs if p.requires_grad or (self.force and spec.learnable)]

    @contextlib.contextmanager
    def _learning(self, layer: Layer, record: bool) -> Iterator[None]:
        """Let autograd watch what :meth:`_learned` names, also where lr_mult is 0."""
        still = [p for p in self._learned(layer) if not p.requires_grad] if record and self.force else []
        for parameter in still:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in still:
                parameter.requires_grad_(False)

    def _range(self, start: int | None, end: int | None, default_start: int, default_end: int) -> tuple[int, int]:
        first, last = default_start if start is None else start, default_end if end is None else end
        for index in (first, last):
            if not 0 <= index < len(self.steps):
                raise NetError(f"layer {index} is outside of the net '{self.net.name}', which has {len(self.steps)} layers")
        return first, last


@contextlib.contextmanager
def _overwriting(layer: Layer, *, allowed: bool) -> Iterator[None]:
    """Let a layer that works in place really overwrite its bottom only where nothing goes back: a leaf's values must stay."""
    planned = layer.inplace_ok
    layer.inplace_ok = planned and allowed
    try:
        yield
    finally:
        layer.inplace_ok = planned


def _accumulate(parameter: nn.Parameter, gradient: Tensor, diffs: list[Tensor]) -> None:
    if tuple(gradient.shape) != tuple(parameter.shape):
        raise NetError(f"a gradient of {format_shape(gradient.shape)} for a parameter of {format_shape(parameter.shape)}")
    gradient = gradient.detach()
    if parameter.grad is not None:
        parameter.grad.data.add_(gradient)
    else:
        parameter.grad = gradient.clone() if any(shares_memory(gradient, diff) for diff in diffs) else gradient
