"""Open a deployed net with one of the engines, with the preprocessing that is stored with it."""

from __future__ import annotations

import os
from pathlib import Path

from caffetools.engines.base import Engine, EngineError
from caffetools.infer.sidecar import read_preprocessing
from caffetools.results import Preprocessing

PathLike = str | os.PathLike[str]

ENGINES = ("torch", "onnxruntime", "opencv", "caffe")


def open_engine(
    deploy: PathLike, weights: PathLike | None = None, *, engine: str | None = None, device: str = "cpu"
) -> tuple[Engine, Preprocessing | None]:
    """Open ``deploy`` (a prototxt with its ``weights``, or an ONNX file) with ``engine``.

    onnxruntime runs a prototxt too: it is exported in memory first.

    Args:
        deploy: A deploy prototxt, or an ONNX file.
        weights: The .caffemodel of a prototxt.
        engine: ``"torch"``, ``"onnxruntime"``, or in an environment of their own ``"opencv"`` or ``"caffe"``; None takes torch for a prototxt and onnxruntime for an ONNX file.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.

    Returns:
        The engine, and the preprocessing in the ONNX file's metadata or in the prototxt's ``deploy.json``; None if there is none.

    Raises:
        CaffeToolsError: The engine is unknown, or a file is missing or does not fit.
    """
    is_onnx = Path(deploy).suffix.lower() == ".onnx"
    name = engine or ("onnxruntime" if is_onnx else "torch")
    if name == "torch":
        from caffetools.engines.torch import TorchEngine

        return TorchEngine.load(deploy, weights, device=device), read_preprocessing(deploy)
    if name in ("opencv", "caffe"):
        from caffetools.engines.external import CaffeEngine, OpenCVEngine

        external = CaffeEngine if name == "caffe" else OpenCVEngine
        return external.load(deploy, weights, device=device), read_preprocessing(deploy)
    if name != "onnxruntime":
        raise EngineError(f"unknown engine '{name}'; known are {', '.join(ENGINES)}")
    from caffetools.engines.onnxruntime import OnnxRuntimeEngine

    if is_onnx:
        loaded = OnnxRuntimeEngine.load(deploy, weights, device=device)
        return loaded, Preprocessing.from_properties(loaded.properties)
    from caffetools.engines.torch import TorchEngine
    from caffetools.onnx.export import to_onnx

    net = TorchEngine.load(deploy, weights).net
    return OnnxRuntimeEngine.load(to_onnx(net).SerializeToString(), device=device), read_preprocessing(deploy)
