"""Verifying: what is measured, and that differences are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from caffetools.errors import ExportError, ModelFileError
from caffetools.net.net import Net
from caffetools.onnx.export import to_onnx
from caffetools.onnx.verify import compare, verify
from tests.net.test_net import conv, data, net_of, relu


def net() -> Net:
    torch.manual_seed(0)
    return net_of(data() + conv("c", "data") + relu("r", "c") + conv("d", "c") + conv("e", "c"))


def test_the_same_numbers_pass_and_every_output_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(to_onnx(net()).SerializeToString())
    verification = verify(tmp_path / "a.onnx", net())
    assert {d.output for d in verification.differences} == {"d", "e"}
    assert verification.largest < 1e-5
    assert verification.largest == max(d.relative for d in verification.differences)
    assert verification.measured_on == "random inputs (seed 0), batch size 2 and 3"
    assert "onnxruntime against caffetools on random inputs" in verification.describe()


def test_other_weights_are_found_and_the_first_wrong_blob_is_named() -> None:
    changed = net()
    with torch.no_grad():
        changed.layer("e").blobs[0][0, 0, 0, 0] += 1e-2
    with pytest.raises(ExportError, match="output 'e' differs by .*the first blob that differs is 'e'") as error:
        verify(to_onnx(net()).SerializeToString(), changed)
    assert error.value.exit_code == 1
    with torch.no_grad():
        changed.layer("c").blobs[0][0, 0, 0, 0] += 1e-2
    with pytest.raises(ExportError, match="the first blob that differs is 'c'"):
        verify(to_onnx(net()).SerializeToString(), changed)


def test_a_batch_that_was_baked_in_is_found() -> None:
    model = to_onnx(net_of(data() + relu("r", "data", "y")))
    model.graph.node[0].output[0] = "z"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3, 8, 8], np.int64), "shape"))
    model.graph.node.append(onnx.helper.make_node("Expand", ["z", "shape"], ["y"]))
    with pytest.raises(ExportError, match="with batch size 3, onnxruntime cannot run the model"):
        verify(model.SerializeToString(), net_of(data() + relu("r", "data", "y")))


def test_given_inputs_are_what_is_compared_on() -> None:
    inputs = {"data": np.zeros((1, 3, 8, 8), np.float32)}
    verification = verify(to_onnx(net()).SerializeToString(), net(), inputs)
    assert verification.measured_on == "the given inputs, batch size 1 and 2"


def test_differences_are_relative_to_the_largest_value() -> None:
    expected = np.array([[100.0, -400.0], [0.0, 1.0]], np.float32)
    found = compare("y", expected, expected + np.array([[0, 0], [0, 2]], np.float32))
    assert (found.relative, found.absolute, found.where, found.expected, found.got) == (2 / 400, 2.0, (1, 1), 1.0, 3.0)


def test_nan_infinity_and_other_shapes_never_pass() -> None:
    good = np.ones((2, 2), np.float32)
    for wrong in (np.full((2, 2), np.nan, np.float32), np.float32([[1, np.inf], [1, 1]])):
        assert compare("y", good, wrong).relative == np.inf
        assert compare("y", wrong, wrong).relative == np.inf
    assert compare("y", good, np.ones((2, 1), np.float32)).relative == np.inf


def test_a_file_that_is_no_model_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x" * 100)
    with pytest.raises(ModelFileError, match=r"a\.onnx: onnxruntime cannot load it"):
        verify(tmp_path / "a.onnx", net())


def test_probabilities_of_nought_and_one_hide_nothing() -> None:
    softmax = 'layer { name: "prob" type: "Softmax" bottom: "c" top: "prob" }'

    def saturated() -> Net:
        torch.manual_seed(0)
        made = net_of(data() + conv("c", "data") + softmax)
        with torch.no_grad():
            made.layer("c").blobs[0].mul_(0.01)
            made.layer("c").blobs[1].copy_(torch.tensor([1000.0, 0, 0, 0]))
        return made

    changed = saturated()
    with torch.no_grad():
        changed.layer("c").blobs[1][2] = 500
    model = to_onnx(saturated()).SerializeToString()
    assert {d.output for d in verify(model, saturated()).differences} == {"prob", "c"}
    with pytest.raises(ExportError, match="output 'c' differs by"):
        verify(model, changed)
