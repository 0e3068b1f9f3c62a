"""Convolution, pooling and LRN over channels-last memory by the native library (``native/conv.cpp``), as the inference plan calls them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch

from caffetools.layers import buffers, inference, native

Pointer = ctypes.c_void_p
Shape4 = tuple[int, int, int, int]
Pair = tuple[int, int]

_SIZES = "n c h w oc oh ow x_pitch y_pitch residual_pitch kh kw sh sw ph pw dh dw groups"
_FLAGS = "planar_input algorithm activation with_bias"


class _Shape(ctypes.Structure):
    """``CaffetoolsConv`` of native/conv.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES.split()),
        *((name, ctypes.c_int32) for name in _FLAGS.split()),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
    ]


@dataclass(frozen=True)
class Layout:
    """Where a convolution reads and writes.

    Attributes:
        x_shape: (N, C, H, W) of the input.
        y_shape: (N, C, H, W) of the output.
        x_pitch: Floats from one pixel of the input to the next; ``y_pitch`` and ``residual_pitch`` likewise.
        planar: The input is (N, C, H, W) in memory rather than channels-last.
    """

    x_shape: Shape4
    y_shape: Shape4
    x_pitch: int
    y_pitch: int
    residual_pitch: int = 0
    planar: bool = False


class _Steps(ctypes.Structure):
    """``WeightSteps`` of native/conv.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("group", "output", "input", "row", "column")]


class Step(ctypes.Structure):
    """``CaffetoolsStep`` of native/steps.cpp: one operator of a program.

    Places are ``MEMORY`` (at an offset in floats), ``INPUT`` and ``OUTPUT``.
    """

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "x_place", "y_place", "residual_place")),
        *((name, ctypes.c_int64) for name in ("x", "y", "residual")),
        ("handle", Pointer),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("largest", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("alpha", "beta", "k")),
    ]


CONVOLVE, POOL, NORMALIZE, MULTIPLY, SOFTMAX, CONVOLVE_AND_POOL = range(6)
MEMORY, INPUT, OUTPUT = range(3)


class NativeConv:
    """A convolution with packed weights for one input size: y = activation(conv(x) + bias + residual).

    Args:
        form: Weights and geometry.
        activation: Applied last; None for none.
        layout: Shapes and pitches.
        like: A convolution with the same weights over another size, to share packed weights with.
        algorithm: 0 chooses; 1 sums over windows; 2 or 4: Winograd's of 2 x 2 or 4 x 4 outputs (3 x 3 kernels of stride 1); 8: the matrix unit
            (AMX) where the processor has it and takes such a convolution, else as 1.
        transposed: Use the weights of ``form``, of a convolution of stride 1, for the gradient of its input: inputs and outputs exchanged,
            kernels turned by half a circle. The padding of ``form`` is that of the gradient.

    Attributes:
        handle: For ``caffetools_conv_run``. scratch_floats: What a run needs. algorithm: As chosen (1 is also depthwise).

    Raises:
        MemoryError: There is no memory for the packed weights.
    """

    def __init__(
        self,
        form: inference.Conv,
        activation: inference.Activation | None,
        layout: Layout,
        *,
        like: NativeConv | None = None,
        algorithm: int = 0,
        transposed: bool = False,
    ):
        loaded = kernels()
        act = activation or inference.Activation(inference.NO_ACTIVATION)
        shape = _shape(form, act, layout, algorithm)
        weight = form.weight.detach().to("cpu", torch.float32)
        output, inputs, row, column = weight.stride()
        group, first = output * (weight.shape[0] // form.groups), weight.data_ptr()
        steps = _Steps(group, output, inputs, row, column)
        if transposed:
            first += weight.element_size() * ((weight.shape[2] - 1) * row + (weight.shape[3] - 1) * column)
            steps = _Steps(group, inputs, output, -row, -column)
        arrays = [_flat(form.bias), _flat(act.slopes)]
        pointers = [None if array is None else array.data_ptr() for array in arrays]
        self._destroy = loaded.caffetools_conv_destroy
        given, threads = None if like is None else like.handle, native.thread_count()
        self.handle: int | None = loaded.caffetools_conv_create_from(
            ctypes.addressof(shape), first, ctypes.addressof(steps), *pointers, given, threads
        )
        if not self.handle:
            raise MemoryError("no memory for the packed weights of a convolution")
        self.scratch_floats = int(loaded.caffetools_conv_scratch(self.handle))
        self.algorithm = int(loaded.caffetools_conv_algorithm(self.handle))

    def pooled_scratch(self, sizes: ctypes.Array[ctypes.c_int64], threads: int) -> int:
        """Return the floats of scratch of a run that pools the outputs at once (``sizes``: :func:`pool_sizes`; ``algorithm`` 1)."""
        return int(kernels().caffetools_conv_pool_scratch(self.handle, sizes, threads))

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._destroy(self.handle)


def _shape(form: inference.Conv, activation: inference.Activation, layout: Layout, algorithm: int) -> _Shape:
    (n, c, h, w), (_, oc, oh, ow) = layout.x_shape, layout.y_shape
    sizes = (n, c, h, w, oc, oh, ow, layout.x_pitch, layout.y_pitch, layout.residual_pitch, *form.weight.shape[2:])
    flags = (layout.planar, algorithm, activation.kind, form.bias is not None)
    return _Shape(*sizes, *form.stride, *form.pad, *form.dilation, form.groups, *flags, activation.low, activation.high)


def choice(form: inference.Conv, layout: Layout) -> int:
    """Return the algorithm that :class:`NativeConv` chooses: 0 sums over windows, 2 or 4 Winograd's, 8 the matrix unit."""
    shape = _shape(form, inference.Activation(inference.NO_ACTIVATION), layout, 0)
    return int(kernels().caffetools_conv_choice(ctypes.addressof(shape)))


