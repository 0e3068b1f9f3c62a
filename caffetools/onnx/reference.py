"""A net in float64: what the errors of float32 engines are measured against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from caffetools.layers.base import Layer
from caffetools.layers.convolution import Convolution, Deconvolution
from caffetools.layers.inner_product import InnerProduct
from caffetools.layers.lrn import LRN
from caffetools.layers.recurrent import Recurrent
from caffetools.net.malloc_tuning import return_freed_memory
from caffetools.net.net import Net

# Larger weights are converted, and larger convolutions computed, in parts of so many values: torch convolves float64 through a matrix
# with every window of a picture as a column, which would take more memory than all weights of a net.
_PART = 2**16
# A float32's last place, relative to its value.
_LAST_PLACE = 2.0**-23
# After tops of so many bytes, memory that was freed meanwhile is returned to the system.
_TRIM = 2**20


def run_double(net: Net, inputs: Mapping[str, Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Run ``net`` layer by layer in float64, with float64 copies of one layer's weights at a time.

    Args:
        net: A net in the TEST phase; its own weights stay as they are. Recurrent layers begin with a state of zeros.
        inputs: Every input blob, float32.

    Yields:
        The layer's index and its tops by name, float64; the next layer may overwrite them. Blobs that no later layer reads are released.
    """
    yield from _run(net, {name: value.double() for name, value in inputs.items()}, run_layer_double)


def run_single(net: Net, inputs: Mapping[str, Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Run ``net`` as :func:`run_double` does, in float32."""
    yield from _run(net, dict(inputs), lambda layer, bottoms: layer.run(*bottoms))


def run_rounded(net: Net, inputs: Mapping[str, Tensor], seed: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Run ``net`` as :func:`run_single` does, with other rounding: another sample of what float32 makes of the same net and inputs.

    What convolutions and inner products read differs at random by one unit in the last place (Monte Carlo arithmetic), as it may
    between float32 programs that sum in other orders. LRN across channels keeps a running sum, as Caffe does.
    """
    random = torch.Generator().manual_seed(seed)

    def run(layer: Layer, bottoms: list[Tensor]) -> Sequence[Tensor]:
        if isinstance(layer, LRN) and layer.across:
            return [layer.with_running_sums(*bottoms)]
        if isinstance(layer, Convolution | Deconvolution | InnerProduct):
            bottoms = [x * (1 + _LAST_PLACE * (2 * torch.randint(2, x.shape, generator=random, dtype=x.dtype) - 1)) for x in bottoms]
        return layer.run(*bottoms)

    yield from _run(net, dict(inputs), run)


def _run(
    net: Net, blobs: dict[str, Tensor], run: Callable[[Layer, list[Tensor]], Sequence[Tensor]]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    net.reshape({name: tuple(value.shape) for name, value in blobs.items()})
    last = {name: index for index, layer in enumerate(net.layers) for name in (*layer.bottoms, *layer.tops)}
    made = 0
    for index, layer in enumerate(net.layers):
        if not layer.IS_DATA:
            with torch.no_grad(), _without_state(layer):
                blobs.update(zip(layer.tops, run(layer, [blobs[name] for name in layer.bottoms]), strict=True))
            yield index, {name: blobs[name] for name in layer.tops}
        for name in {*layer.bottoms, *layer.tops}:
            if last[name] == index:
                blobs.pop(name, None)
        made += sum(4 * math.prod(shape) for shape in layer.top_shapes)
        if made > _TRIM:
            return_freed_memory()
            made = 0


@contextmanager
def _without_state(layer: Layer) -> Iterator[None]:
    """Let a recurrent layer begin with a state of zeros, as every run of an ONNX model does."""
    if isinstance(layer, Recurrent):
        layer.reset()
    yield
    if isinstance(layer, Recurrent):
        layer.reset()


def run_layer_double(layer: Layer, bottoms: list[Tensor]) -> list[Tensor]:
    """Return the tops of one layer for float64 ``bottoms``, which it may overwrite, with its weights converted."""
    tops: Tensor | tuple[Tensor, ...]
    if type(layer) is InnerProduct and layer.blobs[0].numel() > _PART:
        tops = (_inner_product(layer, bottoms[0]),)
    elif _is_plain(layer):
        tops = tuple(_convolution(layer, x) for x in bottoms)
    else:
        parameters = {name: value.double() for name, value in layer.named_parameters()}
        tops = functional_call(layer, parameters, tuple(bottoms))
    outputs = (tops,) if isinstance(tops, Tensor) else tops
    return [top.double() if top.is_floating_point() else top for top in outputs]


def _inner_product(layer: InnerProduct, x: Tensor) -> Tensor:
    rows = x.reshape(*x.shape[: layer.outer_axes], layer.inputs)
    weight = layer.blobs[0].t() if layer.transposed else layer.blobs[0]
    step = max(1, _PART // layer.inputs)
    y = rows.new_empty(*rows.shape[:-1], layer.outputs)
    # One buffer for all parts: a freed one may be too small for the next by a few bytes of alignment, and then all of them stay allocated.
    buffer = rows.new_empty(min(step, layer.outputs), layer.inputs)
    for start in range(0, layer.outputs, step):
        end = min(start + step, layer.outputs)
        y[..., start:end] = F.linear(rows, buffer[: end - start].copy_(weight[start:end]))
    return y + layer.blobs[1].double() if len(layer.blobs) > 1 else y


def _is_plain(layer: Layer) -> TypeGuard[Convolution]:
    return type(layer) is Convolution and layer.spatial_axes == 2 and layer.outer_axes == 1


def _convolution(layer: Convolution, x: Tensor) -> Tensor:
    """Convolve (N, C, H, W) picture by picture, a strip of output rows at a time."""
    weight = layer.blobs[0].double()
    bias = layer.blobs[1].double() if len(layer.blobs) > 1 else None
    (stride, _), (dilation, _), (pad_h, pad_w) = layer.kernel.stride, layer.kernel.dilation, layer.kernel.pad
    extent = dilation * (layer.kernel.size[0] - 1) + 1
    height, width = layer.kernel.convolved(x.shape[2:])
    y = x.new_empty(len(x), len(weight), height, width)
    step = max(1, _PART // (weight[0].numel() * layer.group * width))
    for number in range(len(x)):
        padded = F.pad(x[number : number + 1], (pad_w, pad_w, pad_h, pad_h))
        for start in range(0, height, step):
            end = min(start + step, height)
            rows = padded[:, :, start * stride : (end - 1) * stride + extent]
            y[number, :, start:end] = F.conv2d(rows, weight, bias, layer.kernel.stride, 0, layer.kernel.dilation, layer.group)[0]
    return y
