"""A file given in place of another is named for what it is, with what to do."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from caffetools.data.datasets.inspect import read_names
from caffetools.data.images import read_image
from caffetools.errors import CaffeToolsError, DataError, ModelFileError, PrototxtError
from caffetools.infer.preprocess import read_labels
from caffetools.proto.binary import (
    read_binaryproto,
    read_caffemodel,
    read_solverstate,
    write_binaryproto,
    write_caffemodel,
    write_solverstate,
)
from caffetools.proto.model import Caffemodel, SolverState
from caffetools.proto.schema import NetParameter
from caffetools.proto.sniff import Kind, guard, sniff
from caffetools.proto.text import read_net, read_solver
from caffetools.surgery.class_incremental import read_classes

NET = 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" }\n'
SOLVER = 'net: "net.prototxt"\nbase_lr: 0.1\n'


def archive(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(name, b"data")
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


CONTENTS: dict[Kind, bytes] = {
    Kind.NET_TEXT: NET.encode(),
    Kind.SOLVER_TEXT: SOLVER.encode(),
    Kind.LABEL_MAP: b'item { name: "a" label: 0 }',
    Kind.LOG: b"I1124 03:22:05.471045 14693 caffe.cpp:197] Use CPU.\nlayer {\n  name: 'a'\n",
    Kind.LFS_POINTER: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    Kind.WEB_PAGE: b"\n<!DOCTYPE html><html></html>",
    Kind.XML: b'<?xml version="1.0"?><a/>',
    Kind.JSON: b'{"a": 1}',
    Kind.UTF16: "name: 'a'".encode("utf-16"),
    Kind.TORCH: archive("archive/data.pkl"),
    Kind.ZIP: archive("readme.txt"),
    Kind.NPZ: archive("a.npy"),
    Kind.HEIF: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    Kind.VIDEO: b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    Kind.SAFETENSORS: (28).to_bytes(8, "little") + b'{"__metadata__":{"a":"b"}}  ',
    Kind.NCNN: b"7767517\n2 2\nInput data 0 1 data\n",
    Kind.PICKLE: b"\x80\x04\x95abc",
    Kind.GZIP: b"\x1f\x8b\x08\0",
    Kind.NPY: npy(np.zeros(3)),
    Kind.PNG: b"\x89PNG\r\n\x1a\n\0",
    Kind.JPEG: b"\xff\xd8\xff\xe0",
    Kind.HDF5: b"\x89HDF\r\n\x1a\n\0",
    Kind.DARKNET: b"[net]\nbatch=1\n",
    Kind.PYTHON: b"import caffe\nnet = caffe.Net()\n",
    Kind.EMPTY: b"",
    # A version and a graph; a name and a layer.
    Kind.ONNX: b"\x08\x08\x3a\x03\x12\x01g",
    Kind.CAFFEMODEL: b"\x0a\x01n\xa2\x06\x03\x0a\x01l",
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_is_recognized_by_its_content(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "file").write_bytes(CONTENTS[kind])
    found = sniff(tmp_path / "file")
    assert found is not None and found.kind is kind


def test_utf16_without_a_mark_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes('name: "net"\nlayer { }'.encode("utf-16-le"))
    found = sniff(tmp_path / "file")
    assert found is not None and found.kind is Kind.UTF16


@pytest.fixture
def files(tmp_path: Path) -> Path:
    net = NetParameter(name="n")
    net.layer.add(name="ip", type="InnerProduct")
    write_caffemodel(tmp_path / "s_iter_2.caffemodel", Caffemodel(net, {"ip": [np.zeros((2, 3), np.float32)]}))
    write_solverstate(tmp_path / "s_iter_2.solverstate", SolverState(2, "s_iter_2.caffemodel", [np.zeros((2, 3), np.float32)]))
    write_binaryproto(tmp_path / "mean.binaryproto", np.zeros((1, 3, 4, 4), np.float32))
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    for kind, data in CONTENTS.items():
        (tmp_path / kind.name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize(
    ("read", "name", "words"),
    [
        (read_caffemodel, "s_iter_2.solverstate", "this is a solver state (iteration 2), and a caffemodel is expected; take "),
        (read_caffemodel, "mean.binaryproto", "this is a single blob, such as a mean file, and a caffemodel is expected"),
        (read_caffemodel, "net.prototxt", "this is a net's prototxt, and a caffemodel is expected"),
        (read_caffemodel, "LFS_POINTER", "this is a Git LFS pointer, not the file itself, and a caffemodel is expected; fetch"),
        (read_caffemodel, "TORCH", "this is a PyTorch checkpoint, and a caffemodel is expected"),
        (read_caffemodel, "PICKLE", "this is a Python pickle, and a caffemodel is expected; it is not opened"),
        (read_caffemodel, "WEB_PAGE", "this is a web page, and a caffemodel is expected"),
        (read_solverstate, "s_iter_2.caffemodel", "this is a .caffemodel (weights), and a solverstate is expected"),
        (read_binaryproto, "s_iter_2.caffemodel", "this is a .caffemodel (weights), and a binaryproto is expected"),
        (read_net, "s_iter_2.caffemodel", "this is a .caffemodel (weights), and a prototxt is expected"),
        (read_net, "UTF16", "this is text in UTF-16, and a prototxt is expected; save it as UTF-8"),
        (read_net, "DARKNET", "this is a Darknet configuration, and a prototxt is expected; convert it"),
        (read_net, "solver.prototxt", "this is a solver's prototxt, and a net's is expected"),
        (read_solver, "net.prototxt", "this is a net's prototxt, and a solver's is expected"),
        (read_solver, "mean.binaryproto", "this is a single blob, such as a mean file, and a prototxt is expected"),
    ],
)
def test_a_file_given_as_another_is_named(files: Path, read: object, name: str, words: str) -> None:
    with pytest.raises(CaffeToolsError) as caught:
        read(files / name)
    assert str(caught.value).startswith(str(files / name)) and words in str(caught.value)


def test_any_error_of_a_third_party_reader_is_one_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(CONTENTS[Kind.NPY])
    for failure in (RuntimeError("inner\nlines"), KeyError("x"), EOFError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")):
        with (
            pytest.raises(DataError, match=r"a\.npy: damaged or not a NumPy array") as caught,
            guard(DataError, tmp_path / "a.npy", "a NumPy array", allowed=(Kind.NPY,)),
        ):
            raise failure
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot read"), guard(DataError, tmp_path / "absent", "a NumPy array"):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(PrototxtError, match="ours"), guard(ModelFileError, tmp_path / "a.npy", "a NumPy array"):
        raise PrototxtError("ours")
    with pytest.raises(MemoryError), guard(ModelFileError, tmp_path / "a.npy", "a NumPy array"):
        raise MemoryError


def test_an_onnx_model_is_not_a_solver_state_although_its_version_reads_as_an_iteration(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08\x3a\x03\x12\x01g")
    with pytest.raises(ModelFileError, match=r"m\.onnx: this is an ONNX model, and a solverstate is expected; 'caffetools import' makes"):
        read_solverstate(tmp_path / "m.onnx")
    write_solverstate(tmp_path / "bare.solverstate", SolverState(3, "", [], 0))
    assert read_solverstate(tmp_path / "bare.solverstate").iter == 3


@pytest.mark.parametrize(
    "kind", [Kind.NET_TEXT, Kind.WEB_PAGE, Kind.LABEL_MAP, Kind.JSON, Kind.JPEG, Kind.ONNX, Kind.CAFFEMODEL, Kind.UTF16]
)
def test_a_file_given_for_labels_is_named(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "labels.txt").write_bytes(CONTENTS[kind])
    with pytest.raises(
        DataError, match=rf"labels\.txt: this is {re.escape(kind.noun)}.*, and a text file with one class name a line is expected"
    ):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize("kind", [Kind.NET_TEXT, Kind.CAFFEMODEL, Kind.ONNX, Kind.LFS_POINTER, Kind.ZIP])
def test_a_file_given_for_a_picture_is_named(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "p.png").write_bytes(CONTENTS[kind])
    with pytest.raises(DataError, match=rf"p\.png: not a picture that OpenCV can decode, or a damaged one \(it is {re.escape(kind.noun)}"):
        read_image(tmp_path / "p.png")


def test_labels_end_at_line_breaks_and_at_no_other_separator(tmp_path: Path) -> None:
    labels = ("a\u2028b", "c\x0cd", "e\x85f", "g\x1ch")
    (tmp_path / "labels.txt").write_bytes("\r\n".join(labels).encode() + b"\r\n")
    assert read_labels(tmp_path / "labels.txt") == labels
    assert tuple(read_names(tmp_path / "labels.txt")) == labels
    assert tuple(read_classes(tmp_path / "labels.txt")) == labels


def test_an_avi_or_matroska_file_is_a_video(tmp_path: Path) -> None:
    for content in (b"RIFF\x10\0\0\0AVI LIST", b"\x1aE\xdf\xa3\x9fB\x86\x81\x01"):
        (tmp_path / "file").write_bytes(content)
        assert sniff(tmp_path / "file") == (Kind.VIDEO, "")
