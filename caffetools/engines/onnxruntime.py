"""onnxruntime as an engine; the only place that imports onnxruntime."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from caffetools.engines.base import Engine, EngineError, PathLike
from caffetools.engines.input_shapes import fill_free_axes
from caffetools.errors import ModelFileError
from caffetools.proto.sniff import Kind, wrong_kind

# onnxruntime's telemetry starts when it is imported and leaves a device id in the user's home; only this variable, which the import
# reads, switches it off. It is set for the import alone: the process and its children keep the environment that they were given.
_was_given = "ORT_DISABLE_TELEMETRY" in os.environ
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime
finally:
    if not _was_given:
        os.environ.pop("ORT_DISABLE_TELEMETRY", None)

# Errors come as exceptions, so its log would only repeat them.
_FATAL = 4
onnxruntime.set_default_logger_severity(_FATAL)


class Session:
    """A loaded model: inputs and outputs as it declares them, free axes included.

    Attributes:
        shapes: Input name → sizes; a free axis is a name or None.
        types: Input name → NumPy type.
        outputs: The outputs' names.
        properties: The model's ``metadata_props``.
    """

    def __init__(self, session: onnxruntime.InferenceSession):
        self._session = session
        self.shapes = {value.name: list(value.shape) for value in session.get_inputs()}
        self.types: dict[str, np.dtype[Any]] = {value.name: _TYPES.get(value.type, np.dtype(np.float32)) for value in session.get_inputs()}
        self.outputs = [value.name for value in session.get_outputs()]
        # Read now, while the file can be named if they are damaged.
        self.properties: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)

    def run(self, batch: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run once: every input by name to every output by name, or to ``outputs``; arrays (N, …) of float32. Raises :class:`EngineError` where the batch does not fit."""
        wanted = self.outputs if outputs is None else list(outputs)
        given = {name: np.ascontiguousarray(batch[name], kind) for name, kind in self.types.items()}
        try:
            values = self._session.run(wanted, given)
        except Exception as error:
            raise EngineError(f"onnxruntime cannot run the model: {_one_line(error)}") from None
        return dict(zip(wanted, values, strict=True))


def open_session(
    source: PathLike | bytes | onnx.ModelProto,
    *,
    device: str = "cpu",
    weights: Mapping[str, NDArray[Any]] | None = None,
    fast: bool = True,
    arena: bool = True,
) -> Session:
    """Load a model.

    Args:
        source: An ONNX file, a model's bytes, or a model.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        weights: Arrays for the initializers that are external in the model; onnxruntime copies them.
        fast: False optimizes less, which loads sooner.
        arena: False takes memory from the system and returns it, which is slower in repeated runs.

    Raises:
        ModelFileError: The file is missing, or not a model that onnxruntime can run.
        EngineError: onnxruntime has no such device.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the ONNX model"
    if isinstance(source, str | os.PathLike) and not Path(source).is_file():
        raise ModelFileError("no such file", path=name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not fast:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if not arena:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if weights:
        # Prepacked weights would be copies.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_external_initializers(list(weights), [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()])
    providers = _providers(device)
    if any("\udc80" <= character <= "\udcff" for character in name):
        raise ModelFileError("is a name that is not UTF-8, which onnxruntime does not open", path=name, hint="rename the file or folder")
    try:
        # Without its fallback, which prints what it does; an error says what failed. By path, so that a model of hundreds of megabytes is not held twice.
        model = source.SerializeToString() if isinstance(source, onnx.ModelProto) else source if isinstance(source, bytes) else name
        return Session(onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0))
    except UnicodeDecodeError:
        raise ModelFileError("damaged: its metadata or names are not UTF-8", path=name, hint="fetch or copy the file again") from None
    except Exception as error:
        # onnxruntime's exceptions have no common base class but Exception.
        if isinstance(source, str | os.PathLike) and (other := wrong_kind(ModelFileError, source, "an ONNX model", allowed=(Kind.ONNX,))):
            raise other from None
        if (opset := _opset(model)) > newest_opset():
            raise ModelFileError(
                f"has opset {opset}, and onnxruntime {onnxruntime.__version__} runs opsets up to {newest_opset()}",
                path=name,
                hint="take a lower --opset for an export, or install a newer onnxruntime",
            ) from None
        raise ModelFileError(f"onnxruntime cannot load it: {_one_line(error)}", path=name) from None


@cache
def newest_opset() -> int:
    """Return the newest version of ONNX's operators that this onnxruntime runs, at most the newest of this onnx."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    for opset in range(onnx.defs.onnx_opset_version(), 0, -1):
        imports = [onnx.helper.make_opsetid("", opset)]
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=onnx.helper.find_min_ir_version_for(imports))
        with suppress(Exception):
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            return opset
    return 0


def _opset(model: bytes | str) -> int:
    """Return the version of ONNX's own operators in a model; 0 where it cannot be read."""
    with suppress(Exception):
        read = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load_model(model, load_external_data=False)
        return max((int(entry.version) for entry in read.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    return 0


class OnnxRuntimeEngine(Engine):
    """An ONNX model in onnxruntime, on the CPU or through its CUDA provider."""

    name = "onnxruntime"

    def __init__(self, session: Session):
        self.session = session
        self.inputs = {}
        for name, dims in session.shapes.items():
            shape = fill_free_axes(name, dims, session.properties)
            if shape is None:
                raise EngineError(f"input '{name}' of the ONNX model leaves more than the batch size free ({dims}); fix the other axes")
            self.inputs[name] = shape
        self.outputs = session.outputs
        first = [shape[0] for shape in session.shapes.values() if shape]
        self.batch = next((n for n in first if isinstance(n, int)), None)

    @classmethod
    def load(cls, deploy: PathLike | bytes, weights: PathLike | None = None, *, device: str = "cpu") -> OnnxRuntimeEngine:
        """Load an ONNX file, or a model's bytes; the weights are in it.

        Raises:
            ModelFileError: It is missing, or not a model that onnxruntime can run.
            EngineError: Weights are given too, or onnxruntime has no such device.
        """
        if weights is not None:
            name = "the ONNX model" if isinstance(deploy, bytes) else os.fspath(deploy)
            raise EngineError(f"{name}: an ONNX file has its weights in it; {weights} is not needed (give - in its place)")
        return cls(open_session(deploy, device=device))

    @property
    def properties(self) -> dict[str, str]:
        """The model's ``metadata_props``."""
        return self.session.properties

    def predict(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on arrays (N, …) of float32, as :meth:`Engine.predict` does. Raises :class:`EngineError` where the batch does not fit the model."""
        return self.session.run(batch)


_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    """Return onnxruntime's providers for ``cpu``, ``cuda``, ``cuda:N`` or ``auto``."""
    there = onnxruntime.get_available_providers()
    kind, _, number = device.partition(":")
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in there):
        return ["CPUExecutionProvider"]
    if (device in ("cuda", "auto") or (kind == "cuda" and number.isdecimal())) and "CUDAExecutionProvider" in there:
        return [("CUDAExecutionProvider", {"device_id": number or "0"}), "CPUExecutionProvider"]
    raise EngineError(
        f"onnxruntime has no device '{device}' here (it has {', '.join(there)}); use cpu, or install onnxruntime-gpu for cuda"
    )


def _one_line(error: Exception) -> str:
    # Without the place in onnxruntime's sources, which is longer than the reason.
    return re.sub(r"/\S*\.(?:cc|h):\d+ [^()]*\((?:[^()]|\([^()]*\))*\) ?(?:const )?", "", " ".join(str(error).split()))[:300]
