"""What a layer is: a shape rule, a computation under torch's autograd, and an ONNX form, in one class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caffetools.errors import ExportError, NetError
from caffetools.layers.draws import current_generator
from caffetools.layers.fillers import fill
from caffetools.layers.fork_fields import fork_fields
from caffetools.layers.inference import InferenceForm
from caffetools.layers.observed import ObservedModule
from caffetools.layers.shapes import Shape as Shape
from caffetools.layers.shapes import Shapes as Shapes
from caffetools.layers.shapes import check_size as check_size
from caffetools.layers.shapes import format_shape as format_shape
from caffetools.layers.traits import Traits
from caffetools.layers.windows import Windows
from caffetools.proto.schema import TEST, TRAIN, FillerParameter, LayerParameter
from caffetools.proto.unknown import unknown_names

# The size of an axis in an exported graph: a number, or the name of a value that holds it.
Size = int | str

# How many bottoms or tops a layer takes: (at least, at most); None is "any number".
Arity = tuple[int, int | None]
SAME_AS_BOTTOMS: Arity = (-1, -1)


@dataclass(frozen=True)
class BlobSpec:
    """A parameter blob as a layer declares it: its shape, how it starts, and whether the solver may change it."""

    shape: Shape
    filler: FillerParameter | None = None
    learnable: bool = True


class OnnxGraph(Protocol):
    """What a layer may do to the ONNX graph that is being written; blob names are Caffe's, the graph handles in-place tops."""

    opset: int

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add one operator."""

    def constant(self, hint: str, array: NDArray[Any]) -> str:
        """Add ``array``, of any shape, as an initializer of the graph and return its name."""

    def parameter(self, layer: Layer, index: int) -> str:
        """Return the name of the initializer that holds blob ``index`` of ``layer``; added at first use, shared blobs once."""

    def value(self, hint: str) -> str:
        """Return a new name for a value between two nodes of one layer."""

    def shape(self, blob: str) -> Shape:
        """Return the shape of a blob of the net, as the shape rules give it."""

    def is_free(self, blob: str, *axes: int) -> bool:
        """Return whether one of ``axes`` (default: all but the first) of ``blob`` has a size that is known at run time only."""

    def size(self, blob: str, axis: int) -> Size:
        """Return the size of an axis: a number, or where it is free the name of an int64 value of shape (1)."""

    def arithmetic(self, op: str, left: Size, right: Size) -> Size:
        """Return ``left op right`` for sizes; ``op`` is Add, Sub, Mul or Div (rounding down)."""

    def sizes(self, hint: str, parts: Sequence[Size]) -> str:
        """Return the name of an int64 vector of ``parts``."""

    def reshape(self, source: str, target: str, parts: Sequence[Size], hint: str = "shape") -> None:
        """Add a Reshape to ``parts``: sizes, 0 for the source's size of that axis, at most one −1 for the rest."""

    def note(self, message: str) -> None:
        """Record something about the exported graph that its user should know."""

    def scan(
        self,
        states: Sequence[str],
        sequences: Sequence[str],
        ends: Sequence[str],
        outputs: Sequence[str],
        step: Callable[[list[str], list[str]], tuple[list[str], list[str]]],
    ) -> None:
        """Add a loop over axis 0 of ``sequences`` whose body ``step`` adds."""


class SavedTensors(Protocol):
    """The context of a ``torch.autograd.Function``: what its forward pass keeps for its backward pass."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep ``tensors`` as ``saved_tensors``."""


