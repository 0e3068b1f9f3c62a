"""An ONNX graph made ready for import: fixed sizes, constants folded, and the shape of every value known."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx.version_converter
from numpy.typing import NDArray
from onnx import helper

from caffetools.engines.base import EngineError
from caffetools.engines.input_shapes import fill_free_axes
from caffetools.engines.onnxruntime import Session, open_session
from caffetools.errors import ExportError, ModelFileError
from caffetools.layers.base import Shape, format_shape
from caffetools.onnx.import_inline import (
    RANDOM,
    has_branches,
    in_float32,
    in_order,
    inline_branches,
    inline_functions,
    is_own,
    read_values,
    steps_first,
)
from caffetools.onnx.import_loops import has_loops, name_outputs, unroll_loops
from caffetools.onnx.model import tensor_array

Array = NDArray[Any]

# The oldest opset that onnxruntime runs; models of older ones are converted.
_OLDEST_OPSET = 7


class ImportFailed(ExportError):
    """A part of an ONNX model that has no Caffe layers with the same numbers; names the node and the reason."""


@dataclass(eq=False)
class Node:
    """A node that depends on the graph's inputs.

    Attributes:
        op: The operator; of another domain than ONNX's own with the domain in front, as ``com.microsoft.Gelu``.
        name: The node's name, or that of its first output.
        inputs: Names of its inputs; ``""`` for one that is left out.
        outputs: Names of its outputs.
        attributes: Attribute name → Python value; tensors as arrays.
        domain: The operator's domain, ``""`` for ONNX's own.
    """

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""

    def error(self, reason: str) -> ImportFailed:
        """Return an error that names the node; to be raised."""
        return ImportFailed(f"node '{self.name}' ({self.op}): {reason}")


@dataclass
class ImportGraph:
    """Nodes in order, and what is known about their values.

    Attributes:
        name: The graph's name.
        nodes: Nodes that depend on the inputs; all others are constants.
        inputs: Input name → shape.
        outputs: Names of the outputs.
        shapes: Value → shape, for sizes of the inputs as they are.
        constants: Value → array, of every value that does not depend on the inputs.
        sample: Value → array for one random input; what the imported net is compared with.
        second: Input or output → array for another one.
        opset: Version of ONNX's operators.
        batch_axes: Value → the axis whose size is the batch's, of a model that takes any batch and moves it; empty for others.
    """

    name: str
    nodes: list[Node]
    inputs: dict[str, Shape]
    outputs: list[str]
    shapes: dict[str, Shape]
    constants: dict[str, Array]
    sample: dict[str, Array]
    second: dict[str, Array]
    opset: int
    batch_axes: dict[str, int] = field(default_factory=dict)
    _readers: dict[str, list[Node]] | None = None

    def readers(self, value: str) -> list[Node]:
        """Return the nodes that read ``value``."""
        if self._readers is None:
            self._readers = {}
            for node in self.nodes:
                for name in dict.fromkeys(node.inputs):
                    self._readers.setdefault(name, []).append(node)
        return self._readers.get(value, [])

    def maker(self, value: str) -> Node | None:
        """Return the node that makes ``value``; None for an input or a constant."""
        return next((node for node in self.nodes if value in node.outputs), None)

    def only_reader(self, value: str) -> Node | None:
        """Return the single node that reads ``value``, if nothing else needs it."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def replace(self, old: Sequence[Node], new: Node) -> None:
        """Put ``new`` in the place of the last of ``old``."""
        place = max(self.nodes.index(node) for node in old)
        self.nodes[place] = new
        self.nodes = [node for node in self.nodes if all(node is not merged for merged in old)]
        self._readers = None

    def forget_readers(self) -> None:
        """Search the readers of values again, after ``nodes`` was changed."""
        self._readers = None


