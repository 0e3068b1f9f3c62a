"""Which axes of an exported graph may have any size, found by giving the net other input sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from caffetools.errors import ExportError, NetError
from caffetools.layers.base import Shape
from caffetools.net.net import Net

Shapes = dict[str, Shape]

AXES = ("batch", "height", "width")
# The symbol of each kind of axis in ONNX.
_SYMBOLS = {"batch": "N", "height": "H", "width": "W"}
# Sizes to try in addition to the net's own: any size where the net takes it, else multiples of 32, which deep nets of fixed ratios need.
_STEPS = (((1, 15), (32, 2)), ((32, 64), (64, 32)))


@dataclass
class FreeShapes:
    """The blobs' shapes at several input sizes, and what follows from them.

    Attributes:
        base: Blob → shape as the net is configured.
        cases: Input shapes to verify with, the net's own first.
        case_shapes: Blob → shape, for each case.
        free: Blob → the axes whose size is known at run time only.
        symbols: Blob → axis → the symbol of an axis that is always as long as the inputs' batch, height or width.
    """

    base: Shapes
    cases: list[Shapes]
    case_shapes: list[Shapes] = field(default_factory=list)
    free: dict[str, frozenset[int]] = field(default_factory=dict)
    symbols: dict[str, dict[int, str]] = field(default_factory=dict)

    def dims(self, blob: str) -> list[int | str | None]:
        """Return the shape as ONNX declares it: numbers, symbols, and None for an axis that depends on the inputs in another way."""
        free, symbols = self.free.get(blob, frozenset()), self.symbols.get(blob, {})
        return [symbols.get(axis) if axis in free else size for axis, size in enumerate(self.base[blob])]


def find_free_shapes(net: Net, inputs: Collection[str], axes: Collection[str]) -> FreeShapes:
    """Find the shapes of ``net`` when ``axes`` of its inputs are free.

    Args:
        net: The net; its configuration is the same afterwards.
        inputs: The input blobs that are read.
        axes: Some of ``batch`` (axis 0 of every input), ``height`` and ``width`` (axes 2 and 3 of inputs of four axes).

    Raises:
        ExportError: The net takes no other sizes; names the layer at fault.
    """
    base = {blob: net.blob_shapes[blob] for blob in inputs}
    found = FreeShapes(dict(net.blob_shapes), [base])
    if "batch" in axes:
        _check_batch(net, base, [axis for axis in AXES if axis in axes and axis != "batch"])
    changes: dict[str, Shapes] = {}
    probe = _Probe(net)
    with _restored(net, base):
        for axis in AXES:
            if axis in axes:
                changes[axis] = _first_possible(probe, base, [axis])[0]
        if axes:
            found.cases += _first_possible(probe, base, list(axes))
        for shapes in [*changes.values(), *found.cases[1:]]:
            _compare(probe, found, shapes)
        _name_axes(probe, found, changes)
        found.case_shapes = [found.base, *(probe.shapes(case) for case in found.cases[1:])]
    return found


def batch_limit(net: Net) -> str:
    """Return why ``net`` takes no other batch size than it is configured for; ``""`` where it takes others."""
    try:
        find_free_shapes(net, read_inputs(net), ("batch",))
    except ExportError as error:
        return error.message
    return ""


def read_inputs(net: Net) -> list[str]:
    """Return the inputs that a layer reads."""
    read = {blob for layer in net.layers for blob in layer.bottoms}
    return [blob for blob in net.inputs if blob in read]


class _Probe:
    """The net's shapes at other input sizes, each computed once."""

    def __init__(self, net: Net):
        self.net = net
        self._known: dict[tuple[tuple[str, Shape], ...], Shapes] = {}

    def shapes(self, inputs: Mapping[str, Shape]) -> Shapes:
        """Return every blob's shape. Raises :class:`NetError` where the net does not take the inputs."""
        key = tuple(sorted(inputs.items()))
        if key not in self._known:
            self.net.reshape(inputs)
            self._known[key] = dict(self.net.blob_shapes)
        return self._known[key]


def _check_batch(net: Net, base: Shapes, others: list[str]) -> None:
    hint = "fix the batch size instead (--batch N)"
    sizes = {shape[0] if shape else 0 for shape in base.values()}
    if len(sizes) > 1:
        # One --batch for all would change the sizes of some.
        hint = f"leave it out (--dynamic-axes {','.join(others)})" if others else "leave every size as it is (--dynamic-axes '')"
        raise ExportError(f"the inputs {', '.join(base)} differ in their first axis, so it cannot be the batch axis", hint=hint)
    if sizes == {0} or not sizes:
        raise ExportError(f"the net '{net.name}' has no input with a batch axis", hint=hint)


def _first_possible(probe: _Probe, base: Shapes, axes: list[str]) -> list[Shapes]:
    """Two other sets of input shapes in which ``axes`` differ from ``base``; sizes that the net takes."""
    error: NetError | None = None
    for steps in _STEPS:
        cases = [{blob: _changed(shape, axes, number, step) for blob, shape in base.items()} for number, step in enumerate(steps, 1)]
        try:
            for case in cases[: 1 if axes == ["batch"] else None]:
                probe.shapes(case)
        except NetError as problem:
            error = error or problem
        else:
            return cases[:1] if axes == ["batch"] else cases
    size = "batch size" if axes == ["batch"] else f"{' and '.join(axes)}"
    hint = "fix the batch size instead (--batch N)" if axes == ["batch"] else "leave it out of --dynamic-axes and give --input-shape"
    now = next(iter(base.values()))[0] if axes == ["batch"] else "those of the net"
    raise ExportError(f"the net takes no other {size} than {now} ({error})", hint=hint)


def _changed(shape: Shape, axes: list[str], number: int, step: tuple[int, int]) -> Shape:
    new = list(shape)
    if "batch" in axes and new:
        new[0] += number
    for name, axis, more in (("height", 2, step[0]), ("width", 3, step[1])):
        if name in axes and len(new) == 4:
            # Nets that declare 1 x 1 inputs are tried at sizes that mean something.
            new[axis] = max(new[axis], 32) + more
    return tuple(new)


def _compare(probe: _Probe, found: FreeShapes, inputs: Mapping[str, Shape]) -> None:
    for blob, shape in probe.shapes(inputs).items():
        here = found.base[blob]
        if len(shape) != len(here):
            raise ExportError("its number of axes depends on the size of the inputs, which ONNX cannot express", blob=blob)
        different = {axis for axis, sizes in enumerate(zip(here, shape, strict=True)) if sizes[0] != sizes[1]}
        found.free[blob] = found.free.get(blob, frozenset()) | different


def _name_axes(probe: _Probe, found: FreeShapes, changes: Mapping[str, Shapes]) -> None:
    """Give a symbol to the axes that are as long as the inputs' in the base and in every change."""
    for name, inputs in changes.items():
        axis = {"batch": 0, "height": 2, "width": 3}[name]
        source = next((blob for blob, shape in inputs.items() if len(shape) > axis and (axis == 0 or len(shape) == 4)), None)
        if source is None:
            continue
        changed = probe.shapes(inputs)
        lengths = (found.base[source][axis], changed[source][axis])
        for blob, shape in changed.items():
            for place, sizes in enumerate(zip(found.base[blob], shape, strict=True)):
                if sizes == lengths and sizes[0] != sizes[1]:
                    found.symbols.setdefault(blob, {}).setdefault(place, _SYMBOLS[name])


@contextmanager
def _restored(net: Net, base: Shapes) -> Iterator[None]:
    try:
        yield
    finally:
        net.reshape(base)