def has_wide_vectors() -> bool:
    """Return whether the library uses vectors of 16 floats (AVX-512)."""
    return int(kernels().caffetools_native_variant()) >= 2


def available() -> bool:
    """Return whether the native library is in use and has convolutions (it lacks them where it was built by MSVC)."""
    return native.enabled() and kernels() is not None


def conv_run() -> Any:
    """Return the C function ``caffetools_conv_run(handle, x, y, residual, scratch, threads)``."""
    return kernels().caffetools_conv_run


def sequence_run() -> Any:
    """Return the C function ``caffetools_sequence_run``; see native/steps.cpp."""
    return kernels().caffetools_sequence_run


def steps_run() -> Any:
    """Return the C function ``caffetools_steps_run(steps, count, memory, input, scratch, threads)``."""
    return kernels().caffetools_steps_run


def wake_threads() -> None:
    """Wake the native library's threads for a pass that follows within a millisecond; waking them takes 0.1 to 0.5 ms."""
    kernels().caffetools_wake_threads()


def run_conv(conv: NativeConv, x: torch.Tensor, y: torch.Tensor) -> None:
    """Run ``conv`` from ``x`` (N, C, H, W) to ``y`` (N, C', H', W'), float32 in its layout."""
    scratch = buffers.empty(max(conv.scratch_floats, 1))
    conv_run()(conv.handle, x.data_ptr(), y.data_ptr(), None, scratch.data_ptr(), native.thread_count())