def prepare(model: onnx.ModelProto, input_shapes: Mapping[str, Shape] | None = None, seed: int = 0) -> ImportGraph:
    """Fix the sizes of ``model``'s inputs, run it once, and fold what does not depend on the inputs.

    Args:
        model: The model, with its weights.
        input_shapes: Input name → shape, for inputs whose sizes are free; a free batch size is 1.
        seed: Seed of the inputs of the run.

    Raises:
        ImportFailed: A size is free and not given, or an input is not float32.
        ModelFileError: onnxruntime cannot load the model.
    """
    model, opset = _runnable(name_outputs(steps_first(in_order(in_float32(inline_functions(model))))))
    fixed = _fixed_inputs(model, dict(input_shapes or {}))
    random = np.random.RandomState(seed)
    # The second is wider, so that what holds only for small values is found too.
    feeds = [{name: (random.randn(*shape) * width).astype(np.float32) for name, shape in fixed.items()} for width in (1, 3)]
    depends, values, session = _run(model, feeds[0])
    while has_branches(model) or has_loops(model):
        inlined = inline_branches(model, _constants(model, values, depends)) or unroll_loops(model, depends, values, feeds[0], opset)
        if inlined is None:
            break
        model = inlined
        depends, values, session = _run(model, feeds[0])
    constants = _constants(model, values, depends)
    shapes: dict[str, Shape] = {name: tuple(np.shape(value)) for name, value in (constants | values).items()}
    nodes = [_node(proto) for proto in model.graph.node if any(name in depends for name in proto.output)]
    outputs = [value.name for value in model.graph.output]
    second = feeds[1] | session.run(feeds[1], outputs=list(dict.fromkeys(outputs)))
    batch_axes = _batch_axes(model, feeds[0], shapes)
    return ImportGraph(model.graph.name or "net", nodes, fixed, outputs, shapes, constants, values, second, opset, batch_axes)


def _run(model: onnx.ModelProto, feed: Mapping[str, Array]) -> tuple[set[str], dict[str, Array], Session]:
    """Run a model once; gives the values that depend on its inputs, what every value is, and the session."""
    depends = _dependent_values(model, feed)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {value.name for value in exposed.graph.output}
    made = [name for node in model.graph.node for name in node.output if name]
    exposed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made if name not in known)
    # Shapes that were inferred for other sizes would contradict the run.
    del exposed.graph.value_info[:]
    session = open_session(exposed, fast=False)
    return depends, {**session.run(feed), **feed}, session


def _batch_axes(model: onnx.ModelProto, feed: Mapping[str, Array], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Run a model of any batch size, some node of which may move the batch, with twice the batch; gives the axis of each value that is longer then."""
    free = [value for value in model.graph.input if value.name in feed and not any(_sizes(value)[:1])]
    moving = any(_moves_batch(node) for node in model.graph.node)
    if not moving or len(free) < len(feed):
        return {}
    try:
        _, values, _ = _run(model, {name: np.concatenate([value, value]) for name, value in feed.items()})
    except (EngineError, ModelFileError):
        # Sizes that were written into the model are those of one batch size.
        return {}
    found = {}
    for name, value in values.items():
        before = shapes.get(name, ())
        changed = [axis for axis, pair in enumerate(zip(before, np.shape(value), strict=False)) if pair[0] != pair[1]]
        if len(changed) == 1:
            found[name] = changed[0]
    return found


def _moves_batch(node: onnx.NodeProto) -> bool:
    order = [list(item.ints) for item in node.attribute if item.name == "perm"] if node.op_type == "Transpose" else []
    return node.op_type in ("LSTM", "GRU", "RNN", "Reshape") or (node.op_type == "Transpose" and (not order or order[0][0] != 0))


def _constants(model: onnx.ModelProto, values: Mapping[str, Array], depends: Collection[str]) -> dict[str, Array]:
    weights = {tensor.name: tensor_array(tensor) for tensor in model.graph.initializer}
    return weights | {name: value for name, value in values.items() if name not in depends}


def _runnable(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return a model of an opset that onnxruntime runs, whose nodes have different names, and its opset."""
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)
    if opset < _OLDEST_OPSET:
        try:
            model = onnx.version_converter.convert_version(onnx.shape_inference.infer_shapes(model), _OLDEST_OPSET)
        except Exception as error:
            # The converter is C++ code that raises RuntimeError and ValueError of its own.
            reason = " ".join(str(error).split())[:200]
            raise ImportFailed(f"it has opset {opset}, and onnx cannot bring it to opset {_OLDEST_OPSET}: {reason}") from None
        opset = _OLDEST_OPSET
    names = [node.name for node in model.graph.node if node.name]
    if len(set(names)) < len(names):
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        model, seen = copied, set()
        for index, node in enumerate(model.graph.node):
            if node.name in seen:
                node.name = f"{node.name}_{index}"
            seen.add(node.name)
    return model, opset


