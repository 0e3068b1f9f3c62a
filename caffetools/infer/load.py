"""Open a deployed net with one of the engines, with the preprocessing that is stored with it."""

from __future__ import annotations

import os
from pathlib import Path

from caffetools.engines.base import ENGINE_SUFFIXES, Engine, EngineError
from caffetools.errors import ExportError
from caffetools.infer.picture_bytes import PictureBytesEngine, is_for_bytes
from caffetools.infer.sidecar import read_preprocessing
from caffetools.net.precision_modes import check_mode
from caffetools.results import Preprocessing

PathLike = str | os.PathLike[str]

ENGINES = ("torch", "onnxruntime", "opencv", "caffe", "tensorrt")


def open_engine(
    deploy: PathLike, weights: PathLike | None = None, *, engine: str | None = None, device: str = "cpu", precision: str = "fp32"
) -> tuple[Engine, Preprocessing | None]:
    """Open ``deploy`` (a prototxt with its ``weights``, an ONNX file or a TensorRT engine) with ``engine``.

    onnxruntime and tensorrt run a prototxt too: it is exported in memory first.

    Args:
        deploy: A deploy prototxt, an ONNX file, or an engine that TensorRT built.
        weights: The .caffemodel of a prototxt.
        engine: ``"torch"``, ``"onnxruntime"``, ``"tensorrt"``, or in an environment of their own ``"opencv"`` or ``"caffe"``; None takes
            torch for a prototxt, onnxruntime for an ONNX file and tensorrt for an engine.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
        precision: ``"fp32"``, ``"tf32"``, ``"bf16"`` or ``"fp16"``; the engine ``"torch"`` has others than float32.

    Returns:
        The engine, and the preprocessing in the ONNX file's metadata or in the prototxt's ``deploy.json``; None if there is none.

    Raises:
        CaffeToolsError: The engine is unknown, or a file is missing or does not fit.
    """
    suffix = Path(deploy).suffix.lower()
    name = engine or usual_engine(deploy)
    if name not in ENGINES:
        raise EngineError(f"unknown engine '{name}'; known are {', '.join(ENGINES)}")
    check_mode(precision)
    if precision != "fp32" and name != "torch":
        hint = "an ONNX file has its own precision: caffetools quantize --precision fp16 makes one of half precision"
        raise EngineError(f"--precision {precision} is for the engine torch, not for {name}", hint=hint)
    if name == "torch":
        from caffetools.engines.torch import TorchEngine

        return TorchEngine.load(deploy, weights, device=device, precision=precision), read_preprocessing(deploy)
    if name in ("opencv", "caffe"):
        from caffetools.engines.external import CaffeEngine, OpenCVEngine

        external = CaffeEngine if name == "caffe" else OpenCVEngine
        return external.load(deploy, weights, device=device), read_preprocessing(deploy)
    if name == "tensorrt":
        from caffetools.engines.tensorrt import TensorRTEngine, require_tensorrt

        # Before a net is exported for nothing.
        require_tensorrt()
        if suffix == ".onnx":
            built = TensorRTEngine.load(deploy, weights)
            return built, Preprocessing.from_properties(built.properties)
        if suffix in ENGINE_SUFFIXES:
            return TensorRTEngine.load(deploy, weights), read_preprocessing(deploy)
        return TensorRTEngine.load(_exported(deploy, weights)), read_preprocessing(deploy)
    from caffetools.engines.onnxruntime import OnnxRuntimeEngine

    if suffix == ".onnx":
        loaded = OnnxRuntimeEngine.load(deploy, weights, device=device)
        engine_of_model = PictureBytesEngine(loaded) if is_for_bytes(loaded) else loaded
        return engine_of_model, Preprocessing.from_properties(loaded.properties)
    return OnnxRuntimeEngine.load(_exported(deploy, weights), device=device), read_preprocessing(deploy)


def usual_engine(deploy: PathLike) -> str:
    """Return the engine that runs a file of this name where none is chosen."""
    suffix = Path(deploy).suffix.lower()
    return "onnxruntime" if suffix == ".onnx" else "tensorrt" if suffix in ENGINE_SUFFIXES else "torch"


def _exported(deploy: PathLike, weights: PathLike | None) -> bytes:
    from caffetools.engines.torch import TorchEngine
    from caffetools.onnx.export import to_onnx

    net = TorchEngine.load(deploy, weights).net
    try:
        return to_onnx(net).SerializeToString()
    except ExportError as error:
        try:
            return to_onnx(net, dynamic_axes=()).SerializeToString()
        except ExportError:
            # Its batch size was not what is wrong.
            raise error from None
