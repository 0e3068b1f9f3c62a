"""A model that holds its preprocessing and takes bytes of pictures, behind the interface of one that takes a net's inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.engines.base import Engine, EngineError
from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import ModelFileError
from caffetools.infer.preprocess import Preprocessor
from caffetools.layers.base import format_shape
from caffetools.results import PREPROCESSED, Preprocessing

PathLike = str | os.PathLike[str]
# Pixels are whole numbers; float32 of a mean and a scale moves them by less.
_ROUNDING = 0.02


class PictureBytesEngine(Engine):
    """What ``export --preprocess`` writes: uint8 (N, H, W, C) RGB or gray inside, float32 (N, C, H, W) in the net's channel order outside.

    Args:
        engine: The loaded model.

    Raises:
        ModelFileError: The preprocessing in its metadata is missing or damaged.
    """

    name = "onnxruntime"

    def __init__(self, engine: OnnxRuntimeEngine):
        self.engine, self.outputs, self.batch = engine, engine.outputs, engine.batch
        self.inputs = {name: (n, c, h, w) for name, (n, h, w, c) in engine.inputs.items()}
        how = Preprocessing.from_properties(engine.properties)
        if how is None:
            raise ModelFileError("the ONNX model takes bytes of pictures, and its metadata do not hold their preprocessing")
        self.how = how
        self.mean = Preprocessor(next(iter(self.inputs.values())), how).input_mean

    @classmethod
    def load(cls, deploy: PathLike, weights: PathLike | None = None, *, device: str = "cpu") -> PictureBytesEngine:
        """Load an ONNX file that takes bytes. Raises a :class:`CaffeToolsError` naming the file where that is not possible."""
        return cls(OnnxRuntimeEngine.load(deploy, weights, device=device))

    def predict(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on a net's inputs of pictures, whose bytes are computed back; raises :class:`EngineError` for inputs that are no pictures."""
        return self.engine.predict({name: self._bytes(batch[name]) for name in self.inputs})

    def _bytes(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        pixels = np.asarray(values, np.float64) / self.how.scale + self.mean
        whole = np.rint(pixels)
        if whole.min(initial=0) < 0 or whole.max(initial=0) > 255 or np.abs(pixels - whole).max(initial=0) > _ROUNDING:
            raise EngineError(
                f"the model holds its preprocessing and takes bytes of pictures, and these inputs ({format_shape(values.shape)}) are none",
                hint="run it on pictures (for verify: --images DIR)",
            )
        rows = whole.astype(np.uint8).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(rows[..., ::-1] if self.how.channel_order == "BGR" else rows)


def is_for_bytes(engine: OnnxRuntimeEngine) -> bool:
    """Return whether a model holds its preprocessing."""
    return PREPROCESSED in engine.properties and all(len(shape) == 4 for shape in engine.inputs.values())
