"""MemoryData: batches from arrays that a program gives (memory_data_layer.cpp)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.data.layers.batch_source import batch_size_of
from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import TEST, LayerParameter

log = logging.getLogger(__name__)


@register("MemoryData")
class MemoryData(Layer):
    """The arrays of :meth:`set_arrays`, batch by batch, over and over: data (N, C, H, W) and labels.

    The label top has the shape (N) until the first pass, then (N, 1, 1, 1), as in Caffe. As there, ``transform_param`` has no
    effect on arrays that are set.
    """

    TRAITS = Traits(role="data", source="memory_data_param", transforms=True, label_tops="numbers")
    BOTTOMS = (0, 0)
    TOPS = (2, 2)
    IS_DATA = True

    @classmethod
    def stored_item(cls, param: LayerParameter) -> Shape | None:
        """Return (C, H, W), as the settings name it."""
        settings = param.memory_data_param
        return (settings.channels, settings.height, settings.width)

    def __init__(self, param: LayerParameter, phase: int = TEST):
        super().__init__(param, phase)
        self._data = self._labels = torch.empty(0)
        self._position = 0

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.memory_data_param
        size = batch_size_of(self, param.batch_size)
        if min(param.channels, param.height, param.width) < 1:
            raise self.error("channels, height and width must all be given in memory_data_param")
        return [(size, param.channels, param.height, param.width), (size,)]

    def set_arrays(self, data: NDArray[Any], labels: NDArray[Any]) -> None:
        """Set the items and labels of the coming passes, and start at the first.

        float32 arrays in C order are used where they are, as in Caffe: what is written to them later is read by the next passes. Others
        are copied, with a warning in the log.

        Args:
            data: (M, C, H, W), M a multiple of the batch size; ``transform_param`` is not applied.
            labels: M values, such as (M, 1, 1, 1).

        Raises:
            NetError: The shapes are not those of the layer.
        """
        size, *shape = self.setup([])[0]
        if tuple(data.shape[1:]) != tuple(shape):
            raise self.error(f"the arrays must be M x {format_shape(shape)}, not {format_shape(data.shape)}")
        if not len(data) or len(data) % size:
            raise self.error(f"the number of pictures ({len(data)}) must be a multiple of the batch size ({size})")
        if labels.size != len(data):
            raise self.error(f"there are {labels.size} labels for {len(data)} pictures")
        self._data = torch.from_numpy(self._shared(data, "data"))
        self._labels = torch.from_numpy(self._shared(labels, "labels")).view(-1, 1, 1, 1)
        self._position = 0

    def _shared(self, array: NDArray[Any], what: str) -> NDArray[np.float32]:
        """Return ``array`` itself where it is float32 in C order and can be written to, else a copy."""
        if array.dtype == np.float32 and array.flags.c_contiguous and array.flags.writeable:
            return array
        log.warning(
            "layer '%s': the %s are not float32 in C order, so they are copied: what is written to the array later does not reach the net",
            self.name,
            what,
        )
        return np.array(array, np.float32, order="C")

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        if not len(self._data):
            raise self.error("has no data yet: call set_arrays (set_input_arrays in pycaffe) before the first pass")
        begin, size = self._position, int(self.param.memory_data_param.batch_size)
        self._position = (begin + size) % len(self._data)
        return self._data[begin : begin + size].clone(), self._labels[begin : begin + size].clone()

    def get_state(self) -> dict[str, int]:
        """Return where in the arrays the next batch begins; the arrays themselves belong to the program."""
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue where :meth:`get_state` was called; arrays of another length are read from their start."""
        position = int(state["position"])
        self._position = position if position < len(self._data) else 0

    def to_onnx(self, graph: OnnxGraph) -> None:
        """Add nothing: the exporter makes the net's inputs the graph's."""
