"""Which fork wrote a file, and reading and writing its binary form.

A dialect is a fork's name (:data:`~caffetools.proto.forks.tables.DIALECTS`), several joined by ``+`` (the first counts where numbers clash),
``""`` for BVLC Caffe, or ``"any"``: not known, and fields of no fork are kept rather than refused.

In a binary file nothing names the fork. Its layers' types and the fields that decode sensibly do: the dialect is taken that leaves
the fewest fields unknown or wrongly encoded, and of equal ones the first; a second is joined to it where that explains more.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from caffetools.errors import ModelFileError
from caffetools.proto import wire
from caffetools.proto.encoding import repair_strings, restore_strings
from caffetools.proto.forks.renumber import UnplannedField, field_numbers, reading_plan, renumber, writing_plan
from caffetools.proto.forks.tables import DIALECTS, UNKNOWN, UNKNOWN_BYTES, fork_schema
from caffetools.proto.options import ANY, read_options, split_dialect
from caffetools.proto.schema import POOL, Message, NetParameter, bvlc_descriptor, is_repeated

_LAYER_FIELD, _TYPE_FIELD = 100, 2


@cache
def bvlc_types() -> frozenset[str]:
    """Return the layer types of BVLC Caffe."""
    return frozenset(_BVLC_TYPES.split())


def dialect_of(message: Message) -> str:
    """Return the dialect in which ``message`` (of our schema) can be written, with as few forks as possible; ``""`` is BVLC Caffe's.

    Raises:
        ModelFileError: It mixes fields of forks that give them the same number.
    """
    chosen, missing = _closest(_used(message))
    if missing:
        shown = ", ".join(sorted(f"{owner}.{field}" for owner, field in missing))
        raise ModelFileError(f"no Caffe fork has all of the fields used: {shown} cannot be written together with the others")
    return "+".join(chosen)


def fit_to_dialect(net: NetParameter, dialect: str | None = None) -> str:
    """Bring a ``NetParameter`` to a form that one dialect can write, in place, for a weights file; return the dialect.

    Where no dialect has all fields used, Input layers become ``input`` and ``input_shape`` of the net, as the forks concerned write
    them; what then still has no number is removed.

    Args:
        net: Without blobs.
        dialect: The one to keep to where it has all fields; None finds one.
    """
    used = _used(net)
    if dialect is not None and not _missing(used, split_dialect(dialect)):
        return dialect
    chosen, missing = _closest(used)
    if ("LayerParameter", "input_param") in missing:
        _inputs_to_net(net)
        chosen, missing = _closest(_used(net))
    while missing:
        # Without a field the fields in it need no numbers either, so fewer forks may do.
        _remove_fields(net, set(missing))
        chosen, missing = _closest(_used(net))
    return "+".join(chosen)


def _closest(used: set[tuple[str, str]]) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """Return the forks that together leave the fewest of the ``used`` fields without a number, and those fields."""
    chosen: tuple[str, ...] = ()
    missing = _missing(used, chosen)
    while missing:
        counts = {name: len(_missing(used, (*chosen, name))) for name in DIALECTS if name not in chosen}
        best = min(counts, key=lambda name: counts[name])
        if counts[best] >= len(missing):
            break
        chosen = (*chosen, best)
        missing = _missing(used, chosen)
    return chosen, missing


def _inputs_to_net(net: NetParameter) -> None:
    kept = []
    for layer in net.layer:
        if layer.type != "Input":
            kept.append(layer)
            continue
        shapes = list(layer.input_param.shape)
        for index, top in enumerate(layer.top):
            net.input.append(top)
            if shapes:
                net.input_shape.add().CopyFrom(shapes[index if len(shapes) == len(layer.top) else 0])
    later = NetParameter(layer=kept).layer
    del net.layer[:]
    net.layer.extend(later)


def _remove_fields(message: Message, missing: set[tuple[str, str]]) -> None:
    owner = message.DESCRIPTOR.full_name.removeprefix("caffe.")
    for field, value in message.ListFields():
        if (owner, field.name) in missing:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for inner in value if is_repeated(field) else [value]:
                _remove_fields(inner, missing)


def missing_fields(message: Message, dialect: str) -> list[str]:
    """Return the fields that ``message`` uses and ``dialect`` does not have, as ``Message.field``."""
    return sorted(f"{owner}.{field}" for owner, field in _missing(_used(message), split_dialect(dialect)))


def decode_net(data: bytes, dialect: str | None = None) -> tuple[Any, str]:
    """Decode a serialized ``NetParameter`` of any fork to a message of our schema; return it and the dialect it was read in.

    Args:
        data: The serialized message.
        dialect: The dialect to read it in; None takes that of the read options, or detects it from the bytes.

    Raises:
        WireError: The bytes are not a message.
        DecodeError: The bytes are not a net.
    """
    chosen = dialect if dialect is not None else read_options().dialect
    if chosen is None or chosen == ANY:
        net = _as_bvlc(data)
        if net is not None:
            repair_strings(net)
            return net, ""
        chosen = "+".join(_detect(memoryview(data)))
    names = split_dialect(chosen)
    net = NetParameter.FromString(renumber(memoryview(data), "NetParameter", reading_plan(names)))
    repair_strings(net)
    return net, "+".join(names)


def encode(message: Message, dialect: str | None = None) -> bytes:
    """Return ``message`` (of our schema, no blobs in it) serialized as ``dialect`` has it; None finds the dialect from its fields.

    Raises:
        ModelFileError: the dialect has no number for one of the fields, or no dialect has.
    """
    data = restore_strings(message.SerializeToString(), message.DESCRIPTOR)
    name = message.DESCRIPTOR.name
    if not dialect and _plain(name, data):
        return data
    chosen = dialect_of(message) if dialect is None else dialect
    try:
        return renumber(memoryview(data), name, writing_plan(split_dialect(chosen)))
    except UnplannedField as error:
        field = POOL.FindMessageTypeByName(f"caffe.{error.message}").fields_by_number[error.number].name
        raise ModelFileError(f"the dialect '{chosen or 'bvlc'}' has no field {error.message}.{field}; write it in another one") from None


@cache
def _bvlc_class(name: str) -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(bvlc_descriptor())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))


def _plain(name: str, data: bytes) -> bool:
    """Return whether BVLC Caffe has every field. Two sizes are compared, so that nothing is walked through in Python."""
    message = _bvlc_class(name).FromString(data)
    if not message.IsInitialized():
        return False
    size = message.ByteSize()
    message.DiscardUnknownFields()
    return bool(message.ByteSize() == size)


def _as_bvlc(data: bytes) -> Any:
    """Return the net if all of its fields and layer types are BVLC Caffe's; else None."""
    if any(kind not in bvlc_types() for _, kind in _layers(memoryview(data))):
        return None
    try:
        plain = _plain("NetParameter", data)
    except DecodeError:
        return None
    if not plain:
        return None
    net = NetParameter.FromString(data)
    return None if _names_ceil(net) else net


