"""The binary files: caffemodel, solverstate and binaryproto, read as views of the file and written field for field as Caffe does."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffetools.errors import ModelFileError
from caffetools.proto import wire
from caffetools.proto.blobs import Array, decode_blob, encode_blob, pieces_length
from caffetools.proto.forks.dialect import decode_net, dialect_of, encode
from caffetools.proto.schema import NetParameter, SolverStateMessage
from caffetools.proto.upgrades.v1 import upgrade_caffemodel
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]

# Where a layer's message and its blobs stand: NetParameter field -> (its blobs field, the field of an inner V0 layer).
_LAYER, _V1_LAYERS = 100, 2
_BLOBS = {_LAYER: 7, _V1_LAYERS: 6}
_LAYER_NAME = {_LAYER: 1, _V1_LAYERS: 4}
_V0_LAYER, _V0_BLOBS, _V0_NAME = 1, 50, 1


@dataclass
class Caffemodel:
    """What a .caffemodel holds.

    Attributes:
        net: ``NetParameter`` as in the file, but with its layers' blobs taken out.
        blobs: layer name → its float32 arrays. Layers without any have no entry; a later layer of the same name wins, as in Caffe.
        repeated: layer index → its float32 arrays, of the layers whose name another layer has too; written in place of those in ``blobs``.
        repeated_diffs: their diffs, in the same way.
        diffs: layer name → the diffs of its blobs, one each, where they are to be written too; not filled by reading.
        dialect: the fork whose field numbers the file has (:mod:`caffetools.proto.forks.dialect`), ``""`` for BVLC Caffe's; None: not
            from a file, and written in the dialect that has the fields which are used.
    """

    net: Any
    blobs: dict[str, list[Array]] = field(default_factory=dict)
    diffs: dict[str, list[Array]] = field(default_factory=dict)
    dialect: str | None = None
    repeated: dict[int, list[Array]] = field(default_factory=dict)
    repeated_diffs: dict[int, list[Array]] = field(default_factory=dict)


@dataclass
class SolverState:
    """What a .solverstate holds: ``history`` are the solver's arrays in Caffe's order, ``learned_net`` names the caffemodel."""

    iter: int
    learned_net: str
    history: list[Array]
    current_step: int = 0


def read_caffemodel(path: PathLike, dialect: str | None = None) -> Caffemodel:
    """Read a .caffemodel of any age (V0, V1 or today's layers) and fork; arrays are read-only views of the mapped file.

    Args:
        dialect: The fork that wrote the file; None finds out.

    Raises:
        ModelFileError: the file is missing, empty, truncated or not a caffemodel; the message says at which byte or layer.
    """
    buffer = _map(path)
    rest: list[memoryview] = []
    found: list[tuple[str, list[Array]]] = []
    with _explained(path, "caffemodel", len(buffer)):
        for item in wire.walk(buffer):
            if item.number in _BLOBS and item.kind == wire.BYTES:
                stripped, arrays = _split_layer(buffer, item)
                rest.append(memoryview(wire.bytes_key(item.number, pieces_length(stripped))))
                rest.extend(stripped)
                found.append((_layer_name(item.number, stripped), arrays))
            else:
                rest.append(buffer[item.start : item.end])
        net, used = decode_net(b"".join(rest), dialect)
    if not (net.layer or net.layers):
        raise ModelFileError(f"{os.fspath(path)}: holds no layers; is it a .caffemodel?")
    if not net.IsInitialized():
        missing = net.FindInitializationErrors()[0]
        raise ModelFileError(f"{os.fspath(path)}: damaged: {missing} must be there, and is not; fetch or copy the file again")
    blobs = {name: arrays for name, arrays in found if arrays}
    times = Counter(name for name, _ in found)
    repeated = {index: arrays for index, (name, arrays) in enumerate(found) if times[name] > 1 and name in blobs}
    return Caffemodel(net, blobs, dialect=used, repeated=repeated)


def write_caffemodel(path: PathLike, model: Caffemodel) -> None:
    """Write ``model`` atomically. Each layer's blobs go where field order puts them, so the bytes are those Caffe would write.

    Layers of an older form (V0, V1) are written in today's.

    Raises:
        NetError: a model of an older form that cannot be upgraded.
        RunFailed: the file cannot be written; what was there before stays.
    """
    skeleton = NetParameter()
    skeleton.CopyFrom(upgrade_caffemodel(model).net if model.net.layers else model.net)
    layers = list(skeleton.layer)
    del skeleton.layer[:]
    dialect = model.dialect if model.dialect is not None else dialect_of(model.net)
    with atomic_write(path) as stream:
        stream.write(encode(skeleton, dialect))
        for index, layer in enumerate(layers):
            name = _readable(layer.name)
            arrays = model.repeated.get(index, model.blobs.get(name, []))
            diffs = model.repeated_diffs.get(index) or model.diffs.get(name)
            _write_layer(stream, encode(layer, dialect), arrays, diffs or [None] * len(arrays))


def read_solverstate(path: PathLike) -> SolverState:
    """Read a binary .solverstate. Raises :class:`ModelFileError` as :func:`read_caffemodel` does."""
    buffer = _map(path)
    rest: list[memoryview] = []
    history: list[Array] = []
    with _explained(path, "solverstate", len(buffer)):
        for item in wire.walk(buffer):
            if item.number == 3 and item.kind == wire.BYTES:
                history.append(decode_blob(buffer, item.value, item.end))
            else:
                rest.append(buffer[item.start : item.end])
        message = SolverStateMessage.FromString(b"".join(rest))
    if not message.HasField("iter"):
        raise ModelFileError(f"{os.fspath(path)}: names no iteration; is it a .solverstate?")
    return SolverState(message.iter, message.learned_net, history, message.current_step)


def write_solverstate(path: PathLike, state: SolverState) -> None:
    """Write ``state`` atomically, in Caffe's field order. Raises :class:`RunFailed`."""
    head = SolverStateMessage(iter=state.iter, learned_net=state.learned_net)
    tail = SolverStateMessage(current_step=state.current_step)
    with atomic_write(path) as stream:
        stream.write(head.SerializeToString())
        for array in state.history:
            pieces = encode_blob(array)
            stream.write(wire.bytes_key(3, pieces_length(pieces)))
            stream.writelines(pieces)
        stream.write(tail.SerializeToString())


def read_binaryproto(path: PathLike) -> Array:
    """Read one blob, such as a mean file: float32, with the axes stored (mean files: (1, C, H, W)). Raises :class:`ModelFileError`."""
    buffer = _map(path)
    with _explained(path, "binaryproto", len(buffer)):
        return decode_blob(buffer)


def write_binaryproto(path: PathLike, array: NDArray[Any]) -> None:
    """Write ``array`` (four axes) atomically in the legacy num/channels/height/width form that Caffe's mean files have."""
    if array.ndim != 4:
        raise ValueError(f"a binaryproto mean has four axes, not {array.ndim}")
    with atomic_write(path) as stream:
        stream.writelines(encode_blob(array, legacy=True))


def _split_layer(buffer: memoryview, item: wire.Field) -> tuple[list[memoryview], list[Array]]:
    """The bytes of a layer message without its blobs, and the blobs."""
    number = _BLOBS[item.number]
    kept: list[memoryview] = []
    arrays: list[Array] = []
    for inner in wire.walk(buffer, item.value, item.end):
        if inner.number == number and inner.kind == wire.BYTES:
            arrays.append(decode_blob(buffer, inner.value, inner.end))
        elif item.number == _V1_LAYERS and inner.number == _V0_LAYER and inner.kind == wire.BYTES:
            part: list[memoryview] = []
            for v0 in wire.walk(buffer, inner.value, inner.end):
                if v0.number == _V0_BLOBS and v0.kind == wire.BYTES:
                    arrays.append(decode_blob(buffer, v0.value, v0.end))
                else:
                    part.append(buffer[v0.start : v0.end])
            kept.append(memoryview(wire.bytes_key(_V0_LAYER, pieces_length(part))))
            kept.extend(part)
        else:
            kept.append(buffer[inner.start : inner.end])
    return kept, arrays


def _layer_name(number: int, stripped: list[memoryview]) -> str:
    """The layer's name, found without decoding the rest, which may be a fork's."""
    data = memoryview(b"".join(stripped))
    name = _text(data, _LAYER_NAME[number])
    if not name and number == _V1_LAYERS:
        inner = [item for item in wire.walk(data) if item.number == _V0_LAYER and item.kind == wire.BYTES]
        name = _text(data[inner[-1].value : inner[-1].end], _V0_NAME) if inner else ""
    return name


def _text(data: memoryview, number: int) -> str:
    found = [bytes(data[item.value : item.end]) for item in wire.walk(data) if item.number == number and item.kind == wire.BYTES]
    return _readable(found[-1]) if found else ""


def _readable(name: str | bytes) -> str:
    """A name as text; Caffe also takes names that are no UTF-8, and protobuf gives those as bytes."""
    return name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")


def _write_layer(stream: IO[bytes], layer: bytes, arrays: Sequence[NDArray[Any]], diffs: Sequence[NDArray[Any] | None]) -> None:
    body = memoryview(layer)
    split = next((item.start for item in wire.walk(body) if item.number >= _BLOBS[_LAYER]), len(body))
    middle: list[bytes | memoryview] = []
    for array, diff in zip(arrays, diffs, strict=True):
        pieces = encode_blob(array, diff=diff)
        middle += [wire.bytes_key(_BLOBS[_LAYER], pieces_length(pieces)), *pieces]
    stream.write(wire.bytes_key(_LAYER, len(body) + pieces_length(middle)))
    stream.write(body[:split])
    stream.writelines(middle)
    stream.write(body[split:])


def _map(path: PathLike) -> memoryview:
    try:
        with Path(path).open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise ModelFileError(f"{os.fspath(path)}: the file is empty")
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelFileError(f"{os.fspath(path)}: cannot read: {error.strerror}") from None


@contextmanager
def _explained(path: PathLike, kind: str, size: int) -> Iterator[None]:
    try:
        yield
    except wire.WireError as error:
        if other := _other_kind(path):
            raise ModelFileError(f"{os.fspath(path)}: this is {other}, and a {kind} is expected") from None
        raise ModelFileError(
            f"{os.fspath(path)}: damaged or not a {kind}: {error} (byte {error.offset} of {size}); fetch or copy the file again"
        ) from None
    except DecodeError:
        other = _other_kind(path) or "another kind of message, or damaged"
        raise ModelFileError(f"{os.fspath(path)}: its {size} bytes are no {kind}: this is {other}") from None


_BEGINNINGS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89HDF": "an HDF5 file (its name must end in .h5)",
    b"\x93NUMPY": "a NumPy array",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive; unpack it first",
}


def _other_kind(path: PathLike) -> str:
    """What a file that is no message seems to be, as far as its beginning or its name tell; else ``""``."""
    with Path(path).open("rb") as stream:
        start = stream.read(512)
    for beginning, kind in _BEGINNINGS.items():
        if start.startswith(beginning):
            return kind
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if Path(path).suffix.lower() == ".onnx":
        return "an ONNX model"
    return "text" if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start) else ""
