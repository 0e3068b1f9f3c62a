"""``Net``: a Caffe network as an ordinary ``torch.nn.Module``."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from caffetools.errors import DataError, NetError
from caffetools.layers.base import Layer, Shape, format_shape
from caffetools.layers.registry import layer_class
from caffetools.net.gradients import plan_gradients, plan_inplace
from caffetools.net.param_sharing import share_parameters
from caffetools.net.phases import filter_net, make_state
from caffetools.net.topology import check_blob_graph, name_loss_tops
from caffetools.proto.schema import TEST, TRAIN
from caffetools.proto.text import layer_line, read_net
from caffetools.proto.upgrades.v1 import upgrade_net


@dataclass(frozen=True)
class Learnable:
    """A parameter the solver may change. A shared one appears once, under the layer that owns it.

    Attributes:
        parameter: The float32 tensor. lr_mult, decay_mult: from its ``ParamSpec``. layer, index: which blob of which layer it is.
    """

    parameter: nn.Parameter
    lr_mult: float
    decay_mult: float
    layer: str
    index: int


class LayerDict(nn.Module):
    """The layers by name, in the net's order. Unlike ``nn.ModuleDict`` it takes any layer name; a dot becomes an underscore."""

    def __init__(self, layers: Iterable[Layer]):
        super().__init__()
        for layer in layers:
            key = layer.name.replace(".", "_") or "_"
            while key in self._modules:
                key += "_"
            self._modules[key] = layer