def _names_ceil(net: NetParameter) -> bool:
    """Return whether a pooling layer states that it rounds up, the default: ``ceil_mode: false`` of the forks has the number of round_mode."""
    pools = [layer.pooling_param for layer in net.layer if layer.HasField("pooling_param")]
    return any(pool.HasField("round_mode") and pool.round_mode == 0 for pool in pools)


def _layers(data: memoryview) -> Iterator[tuple[memoryview, str]]:
    """Every layer (of today's form) and its type."""
    for item in wire.walk(data):
        if item.number == _LAYER_FIELD and item.kind == wire.BYTES:
            layer = data[item.value : item.end]
            kinds = [bytes(layer[f.value : f.end]) for f in wire.walk(layer) if f.number == _TYPE_FIELD and f.kind == wire.BYTES]
            yield layer, kinds[-1].decode("utf-8", "replace") if kinds else ""


def _detect(data: memoryview) -> tuple[str, ...]:
    net = NetParameter.FromString(renumber(data, "NetParameter", reading_plan(()), []))
    chosen: tuple[str, ...] = ("ceil",) if _names_ceil(net) else ()
    score = _score(data, chosen)
    while score and len(chosen) < len(DIALECTS):
        scores = {name: _score(data, (*chosen, name)) for name in DIALECTS if name not in chosen}
        best = min(scores, key=lambda name: scores[name])
        if scores[best] >= score:
            break
        chosen, score = (*chosen, best), scores[best]
    return chosen


