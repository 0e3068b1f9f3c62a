"""Errors of ``import caffe`` are also what pycaffe raises, so that the ``except`` clauses of scripts hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import caffetools
from caffetools.errors import CaffeToolsError, NetError
from caffetools.pycaffe import coord_map, io
from caffetools.pycaffe.errors import also, raised_also_as
from caffetools.pycaffe.net import Net
from caffetools.pycaffe.net_spec import NetSpec, layers, to_proto
from caffetools.pycaffe.proto import caffe_pb2
from caffetools.pycaffe.transformer import Transformer

TEXT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 } } }\n'


@pytest.fixture
def net(tmp_path: Path) -> Net:
    (tmp_path / "net.prototxt").write_text(TEXT)
    return Net(tmp_path / "net.prototxt", caffetools.pycaffe.TEST)


def spec() -> NetSpec:
    n = NetSpec()
    n.data = layers.Input(shape=dict(dim=[1, 1, 8, 8]))
    n.other = layers.Input(shape=dict(dim=[1, 1, 8, 8]))
    n.half = layers.Pooling(n.data, kernel_size=2, stride=2)
    n.big = layers.Convolution(n.data, kernel_size=3, num_output=1, pad=9)
    return n


def no_shape() -> object:
    blob = caffe_pb2.BlobProto()
    blob.data.extend([0.0] * 100)
    return io.blobproto_to_array(blob)


def crop_half() -> object:
    n = spec()
    return coord_map.crop(n.half, n.data)


CASES: list[tuple[str, type[Exception], Callable[[Net], object]]] = [
    ("a missing net", RuntimeError, lambda net: Net("none.prototxt", 1)),
    ("missing weights", RuntimeError, lambda net: net.copy_from("none.caffemodel")),
    ("a layer that is not there", ValueError, lambda net: net.forward(end="none")),
    ("a layer that is no name", ValueError, lambda net: net.forward(end=0)),
    ("a blob that is no name", KeyError, lambda net: net.forward(blobs=[1])),  # type: ignore[list-item]
    ("a name in place of a list", TypeError, lambda net: net.forward(blobs="data")),
    ("a blob that is not there", KeyError, lambda net: net.backward(diffs=["none"])),
    ("values of another shape", ValueError, lambda net: net.forward(data=np.zeros((1, 3)))),
    ("arrays for another layer", RuntimeError, lambda net: net.set_input_arrays(np.zeros((1, 1)), np.zeros(1))),
    ("a picture with other channels", CaffeToolsError, lambda net: io.resize_image(np.zeros((4, 4, 3)), (2, 2, 1))),
    ("a crop of another scale", AssertionError, lambda net: crop_half()),
    ("tops that are not connected", RuntimeError, lambda net: coord_map.coord_map_from_to(spec().other, spec().data)),
    ("a blob without a shape", ValueError, lambda net: no_shape()),
    ("a picture that is not there", OSError, lambda net: io.load_image("none.jpg")),
    ("a datum of two axes", ValueError, lambda net: io.array_to_datum(np.zeros((2, 2)))),
    ("a mean that does not fit", ValueError, lambda net: Transformer({"data": (1, 3, 4, 4)}).set_mean("data", np.zeros(2))),
    ("a wrong parameter", AttributeError, lambda net: to_proto(layers.Convolution(spec().data, bogus=1))),
]


@pytest.mark.parametrize(("what", "kind", "call"), CASES, ids=[case[0] for case in CASES])
def test_an_error_is_of_caffes_type_and_of_ours(what: str, kind: type[Exception], call: Callable[[Net], object], net: Net) -> None:
    with pytest.raises(kind) as raised:
        call(net)
    assert isinstance(raised.value, CaffeToolsError)
    assert "\n" not in str(raised.value)


def test_a_crop_with_a_negative_offset_is_an_assertion_of_caffe() -> None:
    n = spec()
    with pytest.raises(AssertionError, match="negative offset"):
        coord_map.crop(n.data, n.big)


def test_fields_text_and_cause_are_kept() -> None:
    error = NetError("does not fit", path="net.prototxt", line=3, layer="ip", hint="change it")
    error.exit_code = 7
    other = also(error, RuntimeError, KeyError)
    assert isinstance(other, (NetError, RuntimeError, KeyError))
    assert str(other) == str(error) == "net.prototxt:3: layer 'ip': does not fit; change it"
    assert (other.layer, other.exit_code, type(other).__name__) == ("ip", 7, "NetError")
    assert also(other, RuntimeError) is other
    with pytest.raises(ValueError, match="does not fit") as raised, raised_also_as(ValueError):
        raise error from KeyError("why")
    assert isinstance(raised.value.__cause__, KeyError)
