"""Whole networks exported to ONNX and run by onnxruntime, against what BVLC Caffe computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.onnx.export import to_onnx
from caffetools.onnx.verify import verify
from caffetools.proto.schema import TEST
from tests.net.test_golden_nets import FOLDER, NETS, assert_close, golden_inputs, golden_net
from tests.zoo.test_published import GOLDEN_NETS, golden_case, sample

# caffenet and rcnn have AlexNet's layers and size; once is enough.
DEPLOYED = [name for name in NETS if name.endswith("_deploy") and not name.startswith(("caffenet", "rcnn"))]


@pytest.mark.parametrize("name", DEPLOYED)
def test_an_exported_network_gives_the_numbers_of_caffe(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.golden.json").read_text())
    model = to_onnx(golden_net(name, golden))
    engine = OnnxRuntimeEngine.load(model.SerializeToString())
    inputs = {blob: value.numpy() for blob, value in golden_inputs(golden).items()}
    got = engine.predict(inputs)
    assert engine.batch is None
    with np.load(FOLDER / f"{name}.npz") as arrays:
        expected = {key.removeprefix("out/"): arrays[key] for key in arrays.files if key.startswith("out/")}
    assert set(got) == set(expected)
    for blob, value in expected.items():
        assert_close(got[blob], value, f"{name}: {blob}")


@pytest.mark.parametrize("name", ["lenet_deploy", "squeezenet_v1.1_deploy"])
def test_an_exported_network_has_the_blobs_and_layers_of_caffe_and_nothing_else(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.golden.json").read_text())
    net = golden_net(name, golden)
    graph = to_onnx(net).graph
    layers = {layer.name for layer in net.layers if not layer.IS_DATA}
    assert {node.name.split("/")[0] for node in graph.node} <= {layer.split("/")[0] for layer in layers}
    assert {initializer.name for initializer in graph.initializer if initializer.data_type == onnx.TensorProto.FLOAT} == {
        f"{layer.name}/{index}" for layer in net.layers for index in range(len(layer.blobs))
    }
    values = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    assert set(net.blob_shapes) <= values
    in_place = sum(layer.tops == layer.bottoms and layer.type_name != "Dropout" for layer in net.layers)
    assert sum("@" in value for value in values) == in_place


@pytest.mark.wild
@pytest.mark.parametrize("name", ["mtcnn_det1", "mtcnn_det2", "mtcnn_det3"])
def test_a_published_network_gives_the_numbers_of_caffe(name: str, wild_golden: Path) -> None:
    models = wild_golden / "models"
    with np.load(models / f"{name}.npz") as file:
        arrays = dict(file)
    inputs = {key.removeprefix("in/"): value for key, value in arrays.items() if key.startswith("in/")}
    net = Net.from_file(models / f"{name}.prototxt", TEST, input_shapes={blob: value.shape for blob, value in inputs.items()})
    load_weights(net, models / f"{name}.caffemodel")
    data = to_onnx(net).SerializeToString()
    got = OnnxRuntimeEngine.load(data).predict(inputs)
    for blob, value in got.items():
        np.testing.assert_allclose(value, arrays[f"out/{blob}"], rtol=1e-4, atol=1e-5)
    assert verify(data, net, inputs).largest < 1e-5


@pytest.mark.parametrize("key", ["DuinoDu_mtcnn_model_det2", "kpzhang93_MTCNN_face_detection_alignment_code_codes_MTCNNv2_model_det4"])
def test_an_exported_net_of_several_outputs_gives_the_numbers_of_caffe(key: str) -> None:
    net, inputs = golden_case(key)
    data = to_onnx(net).SerializeToString()
    got = OnnxRuntimeEngine.load(data).predict({blob: value.numpy() for blob, value in inputs.items()})
    assert len(got) > 1
    with np.load(GOLDEN_NETS / f"{key}.npz") as arrays:
        for blob, value in got.items():
            expected = arrays[blob.replace("/", "\\")]
            assert np.abs(sample(value) - expected).max() <= 1e-4 * np.abs(expected).max(), blob
    assert verify(data, net, {blob: value.numpy() for blob, value in inputs.items()}).largest < 1e-5


def test_a_network_for_an_old_runtime_uses_only_what_that_has() -> None:
    golden = json.loads((FOLDER / "squeezenet_v1.1_deploy.golden.json").read_text())
    model = to_onnx(golden_net("squeezenet_v1.1_deploy", golden), opset=11, dynamic_axes=())
    assert (model.opset_import[0].version, model.ir_version) == (11, 6)
    onnx.checker.check_model(model, full_check=True)
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 227, 227]


def test_exported_files_are_written_the_same_way_every_time(tmp_path: Path) -> None:
    golden = json.loads((FOLDER / "lenet_deploy.golden.json").read_text())
    first = to_onnx(golden_net("lenet_deploy", golden)).SerializeToString(deterministic=True)
    assert to_onnx(golden_net("lenet_deploy", golden)).SerializeToString(deterministic=True) == first
