"""Parameters that several layers own together, by the name in their ``param`` blocks (Caffe's Net::AppendParam)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from caffetools.errors import NetError
from caffetools.layers.base import Layer, Shape, format_shape
from caffetools.layers.tensor_storage import shares_memory
from caffetools.proto.schema import ParamSpec

Entry = tuple[nn.Parameter, float, float, str, int]


def share_parameters(layers: list[Layer]) -> list[Entry]:
    """Make layers with equally named parameters use one tensor, and list what can be learned.

    Args:
        layers: The layers of a net, in order.

    Returns:
        (parameter, lr_mult, decay_mult, layer, index) in net order, each shared parameter once under its first owner. A
        multiplier given by any owner counts; different ones are an error, as in Caffe. Where lr_mult is 0 no gradient is computed.

    Raises:
        NetError: Shared blobs differ in shape (or in size, where share_mode is PERMISSIVE), or in their multipliers.
    """
    owners: dict[str, _Owner] = {}
    entries: list[_Owner] = []
    for layer, index, spec in _params(layers):
        known = owners.get(spec.name) if spec.name else None
        if known is None:
            owner = _Owner(layer, index, spec)
            entries.append(owner)
            if spec.name:
                owners[spec.name] = owner
        else:
            known.adopt(layer, index, spec)
    for owner in entries:
        parameter = owner.layer.blobs[owner.index]
        if owner.lr_mult == 0:
            parameter.requires_grad_(False)
            for reshaped in owner.reshaped:
                reshaped.requires_grad_(False)
    return [(o.layer.blobs[o.index], o.lr_mult, o.decay_mult, o.layer.name, o.index) for o in entries]


def reshaped_parameter(owner: nn.Parameter, shape: Shape) -> nn.Parameter:
    """Return a parameter over the memory of ``owner`` in another shape (share_mode PERMISSIVE); its gradients are added to the owner's."""
    owner.data = owner.data.contiguous()
    other = nn.Parameter(owner.data.view(shape), requires_grad=owner.requires_grad)
    other.shared_owner = owner  # type: ignore[attr-defined]

    def move(parameter: torch.Tensor) -> None:
        add_to_owner(other, parameter.grad)
        parameter.grad = None

    if other.requires_grad:
        other.register_post_accumulate_grad_hook(move)  # type: ignore[no-untyped-call]
    return other


def owner_of(parameter: nn.Parameter) -> nn.Parameter:
    """Return the parameter whose memory and gradient ``parameter`` uses in another shape; itself otherwise."""
    owner: nn.Parameter = getattr(parameter, "shared_owner", parameter)
    return owner


def add_to_owner(parameter: nn.Parameter, gradient: torch.Tensor | None) -> None:
    """Add a gradient of ``parameter``, of its shape, to the one of its owner."""
    owner = owner_of(parameter)
    if gradient is None:
        return
    part = gradient.detach().reshape(owner.shape)
    owner.grad = part.clone() if owner.grad is None else owner.grad.add_(part)


def clear_replaced_gradients(layers: Iterable[Layer]) -> None:
    """Zero the gradients that the next backward pass replaces in Caffe (:meth:`Layer.replaced_gradients`), where autograd adds to them.

    Raises:
        NetError: Another layer shares such a parameter: Caffe keeps the gradients of some of the layers then, autograd the sum of all.
    """
    layers = list(layers)
    found = [(layer, index) for layer in layers for index in layer.replaced_gradients() if layer.blobs[index].requires_grad]
    if not found:
        return
    users = Counter(id(owner_of(blob)) for layer in layers for blob in layer.blobs)
    for layer, index in found:
        owner = owner_of(layer.blobs[index])
        if users[id(owner)] > 1:
            raise layer.error(
                f"shares its parameter {index} with another layer, and at a batch size of 1 Caffe's gradient of it is not the sum of "
                "theirs; give a batch_size of at least 2"
            )
        if owner.grad is not None:
            owner.grad.zero_()


def accumulate(parameter: nn.Parameter, gradient: torch.Tensor | None, diffs: Iterable[torch.Tensor], *, replace: bool = False) -> None:
    """Add a gradient, if there is one, to that of ``parameter`` or its owner, or replace it; one in the memory of ``diffs`` is copied.

    Raises:
        NetError: The gradient has another shape.
    """
    if gradient is None:
        return
    if replace and (old := owner_of(parameter).grad) is not None:
        old.data.zero_()
    if tuple(gradient.shape) != tuple(parameter.shape):
        raise NetError(f"a gradient of {format_shape(gradient.shape)} for a parameter of {format_shape(parameter.shape)}")
    gradient = gradient.detach()
    if owner_of(parameter) is not parameter:
        add_to_owner(parameter, gradient)
    elif parameter.grad is not None:
        parameter.grad.data.add_(gradient)
    else:
        parameter.grad = gradient.clone() if any(shares_memory(gradient, diff) for diff in diffs) else gradient


def restore_sharing(layers: list[Layer]) -> None:
    """Bring parameters of another shape back to the memory of their owners, after the owners have moved to another device."""
    for layer in layers:
        for parameter in layer.blobs:
            owner = owner_of(parameter)
            if owner is not parameter:
                owner.data = owner.data.contiguous()
                parameter.data = owner.data.view(parameter.shape)


class _Owner:
    def __init__(self, layer: Layer, index: int, spec: ParamSpec):
        self.layer, self.index, self.spec = layer, index, spec
        self.lr_mult = 0.0 if not layer.specs[index].learnable else float(spec.lr_mult)
        self.decay_mult = float(spec.decay_mult)
        self.reshaped: list[nn.Parameter] = []

    def adopt(self, layer: Layer, index: int, spec: ParamSpec) -> None:
        mine, theirs = self.layer.blobs[self.index], layer.blobs[index]
        permissive = spec.share_mode == 1
        fits = math.prod(mine.shape) == math.prod(theirs.shape) if permissive else mine.shape == theirs.shape
        if not fits:
            raise layer.error(
                f"shares parameter '{spec.name}' with layer '{self.layer.name}', but its blob {index} is {format_shape(theirs.shape)} "
                f"and theirs {format_shape(mine.shape)}"
            )
        for field in ("lr_mult", "decay_mult"):
            if not spec.HasField(field):
                continue
            value = float(getattr(spec, field))
            if self.spec.HasField(field) and getattr(self, field) != value:
                raise layer.error(
                    f"shared parameter '{spec.name}' has {field} {value} here and {getattr(self, field)} in '{self.layer.name}'"
                )
            setattr(self, field, value)
            setattr(self.spec, field, value)
        if mine.shape != theirs.shape:
            self.reshaped.append(reshaped_parameter(mine, tuple(theirs.shape)))
            mine = self.reshaped[-1]
        layer.blobs[index] = mine


def _params(layers: list[Layer]) -> Iterator[tuple[Layer, int, Any]]:
    for layer in layers:
        given = list(layer.param.param)
        if len(given) > len(layer.blobs):
            raise layer.error(f"has {len(given)} param blocks but only {len(layer.blobs)} parameter blob(s)")
        for index in range(len(layer.blobs)):
            spec = ParamSpec()
            if index < len(given):
                spec.CopyFrom(given[index])
            yield layer, index, spec