class Layer(ObservedModule):
    """One layer of a net.

    A subclass defines how many bottoms and tops it takes, its shape rule in :meth:`setup`, its computation in :meth:`forward` and
    its ONNX nodes in :meth:`to_onnx`. It keeps no activations: those belong to the run.

    Attributes:
        param: The layer's ``LayerParameter``.
        name: The layer's name; ``bottoms`` and ``tops`` are its blobs' names.
        blobs: Its parameters in Caffe's order (weights, then bias, …), float32. ``training`` is true in the TRAIN phase.
        bottom_shapes, top_shapes: what the last :meth:`configure` was given and gave.
    """

    # The type's name in prototxts; set by the registry, which knows further spellings of it.
    TYPE: ClassVar[str] = ""
    # Facts that other rooms need to know of the type.
    TRAITS: ClassVar[Traits] = Traits()
    BOTTOMS: ClassVar[Arity] = (1, 1)
    TOPS: ClassVar[Arity] = (1, 1)
    # Loss layers get loss weight 1 on their first top, and a top of their own where the prototxt names none.
    IS_LOSS: ClassVar[bool] = False
    # Bottoms that can never have a gradient (labels).
    NO_GRADIENT: ClassVar[frozenset[int]] = frozenset()
    # Bottoms of which only the sizes are read.
    SIZE_BOTTOMS: ClassVar[frozenset[int]] = frozenset()
    # Whether Caffe ends the process where a loss asks for a gradient of these that something to learn depends on; and for which force_backward does.
    REFUSES_GRADIENT: ClassVar[bool] = False
    REFUSES_FORCED: ClassVar[frozenset[int]] = frozenset()
    # Whether the gradient is computed from the top's values, or the top may lie in the bottom's memory (a permutation that moves nothing, or one of
    # a channels-last bottom): such a top must not be overwritten by a layer that works in place.
    NEEDS_TOP: ClassVar[bool] = True
    # Data layers make their tops themselves.
    IS_DATA: ClassVar[bool] = False
    # The layer runs in one thread at a time; as do those that keep a state between passes (get_state).
    STATEFUL: ClassVar[bool] = False
    # The tops' shapes are known only once the layer has run.
    DYNAMIC_SHAPE: ClassVar[bool] = False
    # Whether a training pass may run the layer a second time for the backward pass (--checkpoint-memory): it has no effects outside of its
    # tops, except those that it leaves out while layers.autograd.is_recomputing(). None: only built-in layers may.
    RECOMPUTABLE: ClassVar[bool | None] = None
    # Whether the layer draws from the global random states of torch, NumPy or Python and not from its generator. None: only built-in layers do not.
    DRAWS_GLOBALLY: ClassVar[bool | None] = None
    # Whether Caffe's backward pass computes from the bottoms as they are then (else from what the forward pass kept: masks, sums).
    BACKWARD_READS_BOTTOMS: ClassVar[bool] = True
    # Of a layer that does not, the bottoms that it reads all the same: a loss's labels.
    BACKWARD_READS_LABELS: ClassVar[frozenset[int]] = frozenset()
    # Whether Caffe's backward pass computes from the top as it is then, by gradient_from_top.
    BACKWARD_READS_TOP: ClassVar[bool] = False
    # Whether it has gradients_from_blobs: what Caffe computes where blobs were edited since the forward pass, or before any.
    BACKWARD_FROM_BLOBS: ClassVar[bool] = False
    # Whether Caffe's forward pass keeps values in the diff of the first bottom, from which the backward pass computes (kept_in_diff).
    KEEPS_IN_DIFF: ClassVar[bool] = False
    # Whether Caffe's backward pass writes the diff of the bottom even where nothing asks for it.
    BACKWARD_IS_UNASKED: bool = False
    # Whether Caffe's backward pass of the layer in place takes the result for the bottom, of which it keeps no copy.
    BACKWARD_READS_RESULT: ClassVar[bool] = False
    # Whether Caffe refuses the layer where its top is its bottom too, or writes there before it has read all that it computes from.
    IN_PLACE: ClassVar[Literal["", "refused", "overwrites"]] = ""
    # Where shares_memory(): data and diff from the passes on (Flatten), or from the shapes on (Reshape); "data": that of any number of tops (Split).
    SHARES: ClassVar[Literal["passes", "shapes", "data"]] = "passes"
    # The layer reads fields that no schema has (a plugin's, with proto.unknown.unknown_fields); others can't be run with them.
    READS_UNKNOWN: ClassVar[bool] = False
    # Fields that forks add to BVLC Caffe's own messages, and that this layer honours; others must not be given.
    FORK_FIELDS: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, param: LayerParameter, phase: int = TEST):
        super().__init__()
        self.param = param
        self.name = str(param.name)
        self.type_name = str(param.type)
        self.bottoms: list[str] = list(param.bottom)
        self.tops: list[str] = list(param.top)
        self.blobs = nn.ParameterList()
        self.specs: list[BlobSpec] = []
        self.bottom_shapes: list[Shape] = []
        self.top_shapes: list[Shape] = []
        # Set by the net: this layer may overwrite its bottom, since nothing else needs the old values.
        self.inplace_ok = False
        # What the layer draws from on the CPU; None: torch's global state.
        self.generator = current_generator()
        # Set for runs in lower precision: autocast does not reach into this layer.
        self.float32_only = False
        self.train(phase == TRAIN)

    # ---- what a layer type defines ----

    @classmethod
    def traits(cls, param: LayerParameter) -> Traits:
        """Return the traits of a layer with the settings ``param`` (``LayerParameter``); for types whose traits depend on their settings."""
        return cls.TRAITS

    @classmethod
    def has_fixed_traits(cls) -> bool:
        """Return whether the traits of all layers of this class are the same, independent of their settings."""
        return not any("traits" in vars(base) for base in cls.__mro__[: cls.__mro__.index(Layer)])

    @classmethod
    def draws_globally(cls) -> bool:
        """Return whether layers of this class may draw from the global random states, which belong to the whole process."""
        return cls.DRAWS_GLOBALLY if cls.DRAWS_GLOBALLY is not None else not cls.__module__.startswith("caffetools.")

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        """Shapes of bottoms that fit the settings ``param``, for facts that do not depend on the net's shapes."""
        return [(2, 8, 64, 64)] * len(param.bottom)

    @classmethod
    def stored_item(cls, param: LayerParameter) -> Shape | None:
        """Return the shape (C, H, W) of a data layer's items before they are transformed, as its settings or its source give it."""
        return None

    @classmethod
    def item_shapes(cls, param: LayerParameter) -> list[Shape] | None:
        """Return the shape of one item of each top of a data layer, as its source gives it; None where the source is not there."""
        return None

    @classmethod
    def label_shape(cls, top: int, shape: Shape) -> Shape:
        """Return the shape that the top number ``top`` of a data layer has where it is not known, by that of the first: one number an item.

        Args:
            top: The top's index, from 1.
            shape: (N, …) of the first top.
        """
        return shape[:1]

    @classmethod
    def item_channels(cls, param: LayerParameter) -> int:
        """Return the number of channels of a data layer's items, where nothing else is known of them."""
        return 3

    @classmethod
    def values_for_new_classes(
        cls, specs: Sequence[BlobSpec], old: Sequence[NDArray[Any]], generator: torch.Generator
    ) -> list[torch.Tensor]:
        """Return the values from which new classes start: those of the fillers.

        Args:
            specs: The blobs that the layer declares for the new number of classes.
            old: Its blobs for the old number of classes.
            generator: What random values are drawn from.

        Returns:
            A blob of each shape of ``specs``, float32.
        """
        values = []
        for spec in specs:
            data = torch.zeros(spec.shape)
            fill(data, spec.filler, generator)
            values.append(data)
        return values

    def blobs_from_file(self, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """Return the parameter blobs to load where a weights file holds ``arrays`` for this layer; for types that take other shapes too."""
        return arrays

    def setup(self, bottoms: Shapes) -> Shapes:
        """Return the shapes of the tops for ``bottoms``; declares the parameter blobs. Called again whenever an input's shape changes.

        Raises:
            NetError: the shapes do not fit, or the layer's parameters make no sense.
        """
        raise NotImplementedError

    # forward(*bottoms) gives the tops, differentiable under autograd: one tensor, or a tuple in the order of `tops`.
    forward: Callable[..., Any]

    # Where the ONNX form is not exact, or which layers of this type have none; empty where every layer has an exact form.
    ONNX_LIMITS: ClassVar[str] = ""
    # Why no layer of this type has an ONNX form; empty where to_onnx is overridden.
    NO_ONNX: ClassVar[str] = ""

    def to_onnx(self, graph: OnnxGraph) -> None:
        """Add this layer's nodes. Raises :class:`ExportError` where the layer has no exact ONNX form."""
        raise self.no_onnx_form(self.NO_ONNX)

    @classmethod
    def has_onnx_form(cls) -> bool:
        """Return whether layers of this type have an ONNX form, perhaps within :attr:`ONNX_LIMITS`."""
        return cls.to_onnx is not Layer.to_onnx

    def no_onnx_form(self, reason: str = "") -> ExportError:
        """Return an error to raise from :meth:`to_onnx`; ``reason`` states why this layer cannot be written."""
        return ExportError(
            f"layer '{self.name}' of type {self.type_name} has no ONNX form{': ' + reason if reason else ''}; "
            "cut the net before it (--outputs BLOB) or replace the layer"
        )

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        """Valid random values for bottom ``index`` where not every number is one (indices, masks, boxes); None where any is."""
        return None

    def inference_form(self) -> InferenceForm | None:
        """Return what the layer computes in the TEST phase as a form that the inference plan fuses; None where its ``forward`` is to be run."""
        return None

    def spatial_windows(self) -> Windows | None:
        """Return, for height and width of (N, C, H, W), what one position of the tops depends on in the TEST phase.

        None where it depends on the whole map, on where in the picture it is, or where that is not known.
        """
        return None

    def macs(self) -> int:
        """Multiply–accumulate operations of one forward pass at the configured shapes; of the blobs only :attr:`specs` may be there."""
        return 0

    def native_training(self, gradient: bool) -> tuple[int, float]:
        """Return what of a training pass on the CPU the native library computes, at the configured shapes.

        Args:
            gradient: Whether the gradient of the first bottom is wanted.

        Returns:
            Multiply–accumulate operations, of three times :meth:`macs`; and of what else is done to each value, the share from 0 to 1.
        """
        return 0, 0.0

    # ---- what the net calls ----

    def configure(self, bottoms: Shapes) -> list[Shape]:
        """Check the arity, run the shape rule, and hold the declared blobs against those there already are."""
        self._check_arity()
        if reason := self.unsupported():
            error = self.error(reason)
            error.field = next(iter(self._strange_fields()), "").partition(":")[0]
            raise error
        self.specs = []
        self.bottom_shapes = list(bottoms)
        self.top_shapes = list(self.setup(bottoms))
        _check_in_place(self)
        for name, shape in (*zip(self.tops, self.top_shapes, strict=False), *(("its parameters", spec.shape) for spec in self.specs)):
            check_size(self.name, name, shape)
        for index, (blob, spec) in enumerate(zip(self.blobs, self.specs, strict=False)):
            if tuple(blob.shape) != spec.shape:
                raise self.error(
                    f"its bottom {format_shape(bottoms[0])} asks for parameter blob {index} of {format_shape(spec.shape)}, but it has {format_shape(blob.shape)}"
                )
        return self.top_shapes

    def unsupported(self) -> str:
        """Return why this layer can't be computed with the settings of its prototxt, though its type is known; empty where it can."""
        if not self.READS_UNKNOWN and (names := unknown_names(self.param)):
            return f"has fields that are not known here ({', '.join(names)}), so what it computes isn't either"
        strange = self._strange_fields()
        return f"has {', '.join(strange)}, which changes what a fork's layer computes and is not supported" if strange else ""

    def _strange_fields(self) -> list[str]:
        """Return the fields of forks that are set, change numbers and are not computed by this layer."""
        return [name for name in fork_fields(self.param) if name not in self.FORK_FIELDS]

    def allocate(self, *, filled: bool = True) -> None:
        """Make the declared blobs (float32) and fill them with values drawn from :attr:`generator`, or leave them as they come."""
        for spec in self.specs[len(self.blobs) :]:
            data = torch.empty(spec.shape)
            if len(spec.shape) == 4:
                data = data.contiguous(memory_format=torch.channels_last)
            if filled:
                try:
                    with torch.no_grad():
                        fill(data, spec.filler, self.generator)
                except NetError as error:
                    raise self.error(error.message) from None
            self.blobs.append(nn.Parameter(data, requires_grad=spec.learnable))

    def run(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """Run :meth:`forward` with its hooks, in float32 where ``float32_only`` is set; return the tops as a tuple."""
        if self.float32_only and bottoms:
            with torch.autocast(bottoms[0].device.type, enabled=False):
                tops = self(*(b.float() if b.is_floating_point() else b for b in bottoms))
        else:
            tops = self(*bottoms)
        return (tops,) if isinstance(tops, Tensor) else tuple(tops)

    def idempotent(self) -> bool:
        """Return whether a second pass over its own top gives the same mask (ReLU): what a layer in place needs to go back over edited values."""
        return False

    def shares_memory(self) -> bool:
        """Return whether Caffe gives the one top the memory of the one bottom, also where they have two names (``ShareData``)."""
        return False

    def shares_data(self) -> bool:
        """Return whether after a forward pass Caffe's tops all lie in the memory of the one bottom: what is written to one blob is in the others."""
        return self.SHARES == "data" or self.shares_memory()

    def backward_reads_top(self) -> bool:
        """Return whether Caffe's backward pass computes from the top as it is then, with the settings of this layer."""
        return self.BACKWARD_READS_TOP

    def caffe_in_place(self) -> Literal["", "refused", "overwrites"]:
        """Return whether Caffe, with the settings of this layer, refuses it in place or overwrites what it has yet to read."""
        return self.IN_PLACE

    def replaced_gradients(self) -> frozenset[int]:
        """Return the parameter blobs whose diff Caffe's backward pass writes, with the shapes of now, instead of adding to it."""
        return frozenset()

    def in_place_changes_gradient(self) -> bool:
        """Return whether Caffe's gradient of the layer in place is another one than that of the layer with a top of its own."""
        return False

    def gradient_from_top(self, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the bottom of a layer with BACKWARD_READS_TOP, as Caffe computes it.

        Args:
            x: The bottom as it is, any shape.
            y: The top as it is, of that shape.
            gradient: The top's diff, of that shape.
        """
        raise NotImplementedError

    def left_in_diff(self, bottom: Tensor, diff: Tensor) -> Tensor | None:
        """Return what Caffe's backward pass leaves in the first bottom's diff although nothing asks for its gradient; None for nothing.

        Args:
            bottom: The first bottom.
            diff: The diff of the first top.
        """
        return None

    def kept_in_diff(self, *bottoms: Tensor) -> Tensor:
        """Return what Caffe's forward pass keeps in the diff of the first bottom, of its shape, of a layer with KEEPS_IN_DIFF."""
        raise NotImplementedError

    def gradient_from_diff(self, kept: Tensor, bottoms: Sequence[Tensor], gradient: Tensor) -> Tensor:
        """Return the gradient of the first bottom as Caffe computes it from its diff, ``kept``, and the diff of the first top."""
        raise NotImplementedError

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """Return the gradients of all bottoms as Caffe's backward pass computes them from its blobs, of a layer with BACKWARD_FROM_BLOBS.

        Args:
            recorded: The bottoms of the last forward pass, from which the layer's inner blobs follow; None before the first one,
                when they hold zeros.
            bottoms: The bottoms as they are, of the same shapes.
            tops: The tops as they are.
            gradients: Their diffs.

        Returns:
            The gradients; None where they are those of the layer computed again on its bottoms.
        """
        return None

    # ---- for subclasses ----

    def declare_blob(self, shape: Iterable[int], filler: FillerParameter | None = None, *, learnable: bool = True) -> None:
        """Declare the next parameter blob. ``filler`` is a ``FillerParameter``; None means zeros."""
        self.specs.append(BlobSpec(tuple(int(n) for n in shape), filler, learnable))

    def error(self, message: str) -> NetError:
        """Return a :class:`NetError` that names this layer and its type; to be raised."""
        return NetError(f"({self.type_name}) {message}", layer=self.name)

    def axis(self, axis: int, shape: Shape, *, what: str = "axis") -> int:
        """Return ``axis`` counted from the front; negative ones count from the end. Raises :class:`NetError` outside of ``shape``."""
        if not -len(shape) <= axis < len(shape):
            raise self.error(f"{what} {axis} is outside of a blob of {len(shape)} axes {format_shape(shape)}")
        return axis % len(shape)

    def expect_axes(self, shape: Shape, count: int, *, bottom: int = 0) -> Shape:
        """Return ``shape``, which must have ``count`` axes. Raises :class:`NetError` naming the blob."""
        if len(shape) != count:
            raise self.error(f"bottom '{self.bottoms[bottom]}' must have {count} axes, not {format_shape(shape)}")
        return shape

    def legacy_axes(self, shape: Shape, *, bottom: int = 0) -> Shape:
        """Return ``shape`` as (N, C, H, W), where missing axes count 1, as Caffe's num(), channels(), height() and width() read it.

        Raises:
            NetError: There are more than 4 axes; names the blob.
        """
        if len(shape) > 4:
            raise self.error(f"bottom '{self.bottoms[bottom]}' must have at most 4 axes, not {format_shape(shape)}")
        return (*shape, *(1,) * (4 - len(shape)))

    def array(self, index: int) -> NDArray[np.float32]:
        """Return a copy of parameter blob ``index`` as float32 in C order, for constants of an exported graph."""
        return np.array(self.blobs[index].detach().cpu().numpy(), np.float32, order="C")

    def _check_arity(self) -> None:
        tops = (len(self.bottoms), len(self.bottoms)) if self.TOPS == SAME_AS_BOTTOMS else self.TOPS
        for what, count, (low, high) in (("bottom", len(self.bottoms), self.BOTTOMS), ("top", len(self.tops), tops)):
            if count < low or (high is not None and count > high):
                wanted = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
                raise self.error(f"takes {wanted} {what} blob(s), but the prototxt gives {count}")


def _check_in_place(layer: Layer) -> None:
    shared = next((top for top in layer.tops if top in layer.bottoms), None)
    kind = layer.caffe_in_place() if shared is not None else ""
    if kind == "refused":
        raise layer.error(f"its top '{shared}' is its bottom too, which Caffe refuses; give it a top of its own")
    if kind:
        raise layer.error(f"its top '{shared}' is its bottom too, which Caffe overwrites before it has read it; give it a top of its own")
