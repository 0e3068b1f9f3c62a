"""Which fields of forks are computed, neutral or refused: the table ``effects.tsv``.

Layers classify their own fields (:mod:`caffetools.layers.fork_fields`); this table is for solvers and whole nets.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from caffetools.proto.schema import Message

Effect = Literal["computed", "neutral", "refused"]


class FieldEffect(NamedTuple):
    """The effect of one field of a fork.

    Attributes:
        effect: ``computed``: used as the fork does; ``neutral``: it changes no numbers; ``refused``: it would, and is not computed.
        unless: Value, as text, at which a refused field has no effect; empty if there is none.
        reason: What the field does.
    """

    effect: Effect
    unless: str
    reason: str


@cache
def effects(message: str) -> dict[str, FieldEffect]:
    """Return field name → effect for the fields that forks add to ``message`` (``SolverParameter``, ``NetParameter``)."""
    lines = (Path(__file__).parent / "effects.tsv").read_text(encoding="utf-8").splitlines()
    found: dict[str, FieldEffect] = {}
    for line in [line for line in lines if not line.startswith("#")][1:]:
        owner, field, effect, unless, reason = line.split("\t")
        if owner == message:
            found[field] = FieldEffect(effect, unless, reason)  # type: ignore[arg-type]
    return found


def refused_fields(message: Message) -> dict[str, FieldEffect]:
    """Return the fields set in ``message`` whose effect would change numbers and is not computed."""
    table = effects(message.DESCRIPTOR.name)
    return {
        field.name: table[field.name]
        for field, value in message.ListFields()
        if field.name in table and table[field.name].effect == "refused" and _text(field, value) != table[field.name].unless
    }


def _text(field: FieldDescriptor, value: Any) -> str:
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    return str(value).lower() if isinstance(value, bool) else str(value)
