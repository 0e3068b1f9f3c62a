"""Read activations and gradients of any blob of a net, by name, in one pass under autograd.

A name that several layers write (in-place ReLU) stands for several values: a blob's name stands for its last value, as
``net.blobs[name].data`` in Caffe; a layer's name for the value that this layer made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from caffetools.errors import NetError
from caffetools.layers.base import Layer, format_shape
from caffetools.net.device import float32_products
from caffetools.net.inputs import named_tensors
from caffetools.net.net import Net
from caffetools.net.shape_plans import is_exclusive

# Computes a layer another way for attribution (guided backpropagation's ReLU); None leaves the layer as it is.
Rule = Callable[[Layer, tuple[Tensor, ...]], Tensor | None]


@dataclass
class Activations:
    """The values of one pass.

    Attributes:
        inputs: Input blobs by name, as given; leaves of the autograd graph where gradients were asked for.
        blobs: The last value of each blob that was computed.
        tops: The first top of each layer that was computed, by layer name.
    """

    inputs: dict[str, Tensor]
    blobs: dict[str, Tensor] = field(default_factory=dict)
    tops: dict[str, Tensor] = field(default_factory=dict)

    def gradient(self, score: Tensor, of: Tensor, *, what: str = "the blob") -> Tensor:
        """Return d score / d ``of``, of the shape of ``of``.

        Args:
            score: A scalar computed from this pass.
            of: A value of this pass.
            what: Name of the score, for the message.

        Raises:
            NetError: the score does not depend on ``of``, or only through operations without a gradient.
        """
        gradient = None
        if score.requires_grad and of.requires_grad:
            with float32_products(of.device):
                (gradient,) = torch.autograd.grad(score, of, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise NetError(f"{what} does not depend on the requested values by operations with a gradient")
        return gradient


@dataclass(frozen=True)
class Items:
    """A part of a batch, in one pass.

    Attributes:
        values: The values of the pass.
        count: How many of its items, from the first on, are items of the batch; further ones repeat them.
    """

    values: Activations
    count: int


def picture_input(net: Net, blobs: Collection[str] = (), layers: Collection[str] = ()) -> str:
    """Return the input blob that takes pictures: the first that has positions, or four axes, or any.

    Tops of layers that fill them with constants (DummyData) are taken only where there is no other input.

    Args:
        net: A net.
        blobs: Only inputs that one of these blobs depends on, where there are any.
        layers: Likewise, layers.

    Raises:
        NetError: the net has no input, or no such blob or layer; they depend on no input of pictures; or one of the blobs is another input.
    """
    if not net.inputs:
        raise NetError(f"the net '{net.name}' has no input blob")
    main = max(net.inputs, key=lambda name: _fitness_for_pictures(net, name))
    if not blobs and not layers:
        return main
    read = {bottom for layer in needed_layers(net, blobs, layers) for bottom in layer.bottoms}
    names = [name for name in net.inputs if name in read]
    source = max(names, key=lambda name: _fitness_for_pictures(net, name), default=main)
    for name in blobs:
        if name in net.inputs and name != source:
            raise NetError(f"the picture is for input '{source}' of the net '{net.name}' and does not reach blob '{name}', another input")
    reached = bool(names) or source in blobs
    if not reached or _fitness_for_pictures(net, source) < min(_fitness_for_pictures(net, main), _HAS_POSITIONS):
        wanted = ", ".join([f"blob '{name}'" for name in blobs] + [f"layer '{name}'" for name in layers])
        on = ", ".join(f"'{name}'" for name in names) or "no input"
        raise NetError(f"the picture is for input '{main}' of the net '{net.name}' and does not reach {wanted}, computed from {on}")
    return source


_HAS_POSITIONS = 2


def _fitness_for_pictures(net: Net, name: str) -> int:
    """Return how well an input takes pictures: 2 with positions, 1 with four axes, 0 otherwise; less than 0 for constants."""
    shape = net.blob_shapes[name]
    maps = len(shape) == 4
    grade = _HAS_POSITIONS if maps and shape[2] * shape[3] > 1 else int(maps)
    constant = any(layer.TRAITS.role == "constant" and name in layer.tops for layer in net.layers)
    return grade - 3 if constant else grade


def run_probe(
    net: Net,
    batch: Tensor | Mapping[str, Tensor],
    *,
    blobs: Collection[str] = (),
    layers: Collection[str] = (),
    record: bool = False,
    rule: Rule | None = None,
) -> Activations:
    """Run the layers that the requested values depend on, and no others: losses, metrics and their labels may be absent.

    Args:
        net: A net in the TEST phase, with its weights. The batch may have another size than its inputs.
        batch: (N, C, H, W) float32 for the input of pictures, or input blobs by name.
        blobs: Blobs whose last value is wanted.
        layers: Layers whose top is wanted, before any later in-place layer changes it.
        record: Build the autograd graph, from the given inputs on, through every layer (frozen ones too).
        rule: Replaces the computation of single layers; see :data:`Rule`.

    Returns:
        At least the requested values, on the net's device.

    Raises:
        NetError: a blob or layer is unknown, the batch does not fit, or an input that is needed is not given.
    """
    given = dict(batch) if isinstance(batch, Mapping) else {picture_input(net, blobs, layers): batch}
    needed = needed_layers(net, blobs, layers)
    given = named_tensors(given, net.inputs, str(net.name))
    places = {id(layer): index for index, layer in enumerate(net.layers)}
    # The caller's torch.inference_mode or no_grad would leave out the graph.
    with torch.inference_mode(False), torch.set_grad_enabled(record), float32_products(net.device):
        leaves = {name: _leaf(net, value, record) for name, value in given.items()}
        values = Activations(leaves, dict(leaves))
        for layer in needed:
            if layer.IS_DATA:
                _run_data_layer(net, layer, values)
                continue
            bottoms = tuple(_bottom(layer, index, values.blobs, record or bool(layers)) for index in range(len(layer.bottoms)))
            tops = _run_layer(net, layer, places[id(layer)], bottoms, rule)
            values.blobs.update(zip(layer.tops, tops, strict=True))
            if tops:
                values.tops[layer.name] = tops[0]
    return values


def run_items(
    net: Net,
    batch: Tensor,
    *,
    source: str | None = None,
    others: Mapping[str, Tensor] | None = None,
    blobs: Collection[str] = (),
    layers: Collection[str] = (),
    record: bool = False,
    rule: Rule | None = None,
) -> list[Items]:
    """Run a batch as :func:`run_probe` does, in parts where the net does not take another number of items than it declares.

    A Reshape with the batch size in its shape would fail, or mix the items: then each item runs alone, or repeated to the batch size
    that the net declares.

    Args:
        net: A net in the TEST phase, with its weights.
        batch: (N, C, H, W) float32 for the input of pictures.
        source: That input; None takes the one that the requested values depend on.
        others: Values of other inputs for each item, with a batch axis of 1.
        blobs: Blobs whose last value is wanted.
        layers: Layers whose top is wanted.
        record: Build the autograd graph.
        rule: Replaces the computation of single layers.

    Returns:
        The parts in order; their counts add up to N.

    Raises:
        NetError: as :func:`run_probe`.
    """
    name = source or picture_input(net, blobs, layers)
    count, declared = len(batch), net.blob_shapes[name][0]

    def run(part: Tensor) -> Activations:
        given = {other: value.expand(len(part), *value.shape[1:]) for other, value in (others or {}).items()}
        return run_probe(net, {name: part, **given}, blobs=blobs, layers=layers, record=record, rule=rule)

    values, failure = _attempt(run, batch)
    if values is not None and _keeps_items(net, values, name, count):
        return [Items(values, count)]
    if count > 1:
        one = partial(run_items, net, source=name, others=others, blobs=blobs, layers=layers, record=record, rule=rule)
        return [items for item in batch for items in one(item[None])]
    if declared > 1:
        repeated, _ = _attempt(run, batch.expand(declared, *batch.shape[1:]))
        if repeated is not None and _keeps_items(net, repeated, name, declared):
            return [Items(repeated, 1)]
    if values is None:
        raise failure or NetError(f"the net '{net.name}' cannot run")
    return [Items(values, 1)]


def join_items(parts: Sequence[Items], blob: str) -> Tensor:
    """Return what ``blob`` holds for each item of a batch that :func:`run_items` ran: (N, …)."""
    return torch.cat([part.values.blobs[blob].detach()[: part.count] for part in parts])


def needed_layers(net: Net, blobs: Collection[str], layers: Collection[str] = ()) -> list[Layer]:
    """Return the layers, in order, that the last values of ``blobs`` and the tops of ``layers`` depend on.

    Raises:
        NetError: a name is unknown; the message lists those of the net.
    """
    for name in blobs:
        if name not in net.blob_shapes:
            raise NetError(f"the net '{net.name}' has no blob '{name}'; it has {', '.join(net.blob_shapes)}")
    known = {layer.name for layer in net.layers}
    for name in layers:
        if name not in known:
            raise NetError(f"the net '{net.name}' has no layer '{name}'; it has {', '.join(layer.name for layer in net.layers)}")
    wanted, needed = set(blobs), []
    for layer in reversed(net.layers):
        if layer.name in layers or wanted.intersection(layer.tops):
            needed.append(layer)
            wanted.difference_update(layer.tops)
            wanted.update(layer.bottoms)
    return needed[::-1]


def _attempt(run: Callable[[Tensor], Activations], batch: Tensor) -> tuple[Activations | None, NetError | None]:
    try:
        return run(batch), None
    except NetError as error:
        return None, error


def _keeps_items(net: Net, values: Activations, source: str, count: int) -> bool:
    """Return whether the first axis of all that depends on the input grew as the batch did, so that each item has its own part."""
    declared, reached = net.blob_shapes[source][0], {source}
    for layer in net.layers:
        if reached.intersection(layer.bottoms):
            reached.update(layer.tops)
    for name in reached.intersection(values.blobs):
        value, shape = values.blobs[name], net.blob_shapes[name]
        if value.dim() and shape and value.shape[0] * declared != shape[0] * count:
            return False
    return True


def _leaf(net: Net, value: Tensor, record: bool) -> Tensor:
    kinds = (parameter.dtype for parameter in net.parameters() if parameter.is_floating_point())
    placed = value.detach().to(net.device, next(kinds, torch.float32))
    if placed.dim() == 4:
        placed = placed.contiguous(memory_format=torch.channels_last)
    return placed.clone().requires_grad_(True) if record else placed


def _bottom(layer: Layer, index: int, blobs: Mapping[str, Tensor], keep: bool) -> Tensor:
    if layer.bottoms[index] not in blobs:
        raise NetError(f"input '{layer.bottoms[index]}' is needed and not given", layer=layer.name)
    value = blobs[layer.bottoms[index]]
    if index in layer.NO_GRADIENT:
        return value.detach()
    # A layer that overwrites its bottom gets a copy, so that the earlier value and its gradient remain available.
    return value.clone() if keep and layer.bottoms[index] in layer.tops else value


def _run_data_layer(net: Net, layer: Layer, values: Activations) -> None:
    missing = [top for top in layer.tops if top not in values.blobs]
    if layer.tops and layer.tops[0] in values.blobs:
        values.tops[layer.name] = values.blobs[layer.tops[0]]
    if not missing:
        return
    if any(top in values.blobs for top in layer.tops):
        return  # The tops that were not given are usually labels; a layer that reads one raises an error that names it.
    if layer.TRAITS.role == "input":
        shape = format_shape(net.blob_shapes[missing[0]])
        hint = f"give its value: --input {missing[0]}=… of caffetools visualize, inputs= in Python"
        raise NetError(f"input '{missing[0]}' ({shape}) is needed and not given", layer=layer.name, hint=hint)
    with net.shape_plans.exclusive:
        tops = layer.run()
    values.blobs.update((name, top.to(net.device)) for name, top in zip(layer.tops, tops, strict=True))
    if layer.tops:
        values.tops[layer.name] = values.blobs[layer.tops[0]]


def _run_layer(net: Net, layer: Layer, index: int, bottoms: tuple[Tensor, ...], rule: Rule | None) -> tuple[Tensor, ...]:
    """Run a layer for the shapes that its bottoms have; the net's own layers keep theirs, so that several threads may probe it.

    Layers that are not run need not fit: a picture of another size does not have to fit an InnerProduct above the requested blobs.
    """
    plans = net.shape_plans
    with plans.exclusive if is_exclusive(layer) else nullcontext():
        view = plans.configured(layer, index, bottoms)
        replaced = rule(view, bottoms) if rule is not None else None
        return view.run(*bottoms) if replaced is None else (replaced,)
