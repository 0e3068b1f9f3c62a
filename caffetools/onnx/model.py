"""An ONNX model whose large initializers stay arrays until they are written, so that weights are not copied on the way to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from caffetools.errors import ModelFileError
from caffetools.proto.sniff import Kind, wrong_kind
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]

# protobuf holds no message of 2 GB or more; larger models keep their weights in a file of their own (ONNX's external data).
SIZE_LIMIT = 2**31 - 1
_ROOM_FOR_THE_GRAPH = 2**22
# A file of more bytes holds weights, not a graph alone.
_LARGEST_GRAPH = 2**26
# Arrays of up to this many values may be shapes, axes and the like, which shape inference reads.
SMALL = 256
# Field numbers of onnx.proto.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_BYTES_TYPE = 2
_ALIGNMENT = 4096


@dataclass
class OnnxModel:
    """A graph and its initializers.

    Attributes:
        proto: The model without its initializers.
        weights: Initializer name → array, C order.
        notes: What a user of the model should know.
    """

    proto: onnx.ModelProto
    weights: dict[str, NDArray[Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The bytes of all initializers."""
        return sum(array.nbytes for array in self.weights.values())

    @property
    def is_large(self) -> bool:
        """Whether the model needs external data."""
        return self.size + _ROOM_FOR_THE_GRAPH > SIZE_LIMIT

    def to_proto(self) -> onnx.ModelProto:
        """Return the whole model as one message; copies the weights. Raises :class:`ValueError` for a large one."""
        if self.is_large:
            raise ValueError("an ONNX message holds less than 2 GB; write the model to a file")
        whole = onnx.ModelProto()
        whole.CopyFrom(self.proto)
        for name, array in self.weights.items():
            whole.graph.initializer.append(_header(name, array))
            whole.graph.initializer[-1].raw_data = _little_endian(array).tobytes()
        return whole

    def light(self, outputs: Sequence[str] = (), *, external: bool = True) -> onnx.ModelProto:
        """Return a small copy: large initializers are external data (of a file that does not exist), or become inputs.

        Args:
            outputs: Values that become outputs besides the model's own.
            external: False makes large initializers inputs, as checking needs.
        """
        copy = onnx.ModelProto()
        copy.CopyFrom(self.proto)
        known = {value.name for value in copy.graph.output}
        copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs if name not in known)
        for name, array in self.weights.items():
            tensor = _header(name, array)
            if array.size <= SMALL:
                tensor.raw_data = _little_endian(array).tobytes()
                copy.graph.initializer.append(tensor)
            elif external:
                _point_to(tensor, "weights", 0, array.nbytes)
                copy.graph.initializer.append(tensor)
            else:
                copy.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(array.shape)))
        return copy

    @property
    def large_weights(self) -> dict[str, NDArray[Any]]:
        """The initializers that :meth:`light` leaves out, arrays of any shape."""
        return {name: array for name, array in self.weights.items() if array.size > SMALL}

    def write(self, path: PathLike) -> None:
        """Write the model to ``path``; one of 2 GB or more puts its weights into ``PATH.data`` next to it, which is written first.

        Raises:
            RunFailed: The folder cannot be written to, or the disk is full.
        """
        if self.is_large:
            self._write_external(Path(path))
            return
        with atomic_write(path) as stream:
            self.write_to(stream)

    def write_to(self, stream: IO[bytes]) -> None:
        """Write the model as one message, array by array."""
        outer = onnx.ModelProto()
        outer.CopyFrom(self.proto)
        outer.ClearField("graph")
        inner = self.proto.graph.SerializeToString()
        tensors = [(_header(name, array).SerializeToString(), array) for name, array in self.weights.items()]
        total = len(inner) + sum(_tagged_size(_INITIALIZER, len(head) + _tagged_size(_RAW_DATA, array.nbytes)) for head, array in tensors)
        stream.write(outer.SerializeToString())
        stream.write(_tag(_GRAPH, total) + inner)
        for head, array in tensors:
            stream.write(_tag(_INITIALIZER, len(head) + _tagged_size(_RAW_DATA, array.nbytes)) + head)
            stream.write(_tag(_RAW_DATA, array.nbytes))
            stream.write(_buffer(array))

    def _write_external(self, path: Path) -> None:
        whole = onnx.ModelProto()
        whole.CopyFrom(self.proto)
        data = _data_path(path)
        with atomic_write(data) as stream:
            place = 0
            for name, array in self.weights.items():
                tensor = _header(name, array)
                if array.size <= SMALL:
                    tensor.raw_data = _little_endian(array).tobytes()
                else:
                    padding = -place % _ALIGNMENT
                    stream.write(bytes(padding))
                    stream.write(_buffer(array))
                    _point_to(tensor, data.name, place + padding, array.nbytes)
                    place += padding + array.nbytes
                whole.graph.initializer.append(tensor)
        with atomic_write(path) as stream:
            stream.write(whole.SerializeToString())


