"""LRN in other operators: as exact as onnxruntime's own, under the rule of the export's verification."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from caffetools.engines.onnxruntime import open_session
from caffetools.errors import ExportMismatch
from caffetools.layers.lrn import LRN as LRNLayer
from caffetools.net.net import Net
from caffetools.onnx.export import LRN_FORMS, build, export, to_onnx
from caffetools.onnx.lrn import expand_lrn
from caffetools.onnx.model import from_proto
from caffetools.onnx.verify import verify_model
from caffetools.proto.schema import TEST, NetParameter
from caffetools.proto.text import parse

DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: %d dim: 5 dim: 6 } } }\n'
LRN = 'layer { name: "n" type: "LRN" bottom: "data" top: "%s" lrn_param { local_size: %d alpha: %g beta: %g k: %g } }\n'
RELU = 'layer { name: "r" type: "ReLU" bottom: "n" top: "r" }\n'


def net_of(text: str) -> Net:
    return Net(parse(text, NetParameter), TEST)


@pytest.mark.parametrize("channels", [1, 2, 3, 16, 96])
@pytest.mark.parametrize(
    ("size", "alpha", "beta", "k"),
    [(5, 1e-4, 0.75, 1), (3, 5e-5, 0.75, 1), (7, 0.5, 0.75, 2), (5, 1, 0.5, 1), (1, 0.1, 1, 1), (9, 2, 2.3, 0.1)],
)
def test_it_is_verified_like_an_export(channels: int, size: int, alpha: float, beta: float, k: float) -> None:
    net = net_of(DATA % channels + LRN % ("n", size, alpha, beta, k) + RELU)
    model, shapes = build(net)
    proto = model.to_proto()
    assert expand_lrn(proto) == 1 and all(node.op_type != "LRN" for node in proto.graph.node)
    onnx.checker.check_model(proto, full_check=True)
    data = (np.random.default_rng(size).normal(size=(2, channels, 5, 6)) * 60).astype(np.float32)
    verify_model(from_proto(proto), net, shapes.cases, {"data": data})


@pytest.mark.parametrize(("size", "alpha", "beta", "k", "gain"), [(1, 1, 1.3, 2, 50), (1, 1, 0.75, 1, 1000), (5, 1e-4, 0.75, 1, 1000)])
def test_the_rounding_of_running_sums_is_allowed(size: int, alpha: float, beta: float, k: float, gain: float) -> None:
    """Caffe's own LRN adds to its sum the channel that enters a window and subtracts the one that leaves, and onnxruntime's does so too."""
    net = net_of(DATA % 9 + LRN % ("n", size, alpha, beta, k))
    model, shapes = build(net)
    data = (np.random.RandomState(0).randn(2, 9, 5, 6) * gain).astype(np.float32)
    verification = verify_model(model, net, shapes.cases, {"data": data})
    (layer,) = (layer for layer in net.layers if isinstance(layer, LRNLayer))
    summed = layer.with_running_sums(torch.from_numpy(data))
    got = open_session(model.to_proto()).run({"data": data})["n"]
    np.testing.assert_allclose(got, summed.numpy(), rtol=1e-6, atol=1e-6 * float(summed.abs().max()))
    assert verification.largest < 0.1


def test_a_wrong_lrn_is_found_all_the_same() -> None:
    net = net_of(DATA % 9 + LRN % ("n", 1, 1, 0.75, 1))
    model, shapes = build(net_of(DATA % 9 + LRN % ("n", 1, 1.1, 0.75, 1)))
    with pytest.raises(ExportMismatch, match="the first blob that differs is 'n', of layer 'n'"):
        verify_model(model, net, shapes.cases)


def test_values_keep_their_names_and_other_nodes_are_kept() -> None:
    proto = to_onnx(net_of(DATA % 4 + LRN % ("n", 5, 1, 0.75, 1) + RELU))
    before = [*proto.graph.output, *proto.graph.input]
    expand_lrn(proto)
    assert [*proto.graph.output, *proto.graph.input] == before
    assert [node.op_type for node in proto.graph.node] == ["Mul", "Conv", "Sqrt", "Sqrt", "Mul", "Div", "Relu"]
    assert proto.graph.node[5].output[0] == "n"
    assert expand_lrn(proto) == 0


def test_a_normalization_after_a_layer_and_large_ones() -> None:
    net = net_of(DATA % 600 + LRN % ("n", 5, 1, 0.75, 1))
    assert expand_lrn(to_onnx(net)) == 0
    net = net_of(
        DATA % 8 + 'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 8 kernel_size: 1 '
        'weight_filler { type: "xavier" } } }\n' + LRN.replace('"data"', '"c"') % ("n", 3, 1, 0.75, 1)
    )
    proto = to_onnx(net)
    assert expand_lrn(proto) == 1
    data = np.random.default_rng(0).normal(size=(2, 8, 5, 6)).astype(np.float32)
    expected = net({"data": torch.from_numpy(data)})["n"].detach().numpy()
    np.testing.assert_allclose(open_session(proto).run({"data": data})["n"], expected, rtol=1e-5, atol=1e-6)


def test_an_export_writes_either_form(tmp_path: Path) -> None:
    net = net_of(DATA % 8 + LRN % ("n", 5, 1e-4, 0.75, 1) + RELU)
    found = {}
    for lrn in LRN_FORMS:
        path = tmp_path / f"{lrn}.onnx"
        assert {difference.blob for difference in export(net, path, lrn=lrn).differences} == {"n", "r"}
        found[lrn] = [node.op_type for node in onnx.load(path).graph.node]
    assert found == {"node": ["LRN", "Relu"], "band": ["Mul", "Conv", "Sqrt", "Sqrt", "Mul", "Div", "Relu"]}
