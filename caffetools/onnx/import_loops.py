"""Loops whose number of steps is the same in each run (Loop, Scan), written out step by step before a model is imported."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from caffetools.engines.onnxruntime import open_session
from caffetools.onnx.import_inline import RANDOM, bodies, is_own, put_nodes, read_values, replace_nodes

# As many as a recurrent node is written out for.
MOST_STEPS = 512
# From this opset on Unsqueeze reads its axes from an input, and Scan has no batch axis.
_AXES_AS_INPUT, _SCAN_WITHOUT_BATCH = 13, 9


@dataclass
class _Loop:
    """A node whose body is repeated.

    Attributes:
        node: The Loop or Scan.
        index: Its place among the graph's nodes.
        body: Its graph.
        steps: How often the body runs.
        states: How many values each step takes from the one before.
        sliced: Values of which each step reads one slice, with the axis and whether the last slice is first.
        stacked: The same of the values of all steps that are outputs.
    """

    node: onnx.NodeProto
    index: int
    body: onnx.GraphProto
    steps: int
    states: int
    sliced: list[tuple[str, int, bool]]
    stacked: list[tuple[int, bool]]

    @property
    def name(self) -> str:
        return self.node.name or self.node.output[0]


def has_loops(model: onnx.ModelProto) -> bool:
    """Return whether a node of the graph is a Loop or a Scan."""
    return any(node.op_type in ("Loop", "Scan") and is_own(node) for node in model.graph.node)


def name_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with names for outputs of loops that are left out, with which onnxruntime ends the process."""
    if not any("" in node.output or len(node.output) < _outputs(node) for node in _loops_in(model.graph)):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for number, node in enumerate(_loops_in(result.graph)):
        node.output.extend([""] * (_outputs(node) - len(node.output)))
        for index, name in enumerate(node.output):
            if not name:
                node.output[index] = f"{node.name or node.op_type}/unused{number}_{index}"
    return result


def _loops_in(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the loops of a graph and of its nodes' bodies."""
    for node in graph.node:
        if node.op_type in ("Loop", "Scan") and is_own(node):
            yield node
        for body in bodies(node):
            yield from _loops_in(body)


def _outputs(loop: onnx.NodeProto) -> int:
    body = next(bodies(loop))
    return len(body.output) - (1 if loop.op_type == "Loop" else 0)


def unroll_loops(
    model: onnx.ModelProto, depends: Collection[str], values: Mapping[str, NDArray[Any]], feed: Mapping[str, NDArray[Any]], opset: int
) -> onnx.ModelProto | None:
    """Return a copy in which loops are replaced by the nodes of all their steps; None where none has a fixed number of at most 512 steps.

    Args:
        model: A model that runs.
        depends: The values that change with the model's inputs.
        values: What the nodes' outputs are in a run.
        feed: The inputs of that run.
        opset: Version of ONNX's operators.
    """
    loops = [*_scans(model, values, opset), *_counted(model, depends, feed)]
    chosen = {loop.index: loop for loop in loops if 0 < loop.steps <= MOST_STEPS}
    if not chosen:
        return None
    return replace_nodes(model, {index: partial(_unroll, loop, opset) for index, loop in chosen.items()})


def _scans(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]], opset: int) -> Iterator[_Loop]:
    """Yield the Scans; sizes are fixed, so their numbers of steps are."""
    known = dict(values) | {tensor.name: tensor for tensor in model.graph.initializer}
    for index, node in enumerate(model.graph.node):
        if node.op_type != "Scan" or not is_own(node) or opset < _SCAN_WITHOUT_BATCH:
            continue
        given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        count, body = int(given["num_scan_inputs"]), given["body"]
        states = len(node.input) - count
        made = len(node.output) - states
        names, shapes = list(node.input[states:]), []
        for name in names:
            value = known[name]
            shapes.append(tuple(value.dims) if isinstance(value, onnx.TensorProto) else np.shape(value))
        axes, backwards = (list(given.get(key, [0] * count)) for key in ("scan_input_axes", "scan_input_directions"))
        out_axes, out_backwards = (list(given.get(key, [0] * made)) for key in ("scan_output_axes", "scan_output_directions"))
        sliced = [
            (name, int(axis) % len(shape), bool(back)) for name, shape, axis, back in zip(names, shapes, axes, backwards, strict=True)
        ]
        stacked = [(int(axis), bool(back)) for axis, back in zip(out_axes, out_backwards, strict=True)]
        yield _Loop(node, index, body, int(shapes[0][sliced[0][1]]), states, sliced, stacked)


