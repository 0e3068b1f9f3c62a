"""``Stepwise``: a net run layer by layer, as Caffe runs it, over named blobs that keep their data and their diff."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from caffetools.errors import NetError
from caffetools.layers.base import Layer, Shape
from caffetools.layers.blob_storage import BlobStorage
from caffetools.layers.draws import drawing_ahead
from caffetools.layers.python import Python
from caffetools.net import shared_blobs
from caffetools.net.blob_versions import Step, kept_tops, plan_steps
from caffetools.net.deferred import Deferred
from caffetools.net.device import float32_products
from caffetools.net.net import Net
from caffetools.net.overwriting import gradients_of_overwritten
from caffetools.net.param_sharing import accumulate, owner_of

log = logging.getLogger(__name__)


class Stepwise:
    """Runs the layers of a :class:`~caffetools.net.net.Net` one by one, forward and back, in ranges if asked.

    Each layer sees its bottoms as detached leaves, and its backward pass asks only that layer for gradients. So every blob has a
    diff of its own that can be read and set, and everything between two layers can be read or changed before the next one runs.
    The numbers are those of the net run as a module. A layer's shapes are computed right before it runs, as in Caffe.

    Blobs are :class:`~caffetools.layers.blob_storage.BlobStorage` objects by name, (N, C, H, W), float32; parameters keep their
    diffs in ``.grad``, where they accumulate until :meth:`clear_param_diffs`. The Split layers that Caffe inserts are not there, but a blob
    that several layers read gets the sum of their gradients when Caffe's Split would compute it.

    A backward pass works on what the blobs hold at that moment, as in Caffe: the graph that the forward pass recorded is used
    where the bottoms are still the same, otherwise the layer is computed again from them.

    A run belongs to one thread at a time; several runs of one net may be used at once in the TEST phase.

    Args:
        net: The net to run.

    Attributes:
        net: The net.
        blobs: Its blobs by name.
        steps: Its layers with what their backward passes compute.
        before_forward: Functions called with the index of each layer before it runs.
        after_forward: The same after it.
        before_backward: The same before a layer's backward pass.
        after_backward: The same after it.
    """

    def __init__(self, net: Net):
        self.net = net
        self.device = net.device
        self.steps = plan_steps(net)
        self.blobs = {name: BlobStorage(name, shape, self.device) for name, shape in net.blob_shapes.items()}
        self.force = bool(net.param.force_backward)
        self.before_forward: list[Callable[[int], None]] = []
        self.after_forward: list[Callable[[int], None]] = []
        self.before_backward: list[Callable[[int], None]] = []
        self.after_backward: list[Callable[[int], None]] = []
        self._share_with_shapes()
        self._set_loss_diffs(self.blobs)
        self._fill_constants()
        self._output_memories = shared_blobs.output_memories(net)
        self._overwritten = shared_blobs.overwritten_inputs(net)
        self._inner_blobs = self._find_inner_blobs()
        self._deferred: Deferred | None = None

    # ---- running ----

    def forward(self, start: int = 0, end: int | None = None, *, record: bool = True, reads: Collection[str] = ()) -> float:
        """Run layers ``start`` to ``end``.

        Args:
            start: Index of the first layer.
            end: Index of the last layer, included; None: the last of the net.
            record: Keep what :meth:`backward` needs. Without it a run takes less memory.
            reads: Blobs to be read afterwards. With an inner one among them no fused pass makes the outputs, so that all are of one pass.

        Returns:
            The weighted sum of the losses among them.

        Raises:
            NetError: An index is outside of the net, or shapes do not fit; names the layer.
        """
        first, last = self._range(start, end, 0, len(self.steps) - 1)
        if (first, last) == (0, len(self.steps) - 1) and not set(reads).intersection(self._inner_blobs or ()) and self._forward_fused():
            return 0.0
        total = 0.0
        for step in self.steps[first : last + 1]:
            for call in self.before_forward:
                call(step.index)
            with float32_products(self.device, tf32=self.net.allow_tf32):
                self._run(step, record=record and step.needs_backward)
            if step.index < last:  # In Caffe the Split is a layer behind this one.
                step.run_splits(self.blobs)
            total += self._loss(step, is_last=step.index == last)
            for call in self.after_forward:
                call(step.index)
        return total

    def backward(self, start: int | None = None, end: int = 0, *, keep: bool = False) -> None:
        """Run the backward passes of layers ``start`` to ``end``.

        The diffs of the tops are taken as they are; those of losses hold their loss weight. Bottoms' diffs are overwritten,
        parameters' diffs added to.

        Args:
            start: Index of the first layer, the highest; None: the last of the net.
            end: Index of the last layer, included.
            keep: Keep what the layers recorded in the forward pass, for a further backward pass. Otherwise the memory of each
                layer's activations is released as soon as its backward pass is done.

        Raises:
            NetError: An index is outside of the net, or shapes do not fit.
        """
        first, last = self._range(start, end, len(self.steps) - 1, 0)
        if not any(step.needs_backward for step in self.steps):
            log.warning("net '%s' has neither a loss nor force_backward, so no gradient is computed", self.net.name)
        for step in reversed(self.steps[last : first + 1]):
            if step.index < first:
                self._sum_diffs(step)
            for call in self.before_backward:
                call(step.index)
            step.check_gradient()
            if step.needs_backward:
                with float32_products(self.device, tf32=self.net.allow_tf32):
                    self._backward_step(step, keep=keep)
                    self._leave_diff(step)
            for call in self.after_backward:
                call(step.index)

    def clear_param_diffs(self) -> None:
        """Set the diffs of all parameters to zero, in place."""
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                parameter.grad.data.zero_()

    def feed(self, inputs: Mapping[str, Tensor]) -> None:
        """Copy values into blobs, which take their shapes.

        Args:
            inputs: Blob name → values, float32 (N, C, H, W).

        Raises:
            NetError: A blob is unknown.
        """
        for name, values in inputs.items():
            if name not in self.blobs:
                raise NetError(f"the net '{self.net.name}' has no blob '{name}'; it has {', '.join(self.blobs)}")
            self.blobs[name].reshape(tuple(values.shape))
            self.blobs[name].data.write(values.detach())

    def reshape(self) -> None:
        """Set the shape of every blob to what follows from those of the inputs. Raises :class:`NetError` where they do not fit."""
        shapes: dict[str, Shape] = {}
        for step in self.steps:
            layer = step.layer
            if layer.IS_DATA:
                shapes.update((top, self.blobs[top].shape) for top in layer.tops)
            else:
                shapes.update(zip(layer.tops, layer.configure([shapes[bottom] for bottom in layer.bottoms]), strict=True))
        changed = {name for name, shape in shapes.items() if shape != self.blobs[name].shape}
        for name, shape in shapes.items():
            self.blobs[name].reshape(shape)
        self._share_with_shapes()
        self._set_loss_diffs(changed)

    def to(self, device: torch.device) -> None:
        """Move the net, and each blob at its next use, to ``device``."""
        if device != self.device:
            self.net.to(device)
            self.device = device
            for storage in self.blobs.values():
                storage.to(device)
            for diff in (diff for step in self.steps for version in step.produces for diff in version.reader_diffs.values()):
                diff.device = device

    def drop_views(self) -> None:
        """Let arrays of results that were given out keep their present values: the next passes do not write into them."""
        for step in self.steps:
            for top in step.layer.tops:
                if top not in kept_tops(step.layer, self.blobs):
                    self.blobs[top].data.drop_views()

    # ---- forward ----

    def _share_with_shapes(self) -> None:
        for step in self.steps:
            step.reshape_splits(self.blobs)
            shared_blobs.share_with_shapes(step, self.blobs)

    def settle(self) -> None:
        """Compute the blobs that a fused pass has deferred: the weights are about to change."""
        if self._deferred is not None:
            self._deferred.settle()
            self._deferred = None

    def _forward_fused(self) -> bool:
        """Run the whole net by an inference plan, where nothing inside of it is looked at; return whether that could be done."""
        inner = self._inner_blobs
        if inner is None or self.before_forward or self.after_forward or self.force:
            return False
        self.net.inference.wake()
        deferred = self._deferred if self._deferred is not None and self._deferred.is_whole() else None
        if deferred is None and any(self.blobs[name].data.has_live_view for name in inner):
            return False
        storages = {name: self.blobs[name].data for name in self.net.inputs}
        kept = {name: storages[name].shared_value() for name in self._overwritten or ()}
        inputs = {name: kept[name] if name in kept else storage.peek() for name, storage in storages.items()}
        with torch.no_grad():
            plan = self.net.plan({name: tuple(value.shape) for name, value in inputs.items()})
            if not all(memory.may_join(self.blobs, plan.blob_shapes) for memory in self._output_memories):
                return False
            results = self.net.inference.run(plan, inputs, (*self.net.outputs, *kept))
        if results is None:
            return False
        for name, result in results.items():
            if name not in inputs or name in kept:
                self.blobs[name].data.store(result, owned=True)
        for memory in self._output_memories:
            memory.join(self.blobs, plan.blob_shapes)
        if deferred is None or not deferred.stands_for(plan):
            join = partial(shared_blobs.share_after_pass, self.steps, self.blobs, frozenset(self.net.outputs))
            deferred = self._deferred = Deferred(self.net, plan, storages, {name: self.blobs[name].data for name in inner}, join)
            for step in self.steps:
                step.run_splits(self.blobs)
        deferred.borrow_inputs(kept)
        return True

    def _find_inner_blobs(self) -> list[str] | None:
        """Return the blobs that are neither inputs nor outputs; None where a pass cannot be fused: it has losses, or makes its inputs."""
        makes_inputs = any(step.layer.IS_DATA and not set(step.layer.tops) <= kept_tops(step.layer, self.blobs) for step in self.steps)
        has_losses = any(version.loss_weight or version.split_weight for step in self.steps for version in step.produces)
        if makes_inputs or has_losses or self._overwritten is None or any(step.needs_backward for step in self.steps):
            return None
        return shared_blobs.deferrable(self.net, self._output_memories)

    def _run(self, step: Step, *, record: bool) -> None:
        layer = step.layer
        step.begin()
        kept = kept_tops(layer, self.blobs)
        if layer.tops and kept.issuperset(layer.tops):
            return
        self._configure(step)
        inputs = [self._leaf(step, i, record=record) for i in range(len(layer.bottoms))]
        tops = self._compute(step, inputs, record=record)
        if record:
            step.record(inputs, tops)
        if shared_blobs.share_with_parameter(layer, self.blobs):
            return
        sources = [step.bottom_data(i, self.blobs) for i in range(len(layer.bottoms))]
        for name, top in zip(layer.tops, tops, strict=True):
            if name in kept:
                continue
            if layer.shares_data():
                self.blobs[name].data.share(sources[0], tuple(top.shape), top)
            else:
                self.blobs[name].data.store(top.to(self.device), sources)
        if layer.KEEPS_IN_DIFF:
            step.bottom_diff(0, self.blobs).store(layer.kept_in_diff(*(x.detach() for x in inputs)))

    def _configure(self, step: Step) -> None:
        """Run the layer's shape rule where its bottoms have other shapes than when it last ran."""
        layer = step.layer
        shapes: list[Shape] = [self.blobs[b].shape for b in layer.bottoms]
        if not layer.IS_DATA and shapes != list(map(tuple, layer.bottom_shapes)):
            layer.configure(shapes)
        shared_blobs.share_with_shapes(step, self.blobs)

    def _compute(self, step: Step, inputs: Sequence[Tensor], *, record: bool) -> tuple[Tensor, ...]:
        layer = step.layer
        # Overwriting is for runs without a backward pass: the values of a leaf must be kept. The view is this run's own.
        layer.inplace_ok = step.inplace_ok and not record
        layer.__dict__["training"] = self.net.layers[step.index].training
        with self._learning(layer, record), torch.set_grad_enabled(record):
            return layer.run(*inputs)

    def _leaf(self, step: Step, index: int, *, record: bool) -> Tensor:
        storage = step.bottom_data(index, self.blobs)
        value = storage.shared_value() if record else storage.value()
        return value.requires_grad_(record and step.needs[index])

    def _fill_constants(self) -> None:
        """Fill DummyData's constants, which Caffe has before any pass."""
        for step in self.steps:
            if step.layer.TRAITS.role == "constant":
                with drawing_ahead(step.layer, self.device):
                    tops = step.layer.run()
                for name, top in zip(step.layer.tops, tops, strict=True):
                    self.blobs[name].data.store(top.to(self.device))
                for name in set(step.layer.tops) - kept_tops(step.layer, self.blobs):
                    self.blobs[name].data.clear()

    def _loss(self, step: Step, *, is_last: bool) -> float:
        total = 0.0
        for version in step.produces:
            storage = self.blobs[version.blob]
            if version.loss_weight:
                if storage.diff.shape != storage.shape:
                    storage.diff.store(torch.full(storage.shape, version.loss_weight, device=self.device))
                total += float((storage.data.value() * storage.diff.value()).sum())
            if version.split_weight and not is_last:
                # Caffe's Split layer, behind this one, has this weight.
                total += version.split_weight * float(storage.data.value().sum())
        return total

    def _set_loss_diffs(self, names: Collection[str]) -> None:
        for step in self.steps:
            for version in step.produces:
                if version.loss_weight and version.blob in names:
                    storage = self.blobs[version.blob]
                    storage.diff.store(torch.full(storage.shape, version.loss_weight, device=self.device))

    # ---- backward ----

    def _sum_diffs(self, step: Step) -> None:
        """Set the diffs of the step's tops to the sums of their readers', as the backward passes of Caffe's Split layers do."""
        for version in step.produces:
            if version.sums_diffs:
                self.blobs[version.blob].diff.store(version.sum_of_diffs(self.blobs[version.blob].shape).to(self.device))

    def _backward_step(self, step: Step, *, keep: bool) -> None:
        layer = step.layer
        joined = shared_blobs.shares_diff(layer) and shared_blobs.share_diff_back(step, self.blobs)
        if joined or shared_blobs.lies_in_parameter(layer, self.blobs):
            step.release()
            return
        if isinstance(layer, Python) and (step.inputs is None or step.bottoms_changed(self.blobs)):
            self._backward_python(step, layer)
            return
        if layer.KEEPS_IN_DIFF and step.needs[0]:
            self._backward_from_diff(step)
            return
        overwriting = self.net.overwriting.get(step.index)
        if (overwriting is not None and overwriting.reads) or (layer.BACKWARD_READS_TOP and step.top_changed(self.blobs)):
            self._backward_on_memory(step, first=overwriting is None or overwriting.first)
            return
        if layer.BACKWARD_FROM_BLOBS and self._backward_from_blobs(step):
            return
        labels = layer.BACKWARD_READS_LABELS
        if step.inputs is None or step.is_outdated(self.blobs) or (layer.BACKWARD_READS_BOTTOMS and step.bottoms_changed(self.blobs)):
            self._record_again(step)
        elif labels and step.bottoms_changed(self.blobs, labels):
            self._record_again(step, labels)
        leaves = [leaf for leaf, need in zip(step.inputs or (), step.needs, strict=True) if need]
        learned = self._learned(layer)
        outputs, diffs = self._top_diffs(step)
        gradients: list[Tensor | None] = [None] * (len(leaves) + len(learned))
        if outputs:
            with self._learning(layer, True):
                gradients = list(torch.autograd.grad(outputs, [*leaves, *learned], diffs, retain_graph=keep, allow_unused=True))
        replaced = {id(owner_of(layer.blobs[index])) for index in layer.replaced_gradients()}
        for parameter, gradient in zip(learned, gradients[len(leaves) :], strict=True):
            accumulate(parameter, gradient, diffs, replace=id(owner_of(parameter)) in replaced)
        self._store_diffs(step, leaves, gradients[: len(leaves)])
        if not keep:
            step.release()

    def _backward_from_diff(self, step: Step) -> None:
        """Run the backward pass of a layer that reads what its forward pass kept in the bottom's diff, or what is there now."""
        self._configure(step)
        bottoms = step.bottom_values(self.blobs)
        kept, top = step.bottom_diff(0, self.blobs), self.blobs[step.layer.tops[0]]
        kept.reshape(tuple(bottoms[0].shape))
        found = step.layer.gradient_from_diff(kept.value(), bottoms, top.diff.value())
        kept.store(found)
        self._store_found(step, bottoms, [found, *[None] * (len(bottoms) - 1)])
        step.release()

    def _backward_on_memory(self, step: Step, *, first: bool) -> None:
        """Run the backward pass of a layer on what is in its blobs now; ``first``: its top has other memory than its bottom."""
        layer = step.layer
        self._configure(step)
        bottoms, tops = step.bottom_values(self.blobs), [self.blobs[name].data.value() for name in layer.tops]
        unrecorded = bottoms if step.ran and first else None
        recorded = unrecorded if step.inputs is None else [leaf.detach() for leaf in step.inputs]
        self._store_found(step, bottoms, gradients_of_overwritten(layer, recorded, bottoms, tops, self._diffs_of_tops(layer)))
        step.release()

    def _backward_from_blobs(self, step: Step) -> bool:
        """Run the backward pass of a layer on the blobs as they are, where they were edited; return whether that was done."""
        layer = step.layer
        if any(step.overwritten) or step.covered or (step.ran and step.inputs is None):
            return False
        self._configure(step)
        bottoms, tops = step.bottom_values(self.blobs), [self.blobs[name].data.value() for name in layer.tops]
        recorded, shapes = None, layer.top_shapes
        if step.inputs is not None:
            recorded = [leaf.detach() for leaf in step.inputs]
            pairs = [*zip(recorded, bottoms, strict=True), *zip(step.tops, tops, strict=True)]
            if all(old.shape == now.shape and (old.data_ptr() == now.data_ptr() or torch.equal(old, now)) for old, now in pairs):
                return False
            shapes = [tuple(top.shape) for top in step.tops]
        if [tuple(x.shape) for x in (recorded or bottoms)] != [tuple(x.shape) for x in bottoms] or shapes != [tuple(x.shape) for x in tops]:
            return False
        with torch.no_grad():
            found = layer.gradients_from_blobs(recorded, bottoms, tops, self._diffs_of_tops(layer))
        if found is None:
            return False
        self._store_found(step, bottoms, found)
        return True

    def _record_again(self, step: Step, among: Collection[int] | None = None) -> None:
        """Compute a layer on its bottoms as they are, for its backward pass alone: no blob, statistic or random stream changes.

        Args:
            step: The layer.
            among: The bottoms to read again; of the others the recorded values are taken. None: all.
        """
        self._configure(step)
        fixed = [p for p, spec in zip(step.layer.blobs, step.layer.specs, strict=True) if not spec.learnable]
        before = [p.detach().clone() for p in fixed]
        inputs = [
            self._leaf(step, i, record=True)
            if among is None or i in among
            else (step.inputs or [])[i].detach().requires_grad_(step.needs[i])
            for i in range(len(step.layer.bottoms))
        ]
        with drawing_ahead(step.layer, self.device):
            step.record(inputs, self._compute(step, inputs, record=True))
        with torch.no_grad():
            for parameter, values in zip(fixed, before, strict=True):
                parameter.copy_(values)

    def _backward_python(self, step: Step, layer: Python) -> None:
        """Call the backward method of the user's layer on the blobs as they are, without a forward pass."""
        bottoms, tops = step.bottom_values(self.blobs), [self.blobs[name].data.value() for name in layer.tops]
        diffs = self._diffs_of_tops(layer)
        found, added = layer.backward_from_blobs(bottoms, tops, diffs, step.needs)
        for parameter, gradient in zip(layer.blobs, added, strict=True):
            accumulate(parameter, gradient.to(self.device), diffs)
        self._store_found(step, bottoms, found)

    def _diffs_of_tops(self, layer: Layer) -> list[Tensor]:
        """Return the diffs of a layer's tops, of the shapes of their blobs."""
        for name in layer.tops:
            self.blobs[name].diff.reshape(self.blobs[name].shape)
        return [self.blobs[name].diff.value() for name in layer.tops]

    def _top_diffs(self, step: Step) -> tuple[list[Tensor], list[Tensor]]:
        outputs, diffs = [], []
        for name, top in zip(step.layer.tops, step.tops, strict=True):
            if not top.requires_grad:
                continue
            storage = self.blobs[name]
            storage.diff.reshape(tuple(top.shape))
            outputs.append(top)
            diffs.append(storage.diff.value())
        return outputs, diffs

    def _store_found(self, step: Step, bottoms: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
        wanted = [i for i, need in enumerate(step.needs) if need]
        self._store_diffs(step, [bottoms[i] for i in wanted], [found[i] for i in wanted])

    def _store_diffs(self, step: Step, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        tops = [self.blobs[name].diff for name in step.layer.tops]
        for index, leaf, gradient in zip((i for i, need in enumerate(step.needs) if need), leaves, gradients, strict=True):
            found = torch.zeros_like(leaf, requires_grad=False) if gradient is None else gradient
            step.bottom_diff(index, self.blobs).store(found.to(self.device), tops)

    def _leave_diff(self, step: Step) -> None:
        """Store what Caffe's backward pass leaves in the first bottom's diff, where nothing asks for that."""
        layer = step.layer
        if step.needs and not step.needs[0] and any(p is layer.blobs[0] for p in self._learned(layer)):
            diff = self.blobs[layer.tops[0]].diff
            diff.reshape(self.blobs[layer.tops[0]].shape)
            left = layer.left_in_diff(step.bottom_data(0, self.blobs).value(), diff.value())
            if left is not None:
                step.bottom_diff(0, self.blobs).store(left)

    def _learned(self, layer: Layer) -> list[nn.Parameter]:
        """Return the parameters to compute gradients of: those that learn, or with force_backward all that could, as in Caffe."""
        return [p for p, spec in zip(layer.blobs, layer.specs, strict=True) if p.requires_grad or (self.force and spec.learnable)]

    @contextlib.contextmanager
    def _learning(self, layer: Layer, record: bool) -> Iterator[None]:
        """Let autograd record the parameters of :meth:`_learned`, also where lr_mult is 0."""
        frozen = [p for p in self._learned(layer) if not p.requires_grad] if record and self.force else []
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def _range(self, start: int | None, end: int | None, default_start: int, default_end: int) -> tuple[int, int]:
        first, last = default_start if start is None else start, default_end if end is None else end
        for index in (first, last):
            if not 0 <= index < len(self.steps):
                raise NetError(f"layer {index} is outside of the net '{self.net.name}', which has {len(self.steps)} layers")
        return first, last