def _score(data: memoryview, dialects: tuple[str, ...]) -> int:
    """Return how badly ``dialects`` explain a net: the count of unknown and misencoded fields and of messages of another layer type."""
    mismatches: list[int] = []
    renumber(data, "NetParameter", reading_plan(dialects), mismatches)
    known = bvlc_types().union(*(fork_schema(name).layers for name in dialects))
    score = 0
    for layer, kind in _layers(data):
        present = {item.number for item in wire.walk(layer)}
        if kind not in known:
            # What an unknown layer type has is hardly another type's field of that number.
            score += 1 + 10 * len(present & _forks_numbers(dialects))
        wanted = _own_param(kind)
        numbers = field_numbers("LayerParameter", dialects)
        # A fork has this number for the very type of the layer; read as something else, it is misread.
        score += 10 * sum(1 for name, number in wanted if number in present and numbers.get(name) != number)
    return score + 10 * len(mismatches)


@cache
def _forks_numbers(dialects: tuple[str, ...]) -> frozenset[int]:
    own = field_numbers("LayerParameter", ())
    return frozenset(number for name, number in field_numbers("LayerParameter", dialects).items() if name not in own)


@cache
def _own_param(kind: str) -> tuple[tuple[str, int], ...]:
    """Return the parameter fields that are named like a layer type, with the number that each fork gives them."""
    plain = kind.lower()
    found = {
        (spec.name, spec.number)
        for dialect in DIALECTS
        for spec in fork_schema(dialect).fields
        if spec.message == "LayerParameter" and spec.name.removesuffix("_param").replace("_", "") == plain
    }
    return tuple(sorted(found))


def _missing(used: set[tuple[str, str]], dialects: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(owner, field) for owner, field in used if field not in field_numbers(owner, dialects)]


def _used(message: Message) -> set[tuple[str, str]]:
    """Return (message, field) of everything that is set in ``message``, blobs and text of unknown fields aside."""
    used: set[tuple[str, str]] = set()
    stack = [message]
    while stack:
        current_message = stack.pop()
        owner = current_message.DESCRIPTOR.full_name.removeprefix("caffe.")
        for field, value in current_message.ListFields():
            if field.name in (UNKNOWN, UNKNOWN_BYTES):
                continue
            used.add((owner, field.name))
            if field.message_type is not None and field.message_type.name not in ("BlobProto", "BlobShape"):
                stack.extend(value if is_repeated(field) else [value])
    return used


_BVLC_TYPES = """
AbsVal Accuracy ArgMax BNLL BatchNorm BatchReindex Bias Clip Concat ContrastiveLoss Convolution Crop Data Deconvolution Dropout DummyData
ELU Eltwise Embed EuclideanLoss Exp Filter Flatten HDF5Data HDF5Output HingeLoss Im2col ImageData InfogainLoss InnerProduct Input LRN
LSTM LSTMUnit Log MVN MemoryData MultinomialLogisticLoss PReLU Parameter Pooling Power Python RNN RNNUnit ReLU Reduction Reshape SPP
Scale Sigmoid SigmoidCrossEntropyLoss Silence Slice Softmax SoftmaxWithLoss Split Swish TanH Threshold Tile WindowData
"""
