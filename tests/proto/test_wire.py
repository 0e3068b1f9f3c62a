from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffetools.proto import wire
from caffetools.proto.schema import Datum, LayerParameter


@given(st.integers(0, 2**64 - 1))
def test_a_varint_reads_as_it_was_written(value: int) -> None:
    data = wire.varint(value)
    assert len(data) == max(1, -(-value.bit_length() // 7))
    assert wire.read_varint(memoryview(data), 0, len(data)) == (value, len(data))


@given(st.integers(1, 2**29 - 1), st.integers(0, 2**31))
def test_a_key_holds_number_and_length(number: int, length: int) -> None:
    data = memoryview(wire.bytes_key(number, length))
    key, position = wire.read_varint(data, 0, len(data))
    assert (key >> 3, key & 7) == (number, wire.BYTES)
    assert wire.read_varint(data, position, len(data)) == (length, len(data))


@given(
    st.builds(
        Datum,
        channels=st.integers(-(2**31), 2**31 - 1),
        data=st.binary(max_size=300),
        float_data=st.lists(st.floats(width=32), max_size=4),
        encoded=st.booleans(),
    )
)
def test_walking_a_message_meets_its_fields_one_after_the_other(datum: object) -> None:
    data = memoryview(datum.SerializeToString())  # type: ignore[attr-defined]
    fields = list(wire.walk(data))
    assert [field.start for field in fields] == [0, *(field.end for field in fields)][: len(fields)]
    assert (fields[-1].end if fields else 0) == len(data)
    # Field by field, the message can be put together again.
    again = Datum()
    for field in fields:
        again.MergeFromString(bytes(data[field.start : field.end]))
    assert again.SerializeToString(deterministic=True) == bytes(data)


def test_a_part_of_a_buffer_is_walked_with_positions_of_the_whole() -> None:
    body = LayerParameter(name="conv", type="Convolution").SerializeToString()
    data = memoryview(b"xxx" + body + b"yyy")
    fields = list(wire.walk(data, 3, 3 + len(body)))
    assert [(f.number, bytes(data[f.value : f.end])) for f in fields] == [(1, b"conv"), (2, b"Convolution")]


@pytest.mark.parametrize(
    ("data", "message", "offset"),
    [
        (b"\x80", "the bytes end inside a number", 1),
        (b"\x08\x80", "the bytes end inside a number", 2),
        (b"\x08" + b"\xff" * 11, "longer than 10 bytes", 11),
        (b"\x0a\x05abc", "a field of 5 bytes extends past the end", 0),
        (b"\x08\x01\x0d\x00\x00", "a field of 4 bytes extends past the end", 2),
        (b"\x09\x00", "a field of 8 bytes extends past the end", 0),
        (b"\x0b", "wire type 3 is not valid", 0),
        (b"\x0c", "wire type 4 is not valid", 0),
        (b"\x0f", "wire type 7 is not valid", 0),
        (b"\x00\x01", "field number 0 is not valid", 0),
    ],
)
def test_bytes_that_are_not_a_message_are_an_error_that_names_the_place(data: bytes, message: str, offset: int) -> None:
    with pytest.raises(wire.WireError, match=message) as error:
        list(wire.walk(memoryview(data)))
    assert error.value.offset == offset


def test_no_bytes_are_a_message_without_fields() -> None:
    assert list(wire.walk(memoryview(b""))) == []
