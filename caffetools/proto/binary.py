"""The binary files: caffemodel, solverstate and binaryproto, read as views of the file and written field for field as Caffe does."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffetools.errors import ModelFileError
from caffetools.proto import wire
from caffetools.proto.blobs import Array, decode_blob, encode_blob, pieces_length
from caffetools.proto.encoding import decode_text, repair_strings, restore_strings
from caffetools.proto.forks.dialect import decode_net, encode, fit_to_dialect
from caffetools.proto.model import Caffemodel, SolverState
from caffetools.proto.schema import NetParameter, SolverStateMessage
from caffetools.proto.sniff import Kind, advice_for_folder, wrong_kind
from caffetools.proto.upgrades.v1 import upgrade_caffemodel
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]

# Where a layer's message and its blobs stand: NetParameter field -> (its blobs field, the field of an inner V0 layer).
_LAYER, _V1_LAYERS = 100, 2
_BLOBS = {_LAYER: 7, _V1_LAYERS: 6}
_LAYER_NAME = {_LAYER: 1, _V1_LAYERS: 4}
_V0_LAYER, _V0_BLOBS, _V0_NAME = 1, 50, 1


def read_caffemodel(path: PathLike, dialect: str | None = None) -> Caffemodel:
    """Read a .caffemodel of any age (V0, V1 or today's layers) and fork; arrays are read-only views of the mapped file.

    Args:
        path: The file.
        dialect: The fork that wrote the file; None detects it.

    Raises:
        ModelFileError: the file is missing, empty, truncated or not a caffemodel; the message names the byte or the layer.
    """
    buffer = _map(path)
    rest: list[memoryview] = []
    found: list[tuple[str, list[Array]]] = []
    with _reading(path, "a caffemodel", Kind.CAFFEMODEL, len(buffer)):
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
        if other := wrong_kind(ModelFileError, path, "a caffemodel", allowed=(Kind.CAFFEMODEL,)):
            raise _with_weights(path, other)
        raise ModelFileError("it holds no layers", path=path, hint="is it a .caffemodel?")
    if not net.IsInitialized():
        missing = net.FindInitializationErrors()[0]
        raise ModelFileError(f"damaged: {missing} is missing", path=path, hint="fetch or copy the file again")
    blobs = {name: arrays for name, arrays in found if arrays}
    times = Counter(name for name, _ in found)
    repeated = {index: arrays for index, (name, arrays) in enumerate(found) if times[name] > 1 and name in blobs}
    return Caffemodel(net, blobs, dialect=used, repeated=repeated)


def write_caffemodel(path: PathLike, model: Caffemodel) -> None:
    """Write ``model`` atomically. Each layer's blobs go where field order puts them, so the bytes are those Caffe would write.

    Layers of an older form (V0, V1) are written in the current one. Where no dialect has all of the fields used (an Input layer and
    an Interp layer share a number), inputs become the net's ``input`` and ``input_shape``, and other fields of that number are left
    out: a weights file needs names, types and blobs only.

    Args:
        path: The file; by convention ``*.caffemodel``.
        model: Its ``net`` and ``blobs``; ``diffs`` too where there are any.

    Raises:
        NetError: A model of an older form cannot be upgraded.
        WriteFailed: The file cannot be written; an existing one is unchanged.
    """
    skeleton = NetParameter()
    model = upgrade_caffemodel(model) if model.net.layers else model
    skeleton.CopyFrom(model.net)
    inputs = [index for index, layer in enumerate(skeleton.layer) if layer.type == "Input"]
    count = len(skeleton.layer)
    dialect = fit_to_dialect(skeleton, model.dialect)
    layers = list(skeleton.layer)
    # The layers' places in ``model.net``, of which Input layers may have been taken out.
    places = [index for index in range(count) if len(layers) == count or index not in inputs]
    del skeleton.layer[:]
    with atomic_write(path) as stream:
        stream.write(encode(skeleton, dialect))
        for index, layer in zip(places, layers, strict=True):
            name = _readable(layer.name)
            arrays = model.repeated.get(index, model.blobs.get(name, []))
            diffs = model.repeated_diffs.get(index) or model.diffs.get(name)
            _write_layer(stream, encode(layer, dialect), arrays, diffs or [None] * len(arrays))


def read_solverstate(path: PathLike) -> SolverState:
    """Read a binary .solverstate. Raises :class:`ModelFileError` as :func:`read_caffemodel` does."""
    buffer = _map(path)
    rest: list[memoryview] = []
    history: list[Array] = []
    with _reading(path, "a solverstate", Kind.SOLVER_STATE, len(buffer)):
        for item in wire.walk(buffer):
            if item.number == 3 and item.kind == wire.BYTES:
                history.append(decode_blob(buffer, item.value, item.end))
            else:
                rest.append(buffer[item.start : item.end])
        message = SolverStateMessage.FromString(b"".join(rest))
    # A model's version has the number of the iteration; a state of a solver that keeps no history is rare enough to be looked at.
    doubtful = not message.HasField("iter") or not history
    if doubtful and (other := wrong_kind(ModelFileError, path, "a solverstate", allowed=(Kind.SOLVER_STATE,))):
        raise other
    if not message.HasField("iter"):
        raise ModelFileError("it has no iteration", path=path, hint="is it a .solverstate?")
    repair_strings(message)
    minimum = message.minimum_loss if message.HasField("minimum_loss") else None
    event = message.iter_last_event if message.HasField("iter_last_event") else None
    return SolverState(message.iter, message.learned_net, history, message.current_step, minimum, event)


def write_solverstate(path: PathLike, state: SolverState) -> None:
    """Write ``state`` atomically, in Caffe's field order. Raises :class:`RunFailed`."""
    head = SolverStateMessage(iter=state.iter, learned_net=state.learned_net)
    tail = SolverStateMessage(current_step=state.current_step, minimum_loss=state.minimum_loss, iter_last_event=state.iter_last_event)
    with atomic_write(path) as stream:
        stream.write(restore_strings(head.SerializeToString(), head.DESCRIPTOR))
        for array in state.history:
            pieces = encode_blob(array)
            stream.write(wire.bytes_key(3, pieces_length(pieces)))
            stream.writelines(pieces)
        stream.write(tail.SerializeToString())


def read_binaryproto(path: PathLike) -> Array:
    """Read one blob, such as a mean file: float32, with the axes stored (mean files: (1, C, H, W)). Raises :class:`ModelFileError`."""
    buffer = _map(path)
    with _reading(path, "a binaryproto", Kind.BLOB, len(buffer)):
        blob = decode_blob(buffer)
    # The messages share numbers of fields: weights and solver states can decode as a blob without values.
    if not blob.size and (other := wrong_kind(ModelFileError, path, "a binaryproto", allowed=(Kind.BLOB,))):
        raise _with_weights(path, other)
    return blob


def write_binaryproto(path: PathLike, array: NDArray[Any]) -> None:
    """Write ``array`` (N, C, H, W) atomically in the legacy num/channels/height/width form that Caffe's mean files have.

    Raises:
        ValueError: Another number of axes.
    """
    if array.ndim != 4:
        raise ValueError(f"a binaryproto mean has four axes, not {array.ndim}")
    with atomic_write(path) as stream:
        stream.writelines(encode_blob(array, legacy=True))


def _split_layer(buffer: memoryview, item: wire.Field) -> tuple[list[memoryview], list[Array]]:
    """Return the bytes of a layer message without its blobs, and the blobs."""
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
    """Return the layer's name, found without decoding the rest, which may be a fork's."""
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
    """Return a name as text; Caffe also takes names that are not UTF-8, and protobuf gives those as bytes."""
    return name if isinstance(name, str) else decode_text(name)


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
                raise ModelFileError("the file is empty", path=path)
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        hint = advice_for_folder(path, ".caffemodel", ".solverstate", ".binaryproto")
        raise ModelFileError(f"cannot read: {error.strerror}", path=path, hint=hint) from None


@contextmanager
def _reading(path: PathLike, expected: str, kind: Kind, size: int) -> Iterator[None]:
    """Turn errors of decoding into one that names the file, the byte, and what the file is if it is of another kind."""
    try:
        yield
    except (wire.WireError, DecodeError) as error:
        if other := wrong_kind(ModelFileError, path, expected, allowed=(kind,)):
            raise _with_weights(path, other) from None
        reason = f"{error} (byte {error.offset} of {size})" if isinstance(error, wire.WireError) else f"its {size} bytes do not decode"
        raise ModelFileError(f"damaged or not {expected}: {reason}", path=path, hint="fetch or copy the file again") from None


def _with_weights(path: PathLike, error: ModelFileError) -> ModelFileError:
    """Name the caffemodel next to a solver state that was given as weights."""
    place = Path(path)
    weights = place.with_name(place.name.replace(".solverstate", ".caffemodel"))
    if weights != place and weights.is_file():
        error.hint = f"take {weights}"
    return error
