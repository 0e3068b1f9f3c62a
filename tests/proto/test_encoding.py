"""Texts that are not UTF-8: read as Caffe reads them, matched with their weights, and written back byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffetools.errors import PrototxtError
from caffetools.proto.binary import read_caffemodel, write_caffemodel
from caffetools.proto.encoding import decode_text, encode_text, system_path
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse, read_net, write_prototxt


@given(st.binary(max_size=200))
def test_any_bytes_survive(data: bytes) -> None:
    text = decode_text(data)
    text.encode("utf-8")  # as protobuf does
    assert encode_text(text) == data


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "utf-8", "utf-8-sig", "shift_jis"])
def test_comments_and_names_in_any_encoding_are_read(tmp_path: Path, encoding: str) -> None:
    word = {"latin-1": "réseau", "shift_jis": "テスト"}.get(encoding, "数据层")
    (tmp_path / "net.prototxt").write_bytes(f'# {word}\nname: "{word}"\nlayer {{ name: "a" type: "ReLU" }}  # {word}\n'.encode(encoding))
    net = read_net(tmp_path / "net.prototxt")
    assert encode_text(net.name) == word.encode(encoding.removesuffix("-sig"))
    write_prototxt(tmp_path / "again.prototxt", net)
    assert word.encode(encoding.removesuffix("-sig")) in (tmp_path / "again.prototxt").read_bytes()
    assert read_net(tmp_path / "again.prototxt") == net


def test_escapes_that_are_not_utf8_are_the_bytes_that_they_name() -> None:
    net = parse(r'name: "\321\320\x41" layer { name: "\\351" type: "\345\261\202" }', NetParameter)
    assert encode_text(net.name) == b"\xd1\xd0A"
    assert (net.layer[0].name, net.layer[0].type) == ("\\351", "层")


def test_a_layer_finds_its_weights_under_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_bytes(b'layer { name: "caf\xe9" type: "InnerProduct" }')
    net = read_net(tmp_path / "net.prototxt")
    name = net.layer[0].name
    write_caffemodel(tmp_path / "m", Caffemodel(net, {name: [np.ones(2, np.float32)]}))
    assert b"caf\xe9" in (tmp_path / "m").read_bytes()
    read = read_caffemodel(tmp_path / "m")
    assert read.net.layer[0].name == name and list(read.blobs) == [name]


def test_a_path_that_is_not_utf8_reaches_the_file(tmp_path: Path) -> None:
    folder = bytes(tmp_path) + b"/caf\xe9"
    with open(folder, "wb") as stream:  # noqa: PTH123 (of bytes)
        stream.write(b"x")
    assert Path(system_path(decode_text(folder))).read_bytes() == b"x"


def test_control_characters_are_read_in_comments_only(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_bytes(b'# \x01\x02\nname: "n"')
    assert read_net(tmp_path / "net.prototxt").name == "n"
    (tmp_path / "net.prototxt").write_bytes(b'name: "n" \x01')
    with pytest.raises(PrototxtError, match="not a text file"):
        read_net(tmp_path / "net.prototxt")


def test_a_string_of_megabytes_is_refused_with_its_line() -> None:
    with pytest.raises(PrototxtError, match=r":2: a string has 3,000,002 characters"):
        parse('name: "a"\nname: "' + "a" * 3_000_000 + '"', NetParameter)