def _counted(model: onnx.ModelProto, depends: Collection[str], feed: Mapping[str, NDArray[Any]]) -> list[_Loop]:
    """Return the Loops that end after the same number of steps for all inputs, with that number, which is counted in a run."""
    found = []
    for index, node in enumerate(model.graph.node):
        if node.op_type == "Loop" and is_own(node):
            body = next(bodies(node))
            states = len(body.input) - 2
            stacked = [(0, False)] * (len(body.output) - 1 - states)
            if not any(name in depends for name in node.input[:2]) and not _ends_by_values(node, body, depends):
                found.append(_Loop(node, index, body, 0, states, [], stacked))
    if found:
        counting = onnx.ModelProto()
        counting.CopyFrom(model)
        del counting.graph.output[:], counting.graph.value_info[:]
        for loop in found:
            node = counting.graph.node[loop.index]
            body = next(bodies(node))
            body.node.add(op_type="Identity", input=[body.input[0].name], output=["counted/step"])
            body.output.append(helper.make_tensor_value_info("counted/step", onnx.TensorProto.INT64, []))
            node.output.append(f"counted/{loop.index}")
            counting.graph.output.append(helper.make_empty_tensor_value_info(f"counted/{loop.index}"))
        counts = open_session(counting, fast=False).run(feed)
        for loop in found:
            loop.steps = len(counts[f"counted/{loop.index}"])
    return found


def _ends_by_values(node: onnx.NodeProto, body: onnx.GraphProto, depends: Collection[str]) -> bool:
    """Return whether a Loop's condition depends on the model's inputs, perhaps through values of the steps before."""
    states = [value.name for value in body.input[2:]]
    changing = {inner for inner, outer in zip(states, node.input[2:], strict=False) if outer in depends}
    while True:
        reached = changing | {name for name in depends if name not in {value.name for value in body.input}}
        for inner in body.node:
            if inner.op_type in RANDOM or read_values(inner) & reached:
                reached.update(inner.output)
        found = changing | {state for state, made in zip(states, body.output[1:], strict=False) if made.name in reached}
        if found == changing:
            return body.output[0].name in reached
        changing = found


def _unroll(loop: _Loop, opset: int, graph: onnx.GraphProto) -> None:
    """Add the nodes of every step to ``graph``, and the loop's outputs."""
    inputs = [value.name for value in loop.body.input]
    is_loop = loop.node.op_type == "Loop"
    fixed = _split(loop, inputs)
    shared = put_nodes(graph, loop.body.initializer, fixed, f"{loop.name}/", {})
    states = list(loop.node.input[2 : 2 + loop.states] if is_loop else loop.node.input[: loop.states])
    rest = [node for node in loop.body.node if not any(node is other for other in fixed)]
    results: list[list[str]] = [[] for _ in loop.stacked]
    for step in range(loop.steps):
        prefix = f"{loop.name}/{step}/"
        given = _step_inputs(graph, loop, prefix, step)
        names = shared | dict(zip(inputs, [*given[:2], *states] if is_loop else [*states, *given], strict=True))
        names |= put_nodes(graph, (), rest, prefix, names)
        made = [names.get(value.name, value.name) for value in loop.body.output[1 if is_loop else 0 :]]
        states = made[: loop.states]
        for values, value in zip(results, made[loop.states :], strict=True):
            values.append(value)
    for source, name in zip(states, loop.node.output, strict=False):
        graph.node.add(op_type="Identity", name=f"{loop.name}/{name}", input=[source], output=[name])
    for (axis, backwards), values, name in zip(loop.stacked, results, loop.node.output[loop.states :], strict=True):
        _stack(graph, values[::-1] if backwards else values, name, axis, opset)


def _split(loop: _Loop, inputs: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the nodes of a body that give the same in all steps, as its weights do; they are needed once."""
    changing, fixed = set(inputs), []
    for node in loop.body.node:
        if node.op_type in RANDOM or read_values(node) & changing:
            changing.update(node.output)
        else:
            fixed.append(node)
    return fixed


def _step_inputs(graph: onnx.GraphProto, loop: _Loop, prefix: str, step: int) -> list[str]:
    """Add what a step reads in addition to the states: its number and a true condition, or a slice of each input of a Scan."""
    if loop.node.op_type == "Loop":
        number, condition = f"{prefix}step", f"{prefix}condition"
        graph.initializer.append(numpy_helper.from_array(np.array(step, np.int64), number))
        graph.initializer.append(numpy_helper.from_array(np.array(True), condition))
        return [number, condition]
    names = []
    for index, (value, axis, backwards) in enumerate(loop.sliced):
        name, place = f"{prefix}slice{index}", loop.steps - 1 - step if backwards else step
        graph.initializer.append(numpy_helper.from_array(np.array(place, np.int64), f"{name}/place"))
        graph.node.add().CopyFrom(helper.make_node("Gather", [value, f"{name}/place"], [name], name=name, axis=axis))
        names.append(name)
    return names


def _stack(graph: onnx.GraphProto, values: Sequence[str], name: str, axis: int, opset: int) -> None:
    """Add the nodes that put the values of all steps next to each other along a new axis."""
    if opset >= _AXES_AS_INPUT:
        graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), f"{name}/axis"))
    parts = [f"{name}/{step}" for step in range(len(values))]
    for value, part in zip(values, parts, strict=True):
        added = graph.node.add(op_type="Unsqueeze", name=part, input=[value], output=[part])
        if opset >= _AXES_AS_INPUT:
            added.input.append(f"{name}/axis")
        else:
            added.attribute.append(helper.make_attribute("axes", [axis]))
    graph.node.add().CopyFrom(helper.make_node("Concat", parts, [name], name=f"{name}/stacked", axis=axis))
