"""Which fields of forks are computed, neutral or refused: the table ``effects.tsv``, with every field of every fork."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from caffetools.proto.forks.tables import DIALECTS, fork_schema
from caffetools.proto.schema import Message

Effect = Literal["computed", "neutral", "refused"]


class FieldEffect(NamedTuple):
    """The effect of one field of a fork.

    Attributes:
        effect: ``computed``: used as the fork does; ``neutral``: it changes no numbers; ``refused``: it would, and is not computed.
        unless: Value, as text, at which a refused field has no effect; empty if there is none.
        reason: What the field does.
        whole: Whether all fields of the message share the effect, such as the settings of a layer type that is not computed.
    """

    effect: Effect
    unless: str
    reason: str
    whole: bool = False


@cache
def effects(message: str) -> dict[str, FieldEffect]:
    """Return field name → effect for the fields that forks add to ``message``, such as ``SolverParameter``; all of a fork's own message."""
    return _table().get(message, {})


@cache
def _table() -> dict[str, dict[str, FieldEffect]]:
    facts: dict[str, set[str]] = {}
    for dialect in DIALECTS:
        for fact in fork_schema(dialect).fields:
            facts.setdefault(fact.message, set()).add(fact.name)
    lines = (Path(__file__).parent / "effects.tsv").read_text(encoding="utf-8").splitlines()
    found: dict[str, dict[str, FieldEffect]] = {}
    for line in [line for line in lines if not line.startswith("#")][1:]:
        message, fields, effect, unless, reason = line.split("\t")
        entry = FieldEffect(effect, unless, reason, fields == "*")  # type: ignore[arg-type]
        found.setdefault(message, {}).update(dict.fromkeys(facts[message] if entry.whole else fields.split(), entry))
    return found


def refused_fields(message: Message) -> dict[str, FieldEffect]:
    """Return the fields set in ``message`` whose effect would change numbers and is not computed."""
    table = effects(message.DESCRIPTOR.name)
    return {
        field.name: table[field.name]
        for field, value in message.ListFields()
        if field.name in table and table[field.name].effect == "refused" and field_text(field, value) != table[field.name].unless
    }


def field_text(field: FieldDescriptor, value: Any) -> str:
    """Return ``value`` of a field as a prototxt states it: an enum's name, ``true`` and ``false``."""
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    return str(value).lower() if isinstance(value, bool) else str(value)
