"""A pycaffe net's weights: into files, out of files, and shared between nets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from caffetools.errors import ModelFileError, NetError
from caffetools.pycaffe.net import Net
from caffetools.pycaffe.proto import caffe_pb2
from tests.pycaffe.test_net import DEPLOY, SIMPLE

Write = Callable[[str, str], str]
TRAIN, TEST = caffe_pb2.TRAIN, caffe_pb2.TEST


@pytest.fixture
def simple(write: Write) -> Net:
    return Net(write("simple.prototxt", SIMPLE), TRAIN)


@pytest.fixture
def deploy(write: Write) -> Net:
    return Net(write("deploy.prototxt", DEPLOY), TEST)


def test_all_ways_to_build_a_net(write: Write, tmp_path: Path) -> None:
    text = DEPLOY + (
        'layer { name: "extra" type: "ReLU" bottom: "fc" top: "extra" include { stage: "more" } }\n'
        'layer { name: "high" type: "ReLU" bottom: "fc" top: "high" include { min_level: 2 } }\n'
    )
    path, weights = write("net.prototxt", text), str(tmp_path / "net.caffemodel")
    first = Net(path, TEST)
    first.save(weights)
    for net in (Net(path, weights, TEST), Net(path, TEST, weights=weights), Net(network_file=path, phase=TEST, weights=weights)):
        np.testing.assert_array_equal(net.params["conv"][0].data, first.params["conv"][0].data)
    assert Net(path, TEST, stages=["more"]).outputs == ["extra", "prob"]
    assert Net(path, TEST, level=2, stages=["more"]).outputs == ["extra", "high", "prob"]


def test_weights_in_and_out(deploy: Net, write: Write, tmp_path: Path) -> None:
    for suffix, save, load in (
        (".caffemodel", "save", "copy_from"),
        (".h5", "save_hdf5", "load_hdf5"),
        (".hdf5", "save_hdf5", "load_hdf5"),
    ):
        path = tmp_path / f"weights{suffix}"
        getattr(deploy, save)(str(path))
        other = Net(write("other.prototxt", DEPLOY), TEST)
        assert not np.array_equal(other.params["fc"][0].data, deploy.params["fc"][0].data)
        getattr(other, load)(str(path))
        for name in deploy.params:
            for mine, theirs in zip(deploy.params[name], other.params[name], strict=True):
                np.testing.assert_array_equal(mine.data, theirs.data)
    with pytest.raises(ModelFileError, match="cannot read"):
        deploy.copy_from(str(tmp_path / "none.caffemodel"))


def test_diffs_can_be_saved_too(simple: Net, tmp_path: Path) -> None:
    simple.forward()
    simple.backward()
    simple.save_hdf5(str(tmp_path / "w.h5"), write_diff=True)
    with h5py.File(tmp_path / "w.h5") as file:
        np.testing.assert_array_equal(file["diff/conv/0"], simple.params["conv"][0].diff)
        np.testing.assert_array_equal(file["data/ip/1"], simple.params["ip"][1].data)


def test_a_backward_pass_uses_weights_that_were_shared_after_the_forward_pass(simple: Net, write: Write, tmp_path: Path) -> None:
    shared, edited = (Net(write(f"{number}.prototxt", SIMPLE), TRAIN) for number in range(2))
    shared.forward()
    shared.save(str(tmp_path / "w.caffemodel"))
    edited.copy_from(str(tmp_path / "w.caffemodel"))
    for name in ("data", "label"):
        edited.blobs[name].data[...] = shared.blobs[name].data
    edited.forward(start="conv")
    shared.share_with(simple)
    for name, blobs in simple.params.items():
        for blob, other in zip(edited.params[name], blobs, strict=True):
            blob.data[...] = other.data
    for net in (shared, edited):
        net.backward()
    for name, blobs in shared.params.items():
        for blob, other in zip(edited.params[name], blobs, strict=True):
            assert np.abs(other.diff).max() > 0
            np.testing.assert_allclose(blob.diff, other.diff, rtol=1e-5, atol=1e-6)


def test_nets_can_share_weights_and_keep_their_own_diffs(simple: Net, write: Write) -> None:
    other = Net(write("other.prototxt", SIMPLE), TRAIN)
    other.share_with(simple)
    simple.params["conv"][0].data[...] = 7
    assert (other.params["conv"][0].data == 7).all()
    other.forward()
    other.backward()
    assert np.abs(other.params["ip"][0].diff).sum() > 0
    assert (simple.params["ip"][0].diff == 0).all()
    third = Net(write("third.prototxt", SIMPLE.replace("num_output: 13", "num_output: 4")), TRAIN)
    with pytest.raises(NetError, match="layer 'ip': cannot share parameters: they are 4 x 792, 4 in this net but 13 x 792, 13"):
        third.share_with(simple)
