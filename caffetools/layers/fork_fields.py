"""Fields that forks added to BVLC Caffe's own messages, in a layer: those that change numbers must be honoured or refused."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor

from caffetools.proto.forks.renumber import field_numbers
from caffetools.proto.forks.tables import UNKNOWN, UNKNOWN_BYTES
from caffetools.proto.schema import LayerParameter, Message

# Which code computes it, how data are read ahead, where memory is shared: the numbers stay the same, up to their precision.
_HARMLESS = {
    *("engine", "conv_algos_override", "cudnn_convolution_algo_seeker", "cudnn_math_override", "conv_algorithm", "debug"),
    *("forward_type", "backward_type", "forward_math", "backward_math", "multinode", "stats_batch_size"),
    *("cache", "precache", "threads", "parser_threads", "prefetch", "shuffle"),
    "reshape_every_iter",
    UNKNOWN,
    UNKNOWN_BYTES,
}


def fork_fields(param: LayerParameter) -> list[str]:
    """Return the fields of a ``LayerParameter``, and of BVLC's messages in it, that a fork added and that are not at their default."""
    names = []
    for field, value in param.ListFields():
        if field.name in _BVLC_LAYER and field.message_type is not None and field.name.endswith("_param"):
            names += _foreign(value)
        elif field.name not in _BVLC_LAYER and field.message_type is None and not _harmless(field, value):
            names.append(field.name)
    return names


def _foreign(message: Message) -> list[str]:
    known = field_numbers(message.DESCRIPTOR.name, ())
    names = []
    for field, value in message.ListFields():
        if field.name not in known:
            names += [] if _harmless(field, value) else [field.name]
        elif field.message_type is not None:
            # Fillers within convolution_param, for example.
            names += [name for part in (value if field.is_repeated else [value]) for name in _foreign(part)]
    return names


def _harmless(field: FieldDescriptor, value: object) -> bool:
    return field.name in _HARMLESS or (field.message_type is None and value == field.default_value)


_BVLC_LAYER = field_numbers("LayerParameter", ())
