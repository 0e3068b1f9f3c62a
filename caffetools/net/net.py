"""``Net``: a Caffe network as an ordinary ``torch.nn.Module``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from caffetools.errors import NetError, did_you_mean
from caffetools.layers.base import Layer, Shape, format_shape
from caffetools.layers.draws import current_generator
from caffetools.layers.normalization import split_statistics
from caffetools.layers.registry import layer_class
from caffetools.net.cuda_graphs import InferenceGraphs
from caffetools.net.device import float32_products
from caffetools.net.gradients import plan_gradients, plan_inplace, weights_in_gradient
from caffetools.net.inference import InferencePlans
from caffetools.net.inputs import Batch, named_tensors
from caffetools.net.overwriting import apart, plan_overwriting, plan_rewriting, refuse_early, rewrite, run_over, warn_of_gradients
from caffetools.net.param_sharing import restore_sharing, share_parameters
from caffetools.net.phases import filter_net, make_state
from caffetools.net.shape_plans import ShapePlan, ShapePlans, is_exclusive
from caffetools.net.topology import check_blob_graph, name_loss_tops
from caffetools.net.training_steps import Step, TrainingSteps
from caffetools.proto.file_names import read_net_near_files
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import error_context as error_context
from caffetools.proto.unknown import unknown_fields
from caffetools.proto.upgrades.v1 import upgrade_net


class LayerPass(Protocol):
    """One pass over the layers above the data layers, called as :meth:`Net.compute` is."""

    def __call__(self, blobs: dict[str, Tensor], keep: Collection[str] = (), plan: ShapePlan | None = None) -> dict[str, Tensor]:
        """Run the layers; see :meth:`Net.compute`."""


@dataclass(frozen=True)
class Learnable:
    """A parameter the solver may change. A shared one appears once, under the layer that owns it.

    Attributes:
        parameter: The float32 tensor.
        lr_mult: From its ``ParamSpec``.
        decay_mult: From its ``ParamSpec``.
        layer: The name of the layer that owns it.
        index: Its number among the layer's blobs.
    """

    parameter: nn.Parameter
    lr_mult: float
    decay_mult: float
    layer: str
    index: int


class LayerDict(nn.Module):
    """The layers by name, in the net's order. Unlike ``nn.ModuleDict`` it takes any layer name; a dot becomes an underscore.

    Args:
        layers: The layers; each further one of a name gets one more underscore, from the eighth on a number.
    """

    def __init__(self, layers: Iterable[Layer]):
        super().__init__()
        used: Counter[str] = Counter()
        for layer in layers:
            name = key = layer.name.replace(".", "_") or "_"
            while key in self._modules:
                used[name] += 1
                key = name + "_" * used[name] if used[name] < 8 else f"{name}_{used[name]}"
            self._modules[key] = layer


class Net(nn.Module):
    """A Caffe network: layers in order over named blobs (N, C, H, W), float32.

    ``net(batch)`` runs it under autograd: ``batch`` gives input blobs by name, data layers produce the others; it returns the net's
    outputs and every blob with a loss weight, by name. ``net.total_loss`` adds the losses up as Caffe does.

    Args:
        param: A ``NetParameter`` of any age; older forms are upgraded.
        phase: ``TRAIN`` or ``TEST``; which layers there are, and how dropout and batch normalization behave.
        level: Caffe's ``NetState.level``.
        stages: Caffe's ``NetState.stage``.
        fill: Fill the parameters from their fillers; False leaves them unset, for nets that get weights at once or never run.
        input_shapes: Other shapes for input blobs than the prototxt's.

    Attributes:
        full_param: the ``NetParameter`` with the layers of all phases, in today's form. param: the layers of this phase alone.
        layers: :class:`Layer` objects in order.
        blob_shapes: Each blob's shape as the shape rules give it; a pass over a batch of another shape does not change it.
        inputs: Blobs that a batch may give.
        outputs: Blobs that no layer reads.
        loss_weights: Blob → weight in the sum whose gradient is computed, where not 0.
        gradients: For each layer, which bottoms get a gradient.
        learnable: What a solver changes, in Caffe's order.
        last_use: For each layer, the blobs that nothing needs after it has run.
        generator: What the layers draw random numbers from on the CPU; None is torch's global state.
        allow_tf32: Whether products on a GPU may round their factors to TF32, which has 10 bits; False, as Caffe computes.

    Raises:
        NetError: a layer type is unknown, a bottom is missing, shapes do not fit; names layer, blob and shapes.
    """

    def __init__(
        self,
        param: NetParameter,
        phase: int = TEST,
        *,
        level: int = 0,
        stages: Iterable[str] = (),
        fill: bool = True,
        input_shapes: Mapping[str, Shape] | None = None,
    ):
        super().__init__()
        self.phase = phase
        self.full_param = upgrade_net(param)
        if names := unknown_fields(self.full_param):
            raise NetError(f"the net has fields that are not known here ({', '.join(names)}), so what it computes isn't either")
        self.param = filter_net(self.full_param, make_state(phase, level=level, stages=stages))
        self.name = str(self.param.name)
        self.generator = current_generator()
        name_loss_tops(self.param)
        for layer in self.param.layer:
            layer.phase = phase
        split_statistics(self.param)
        check_blob_graph(self.param.layer)
        self.layers: list[Layer] = [layer_class(p.type, layer=p.name)(p, phase) for p in self.param.layer]
        self.by_name = LayerDict(self.layers)
        self.train(phase == TRAIN)
        self.blob_shapes: dict[str, Shape] = {}
        self._input_shapes: dict[str, Shape] = dict(input_shapes or {})
        self._configure()
        for item in self.layers:
            item.allocate(filled=fill)
        self._plan()
        self.allow_tf32 = False
        self._pass: LayerPass | None = None
        # Convolutions and inner products compute in it (see net/precision.py); None: float32.
        self.half_type: torch.dtype | None = None

    def _plan(self) -> None:
        """Derive what follows from the layers alone: inputs and outputs, learnable parameters, gradients, and the plans of passes."""
        self.loss_weights = weights_in_gradient(self.layers)
        self.inputs = [top for item in self.layers if item.IS_DATA for top in item.tops]
        self.outputs = _unused_blobs(self.layers)
        self.learnable = [Learnable(*entry) for entry in share_parameters(self.layers)]
        self.gradients = plan_gradients(self.layers, force=self.param.force_backward)
        # Where nothing below learns there is no gradient to stop, unless the caller asks for that of an input.
        self._passed_back = plan_gradients(self.layers, force=self.param.force_backward, inputs=True)
        plan_inplace(self.layers)
        self.overwriting = plan_overwriting(self.layers)
        self.rewriting = plan_rewriting(self.layers, self.outputs)
        self.training_steps: TrainingSteps | None = None
        if self.phase == TRAIN:
            if not self.rewriting.names:
                self.training_steps = TrainingSteps(self.layers, self.gradients, self.overwriting)
            warn_of_gradients(self.layers, self.overwriting, self.gradients)
        # Those of a pass on a GPU, made by the first one.
        self._normalizing: TrainingSteps | None = None
        self.last_use = _last_use(self.layers)
        self.shape_plans = ShapePlans(self.layers)
        self.inference = InferencePlans(self.layers, self.shape_plans, possible=not self.rewriting.names)
        self.graphs = InferenceGraphs(self.layers, self.shape_plans)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        phase: int = TEST,
        *,
        level: int = 0,
        stages: Iterable[str] = (),
        fill: bool = True,
        input_shapes: Mapping[str, Shape] | None = None,
    ) -> Net:
        """Build the net of a prototxt.

        Args:
            path: The prototxt.
            phase: ``TRAIN`` or ``TEST`` of :mod:`caffetools.proto.schema`.
            level: Level of the net's state, as for the class.
            stages: Stages of the net's state.
            fill: Whether the fillers fill the parameters.
            input_shapes: Shapes of inputs in place of the net's own, by blob.

        Raises:
            PrototxtError: The file cannot be read.
            NetError: The net cannot be built; the message has the file and the line of the layer at fault.
        """
        with error_context(path):
            return cls(read_net_near_files(path), phase, level=level, stages=stages, fill=fill, input_shapes=input_shapes)

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU for a net without any."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def layer(self, name: str) -> Layer:
        """Return the layer called ``name``, the first of several. Raises :class:`NetError` where there is none."""
        for item in self.layers:
            if item.name == name:
                return item
        raise NetError(f"the net '{self.name}' has no layer '{name}'")

    @property
    def layers_by_key(self) -> dict[str, Layer]:
        """The layers by name; a further one of a name as ``name#2``, ``name#3`` …"""
        keyed: dict[str, Layer] = {}
        for item in self.layers:
            key, number = item.name, 2
            while key in keyed:
                key, number = f"{item.name}#{number}", number + 1
            keyed[key] = item
        return keyed

    def reshape(self, input_shapes: Mapping[str, Shape]) -> None:
        """Set the shapes of input blobs; every layer's shape rule runs again.

        Only ``blob_shapes`` and ``layers`` change: passes that run meanwhile, in other threads, are not disturbed.

        Args:
            input_shapes: Blob name → shape; other inputs keep theirs.

        Raises:
            NetError: the shapes do not fit; the net is then as it was before.
        """
        before = dict(self._input_shapes)
        self._input_shapes.update({name: tuple(shape) for name, shape in input_shapes.items()})
        try:
            self._configure()
        except NetError:
            self._input_shapes = before
            self._configure()
            raise

    def plan(self, input_shapes: Mapping[str, Shape] | None = None) -> ShapePlan:
        """Return the layers configured for these input shapes, which differ from the net's own where given.

        Args:
            input_shapes: Blob name → shape of some of ``inputs``.

        Raises:
            NetError: the shapes do not fit; names the layer.
        """
        return self.shape_plans.plan({**{name: self.blob_shapes[name] for name in self.inputs}, **(input_shapes or {})})

    if TYPE_CHECKING:
        # torch types it as returning Any.
        def __call__(self, batch: Batch = None, *, keep: Collection[str] = ()) -> dict[str, Tensor]: ...

    def forward(self, batch: Batch = None, *, keep: Collection[str] = ()) -> dict[str, Tensor]:
        """Run every layer. In the TEST phase several threads may do so at once, with batches of different shapes.

        Args:
            batch: Input blobs by name, float32 (N, C, H, W), as tensors or NumPy arrays; one alone for a net with one input. Data layers
                make those that are not given.
            keep: Names of further blobs to return.

        Returns:
            The net's outputs, the blobs with a loss weight and those of ``keep``, by name.

        Raises:
            NetError: an input or a blob of ``keep`` is unknown, something is not an array, or shapes do not fit.
        """
        if self.half_type is not None and not torch.is_autocast_enabled(self.device.type):
            with torch.autocast(self.device.type, self.half_type):
                return {name: blob.float() for name, blob in self.forward(batch, keep=keep).items()}
        if self.phase == TEST:
            self.inference.wake()
        if unknown := [name for name in keep if name not in self.blob_shapes]:
            raise NetError(f"the net '{self.name}' has no blob '{unknown[0]}'{did_you_mean(unknown[0], self.blob_shapes)}")
        blobs = self._gather(batch)
        plan = self.plan({name: tuple(blob.shape) for name, blob in blobs.items()})
        if self.phase == TEST and (results := self.inference.run(plan, blobs, self._wanted(keep))) is not None:
            return results
        blobs = {name: _laid_out(blob) for name, blob in blobs.items()}
        if self.device.type != "cuda":
            return self.compute(blobs, keep, plan)
        with float32_products(self.device, tf32=self.allow_tf32):
            recorded = self.graphs.run(self.compute, plan, blobs, self._wanted(keep)) if self.phase == TEST else None
            return recorded if recorded is not None else self.compute(blobs, keep, plan)

    def read_batch(self, batch: Batch = None) -> dict[str, Tensor]:
        """Return what :meth:`compute` takes: the input blobs, those that ``batch`` lacks from the data layers, in the layers' layout.

        Args:
            batch: As for :meth:`forward`.

        Returns:
            The blobs by name, float32, (N, C, H, W) or of other axes.

        Raises:
            NetError: an input is unknown.
        """
        return {name: _laid_out(blob) for name, blob in self._gather(batch).items()}

    def compute(self, blobs: dict[str, Tensor], keep: Collection[str] = (), plan: ShapePlan | None = None) -> dict[str, Tensor]:
        """Run the layers above the data layers.

        Args:
            blobs: The tops of the data layers, by name; released on the way.
            keep: As for :meth:`forward`.
            plan: The plan for the shapes of ``blobs``; by default the one for the net's own shapes.

        Returns:
            As :meth:`forward`.

        Raises:
            NetError: shapes do not fit; names the layer.
        """
        return (self._pass or self._run_layers)(blobs, keep, plan)

    def wrap_compute(self, wrap: Callable[[LayerPass], LayerPass]) -> None:
        """Let passes run another way from now on: compiled, or with fewer activations kept for the backward pass.

        Args:
            wrap: Called with the pass so far; returns the one that :meth:`compute` runs, with the same arguments and results.
        """
        self._pass = wrap(self._pass or self._run_layers)

    def _run_layers(self, blobs: dict[str, Tensor], keep: Collection[str] = (), plan: ShapePlan | None = None) -> dict[str, Tensor]:
        layers = (plan or self.plan()).layers
        wanted = self._wanted(keep)
        results: dict[str, Tensor] = {}
        if self.rewriting.early and torch.is_grad_enabled():
            refuse_early(self.layers, self.rewriting, self.gradients)
        # The compiler of torch 2.6 cannot read the attribute of an attribute.
        for name in [name for name in blobs if name in self.rewriting.roots]:
            blobs[name] = blobs[name].clone()
        steps = self._joined_steps(layers, wanted, asked=any(blob.requires_grad for blob in blobs.values()))
        for index, layer in enumerate(layers):
            if index in steps:
                steps[index](blobs)
            elif not layer.IS_DATA:
                self.run_layer(index, layer, blobs)
            for name in self.last_use[index]:
                if name in wanted:
                    results[name] = blobs[name]
                del blobs[name]
        return results

    def _joined_steps(self, layers: Sequence[Layer], wanted: Collection[str], *, asked: bool) -> dict[int, Step]:
        """Return what to run in place of layers that are one operator; ``asked``: whether the caller wants the gradient of an input."""
        on_cpu = self.device.type == "cpu"
        if asked or self.rewriting.names or torch.is_grad_enabled() != (self.phase == TRAIN):
            return {}
        if self.training_steps is not None and on_cpu:
            return self.training_steps.of_pass(layers, wanted, self.run_layer)
        if on_cpu or torch.compiler.is_compiling():
            return {}
        if self._normalizing is None:
            # Without gradients, a layer that gets none is joined all the same.
            every = [[True] * len(layer.bottoms) for layer in self.layers]
            self._normalizing = self.training_steps or TrainingSteps(self.layers, every, self.overwriting)
        return self._normalizing.normalizing(layers, wanted, self.run_layer)

    def _wanted(self, keep: Collection[str]) -> dict[str, None]:
        return dict.fromkeys((*self.outputs, *self.loss_weights, *keep))

    def total_loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the blobs that have a loss weight, as Caffe computes it; a scalar."""
        total = torch.zeros((), device=self.device)
        for name, weight in self.loss_weights.items():
            total = total + weight * blobs[name].sum()
        return total

    def train(self, mode: bool = True) -> Net:
        """Set every layer to training or evaluation, as for any module; see :class:`torch.nn.Module`."""
        super().train(mode)
        self.layers_changed()
        return self

    def _apply(self, *arguments: Any, **options: Any) -> Net:
        super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]
        restore_sharing(self.layers)
        self.layers_changed()
        return self

    def layers_changed(self) -> None:
        """Drop plans and recordings, whose views of the layers are of before a change of these."""
        if "shape_plans" in self.__dict__:
            self.shape_plans.clear()
        if "inference" in self.__dict__:
            self.inference.clear()
        if "graphs" in self.__dict__:
            self.graphs.clear()

    def run_layer(self, index: int, layer: Layer, blobs: dict[str, Tensor]) -> None:
        """Run one layer of a pass.

        Args:
            index: Its number in the net.
            layer: It, as configured by a plan.
            blobs: Blobs by name, in which its bottoms are found and its tops are stored.
        """
        needs = self._passed_back[index]
        bottoms = [blobs[b] if need else blobs[b].detach() for b, need in zip(layer.bottoms, needs, strict=True)]
        if self.shape_plans.dynamic:
            layer = self.shape_plans.configured(layer, index, bottoms)
        # A layer that was switched by itself, as for freezing a BatchNorm.
        layer.__dict__["training"] = self.layers[index].training
        if is_exclusive(layer):
            with self.shape_plans.exclusive:
                tops = layer.run(*bottoms)
        elif (overwriting := self.overwriting.get(index)) is not None:
            tops = run_over(layer, bottoms, overwriting, None if overwriting.first else blobs[layer.bottoms[0]])
        else:
            tops = layer.run(*bottoms)
        if any(top in self.rewriting.roots for top in layer.tops):
            tops = apart(tops, bottoms)
        if index in self.rewriting.names:
            rewrite(blobs, self.rewriting.names[index], tops[0])
        blobs.update(zip(layer.tops, tops, strict=True))

    def _gather(self, given: Batch) -> dict[str, Tensor]:
        """Return the input blobs, from what is given where it has them, else from the data layers."""
        batch = named_tensors(given, self.inputs, str(self.name))
        blobs: dict[str, Tensor] = {}
        for layer in self.layers:
            if not layer.IS_DATA:
                continue
            if all(top in batch for top in layer.tops):
                tops = tuple(batch[top] for top in layer.tops)
            else:
                with self.shape_plans.exclusive:
                    made = layer.run()
                tops = tuple(batch.get(name, top) for name, top in zip(layer.tops, made, strict=True))
            blobs.update(zip(layer.tops, (t.to(self.device, non_blocking=True) for t in tops), strict=True))
        return blobs

    def _configure(self) -> None:
        shapes: dict[str, Shape] = {}
        for layer in self.layers:
            tops = layer.configure([shapes[b] for b in layer.bottoms])
            if layer.IS_DATA:
                tops = [self._input_shapes.get(name, shape) for name, shape in zip(layer.tops, tops, strict=True)]
                layer.top_shapes = tops
            shapes.update(zip(layer.tops, tops, strict=True))
        self.blob_shapes = shapes

    def extra_repr(self) -> str:
        return f"{self.name!r}, {'TRAIN' if self.phase == TRAIN else 'TEST'}, " + ", ".join(
            f"{name}: {format_shape(self.blob_shapes[name])}" for name in self.inputs
        )


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _unused_blobs(layers: list[Layer]) -> list[str]:
    """Return the blobs that no layer reads after they were made, in alphabetical order, as Caffe lists a net's outputs."""
    available: set[str] = set()
    for layer in layers:
        available -= set(layer.bottoms)
        available |= set(layer.tops)
    return sorted(available)


def _last_use(layers: list[Layer]) -> list[list[str]]:
    """For each layer the blobs that nothing needs after it has run, so that a run can let go of them."""
    last: dict[str, int] = {}
    for index, layer in enumerate(layers):
        last.update(dict.fromkeys((*layer.bottoms, *layer.tops), index))
    uses: list[list[str]] = [[] for _ in layers]
    for name, index in last.items():
        uses[index].append(name)
    return uses
