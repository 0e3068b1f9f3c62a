"""The values and operators of an inference plan, and the program that they make together."""

from __future__ import annotations

from dataclasses import dataclass, field

from caffetools.layers import inference
from caffetools.layers.base import Layer, Shape
from caffetools.layers.native_conv import Layout, NativeConv, Shape4
from caffetools.layers.native_product import NativeProduct


@dataclass(eq=False)
class Value:
    """One version of a blob.

    Attributes:
        shape: As the shape rules give it.
        producer: Index of the operator that makes it; -1 for inputs.
        consumers: Indices of the operators that read it.
        kept: It is a result of the run.
        parent: The concatenation's top that it is a part of, and its first channel there.
        offset: Of a root value: its place in the arena, in floats; None for tensors of torch's own.
        in_head: It is alive in the head only; its place is in the memory that each thread has of its own.
    """

    shape: Shape
    producer: int = -1
    consumers: list[int] = field(default_factory=list)
    kept: bool = False
    parent: tuple[Value, int] | None = None
    offset: int | None = None
    in_head: bool = False

    @property
    def shape4(self) -> Shape4:
        """(N, C, H, W); a two-axis blob (N, C) is one of a single pixel."""
        n, c, *rest = self.shape
        h, w = rest or (1, 1)
        return n, c, h, w

    @property
    def root(self) -> Value:
        """The value whose memory holds this one."""
        return self if self.parent is None else self.parent[0].root

    @property
    def first_channel(self) -> int:
        """Of this value in its root."""
        return 0 if self.parent is None else self.parent[1] + self.parent[0].first_channel

    @property
    def pitch(self) -> int:
        """Floats from one pixel to the next."""
        return self.root.shape4[1]

    @property
    def size(self) -> int:
        """Number of values."""
        total = 1
        for n in self.shape:
            total *= n
        return total


@dataclass(frozen=True)
class ToChannelsLast:
    """The channels-last copy of an input (N, C, H, W)."""


@dataclass(eq=False)
class Operator:
    """One step of a plan.

    Attributes:
        form: What it computes; None: ``layer``'s own forward.
        activation: Applied to the result of a convolution or inner product.
        residual: Added to a convolution's result before that.
        dropped: It was fused into another one.
        folded: Layers that were multiplied into the weights of a convolution.
        conv: A convolution's or inner product's native operator, once the plan is complete.
        pool: Pooling of a convolution's results, which are ``unpooled`` and have no place in memory.
    """

    layer: Layer | None
    form: inference.InferenceForm | ToChannelsLast | None
    inputs: list[Value]
    outputs: list[Value]
    activation: inference.Activation | None = None
    residual: Value | None = None
    dropped: bool = False
    folded: tuple[Layer | None, ...] = ()
    conv: NativeConv | NativeProduct | None = None
    pool: inference.Pool | None = None
    unpooled: Value | None = None


@dataclass
class Program:
    """What an inference plan runs.

    Attributes:
        operators: In order; some are dropped.
        inputs: Input blob → value.
        results: Wanted blob → value.
        threads: For the native operators.
        arena_floats: Size of the memory that values share.
        head: Number of operators that run for a part of the batch at a time, each part in one thread.
        head_floats: Size of the memory that each of these threads needs.
        repeats: Number of those parts.
        boundary: The one value that the head makes for the rest; None where there is no head.
    """

    operators: list[Operator]
    inputs: dict[str, Value]
    threads: int
    results: dict[str, Value] = field(default_factory=dict)
    arena_floats: int = 0
    head: int = 0
    head_floats: int = 0
    repeats: int = 1
    boundary: Value | None = None

    def run_shape(self, value: Value, index: int) -> Shape4:
        """Return (N, C, H, W) of ``value`` as operator ``index`` sees it at one call: in the head a part of the batch."""
        n, c, h, w = value.shape4
        whole = value.producer < 0 or value.root is self.boundary
        return (n // self.repeats if whole and index < self.head else n), c, h, w

    def layout(self, x: Value, y: Value, index: int, residual: Value | None = None) -> Layout:
        """Return where operator ``index`` reads ``x`` and writes ``y``."""
        planar = x.producer < 0 and x.shape4[1] > 1 and x.shape4[2] * x.shape4[3] > 1
        pitch = residual.pitch if residual is not None else 0
        return Layout(self.run_shape(x, index), self.run_shape(y, index), x.pitch, y.pitch, pitch, planar)
