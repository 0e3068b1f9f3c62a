"""Every layer's ONNX form, run by onnxruntime, against what BVLC Caffe computed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from caffetools.engines.onnxruntime import OnnxRuntimeEngine, newest_opset
from caffetools.errors import ExportError
from caffetools.layers.registry import layer_types
from caffetools.net.net import Net
from caffetools.onnx.export import OPSETS, to_onnx
from caffetools.onnx.verify import verify
from caffetools.proto.forks.dialect import bvlc_types
from caffetools.proto.schema import TEST
from caffetools.proto.text import read_net
from tests.conftest import GOLDEN
from tests.layers.test_golden import set_parameters

FOLDER = GOLDEN / "layers"
CASES: list[dict[str, Any]] = [c for c in json.loads((FOLDER / "index.json").read_text())["cases"] if c["phase"] == "TEST"]

# Types without an ONNX form: losses and Accuracy have no place in a deployed net; HDF5Output writes files, and Python runs code.
LOSSES = {
    "Accuracy",
    "ContrastiveLoss",
    "EuclideanLoss",
    "HingeLoss",
    "InfogainLoss",
    "MultinomialLogisticLoss",
    "SigmoidCrossEntropyLoss",
    "SoftmaxWithLoss",
}
NO_FORM = {*LOSSES, "HDF5Output", "Python"}

# Golden numbers of a second pass that goes on from the first one's state; in ONNX every run begins with a state of zeros.
CARRIED_OVER = {"LSTM/state_carried_over", "RNN/state_carried_over"}

# Cases whose layers only name, pass on or make inputs: nothing would be left to run.
EMPTY = {"Dropout/test_inplace", "Input/two_shapes"}

# The only reasons for which a batch size may stay fixed: the net itself does not leave it free.
FIXED_BY_THE_NET = ("differ in their first axis", "takes no other batch size", "no input with a batch axis")


def name(case: dict[str, Any]) -> str:
    return f"{case['group']}/{case['id']}"


def is_empty(case: dict[str, Any]) -> bool:
    return name(case) in EMPTY or case["layer_types"] == ["DummyData"]


WITH_FORM = [c for c in CASES if not is_empty(c) and not set(c["layer_types"]) & (NO_FORM - LOSSES)]


def load(case: dict[str, Any], *, losses: bool = False) -> tuple[Net, dict[str, Any]]:
    """The case's net, without its losses unless asked for, and its arrays."""
    with np.load(FOLDER / case["npz"]) as file:
        arrays = dict(file)
    param = read_net(FOLDER / case["prototxt"])
    if not losses:
        kept = [layer for layer in param.layer if layer.type not in LOSSES]
        del param.layer[:]
        param.layer.extend(kept)
    net = Net(param, TEST, level=case.get("level", 0), stages=case.get("stages", ()))
    set_parameters(net, arrays)
    return net, arrays


def feed(net: Net, arrays: dict[str, Any]) -> dict[str, Any]:
    return {blob: arrays.get(f"in:{blob}", np.zeros(net.blob_shapes[blob], np.float32)) for blob in net.inputs}


def compared_on(case: dict[str, Any], opset: int) -> list[str]:
    """Hold every output whose golden value is known; gives their names."""
    net, arrays = load(case)
    if not any(not layer.IS_DATA for layer in net.layers):
        return []
    engine = OnnxRuntimeEngine.load(to_onnx(net, opset=opset, dynamic_axes=()).SerializeToString())
    inputs = feed(net, arrays)
    got = engine.predict({blob: inputs[blob] for blob in engine.inputs})
    known = {blob: arrays.get(f"out:{blob.split('@')[0]}") for blob in got}
    for blob, expected in known.items():
        if expected is not None:
            assert got[blob].shape == expected.shape
            np.testing.assert_allclose(got[blob], expected, **case.get("forward_tolerance", case["tolerance"]), err_msg=blob)
    return [blob for blob, expected in known.items() if expected is not None]


@pytest.mark.parametrize("case", [c for c in WITH_FORM if name(c) not in CARRIED_OVER], ids=name)
def test_onnxruntime_gives_the_numbers_of_caffe(case: dict[str, Any]) -> None:
    found = [compared_on(case, opset) for opset in (11, 13, 17, min(OPSETS[-1], newest_opset()))]
    assert all(found) or set(case["layer_types"]) & LOSSES


@pytest.mark.parametrize("case", WITH_FORM, ids=name)
def test_no_form_fixes_a_batch_that_its_layer_leaves_free(case: dict[str, Any]) -> None:
    net, arrays = load(case)
    if not any(not layer.IS_DATA for layer in net.layers):
        return
    try:
        verify(to_onnx(net).SerializeToString(), net, feed(net, arrays))
    except ExportError as error:
        assert any(reason in str(error) for reason in FIXED_BY_THE_NET)


@pytest.mark.parametrize("case", [c for c in CASES if c not in WITH_FORM or set(c["layer_types"]) & LOSSES], ids=name)
def test_what_has_no_exact_form_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="would be exported" if is_empty(case) else "has no ONNX form"):
        to_onnx(load(case, losses=True)[0], dynamic_axes=())


def test_the_golden_cases_hold_the_form_of_every_type_that_has_one() -> None:
    seen = {layer.type_name for case in WITH_FORM if name(case) in CARRIED_OVER or compared_on(case, 17) for layer in load(case)[0].layers}
    # Forks' layers have no golden cases; tests/layers/test_forks.py holds their forms against their own numbers.
    have = {kind for kind, layer_class in layer_types().items() if not layer_class.IS_DATA and kind in bvlc_types()}
    assert have - NO_FORM - seen == set()
