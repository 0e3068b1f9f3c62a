"""Properties over generated messages of every type: text and binary forms give the message back, in any dialect that can write it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from caffetools.proto import schema
from caffetools.proto.blobs import LegacyArray, array_to_blob, blob_to_array
from caffetools.proto.forks.dialect import decode_net, dialect_of, encode, fit_to_dialect
from caffetools.proto.forks.renumber import field_numbers
from caffetools.proto.forks.tables import DIALECTS, UNKNOWN, UNKNOWN_BYTES
from caffetools.proto.schema import LayerParameter, NetParameter, SolverParameter, is_repeated, message_class
from caffetools.proto.text import format_text, parse

TEXT = st.text(st.characters(exclude_categories=["Cs", "Co"], exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["a\nb", 'quo"te', "back\\slash", "\x1b[0m", "{", "# no comment", "é", "'"]
)
FLOATS = st.floats(width=32, allow_nan=False)
INTS = {
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
}


def values(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from(sorted(field.enum_type.values_by_number))
    kinds: dict[int, st.SearchStrategy[Any]] = {
        field.TYPE_STRING: TEXT,
        field.TYPE_BYTES: st.binary(max_size=6),
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_FLOAT: FLOATS,
        field.TYPE_DOUBLE: st.floats(allow_nan=False),
        **INTS,
    }
    return kinds[field.type]


@st.composite
def messages(draw: st.DrawFn, name: str, depth: int = 3, dialect: str | None = None) -> Any:
    """A message of type ``name`` with a few of its fields set; of the fields of one dialect if one is given."""
    message = message_class(name)()
    fields = [f for f in message.DESCRIPTOR.fields if f.name not in (UNKNOWN, UNKNOWN_BYTES)]
    if dialect is not None:
        known = field_numbers(name, (dialect,) if dialect else ())
        fields = [f for f in fields if f.name in known]
    if depth == 0:
        fields = [f for f in fields if f.message_type is None]
    required = [f for f in fields if f.is_required]
    chosen = draw(st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda f: f.name)) if fields else []
    for field in {f.name: f for f in [*required, *chosen]}.values():
        if field.message_type is not None:
            inner = str(field.message_type.full_name).removeprefix("caffe.")
            for _ in range(draw(st.integers(1, 2)) if is_repeated(field) else 1):
                value = draw(messages(inner, depth - 1, dialect))
                if is_repeated(field):
                    getattr(message, field.name).append(value)
                else:
                    getattr(message, field.name).CopyFrom(value)
        elif is_repeated(field):
            getattr(message, field.name).extend(draw(st.lists(values(field), min_size=1, max_size=3)))
        else:
            setattr(message, field.name, draw(values(field)))
    return message


TYPES = sorted(schema.POOL.FindFileByName("caffe.proto").message_types_by_name)
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("name", TYPES)
def test_what_is_printed_is_parsed_to_the_same_message(name: str) -> None:
    @QUICK
    @given(messages(name))
    def holds(message: Any) -> None:
        text = format_text(message)
        if not text.strip():
            return
        assert parse(text, message_class(name)) == message
        assert format_text(parse(text, message_class(name))) == text

    holds()


@pytest.mark.parametrize("dialect", ["", *DIALECTS])
def test_a_net_of_one_dialect_survives_its_binary_form(dialect: str) -> None:
    @QUICK
    @given(messages("NetParameter", 3, dialect))
    def holds(net: Any) -> None:
        found, used = decode_net(encode(net, dialect or "bvlc"), dialect or "bvlc")
        assert found == net and used == dialect

    holds()


@settings(QUICK, max_examples=60)
@given(messages("NetParameter"))
def test_any_net_can_be_written_as_weights(net: Any) -> None:
    del net.layers[:]
    names = [layer.name for layer in net.layer if layer.type != "Input"]
    dialect = fit_to_dialect(net)
    assert dialect == dialect_of(net)
    read, _ = decode_net(encode(net, dialect), dialect or "bvlc")
    assert [layer.name for layer in read.layer if layer.type != "Input"] == names


@settings(QUICK, max_examples=100)
@given(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3), elements=FLOATS),
    st.booleans(),
)
def test_an_array_survives_a_blob_with_its_axes_and_its_form(array: np.ndarray, legacy: bool) -> None:
    given_array = array.view(LegacyArray) if legacy and array.ndim == 4 else array
    blob = array_to_blob(given_array)
    assert blob.HasField("num") == isinstance(given_array, LegacyArray)
    assert blob.HasField("shape") == (not isinstance(given_array, LegacyArray) and array.ndim > 0)
    back = blob_to_array(blob)
    np.testing.assert_array_equal(back, array)
    assert back.shape == array.shape and isinstance(back, LegacyArray) == isinstance(given_array, LegacyArray)


def test_messages_of_the_usual_kinds_are_generated() -> None:
    assert {LayerParameter, NetParameter, SolverParameter} <= {message_class(name) for name in TYPES}
