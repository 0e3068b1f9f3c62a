"""onnxruntime as an engine: what an exported model gives where it is deployed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from caffetools.engines.base import Engine, EngineError, PathLike
from caffetools.errors import ModelFileError


class OnnxRuntimeEngine(Engine):
    """An ONNX model in onnxruntime, on the CPU or through its CUDA provider."""

    name = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession):
        self.session = session
        given = {value.name: list(value.shape) for value in session.get_inputs()}
        # A free axis is a name or None.
        for name, shape in given.items():
            if any(not isinstance(n, int) for n in shape[1:]):
                raise EngineError(f"input '{name}' of the ONNX model leaves more than the batch size free ({shape}); fix the other axes")
        self.inputs = {name: tuple(n if isinstance(n, int) else 1 for n in shape) for name, shape in given.items()}
        self.outputs = [value.name for value in session.get_outputs()]
        first = [shape[0] for shape in given.values() if shape]
        self.batch = next((n for n in first if isinstance(n, int)), None)

    @classmethod
    def load(cls, deploy: PathLike | bytes, weights: PathLike | None = None, *, device: str = "cpu") -> OnnxRuntimeEngine:
        """Load an ONNX file, or a model's bytes; the weights are in it.

        Raises:
            ModelFileError: it is missing, or not a model that onnxruntime can run.
            EngineError: weights are given too, or onnxruntime has no such device.
        """
        name = "the ONNX model" if isinstance(deploy, bytes) else os.fspath(deploy)
        if weights is not None:
            raise EngineError(f"{name}: an ONNX file has its weights in it; {weights} is not needed (say - in its place)")
        if not isinstance(deploy, bytes) and not Path(deploy).is_file():
            raise ModelFileError(f"{name}: no such file")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            # By path, so that a model of hundreds of megabytes is not held twice.
            source = deploy if isinstance(deploy, bytes) else os.fspath(deploy)
            return cls(onnxruntime.InferenceSession(source, options, providers=_providers(device)))
        except Exception as error:
            if isinstance(error, EngineError):
                raise
            # onnxruntime's exceptions have no common base class but Exception.
            raise ModelFileError(f"{name}: onnxruntime cannot load it: {_one_line(error)}") from None

    @property
    def properties(self) -> dict[str, str]:
        """The model's ``metadata_props``."""
        return dict(self.session.get_modelmeta().custom_metadata_map)

    def predict(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see :class:`Engine`. Raises :class:`EngineError` where the batch does not fit the model."""
        given = {blob: np.ascontiguousarray(value, np.float32) for blob, value in batch.items()}
        try:
            values = self.session.run(self.outputs, given)
        except Exception as error:
            raise EngineError(f"onnxruntime cannot run the model: {_one_line(error)}") from None
        return dict(zip(self.outputs, values, strict=True))


def _providers(device: str) -> list[str]:
    there = onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in there):
        return ["CPUExecutionProvider"]
    if device in ("cuda", "auto") and "CUDAExecutionProvider" in there:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    raise EngineError(
        f"onnxruntime has no device '{device}' here (it has {', '.join(there)}); say cpu, or install onnxruntime-gpu for cuda"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
