"""Pooling (pooling_layer.cpp): largest, mean or random value of each window of (N, C, H, W)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers import inference, native_training
from caffetools.layers.autograd import Context
from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.draws import uniform_like
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import Windows, convolved
from caffetools.proto.schema import PoolingParameter, enum_name

FLT_MAX = float(np.finfo(np.float32).max)
FLT_MIN = float(np.finfo(np.float32).tiny)

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A pooling window over maps of ``size`` (H, W), and the ``output`` size that Caffe gives it; pairs are (height, width)."""

    size: Pair
    kernel: Pair
    stride: Pair
    pad: Pair
    output: Pair

    @classmethod
    def over(cls, size: Pair, kernel: Pair, stride: Pair, pad: Pair, *, floor: bool = False) -> Window:
        """Sizes round up (or down); with padding, a last window that would start beyond the map and its first padding is dropped."""
        output = []
        for n, k, s, p in zip(size, kernel, stride, pad, strict=True):
            steps = (n + 2 * p - k) / s
            count = (math.floor(steps) if floor else math.ceil(steps)) + 1
            # Caffe looks at both axes as soon as either is padded; without padding an empty window stays.
            if any(pad) and (count - 1) * s >= n + p:
                count -= 1
            output.append(count)
        return cls(size, kernel, stride, pad, (output[0], output[1]))

    @classmethod
    def from_param(cls, layer: Layer, param: PoolingParameter, size: Pair) -> Window:
        """Read ``pooling_param`` for maps of ``size``. Raises :class:`NetError` where Caffe refuses it."""
        if param.global_pooling:
            if param.HasField("kernel_size") or param.HasField("kernel_h") or param.HasField("kernel_w"):
                raise layer.error("global_pooling pools the whole map: remove kernel_size, kernel_h and kernel_w")
            kernel = size
        else:
            kernel = _pair(layer, param, "kernel_size", "kernel")
        pad, stride = _pair(layer, param, "pad", "pad"), _pair(layer, param, "stride", "stride")
        if min(kernel) < 1 or min(stride) < 1:
            raise layer.error(f"kernel {format_shape(kernel)} and stride {format_shape(stride)} must be at least 1")
        if param.global_pooling and (pad != (0, 0) or stride != (1, 1)):
            raise layer.error("global_pooling needs pad 0 and stride 1")
        if pad[0] >= kernel[0] or pad[1] >= kernel[1]:
            raise layer.error(f"pad {format_shape(pad)} must be smaller than the kernel {format_shape(kernel)}")
        # Forks say ceil_mode: false for what BVLC Caffe came to call round_mode: FLOOR.
        floor = enum_name(param, "round_mode") == "FLOOR" or not param.ceil_mode
        window = cls.over(size, kernel, stride, pad, floor=floor)
        if min(window.output) < 1:
            raise layer.error(
                f"kernel {format_shape(kernel)} does not fit maps of {format_shape(size)}: the output would be {format_shape(window.output)}"
            )
        return window

    @property
    def is_global(self) -> bool:
        """The window is the whole map, without padding."""
        return self.kernel == self.size and self.pad == (0, 0) and self.output == (1, 1)

    @property
    def end_overhang(self) -> Pair:
        """How far the last windows reach beyond the map; negative where they end before it."""
        return self._each(lambda n, k, s, p, o: (o - 1) * s + k - n - p)

    @property
    def ceil_mode(self) -> bool | None:
        """The ceil mode with which torch's own pooling has these windows; None where it has not, or refuses the padding."""
        if any(2 * p > k for p, k in zip(self.pad, self.kernel, strict=True)):
            return None
        if self._each(lambda n, k, s, p, o: (n + 2 * p - k) // s + 1) == self.output:
            return False
        # Torch drops a last window that would start beyond the map also without padding, where Caffe keeps it, empty.
        last = self._each(lambda n, k, s, p, o: -(-(n + 2 * p - k) // s))
        windows = [at + int(at * s < n + p) for at, s, n, p in zip(last, self.stride, self.size, self.pad, strict=True)]
        return True if tuple(windows) == self.output else None

    @property
    def has_empty_window(self) -> bool:
        """Whether the last window of an axis lies wholly outside of the map (stride larger than the kernel, no padding)."""
        return max(self._each(lambda n, k, s, p, o: int((o - 1) * s - p >= n))) > 0

    def valid_counts(self) -> Tensor:
        """Return how many values of the map each window has, (H', W') float32."""
        ones = self.padded(torch.ones(1, 1, *self.size), 0.0)
        return F.avg_pool2d(ones, self.kernel, self.stride, divisor_override=1)[0, 0]

    def padded(self, x: Tensor, value: float) -> Tensor:
        """Return ``x`` (N, C, H, W) with all that the windows reach, filled with ``value``, or with the least number of ``x``'s type
        where that is larger; what no window reaches is cut off."""
        (top, left), (bottom, right) = self.pad, self.end_overhang
        return F.pad(x, (left, right, top, bottom), value=max(value, torch.finfo(x.dtype).min))

    def divisor_map(self, device: torch.device | None = None) -> Tensor:
        """Return (H', W') float32, on ``device``: the number of values of each window inside of the padded map: AVE's divisors."""
        sides = []
        for n, k, s, p, o in zip(self.size, self.kernel, self.stride, self.pad, self.output, strict=True):
            start = torch.arange(o, device=device) * s - p
            sides.append((start + k).clamp(max=n + p) - start)
        return (sides[0][:, None] * sides[1][None, :]).float()

    def _each(self, rule: Callable[[int, int, int, int, int], int]) -> Pair:
        values = [rule(*v) for v in zip(self.size, self.kernel, self.stride, self.pad, self.output, strict=True)]
        return (values[0], values[1])


def max_pool(x: Tensor, window: Window) -> Tensor:
    """Return the largest value of each window of ``x`` (N, C, H, W), (N, C, H', W'); its gradient goes to the first maximum in row order. Padding never wins."""
    ceil_mode = window.ceil_mode
    if ceil_mode is not None:
        return F.max_pool2d(x, window.kernel, window.stride, window.pad, ceil_mode=ceil_mode)
    return F.max_pool2d(window.padded(x, -FLT_MAX), window.kernel, window.stride)


def max_pool_mask(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """:func:`max_pool` and where each maximum is: h · W + w as float32, −1 for an empty window."""
    y, index = F.max_pool2d(window.padded(x, -FLT_MAX), window.kernel, window.stride, return_indices=True)
    width = window.size[1] + window.pad[1] + window.end_overhang[1]
    row, column = index // width - window.pad[0], index % width - window.pad[1]
    inside = (row >= 0) & (row < window.size[0]) & (column >= 0) & (column < window.size[1])
    # bfloat16 counts to 256 only, float16 to 2048.
    return y, torch.where(inside, row * window.size[1] + column, -1).to(torch.promote_types(x.dtype, torch.float32))


def ave_pool(x: Tensor, window: Window) -> Tensor:
    """Return the mean of each window of ``x`` (N, C, H, W), (N, C, H', W'); zeros of the padding count, but not what reaches beyond the padded map."""
    if window.is_global:
        y: Tensor = _WholeMean.apply(x)
        return y
    ceil_mode = window.ceil_mode
    if ceil_mode is not None and not pads_on_cuda(x, window.pad):
        return F.avg_pool2d(x, window.kernel, window.stride, window.pad, ceil_mode=ceil_mode, count_include_pad=True)
    sums = F.avg_pool2d(window.padded(x, 0.0), window.kernel, window.stride, divisor_override=1)
    return sums / window.divisor_map(x.device).to(x.dtype)


def pads_on_cuda(x: Tensor, pad: Pair) -> bool:
    """Return whether torch's own padding must not be used for means of ``x``: on CUDA its gradient is wrong for channels-last maps.

    The kernel of the backward pass leaves the padding out of its coordinates (https://github.com/pytorch/pytorch/issues/188344).
    """
    return x.device.type == "cuda" and any(pad)


class _WholeMean(torch.autograd.Function):
    """The mean of each map, with a gradient in x's own memory layout; torch's is NCHW, which the layers below would have to turn."""

    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        ctx.layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        return x.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> Tensor:
        (dy,) = grads
        dx: Tensor = (dy / (ctx.shape[2] * ctx.shape[3])).expand(ctx.shape).clone(memory_format=ctx.layout)
        return dx


def stochastic_pool(x: Tensor, window: Window, *, training: bool, generator: torch.Generator | None = None) -> Tensor:
    """Zeiler & Fergus, "Stochastic pooling" (2013): one value of each window drawn in proportion to its size; the values are ≥ 0.

    In TEST the expected value, sum(x²) / sum(x), and 0 for a window of zeros.
    """
    windows = window.padded(x, 0.0).unfold(2, window.kernel[0], window.stride[0]).unfold(3, window.kernel[1], window.stride[1])
    values = windows.flatten(4)
    if not training:
        # FLT_MIN is nothing in half precision.
        values = values.to(torch.promote_types(x.dtype, torch.float32))
        return ((values * values).sum(-1) / (values.sum(-1) + FLT_MIN)).to(x.dtype)
    running = values.detach().cumsum(-1)
    threshold = uniform_like(running[..., :1], generator) * running[..., -1:]
    chosen = (running < threshold).sum(-1, keepdim=True).clamp_(max=values.shape[-1] - 1)
    return values.gather(-1, chosen).squeeze(-1)


def pool_to_onnx(layer: Layer, graph: OnnxGraph, window: Window, method: str, bottom: str, tops: list[str]) -> None:
    """Add the nodes of one MAX or AVE pooling of ``layer``, with explicit end padding so that no runtime's ceil mode matters.

    Raises:
        ExportError: Windows are wholly outside of the map.
    """
    if window.is_global and len(tops) == 1:
        global_pool_to_onnx(graph, method, bottom, tops[0])
        return
    begin, tail = window.pad, (max(window.end_overhang[0], 0), max(window.end_overhang[1], 0))
    shape = {"kernel_shape": list(window.kernel), "strides": list(window.stride)}
    if method == "MAX":
        if window.has_empty_window:
            source, pads = _padded_in_onnx(graph, bottom, [*begin, *tail], -FLT_MAX), [0, 0, 0, 0]
        else:
            source, pads = bottom, [*begin, *tail]
        graph.node("MaxPool", [source], tops, pads=pads, **shape)
        return
    if window.has_empty_window:
        raise layer.no_onnx_form("its averages of windows wholly outside of the map divide zero by zero")
    if all(t in (0, p) for t, p in zip(tail, begin, strict=True)):
        graph.node("AveragePool", [bottom], tops, pads=[*begin, *tail], count_include_pad=1, **shape)
        return
    # Caffe's windows count what they reach of the padding, but nothing beyond it: no runtime's way, and onnxruntime 1.23 is wrong
    # where the padding differs at both ends. So the means are over values alone, and what share of its window they are is said in numbers.
    share = (window.valid_counts() / window.divisor_map()).numpy().astype(np.float32)
    means = tops if (share == 1).all() else [graph.value("mean")]
    graph.node("AveragePool", [bottom], means, pads=[*begin, *tail], count_include_pad=0, **shape)
    if means is not tops:
        graph.node("Mul", [means[0], graph.constant("share", share)], tops)


def pool_any_size_to_onnx(layer: Layer, graph: OnnxGraph, window: Window, method: str, floor: bool, bottom: str, tops: list[str]) -> None:
    """Add the nodes of one MAX or AVE pooling of ``layer`` over maps whose size is known at run time only; exact for every size.

    Rounding up equals rounding down over s − 1 more values of end padding, and the rule that no window starts beyond the map and its
    first padding equals at most kernel − 1 values of it. AVE counts zeros of the padding, so these become part of the map.

    Raises:
        ExportError: Windows may be wholly outside of the map.
    """
    ends = [p if floor else p + s - 1 for p, s in zip(window.pad, window.stride, strict=True)]
    if any(window.pad):
        ends = [min(end, k - 1) for end, k in zip(ends, window.kernel, strict=True)]
    begin, empty = window.pad, any(end >= k for end, k in zip(ends, window.kernel, strict=True))
    shape = {"kernel_shape": list(window.kernel), "strides": list(window.stride)}
    if method == "MAX":
        source, pads = bottom, [*begin, *ends]
        if empty:
            source, pads = _padded_in_onnx(graph, bottom, pads, -FLT_MAX), [0, 0, 0, 0]
        graph.node("MaxPool", [source], tops, pads=pads, **shape)
        return
    if empty:
        raise layer.no_onnx_form("with a stride larger than its kernel, averages over maps of any size may divide zero by zero")
    source, inner = bottom, [min(end, p) for end, p in zip(ends, begin, strict=True)]
    outside = [end - p for end, p in zip(ends, inner, strict=True)]
    if any(begin):
        source = _padded_in_onnx(graph, bottom, [*begin, *inner], 0.0)
    if any(begin) and any(outside):
        # onnxruntime 1.19 and 1.20 fuse a Pad into the AveragePool that reads it, which then leaves these zeros out.
        padded, source = source, graph.value("kept_apart")
        graph.node("Concat", [padded], [source], axis=1)
    # Without padding of its own the pooling counts everything, and is right when a runtime fuses the Pad into it.
    graph.node("AveragePool", [source], tops, pads=[0, 0, *outside], count_include_pad=0 if any(outside) else 1, **shape)


def global_pool_to_onnx(graph: OnnxGraph, method: str, bottom: str, top: str) -> None:
    """Add the node of a pooling whose window is the map, for any size."""
    graph.node("GlobalMaxPool" if method == "MAX" else "GlobalAveragePool", [bottom], [top])


@register("Pooling")
class Pooling(Layer):
    """MAX, AVE or STOCHASTIC pooling of (N, C, H, W) to (N, C, H', W'); H' and W' round up unless ``round_mode: FLOOR`` or
    ``ceil_mode: false``.

    A second top of MAX is the mask: the place h · W + w of each maximum, float32, without a gradient. Follows pooling_layer.cpp:
    a last window that would start in the end padding is dropped, AVE divides by the window's area clipped to the padded map, and
    of equal maxima the first counts. STOCHASTIC (only on the GPU in Caffe) runs everywhere; it takes no padding.
    """

    BACKWARD_READS_BOTTOMS, BACKWARD_FROM_BLOBS = False, True
    TRAITS = Traits(role="pooling", settings="pooling_param", channels="kept", half=True, coordinates="window")
    IN_PLACE = "overwrites"
    TOPS = (1, 2)
    NEEDS_TOP = False
    FORK_FIELDS = frozenset({"ceil_mode"})
    # Set for one pass: MAX is followed by the ReLU that the prototxt has before it; net/training_steps.py.
    rectifies = False

    def setup(self, bottoms: Shapes) -> Shapes:
        n, c, h, w = self.expect_axes(bottoms[0], 4)
        param = self.param.pooling_param
        self.method = enum_name(param, "pool")
        self.window = Window.from_param(self, param, (h, w))
        if self.method == "STOCHASTIC" and any(self.window.pad):
            raise self.error("STOCHASTIC pooling takes no padding")
        if self.method != "MAX" and len(self.tops) > 1:
            raise self.error("only MAX pooling has a second top (the mask)")
        return [(n, c, *self.window.output)] * len(self.tops)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.method == "AVE":
            return ave_pool(x, self.window)
        if self.method == "STOCHASTIC":
            return stochastic_pool(x, self.window, training=self.training, generator=self.generator)
        if len(self.tops) > 1:
            return max_pool_mask(x, self.window)
        window = self.window
        if self.training and self._in_few_bytes(x):
            return native_training.max_pool(x, window.kernel, window.stride, window.pad, window.output, rectify=self.rectifies)
        return F.relu(max_pool(x, window)) if self.rectifies else max_pool(x, window)

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        if recorded is not None or self.method != "MAX" or len(self.tops) > 1:
            return None
        # Before any forward pass the mask holds zeros: all goes to the first place of each map.
        gradient = torch.zeros_like(bottoms[0])
        gradient[:, :, 0, 0] = gradients[0].sum((2, 3))
        return [gradient]

    def native_training(self, gradient: bool) -> tuple[int, float]:
        return 0, 1.0 if self.method == "MAX" and len(self.tops) == 1 and gradient else 0.0

    def _in_few_bytes(self, x: Tensor) -> bool:
        """Return whether the native pooling computes ``x``: its backward pass needs one byte an output."""
        if math.prod(self.window.kernel) > native_training.MOST_PLACES or self.window.has_empty_window:
            return False
        return x.is_contiguous(memory_format=torch.channels_last) and native_training.takes(x)

    def spatial_windows(self) -> Windows | None:
        # A mask holds places of the whole map.
        if self.param.pooling_param.global_pooling or len(self.tops) > 1:
            return None
        return convolved(self.window.kernel, self.window.stride, self.window.pad)

    def inference_form(self) -> inference.Pool | None:
        window = self.window
        if len(self.tops) > 1 or self.method not in ("MAX", "AVE") or window.has_empty_window:
            return None
        return inference.Pool(window.kernel, window.stride, window.pad, self.method == "MAX")

    ONNX_LIMITS = "AVE with a stride over its kernel and a mask of windows outside of the map have none; STOCHASTIC as in TEST"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.method == "STOCHASTIC":
            self._stochastic_to_onnx(graph)
            return
        if len(self.tops) == 1:
            self._pool_to_onnx(graph, self.tops)
            return
        if self.window.has_empty_window:
            raise self.no_onnx_form("it gives a mask, and some windows are outside of the map")
        flat, plane = graph.value("index"), graph.value("plane")
        self._pool_to_onnx(graph, [self.tops[0], flat])
        area = graph.sizes("area", [graph.arithmetic("Mul", *(graph.size(self.bottoms[0], axis) for axis in (2, 3)))])
        graph.node("Mod", [flat, area], [plane])
        graph.node("Cast", [plane], [self.tops[1]], to=1)

    def _pool_to_onnx(self, graph: OnnxGraph, tops: list[str]) -> None:
        """The nodes of MAX or AVE."""
        param, bottom = self.param.pooling_param, self.bottoms[0]
        if not graph.is_free(bottom, 2, 3):
            pool_to_onnx(self, graph, self.window, self.method, bottom, tops)
        elif param.global_pooling and len(tops) == 1:
            global_pool_to_onnx(graph, self.method, bottom, tops[0])
        elif param.global_pooling:
            raise self.no_onnx_form("it gives a mask of a global pooling over maps of any size")
        else:
            floor = enum_name(param, "round_mode") == "FLOOR" or not param.ceil_mode
            pool_any_size_to_onnx(self, graph, self.window, self.method, floor, bottom, tops)

    def _stochastic_to_onnx(self, graph: OnnxGraph) -> None:
        """sum(x²) / (sum(x) + FLT_MIN) of each window, what the layer gives in TEST; means in place of sums divide both alike."""
        window, bottom = self.window, self.bottoms[0]
        if graph.is_free(bottom, 2, 3) or max(window.end_overhang) > 0:
            raise self.no_onnx_form("STOCHASTIC windows that reach beyond the map, or maps of any size")
        square, squares, sums, divisor = (graph.value(hint) for hint in ("square", "squares", "sums", "divisor"))
        shape = {"kernel_shape": list(window.kernel), "strides": list(window.stride)}
        graph.node("Mul", [bottom, bottom], [square])
        graph.node("AveragePool", [square], [squares], **shape)
        graph.node("AveragePool", [bottom], [sums], **shape)
        graph.node("Add", [sums, graph.constant("smallest", np.array(FLT_MIN, np.float32))], [divisor])
        graph.node("Div", [squares, divisor], self.tops)


def _padded_in_onnx(graph: OnnxGraph, source: str, pads: list[int], value: float) -> str:
    top, left, bottom, right = pads
    amounts = graph.constant("pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    padded = graph.value("padded")
    graph.node("Pad", [source, amounts, graph.constant("pad_value", np.array(value, np.float32))], [padded], mode="constant")
    return padded


def _pair(layer: Layer, param: PoolingParameter, field: str, short: str) -> Pair:
    by_axis = (param.HasField(f"{short}_h"), param.HasField(f"{short}_w"))
    if any(by_axis):
        if not all(by_axis) and short != "pad":
            raise layer.error(f"{short}_h and {short}_w must both be set")
        if param.HasField(field):
            raise layer.error(f"set either {field}, or {short}_h and {short}_w, not both")
        return (getattr(param, f"{short}_h"), getattr(param, f"{short}_w"))
    if short == "kernel" and not param.HasField(field):
        raise layer.error("kernel_size is missing")
    value: int = getattr(param, field)
    return (value, value)