def file_size(path: PathLike) -> int:
    """Return the bytes of an ONNX file and of the file with its external data, where :meth:`OnnxModel.write` made one."""
    size, data = Path(path).stat().st_size, _data_path(Path(path))
    # A larger file holds its weights itself; what lies next to it is another model's.
    external = size <= _LARGEST_GRAPH and data.is_file() and _reads_external(path)
    return size + data.stat().st_size if external else size


def _reads_external(path: PathLike) -> bool:
    model = onnx.load_model(os.fspath(path), load_external_data=False)
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)


def _data_path(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def load_model(source: PathLike | bytes) -> onnx.ModelProto:
    """Read an ONNX file with its external data, or a model's bytes. Raises :class:`ModelFileError` naming the file."""
    name = "the ONNX model" if isinstance(source, bytes) else os.fspath(source)
    try:
        model = onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load(source)
    except FileNotFoundError as error:
        raise ModelFileError("no such file", path=error.filename or name) from None
    except Exception as error:
        # onnx passes on all errors that protobuf, the system and its own checks of external data raise.
        if not isinstance(source, bytes) and (other := wrong_kind(ModelFileError, source, "an ONNX model", allowed=(Kind.ONNX,))):
            raise other from None
        if not isinstance(source, bytes) and (missing := _missing_data(Path(source))):
            raise ModelFileError(f"its weights are in '{missing}', which is missing", path=name, hint="copy both files together") from None
        raise ModelFileError(f"not an ONNX model: {' '.join(str(error).split())[:200]}", path=name) from None
    if not model.graph.node and not model.graph.output:
        if not isinstance(source, bytes) and (other := wrong_kind(ModelFileError, source, "an ONNX model", allowed=(Kind.ONNX,))):
            raise other
        raise ModelFileError("not an ONNX model: it has no graph", path=name)
    return model


def _missing_data(path: Path) -> str:
    """Return the name of a file that a model keeps weights in and that is missing; ``""`` where there is none."""
    try:
        tensors = onnx.load(path, load_external_data=False).graph.initializer
    except (DecodeError, OSError):
        return ""
    kept = {ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)}
    return next((name for name in sorted(kept) if name and not path.with_name(name).is_file()), "")


def from_proto(proto: onnx.ModelProto) -> OnnxModel:
    """Split a whole model into its graph and its arrays. Raises :class:`ModelFileError` naming a tensor that is damaged."""
    weights = {tensor.name: tensor_array(tensor) for tensor in proto.graph.initializer}
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    del light.graph.initializer[:]
    return OnnxModel(light, weights)


def tensor_array(tensor: TensorProto) -> NDArray[Any]:
    """Return the values of a tensor of a model. Raises :class:`ModelFileError` naming a tensor that is damaged."""
    try:
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        # onnx raises what NumPy and its own checks of types and sizes give.
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"the tensor '{tensor.name}' of the ONNX model is damaged: {reason}") from None
    return array


def _header(name: str, array: NDArray[Any]) -> TensorProto:
    return TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)


def _point_to(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _buffer(array: NDArray[Any]) -> memoryview:
    return _little_endian(array).reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _tag(number: int, length: int) -> bytes:
    """Return the key and the length of a length-delimited field."""
    return bytes([*_varint(number << 3 | _BYTES_TYPE), *_varint(length)])


def _tagged_size(number: int, length: int) -> int:
    return len(_tag(number, length)) + length


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
