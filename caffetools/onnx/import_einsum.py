"""Einsum, written as the nodes that it stands for: sums, moved axes and one matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.onnx.import_graph import ImportGraph, Node

Array = NDArray[Any]


def expand_einsums(graph: ImportGraph) -> None:
    """Replace every Einsum of one or two operands by ReduceSum, Transpose, Reshape and MatMul.

    Raises:
        ImportFailed: Its equation is something else than sums and a matrix product; names the node.
    """
    if not any(node.op == "Einsum" for node in graph.nodes):
        return
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        if node.op == "Einsum":
            _Expansion(graph, node).add()
        else:
            graph.nodes.append(node)
    graph.forget_readers()


class _Expansion:
    """The nodes of one Einsum. A term is a string with a letter for each axis of a value."""

    def __init__(self, graph: ImportGraph, node: Node):
        self.graph, self.node, self.number = graph, node, 0
        self.terms, self.output = self._read()
        self.sizes: dict[str, int] = {}
        for term, value in zip(self.terms, node.inputs, strict=True):
            if len(set(term)) < len(term):
                raise node.error("it takes the diagonal of an operand, which no layer does")
            for letter, size in zip(term, graph.shapes[value], strict=True):
                if self.sizes.setdefault(letter, size) != size:
                    raise node.error("it repeats an axis of 1 of one operand along the other's")

    def add(self) -> None:
        """Add the nodes to the graph."""
        values = list(self.node.inputs)
        for index, term in enumerate(self.terms):
            values[index], self.terms[index] = self._summed(values[index], term, "".join(self.terms[:index] + self.terms[index + 1 :]))
        if len(values) == 1:
            value, term = values[0], self.terms[0]
        else:
            value, term = self._product(values, self.terms)
        self._transposed(value, term, self.output, name=self.node.outputs[0])

    def _read(self) -> tuple[list[str], str]:
        """Return the terms of the operands and of the output, with letters in place of dots."""
        equation = str(self.node.attributes["equation"]).replace(" ", "")
        left, arrow, right = equation.partition("->")
        terms = left.split(",")
        if len(terms) > 2:
            raise self.node.error(f"it has {len(terms)} operands, and a matrix product has 2")
        ranks = [len(self.graph.shapes[value]) for value in self.node.inputs]
        counts = [rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
        # Characters that an equation cannot have; those of the last axes are the same in both operands.
        dots = [chr(0x100 + index) for index in range(max(counts))]
        named = [term.replace("...", "".join(dots[len(dots) - count :])) for term, count in zip(terms, counts, strict=True)]
        if not arrow:
            letters = "".join(terms).replace(".", "")
            right = ("..." if max(counts) else "") + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
        return named, right.replace("...", "".join(dots))

    def _summed(self, value: str, term: str, others: str) -> tuple[str, str]:
        """Sum over the axes that nothing else has; gives the value and its term."""
        axes = [axis for axis, letter in enumerate(term) if letter not in others + self.output]
        if not axes:
            return value, term
        kept = "".join(letter for letter in term if letter in others + self.output)
        total = self._array(value).sum(tuple(axes))
        return self._value("ReduceSum", [value], total, {"axes": axes, "keepdims": 0}), kept

    def _product(self, values: list[str], terms: list[str]) -> tuple[str, str]:
        """Add a MatMul of the two operands (…, rows, inner) and (…, inner, columns); gives its value and term."""
        if values[0] in self.graph.constants:
            values, terms = values[::-1], terms[::-1]
        first, second = terms
        both = "".join(letter for letter in self.output if letter in first and letter in second)
        inner = "".join(letter for letter in first if letter in second and letter not in self.output)
        rows = "".join(letter for letter in self.output if letter in first and letter not in second)
        columns = "".join(letter for letter in self.output if letter in second and letter not in first)
        if not inner:
            raise self.node.error("it is an outer product, which no layer computes")
        constant = values[1] in self.graph.constants
        if constant and not both:
            # An InnerProduct along the last axis keeps all axes before it.
            left = self._grouped(values[0], first, [*rows, inner])
            right = self._grouped(values[1], second, [inner, columns])
            value = self._value("MatMul", [left, right], self._array(left) @ self._array(right))
            return self._split(value, [*rows, columns]), rows + columns
        left = self._grouped(values[0], first, [*both, rows, inner])
        right = self._grouped(values[1], second, [*both, inner, columns])
        value = self._value("MatMul", [left, right], self._array(left) @ self._array(right))
        return self._split(value, [*both, rows, columns]), both + rows + columns

    def _grouped(self, value: str, term: str, groups: Sequence[str]) -> str:
        """Return a value with one axis for each group of letters, in their order."""
        moved = self._transposed(value, term, "".join(groups))
        shape = tuple(math.prod(self.sizes[letter] for letter in group) for group in groups)
        return moved if self.graph.shapes[moved] == shape else self._value("Reshape", [moved], self._array(moved).reshape(shape))

    def _split(self, value: str, groups: Sequence[str]) -> str:
        """Return a value whose axes are groups with one axis for each letter."""
        shape = tuple(self.sizes[letter] for group in groups for letter in group)
        return value if self.graph.shapes[value] == shape else self._value("Reshape", [value], self._array(value).reshape(shape))

    def _transposed(self, value: str, term: str, wanted: str, name: str = "") -> str:
        order = [term.index(letter) for letter in wanted]
        if order == sorted(order):
            return self._value("Identity", [value], self._array(value), name=name) if name else value
        return self._value("Transpose", [value], self._array(value).transpose(order), {"perm": order}, name)

    def _array(self, value: str) -> Array:
        known = self.graph.constants.get(value)
        return self.graph.sample[value] if known is None else known

    def _value(self, op: str, inputs: list[str], array: Array, attributes: dict[str, Any] | None = None, name: str = "") -> str:
        """Add a node and what its output is for the sample; a constant where its inputs are. Gives the output."""
        self.number += 1
        name = name or f"{self.node.name}/{self.number}"
        self.graph.shapes[name] = tuple(array.shape)
        if all(value in self.graph.constants for value in inputs):
            self.graph.constants[name] = np.ascontiguousarray(array)
            return name
        self.graph.sample[name] = np.ascontiguousarray(array)
        self.graph.nodes.append(Node(op, self.node.name, inputs, [name], attributes or {}))
        return name