def weight_gradient(form: inference.Conv, x: torch.Tensor, dy: torch.Tensor, *, algorithm: int = 0) -> torch.Tensor | None:
    """Return the gradient of the weights of ``form``; None where ``algorithm`` does not compute such a convolution.

    Args:
        form: The convolution.
        x: Its input (N, C, H, W), channels-last float32.
        dy: The gradient of its output (N, C', H', W'), likewise.
        algorithm: 0 chooses; 1: sums by vectors, whose bits are the same for any number of threads; 8: the matrix unit.

    Returns:
        The shape of ``form.weight``, channels-last.
    """
    shapes = [(t.shape[0], t.shape[1], t.shape[2], t.shape[3]) for t in (x, dy)]
    layout = Layout(shapes[0], shapes[1], x.shape[1], dy.shape[1])
    shape = _shape(form, inference.Activation(inference.NO_ACTIVATION), layout, algorithm)
    address = ctypes.addressof(shape)
    floats = int(kernels().caffetools_weight_gradient_scratch(address))
    if not floats:
        return None
    made, scratch = buffers.empty(*form.weight.shape, channels_last=True), buffers.empty(floats)
    pointers = (t.data_ptr() for t in (x, dy, made, scratch))
    with native.between_torch() as threads:
        kernels().caffetools_weight_gradient(address, *pointers, threads)
    return made


def pool_sizes(form: inference.Pool, layout: Layout) -> Any:
    """Return the sizes of a pooling step: a ctypes array of sixteen int64, ``Window`` of native/conv.h."""
    (n, c, h, w), (_, _, oh, ow) = layout.x_shape, layout.y_shape
    values = (n, c, h, w, oh, ow, layout.x_pitch, layout.y_pitch, *form.kernel, *form.stride, *form.pad, 1, 1)
    return (ctypes.c_int64 * 16)(*values)


def _flat(array: torch.Tensor | None) -> torch.Tensor | None:
    return None if array is None else array.detach().to("cpu", torch.float32).contiguous()


def kernels() -> Any:
    """Return the native library with the signatures of its convolutions and products; None where it lacks them."""
    loaded: Any = native.kernels()
    if loaded is None or getattr(loaded, "conv_ready", None) is not None:
        return loaded if loaded is None or loaded.conv_ready else None
    try:
        for name, (returned, arguments) in _SIGNATURES.items():
            function = getattr(loaded, f"caffetools_{name}")
            function.restype, function.argtypes = returned, list(arguments)
    except AttributeError:
        loaded.conv_ready = False
        return None
    loaded.conv_ready = True
    return loaded


_INT, _LONG, _DOUBLE = ctypes.c_int, ctypes.c_int64, ctypes.c_double
# What each function of the library returns and takes.
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "native_variant": (_INT, ()),
    "wake_threads": (None, ()),
    "conv_create_from": (Pointer, (*[Pointer] * 6, _INT)),
    "conv_choice": (_INT, (Pointer,)),
    "conv_destroy": (None, (Pointer,)),
    "conv_scratch": (_LONG, (Pointer,)),
    "conv_algorithm": (_INT, (Pointer,)),
    "conv_pool_scratch": (_LONG, (Pointer, Pointer, _INT)),
    "conv_run": (None, (*[Pointer] * 5, _INT)),
    "weight_gradient_scratch": (_LONG, (Pointer,)),
    "weight_gradient": (None, (*[Pointer] * 5, _INT)),
    "winograd_gradient_scratch": (_LONG, (Pointer,)),
    "winograd_gradient": (None, (*[Pointer] * 5, _INT)),
    "sequence_run": (None, (Pointer, _LONG, _LONG, Pointer, _LONG, Pointer, _LONG, Pointer, _LONG, Pointer, _LONG, _INT)),
    "steps_run": (None, (Pointer, _LONG, Pointer, Pointer, Pointer, _INT)),
    "batch_norm_scratch": (_LONG, (_LONG, _LONG)),
    "batch_norm_moments": (None, (*[Pointer] * 5, _LONG, _LONG, _DOUBLE, _INT)),
    "batch_norm_forward": (None, (*[Pointer] * 6, _LONG, _LONG, _INT, _INT)),
    "batch_norm_backward": (None, (*[Pointer] * 10, _LONG, _LONG, _INT, _INT)),
    "product_scratch": (_LONG, (Pointer,)),
    "product_input_gradient": (None, (*[Pointer] * 3, _LONG, _LONG, _LONG, _INT)),
    "product_weight_gradient": (None, (*[Pointer] * 3, _LONG, _LONG, _LONG, _INT)),
    "product_run": (None, (*[Pointer] * 4, _INT)),
}
