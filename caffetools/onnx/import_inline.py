"""What is rewritten before a model runs: functions and branches whose condition is constant are put into the graph; which outer values a body reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper

from caffetools.onnx.model import tensor_array

# Operators that give other numbers in each run, so that their values are not constant even where no input is.
RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"})

_OTHER_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the bodies of its own functions in place of the nodes that call them."""
    if not model.functions:
        return model
    inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    return inlined


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with float32 in place of other float types, since that is what a Caffe net computes with."""
    graph = model.graph
    typed = any(tensor.data_type in _OTHER_FLOATS for tensor in graph.initializer)
    if not typed and not any(value.type.tensor_type.elem_type in _OTHER_FLOATS for value in (*graph.input, *graph.output)):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _widen(result.graph)
    return result


def _widen(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _OTHER_FLOATS:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in graph.node:
        for item in node.attribute:
            if item.name == ("to" if node.op_type == "Cast" else "dtype") and item.i in _OTHER_FLOATS:
                item.i = onnx.TensorProto.FLOAT
            if item.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(item.t)
        for body in bodies(node):
            _widen(body)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _OTHER_FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(tensor_array(tensor).astype(np.float32), tensor.name))


def in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every node behind those whose values it reads, which onnxruntime does not ask for."""
    made = {name for node in model.graph.node for name in node.output if name}
    waiting, known, ordered = list(model.graph.node), set[str](), list[onnx.NodeProto]()
    while waiting:
        rest = []
        for node in waiting:
            if read_values(node) & made <= known:
                ordered.append(node)
                known.update(node.output)
            else:
                rest.append(node)
        if len(rest) == len(waiting):
            # Nodes in a circle; onnxruntime says which.
            return model
        waiting = rest
    if all(one is other for one, other in zip(ordered, model.graph.node, strict=True)):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(ordered)
    return result


def steps_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with Transposes around recurrent nodes whose batch is first (``layout``), which onnxruntime does not run."""
    if not any(_is_batch_first(node) for node in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for index, node in enumerate(model.graph.node):
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        if not _is_batch_first(node):
            result.graph.node.append(copied)
            continue
        name = node.name or f"{node.op_type}_{index}"
        copied.attribute.remove(next(item for item in copied.attribute if item.name == "layout"))
        # x is (N, T, I) then, a state (N, directions, D), and y (N, T, directions, D).
        for place in (0, 5, 6):
            if place < len(node.input) and node.input[place]:
                copied.input[place] = f"{name}/steps_first/{place}"
                result.graph.node.append(helper.make_node("Transpose", [node.input[place]], [copied.input[place]], perm=[1, 0, 2]))
        copied.output[:] = [f"{name}/steps_first/y{place}" if value else "" for place, value in enumerate(node.output)]
        result.graph.node.append(copied)
        for place, value in enumerate(node.output):
            if value:
                order = [1, 0, 2] if place else [2, 0, 1, 3]
                result.graph.node.append(helper.make_node("Transpose", [copied.output[place]], [value], perm=order))
    return result


def _is_batch_first(node: onnx.NodeProto) -> bool:
    recurrent = is_own(node) and node.op_type in ("LSTM", "GRU", "RNN")
    return recurrent and any(item.name == "layout" and item.i for item in node.attribute)


def is_own(node: onnx.NodeProto) -> bool:
    """Return whether a node's operator is one of ONNX's own, not of another domain."""
    return node.domain in ("", "ai.onnx")


def read_values(node: onnx.NodeProto) -> set[str]:
    """Return the values that a node reads, those that its bodies (of If, Loop, Scan) take from the graph around them included."""
    read = {name for name in node.input if name}
    for body in bodies(node):
        read |= _outer_values(body)
    return read


def has_branches(model: onnx.ModelProto) -> bool:
    """Return whether a node of the graph is an If."""
    return any(node.op_type == "If" and is_own(node) for node in model.graph.node)


def inline_branches(model: onnx.ModelProto, constants: Mapping[str, NDArray[Any]]) -> onnx.ModelProto | None:
    """Return a copy in which every If of a constant condition is replaced by the nodes of its branch; None where no If has one."""
    chosen = {
        index: bool(constants[node.input[0]].reshape(-1)[0])
        for index, node in enumerate(model.graph.node)
        if node.op_type == "If" and is_own(node) and node.input[0] in constants
    }
    if not chosen:
        return None
    return replace_nodes(model, {index: partial(_put_branch, model.graph.node[index], then=then) for index, then in chosen.items()})


def replace_nodes(model: onnx.ModelProto, replacements: Mapping[int, Callable[[onnx.GraphProto], None]]) -> onnx.ModelProto:
    """Return a copy in which other nodes stand for some of the graph's.

    Args:
        model: The model.
        replacements: A node's index → what adds to the new graph the nodes that stand for it.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for index, node in enumerate(model.graph.node):
        if index in replacements:
            replacements[index](result.graph)
        else:
            result.graph.node.add().CopyFrom(node)
    return result


def _put_branch(node: onnx.NodeProto, graph: onnx.GraphProto, *, then: bool) -> None:
    """Add the nodes of an If's branch to ``graph``; its outputs get the names of the If's, and its values the node's name in front of theirs."""
    branch = next(item.g for item in node.attribute if item.name == ("then_branch" if then else "else_branch"))
    prefix = f"{node.name or node.output[0]}/"
    renamed = put_nodes(graph, branch.initializer, branch.node, prefix, {})
    for source, name in zip(branch.output, node.output, strict=False):
        if name:
            graph.node.add(op_type="Identity", name=prefix + name, input=[renamed.get(source.name, source.name)], output=[name])


def put_nodes(
    graph: onnx.GraphProto, tensors: Iterable[onnx.TensorProto], nodes: Iterable[onnx.NodeProto], prefix: str, given: Mapping[str, str]
) -> dict[str, str]:
    """Add tensors and nodes of a body to ``graph``; their values get ``prefix``.

    Args:
        graph: Where they go.
        tensors: Initializers of the body.
        nodes: Nodes of the body.
        prefix: In front of the names of nodes and values.
        given: Value of the body → the value of ``graph`` that it is.

    Returns:
        Value of the body → its name in ``graph``, of those that were added.
    """
    tensors, nodes = list(tensors), list(nodes)
    own = {tensor.name for tensor in tensors} | {name for node in nodes for name in node.output if name}
    renamed = {name: prefix + name for name in own}
    for tensor in tensors:
        added = graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = renamed[tensor.name]
    for node in nodes:
        copied = graph.node.add()
        copied.CopyFrom(node)
        copied.name = prefix + node.name if node.name else ""
        _rename(copied, {**given, **renamed})
    return renamed


def _rename(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    """Give a node's values other names, in its bodies too, unless a body has a value of its own by that name."""
    for names in (node.input, node.output):
        names[:] = [renamed.get(name, name) for name in names]
    for body in bodies(node):
        rest = {name: new for name, new in renamed.items() if name not in _own_values(body)}
        for value in body.output:
            value.name = rest.get(value.name, value.name)
        for inner in body.node:
            _rename(inner, rest)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node has as attributes."""
    for item in node.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            yield item.g
        yield from item.graphs


def _own_values(body: onnx.GraphProto) -> set[str]:
    made = {name for node in body.node for name in node.output}
    return made | {value.name for value in body.input} | {tensor.name for tensor in body.initializer}


def _outer_values(body: onnx.GraphProto) -> set[str]:
    read = {value.name for value in body.output}.union(*(read_values(node) for node in body.node))
    return read - _own_values(body)
