"""TensorRT as an engine, on an NVIDIA GPU; the only place that imports tensorrt (8.5 or later; bundles bring a runner of their own).

torch allocates the memory on the GPU, so nothing but TensorRT's own package is needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from caffetools.engines.base import ENGINE_SUFFIXES, Engine, EngineError, PathLike
from caffetools.errors import ModelFileError
from caffetools.layers.base import Shape

if TYPE_CHECKING:
    import tensorrt

# Batch sizes of an engine that is built from a model with a free batch size: smallest, the one it is tuned for, largest.
_BATCHES = (1, 1, 64)


class TensorRTEngine(Engine):
    """A TensorRT engine on the first GPU.

    Attributes:
        properties: The ``metadata_props`` of the ONNX model it was built from here.
    """

    name = "tensorrt"

    def __init__(self, engine: tensorrt.ICudaEngine, source: str, properties: Mapping[str, str] | None = None):
        self._engine, self._source, self.properties = engine, source, dict(properties or {})
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{source}: TensorRT cannot make an execution context; is there enough memory on the GPU?")
        tensorrt = require_tensorrt()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        given = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        shapes = {name: tuple(engine.get_tensor_shape(name)) for name in given}
        for name, shape in shapes.items():
            if any(size < 0 for size in shape[1:]):
                raise EngineError(f"input '{name}' of {source} leaves more than the batch size free ({shape}); fix the other axes")
        self.inputs: dict[str, Shape] = {name: tuple(max(size, 1) for size in shape) for name, shape in shapes.items()}
        self.outputs = [name for name in names if name not in shapes]
        self._types = {name: np.dtype(tensorrt.nptype(engine.get_tensor_dtype(name))) for name in names}
        sizes = [shape[0] for shape in shapes.values() if shape]
        self.batch = next((size for size in sizes if size > 0), None)
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @classmethod
    def load(cls, deploy: PathLike | bytes, weights: PathLike | None = None, *, device: str = "cuda") -> TensorRTEngine:
        """Load an engine file, or build an engine in float32 from an ONNX file or a model's bytes.

        Args:
            deploy: An engine (.engine, .plan, .trt) that TensorRT built on this kind of GPU, an ONNX file, or an ONNX model's bytes.
            weights: None: they are in the model.
            device: ``cuda`` or ``auto``; TensorRT has no other.

        Raises:
            ModelFileError: The file is missing, or not one that TensorRT takes.
            EngineError: TensorRT or a GPU is missing, or ``device`` is another.
        """
        source = "the ONNX model" if isinstance(deploy, bytes) else os.fspath(deploy)
        if weights is not None:
            raise EngineError(f"{source}: it has its weights in it; {weights} is not needed (give - in its place)")
        is_engine = not isinstance(deploy, bytes) and Path(deploy).suffix.lower() in ENGINE_SUFFIXES
        try:
            data = deploy if isinstance(deploy, bytes) else Path(deploy).read_bytes()
        except OSError as error:
            raise ModelFileError(f"cannot read it: {error.strerror}", path=source) from None
        tensorrt = require_tensorrt(device)
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        tensorrt.init_libnvinfer_plugins(logger, "")
        serialized = data if is_engine else _build(tensorrt, logger, data, source)
        engine = tensorrt.Runtime(logger).deserialize_cuda_engine(serialized)
        if engine is None:
            hint = f"build it on this machine with this TensorRT ({tensorrt.__version__}): trtexec --onnx=MODEL.onnx --saveEngine=FILE"
            raise ModelFileError("TensorRT cannot load it", path=source, hint=hint)
        model = None if is_engine else onnx.load_model_from_string(data)
        return cls(engine, source, {} if model is None else {item.key: item.value for item in model.metadata_props})

    def predict(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on arrays (N, …) of float32, as :meth:`Engine.predict` does. Raises :class:`EngineError` where the batch does not fit."""
        with torch.cuda.stream(self._stream):
            buffers = {name: torch.from_numpy(np.ascontiguousarray(batch[name], self._types[name])).cuda() for name in self.inputs}
            for name, value in buffers.items():
                if not self._context.set_input_shape(name, tuple(value.shape)):
                    raise EngineError(f"{self._source}: input '{name}' does not take the shape {tuple(value.shape)}")
            for name in self.outputs:
                shape = tuple(self._context.get_tensor_shape(name))
                if any(size < 0 for size in shape):
                    raise EngineError(f"{self._source}: the size of output '{name}' depends on the input's values, which is not supported")
                buffers[name] = torch.from_numpy(np.empty(shape, self._types[name])).cuda()
            for name, value in buffers.items():
                self._context.set_tensor_address(name, value.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise EngineError(f"{self._source}: TensorRT failed to run it")
        self._stream.synchronize()
        return {name: buffers[name].cpu().numpy().astype(np.float32) for name in self.outputs}


def require_tensorrt(device: str = "cuda") -> ModuleType:
    """Return the module ``tensorrt``. Raises :class:`EngineError` where it or a GPU is missing, or ``device`` is not ``cuda`` or ``auto``."""
    if device not in ("cuda", "auto"):
        raise EngineError(f"TensorRT runs on a GPU, not on the device '{device}'")
    try:
        import tensorrt
    except ImportError as error:
        hint = "with an NVIDIA GPU, `pip install tensorrt`; on a Jetson, JetPack has it (python3-libnvinfer)"
        raise EngineError(f"the package tensorrt is not installed here ({error})", hint=hint) from None
    if not hasattr(tensorrt.ICudaEngine, "num_io_tensors"):
        raise EngineError(
            f"TensorRT {tensorrt.__version__} is too old; 8.5 or later is needed", hint="a bundle's classify.py runs with older ones"
        )
    if not torch.cuda.is_available():
        raise EngineError("TensorRT needs an NVIDIA GPU, and torch sees none here", hint="install torch with CUDA, or run it on the device")
    return tensorrt  # type: ignore[no-any-return]


def _build(tensorrt: ModuleType, logger: tensorrt.ILogger, model: bytes, source: str) -> tensorrt.IHostMemory:
    """Build an engine in float32, without the shorter mantissas of TF32, from an ONNX model."""
    builder = tensorrt.Builder(logger)
    # From 10 on, every network has its batch size in its shapes.
    flags = 0 if int(tensorrt.__version__.partition(".")[0]) >= 10 else 1 << int(tensorrt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    network = builder.create_network(flags)
    parser = tensorrt.OnnxParser(network, logger)
    # With its path, a model finds the weights that it keeps in a second file.
    is_file = Path(source).is_file()
    if not (parser.parse_from_file(source) if is_file else parser.parse(model)):
        reasons = "; ".join(" ".join(parser.get_error(index).desc().split()) for index in range(parser.num_errors))
        raise ModelFileError(f"TensorRT cannot read it: {reasons[:300]}", path=source)
    config = builder.create_builder_config()
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    profile, is_free = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        value = network.get_input(index)
        shape = tuple(value.shape)
        if shape and shape[0] < 0 and all(size > 0 for size in shape[1:]):
            profile.set_shape(value.name, *[(size, *shape[1:]) for size in _BATCHES])
            is_free = True
    if is_free:
        config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ModelFileError(f"TensorRT {tensorrt.__version__} cannot build an engine of it", path=source)
    return built