class Net(nn.Module):
    """A Caffe network: layers in order over named blobs (N, C, H, W), float32.

    ``net(batch)`` runs it under autograd: ``batch`` gives input blobs by name, data layers make the rest; what comes back are the
    net's outputs and every blob with a loss weight, by name. ``net.total_loss`` adds the losses up as Caffe does.

    Args:
        param: A ``NetParameter`` of any age; older forms are upgraded.
        phase: ``TRAIN`` or ``TEST``; which layers there are, and how dropout and batch normalization behave.
        level, stages: the rest of Caffe's ``NetState``.
        fill: Fill the parameters from their fillers; False leaves them unset, for nets that get weights at once or never run.
        input_shapes: Other shapes for input blobs than the prototxt's.

    Attributes:
        full_param: the ``NetParameter`` with the layers of all phases, in today's form. param: the layers of this phase alone.
        layers: :class:`Layer` objects in order. blob_shapes: each blob's shape as the shape rules give it.
        inputs: blobs that a batch may give. outputs: blobs that no layer reads.
        loss_weights: blob → weight, where not 0. learnable: what a solver changes, in Caffe's order.

    Raises:
        NetError: a layer type is unknown, a bottom is missing, shapes do not fit; names layer, blob and shapes.
    """

    def __init__(
        self,
        param: Any,
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
        self.param = filter_net(self.full_param, make_state(phase, level=level, stages=stages))
        self.name = str(self.param.name)
        name_loss_tops(self.param)
        for layer in self.param.layer:
            layer.phase = phase
        check_blob_graph(self.param)
        self.layers: list[Layer] = [layer_class(p.type, layer=p.name)(p, phase) for p in self.param.layer]
        self.by_name = LayerDict(self.layers)
        self.train(phase == TRAIN)
        self.blob_shapes: dict[str, Shape] = {}
        self._input_shapes: dict[str, Shape] = dict(input_shapes or {})
        self._configure()
        for item in self.layers:
            item.allocate(filled=fill)
        self.loss_weights = _loss_weights(self.layers)
        self.inputs = [top for item in self.layers if item.IS_DATA for top in item.tops]
        self.outputs = _unread(self.layers)
        self.learnable = [Learnable(*entry) for entry in share_parameters(self.layers)]
        self.gradients = plan_gradients(self.layers, force=self.param.force_backward)
        plan_inplace(self.layers)
        self._last_use = _last_use(self.layers)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], phase: int = TEST, **options: Any) -> Net:
        """Build the net of a prototxt; ``options`` as for the class. Errors name the file and the line of the layer at fault."""
        with located(path):
            return cls(read_net(path), phase, **options)

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU for a net without any."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def layer(self, name: str) -> Layer:
        """The layer called ``name``. Raises :class:`NetError` where there is none."""
        for item in self.layers:
            if item.name == name:
                return item
        raise NetError(f"the net '{self.name}' has no layer '{name}'")

    def reshape(self, input_shapes: Mapping[str, Shape]) -> None:
        """Give input blobs other shapes; every layer's shape rule runs again. Raises :class:`NetError` where they do not fit."""
        before = dict(self._input_shapes)
        self._input_shapes.update({name: tuple(shape) for name, shape in input_shapes.items()})
        try:
            self._configure()
        except NetError:
            self._input_shapes = before
            self._configure()
            raise

    def forward(self, batch: Mapping[str, Tensor] | None = None, *, keep: Collection[str] = ()) -> dict[str, Tensor]:
        """Run every layer. ``batch``: input blobs by name; ``keep``: further blobs to give back. See the class."""
        return self.compute(self._gather(batch or {}), keep)

    def compute(self, blobs: dict[str, Tensor], keep: Collection[str] = ()) -> dict[str, Tensor]:
        """The part of :meth:`forward` behind the data layers; ``blobs`` are theirs, and are let go of on the way."""
        wanted = {*self.outputs, *self.loss_weights, *keep}
        results: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            if not layer.IS_DATA:
                self._run_layer(layer, blobs)
            for name in self._last_use[index]:
                if name in wanted:
                    results[name] = blobs[name]
                del blobs[name]
        return results

    def total_loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the blobs that have a loss weight, as Caffe adds them up; a scalar."""
        total = torch.zeros((), device=self.device)
        for name, weight in self.loss_weights.items():
            total = total + weight * blobs[name].sum()
        return total

    def _run_layer(self, layer: Layer, blobs: dict[str, Tensor]) -> None:
        needs = self.gradients[layer.name]
        bottoms = [blobs[b] if need else blobs[b].detach() for b, need in zip(layer.bottoms, needs, strict=True)]
        tops = layer(*bottoms)
        for name, top in zip(layer.tops, (tops,) if isinstance(tops, Tensor) else tops, strict=True):
            blobs[name] = top

    def _gather(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The input blobs, from ``batch`` where it has them, else from the data layers; the net is reshaped to fit them."""
        unknown = set(batch) - set(self.inputs)
        if unknown:
            raise NetError(f"the net '{self.name}' has no input {sorted(unknown)}; its inputs are {self.inputs}")
        blobs: dict[str, Tensor] = {}
        for layer in self.layers:
            if not layer.IS_DATA:
                continue
            if all(top in batch for top in layer.tops):
                tops = tuple(batch[top] for top in layer.tops)
            else:
                made = layer()
                tops = (made,) if isinstance(made, Tensor) else made
                tops = tuple(batch.get(name, top) for name, top in zip(layer.tops, tops, strict=True))
            blobs.update(zip(layer.tops, (self._placed(t) for t in tops), strict=True))
        changed = {name: tuple(t.shape) for name, t in blobs.items() if tuple(t.shape) != self._given_shapes[name]}
        if changed:
            self.reshape(changed)
        return blobs

    def _placed(self, x: Tensor) -> Tensor:
        x = x.to(self.device, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def _configure(self) -> None:
        shapes: dict[str, Shape] = {}
        self._given_shapes: dict[str, Shape] = {}
        for layer in self.layers:
            tops = layer.configure([shapes[b] for b in layer.bottoms])
            if layer.IS_DATA:
                tops = [self._input_shapes.get(name, shape) for name, shape in zip(layer.tops, tops, strict=True)]
                layer.top_shapes = tops
                self._given_shapes.update(zip(layer.tops, tops, strict=True))
            shapes.update(zip(layer.tops, tops, strict=True))
        self.blob_shapes = shapes

    def extra_repr(self) -> str:
        return f"{self.name!r}, {'TRAIN' if self.phase == TRAIN else 'TEST'}, " + ", ".join(
            f"{name}: {format_shape(self.blob_shapes[name])}" for name in self.inputs
        )


@contextmanager
def located(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors about a layer that are raised inside also name ``path`` and the line on which the layer's block starts."""
    try:
        yield
    except NetError as error:
        line = layer_line(path, error.layer) if error.layer else 0
        raise error.located(path, line) from None
    except DataError as error:
        # What a data layer reads cannot be used: its message begins with the layer.
        named = re.match(r"layer '([^']*)': ", str(error))
        if not named:
            raise
        line = layer_line(path, named[1])
        raise DataError(f"{os.fspath(path)}:{line}: {error}" if line else f"{os.fspath(path)}: {error}") from None


def _loss_weights(layers: list[Layer]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for layer in layers:
        given = list(layer.param.loss_weight)
        if given and len(given) != len(layer.tops):
            raise layer.error(f"loss_weight is given {len(given)} times for {len(layer.tops)} top(s)")
        if not given and layer.IS_LOSS:
            given = [1.0] + [0.0] * (len(layer.tops) - 1)
        weights.update((top, weight) for top, weight in zip(layer.tops, given, strict=False) if weight)
    return weights


def _unread(layers: list[Layer]) -> list[str]:
    """The blobs that no layer reads after they were made, in alphabetical order, as Caffe lists a net's outputs."""
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