def _fixed_inputs(model: onnx.ModelProto, given: dict[str, Shape]) -> dict[str, Shape]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    properties = {item.key: item.value for item in model.metadata_props}
    fixed: dict[str, Shape] = {}
    if unknown := [name for name in given if name not in {value.name for value in inputs}]:
        raise ImportFailed(f"the model has no input '{unknown[0]}'; its inputs are {', '.join(value.name for value in inputs)}")
    for value in inputs:
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
            raise ImportFailed(
                f"input '{value.name}' is {kind}, and a Caffe net takes float32 only",
                hint="export the model again without the nodes that convert pictures (for caffetools: without --preprocess)",
            )
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and not dims:
            raise ImportFailed(
                f"input '{value.name}' is a single number without axes, and a Caffe net takes blobs (N, …)",
                hint="export the model again with that number as a constant, or as a tensor of 1 x 1",
            )
        if value.name in given:
            _check_given(value, given[value.name])
        sizes = _sizes(value)
        shape = given.get(value.name) or fill_free_axes(value.name, sizes, properties)
        if not shape or math.prod(shape) == 0:
            free = " x ".join(str(size or ("?" if axis else 1)) for axis, size in enumerate(sizes))
            # As an example, what maps of an image classifier have.
            example = [size or (224 if axis else 1) for axis, size in enumerate(sizes or [1, 3, 224, 224])]
            raise ImportFailed(
                f"input '{value.name}' is {free}, with sizes that are free",
                hint=f"give them: --input-shape {value.name}={','.join(map(str, example))}",
            )
        fixed[value.name] = tuple(shape)
    return fixed


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    """Return the sizes of an input; 0 for a free one, which old exporters of Paddle write as -1."""
    return [max(int(dim.dim_value), 0) for dim in value.type.tensor_type.shape.dim]


def _check_given(value: onnx.ValueInfoProto, shape: Shape) -> None:
    """Raise where the shape that the user gives cannot be that of an input: another number of axes, or another size than a fixed one."""
    if not value.type.tensor_type.HasField("shape"):
        return
    sizes = _sizes(value)
    if len(sizes) == len(shape) and all(size in (0, own) for size, own in zip(sizes, shape, strict=True)):
        return
    own = " x ".join(str(size or "?") for size in sizes) or "a single number"
    what = f"{len(shape)} axes" if len(sizes) != len(shape) else "other sizes where the model's are fixed"
    raise ImportFailed(f"input '{value.name}' is {own} in the model, and {format_shape(shape)} has {what}", hint="correct --input-shape")


def _dependent_values(model: onnx.ModelProto, inputs: Collection[str]) -> set[str]:
    """Return the values that change with the inputs' values, or from run to run; a Shape does not, since sizes are fixed."""
    depends = set(inputs)
    for node in model.graph.node:
        if is_own(node) and node.op_type in ("Shape", "Size"):
            continue
        if node.op_type not in RANDOM and not any(name in depends for name in read_values(node)):
            continue
        depends.update(name for name in node.output if name)
    return depends


def _node(proto: onnx.NodeProto) -> Node:
    attributes = {item.name: _plain(helper.get_attribute_value(item)) for item in proto.attribute}
    domain = "" if is_own(proto) else proto.domain
    # Other domains have operators of the same names, with other inputs and other numbers.
    op = f"{domain}.{proto.op_type}" if domain else proto.op_type
    return Node(op, proto.name or proto.output[0], list(proto.input), list(proto.output), attributes, domain)


def _plain(value: object) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return tensor_array(value) if isinstance(value, onnx.TensorProto) else value


def pad_amounts(node: Node, axes: int, constants: Mapping[str, Array]) -> list[int]:
    """Return the padding at the beginning of each axis, then that at the end of each. Raises where it is not constant."""
    amounts = node.attributes.get("pads", node.attributes.get("paddings"))
    if amounts is None:
        given = constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if given is None:
            raise node.error("its pads must be constant")
        amounts = [int(n) for n in np.asarray(given).reshape(-1)]
    chosen = constants.get(node.inputs[3]) if len(node.inputs) > 3 else None
    if chosen is None:
        return [int(n) for n in amounts]
    full = [0] * 2 * axes
    for index, axis in enumerate(int(a) % axes for a in np.asarray(chosen).reshape(-1)):
        full[axis], full[axes + axis] = int(amounts[index]), int(amounts[len(amounts) // 2 + index])
    return full


def pad_value(node: Node, constants: Mapping[str, Array]) -> float:
    """Return the constant of a Pad."""
    given = constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    return float(np.asarray(given).reshape(-1)[0]) if given is not None and np.size(given) else float(node.attributes.get("value", 0.0))
