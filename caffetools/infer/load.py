"""Opening a deployed network with one of the engines, and what it says of its preprocessing."""

from __future__ import annotations

import os
from pathlib import Path

from caffetools.engines.base import Engine, EngineError
from caffetools.onnx.metadata import Preprocessing

PathLike = str | os.PathLike[str]

ENGINES = ("torch", "onnxruntime")


def open_engine(
    deploy: PathLike, weights: PathLike | None = None, *, engine: str | None = None, device: str = "cpu"
) -> tuple[Engine, Preprocessing | None]:
    """Open ``deploy`` (a prototxt with its ``weights``, or an ONNX file) with ``engine``.

    onnxruntime runs a prototxt too: it is exported in memory first.

    Args:
        engine: ``"torch"`` or ``"onnxruntime"``; None takes torch for a prototxt and onnxruntime for an ONNX file.

    Returns:
        The engine, and the preprocessing that an exported ONNX file says of itself.

    Raises:
        CaffeToolsError: no such engine, or a file is missing or does not fit.
    """
    is_onnx = Path(deploy).suffix.lower() == ".onnx"
    name = engine or ("onnxruntime" if is_onnx else "torch")
    if name == "torch":
        from caffetools.engines.torch import TorchEngine

        return TorchEngine.load(deploy, weights, device=device), None
    if name != "onnxruntime":
        raise EngineError(f"unknown engine '{name}'; known are {', '.join(ENGINES)}")
    from caffetools.engines.onnxruntime import OnnxRuntimeEngine

    if is_onnx:
        loaded = OnnxRuntimeEngine.load(deploy, weights, device=device)
        return loaded, Preprocessing.from_properties(loaded.properties)
    from caffetools.engines.torch import TorchEngine
    from caffetools.onnx.export import to_onnx

    net = TorchEngine.load(deploy, weights).net
    return OnnxRuntimeEngine.load(to_onnx(net).SerializeToString(), device=device), None
