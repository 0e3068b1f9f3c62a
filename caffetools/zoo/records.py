"""From a YAML mapping to a frozen dataclass, with every unknown, missing or ill-typed key named."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

from caffetools.errors import ZooError

T = TypeVar("T")


def build(record: type[T], data: object, file: str, at: str = "") -> T:
    """Return an instance of the dataclass ``record`` from the mapping ``data``.

    Fields without a default must be there, others may. Nested dataclasses, ``tuple[X, ...]``, ``X | None``, str, int, float and bool are known.

    Args:
        record: The dataclass.
        data: The mapping, as YAML gives it.
        file: The file's name, for messages.
        at: The key that holds ``data``, with a dot behind it, for messages.

    Raises:
        ZooError: a key is unknown, missing, or holds another kind of value; names file and key.
    """
    if not isinstance(data, dict):
        raise ZooError(f"{file}: {at or 'the card'} must be a mapping of keys to values, not {_shown(data)}")
    fields = {field.name: field for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            close = difflib.get_close_matches(str(key), list(fields), n=1)
            raise ZooError(f"{file}: unknown key '{at}{key}'" + (f"; did you mean '{at}{close[0]}'?" if close else ""))
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING:
            raise ZooError(f"{file}: the key '{at}{name}' is missing")
    hints = typing.get_type_hints(record)
    return record(**{key: _value(hints[key], value, file, f"{at}{key}") for key, value in data.items()})


def _value(kind: Any, value: object, file: str, key: str) -> Any:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ZooError(f"{file}: '{key}' must be a list, not {_shown(value)}")
        return tuple(_value(typing.get_args(kind)[0], item, file, f"{key}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, file, f"{key}.")
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ZooError(f"{file}: '{key}' must be {_NAMES[kind]}, not {_shown(value)}")
    return kind(value)


_NAMES = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}


def _shown(value: object) -> str:
    return "empty" if value is None else repr(value)[:60]
