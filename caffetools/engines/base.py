"""What an engine is: something that loads a deployed network and gives its outputs for a batch."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from numpy.typing import NDArray

from caffetools.errors import CaffeToolsError
from caffetools.layers.shapes import Shape

PathLike = str | os.PathLike[str]
# Files of engines that TensorRT built: what `trtexec --saveEngine` and the scripts of bundles are given.
ENGINE_SUFFIXES = (".engine", ".plan", ".trt")


class Engine(ABC):
    """A loaded network that predicts.

    Attributes:
        name: What ``--engine`` calls it.
        inputs: The input blobs' shapes by name, (N, C, H, W); a batch size that is free is as the model's file has it, or 1.
        outputs: The output blobs' names. batch: the only batch size it takes, or None for any.
    """

    name: ClassVar[str]
    inputs: dict[str, Shape]
    outputs: list[str]
    batch: int | None

    @classmethod
    @abstractmethod
    def load(cls, deploy: PathLike, weights: PathLike | None = None, *, device: str = "cpu") -> Engine:
        """Load a network. Raises a :class:`CaffeToolsError` naming the file where that is not possible."""

    @abstractmethod
    def predict(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once. ``batch``: every input blob by name, float32; gives every output blob by name, float32."""


class EngineError(CaffeToolsError):
    """An engine that is unknown, cannot run here, or was given a batch it cannot take."""
