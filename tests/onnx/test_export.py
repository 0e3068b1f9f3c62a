"""Exporting: shapes, batch sizes, opsets, metadata, files; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import ExportError, RunFailed
from caffetools.events import Event, Warned
from caffetools.infer.export import ExportOptions, export_deployed
from caffetools.net.net import Net
from caffetools.onnx import model as model_module
from caffetools.onnx.export import export, to_onnx
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse
from caffetools.results import Preprocessing
from tests.net.test_net import conv, data, net_of, relu


def small_net() -> Net:
    torch.manual_seed(0)
    return net_of(data() + conv("c", "data") + relu("r", "c"))


def axes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_every_blob_has_the_shape_of_the_net_and_the_batch_is_free() -> None:
    graph = to_onnx(net_of(data() + conv("c", "data") + relu("r", "c") + conv("d", "c"))).graph
    assert {value.name: axes(value) for value in (*graph.input, *graph.value_info, *graph.output)} == {
        "data": ["N", 3, 8, 8],
        "c": ["N", 4, 8, 8],
        "d": ["N", 4, 8, 8],
    }


def test_a_fixed_batch_is_that_of_the_net() -> None:
    graph = to_onnx(small_net(), dynamic_axes=()).graph
    assert axes(graph.input[0]) == [2, 3, 8, 8]
    assert axes(graph.output[0]) == [2, 4, 8, 8]


def test_the_net_is_as_it_was_after_an_export(tmp_path: Path) -> None:
    net = small_net()
    shapes, weights = dict(net.blob_shapes), [p.clone() for p in net.parameters()]
    export(net, tmp_path / "a.onnx")
    assert net.blob_shapes == shapes
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights, strict=True))


@pytest.mark.parametrize(("opset", "ir"), [(11, 6), (13, 7), (17, 8), (25, 13)])
def test_a_file_declares_no_newer_version_than_its_operators_need(opset: int, ir: int) -> None:
    model = to_onnx(small_net(), opset=opset)
    assert (model.opset_import[0].version, model.ir_version, model.producer_name) == (opset, ir, "caffetools")


@pytest.mark.parametrize("opset", [10, 29])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset {opset} is not possible; 11 to 28 are"):
        to_onnx(small_net(), opset=opset)


def test_a_net_that_fixes_its_batch_is_refused_with_the_way_out() -> None:
    reshape = 'layer { name: "flat" type: "Reshape" bottom: "data" top: "y" reshape_param { shape { dim: 2 dim: 192 } } }'
    net = net_of(data() + reshape)
    with pytest.raises(ExportError, match=r"no other batch size than 2 \(layer 'flat'.*fix the batch size instead \(--batch N\)"):
        to_onnx(net)
    assert net.blob_shapes["y"] == (2, 192)
    assert axes(to_onnx(net, dynamic_axes=()).graph.output[0]) == [2, 192]


def test_inputs_of_different_batches_are_refused_with_the_way_out() -> None:
    net = net_of(data() + data("dim: 1 dim: 3 dim: 8 dim: 8", name="other") + conv("c", "data") + conv("d", "other"))
    with pytest.raises(ExportError, match="the inputs data, other differ in their first axis") as error:
        to_onnx(net)
    assert error.value.hint == "leave every size as it is (--dynamic-axes '')"
    with pytest.raises(ExportError) as error:
        to_onnx(net, dynamic_axes=("batch", "height", "width"))
    assert error.value.hint == "leave it out (--dynamic-axes height,width)"
    assert len(to_onnx(net, dynamic_axes=()).graph.input) == 2


def test_the_batch_is_fixed_by_default_where_the_net_takes_no_other(tmp_path: Path) -> None:
    shapes = "shape { dim: 3 dim: 8 } shape { dim: 2 dim: 8 }"
    text = f'layer {{ name: "in" type: "Input" top: "a" top: "b" input_param {{ {shapes} }} }}'
    text += 'layer { name: "rows" type: "Concat" bottom: "a" bottom: "b" top: "rows" concat_param { axis: 0 } }'
    deploy, weights, out = tmp_path / "deploy.prototxt", tmp_path / "net.caffemodel", tmp_path / "net.onnx"
    deploy.write_text(text)
    weights.write_bytes(parse(text, NetParameter).SerializeToString())
    seen: list[Event] = []
    export_deployed(deploy, weights, out, events=seen.append)
    told = "The batch size is fixed: the inputs a, b differ in their first axis, so it cannot be the batch axis."
    assert [event.message for event in seen if isinstance(event, Warned)] == [told]
    assert [axes(value) for value in onnx.load(out).graph.input] == [[3, 8], [2, 8]]
    for asked in (ExportOptions(dynamic_axes=("batch",)), ExportOptions(dynamic_axes=("batch", "height"))):
        with pytest.raises(ExportError, match="differ in their first axis"):
            export_deployed(deploy, weights, out, how=asked)


def test_a_training_net_is_refused() -> None:
    with pytest.raises(ExportError, match="in the TRAIN phase"):
        to_onnx(net_of(data() + conv("c", "data"), TRAIN))


def test_a_layer_without_a_form_is_named() -> None:
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "data" bottom: "label" }'
    net = net_of(data("dim: 2 dim: 5") + data("dim: 2", name="label") + loss)
    with pytest.raises(ExportError, match="layer 'loss' of type SoftmaxWithLoss has no ONNX form"):
        to_onnx(net)


def test_a_net_without_outputs_is_refused() -> None:
    with pytest.raises(ExportError, match="has no outputs"):
        to_onnx(net_of(data()))


def test_weights_of_two_gigabytes_go_into_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "SIZE_LIMIT", 100)
    monkeypatch.setattr(model_module, "SMALL", 4)
    path = tmp_path / "a.onnx"
    export(small_net(), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    onnx.checker.check_model(str(path), full_check=True)
    net = small_net()
    x = np.random.RandomState(0).randn(2, 3, 8, 8).astype(np.float32)
    expected = net({"data": torch.tensor(x)})["c"].detach().numpy()
    np.testing.assert_allclose(OnnxRuntimeEngine.load(path).predict({"data": x})["c"], expected, atol=1e-5)


def test_a_written_file_records_where_it_comes_from(tmp_path: Path) -> None:
    mean = np.random.RandomState(0).rand(3, 4, 5).astype(np.float32)
    how = Preprocessing(mean_image=mean, scale=1 / 256, resize=(5, 4), labels=("a", "größer, schöner"))
    export(small_net(), tmp_path / "a.onnx", properties={"caffetools.source": "deploy.prototxt", **how.to_properties()})
    properties = OnnxRuntimeEngine.load(tmp_path / "a.onnx").properties
    assert properties["caffetools.source"] == "deploy.prototxt"
    read = Preprocessing.from_properties(properties)
    assert read is not None
    np.testing.assert_array_equal(read.mean_image, mean)
    assert (read.scale, read.resize, read.labels, read.mean_values) == (how.scale, how.resize, how.labels, ())
    assert Preprocessing.from_properties({"other": "1"}) is None


def test_a_file_that_gives_other_numbers_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"before")
    net = small_net()
    monkeypatch.setattr(
        net.layer("c"), "to_onnx", lambda graph: graph.node("Conv", ["data", graph.parameter(net.layer("c"), 0)], ["c"], pads=[1] * 4)
    )
    with torch.no_grad():
        net.layer("c").blobs[1].fill_(0.5)
    with pytest.raises(ExportError, match=r"a\.onnx: the first blob that differs is 'c', of layer 'c' \(Convolution\): it differs by 0\.5"):
        export(net, path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="cannot write"):
        export(small_net(), tmp_path / "file" / "a.onnx")
