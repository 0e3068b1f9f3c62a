"""Short forms for the ONNX nodes of layers that need many."""

from __future__ import annotations

import numpy as np

from caffetools.layers.base import OnnxGraph, Size


class Nodes:
    """Short forms for nodes with one output."""

    def __init__(self, graph: OnnxGraph):
        self.graph = graph

    def __call__(self, op: str, *inputs: str, **attributes: object) -> str:
        result = self.graph.value(op.lower())
        self.graph.node(op, list(inputs), [result], **attributes)
        return result

    def ints(self, *values: int) -> str:
        """Add a constant of int64 values, (len(values),), and return its name."""
        return self.graph.constant("ints", np.array(values, np.int64))

    def number(self, value: float) -> str:
        """Add a float32 scalar, and return its name."""
        return self.graph.constant("number", np.array(value, np.float32))

    def part(self, value: str, start: int, end: int, axis: int) -> str:
        """Return ``value[start:end]`` along ``axis``."""
        return self("Slice", value, self.ints(start), self.ints(end), self.ints(axis))

    def reshape(self, value: str, *parts: Size) -> str:
        """Return ``value`` reshaped to ``parts``; see :meth:`OnnxGraph.reshape`."""
        result = self.graph.value("reshaped")
        self.graph.reshape(value, result, parts)
        return result

    def column(self, table: str, index: int) -> str:
        """Column ``index`` of a table of two axes, (rows, 1)."""
        return self.part(table, index, index + 1, 1)
