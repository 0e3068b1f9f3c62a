"""NetSpec, layers, params, coord_map and draw."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from caffetools.errors import CaffeToolsError, NetError
from caffetools.net.net import Net
from caffetools.proto.text import format_text
from caffetools.pycaffe import coord_map, draw
from caffetools.pycaffe.net_spec import NetSpec, param_name_dict, to_proto
from caffetools.pycaffe.net_spec import layers as L
from caffetools.pycaffe.net_spec import params as P
from caffetools.pycaffe.proto import caffe_pb2


def lenet(batch: int) -> NetSpec:
    n = NetSpec()
    n.data, n.label = L.DummyData(
        shape=[dict(dim=[batch, 1, 28, 28]), dict(dim=[batch, 1, 1, 1])], transform_param=dict(scale=1 / 255), ntop=2
    )
    n.conv1 = L.Convolution(n.data, kernel_size=5, num_output=20, weight_filler=dict(type="xavier"))
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.ip1 = L.InnerProduct(n.pool1, num_output=50, weight_filler=dict(type="xavier"), param=[dict(lr_mult=1), dict(lr_mult=2)])
    n.relu1 = L.ReLU(n.ip1, in_place=True)
    n.ip2 = L.InnerProduct(n.relu1, num_output=10, weight_filler=dict(type="xavier"))
    n.loss = L.SoftmaxWithLoss(n.ip2, n.label, include=dict(phase="TRAIN"), loss_param=dict(ignore_label=3))
    return n


def test_a_net_is_written_layer_by_layer() -> None:
    net = lenet(4).to_proto()
    assert [layer.name for layer in net.layer] == ["data", "conv1", "pool1", "ip1", "relu1", "ip2", "loss"]
    data, conv, pool, ip1, relu, ip2, loss = net.layer
    assert list(data.top) == ["data", "label"]
    assert list(data.dummy_data_param.shape[1].dim) == [4, 1, 1, 1]
    assert conv.convolution_param.weight_filler.type == "xavier"
    assert list(conv.convolution_param.kernel_size) == [5]
    assert pool.pooling_param.pool == caffe_pb2.PoolingParameter.MAX == 0
    assert [p.lr_mult for p in ip1.param] == [1, 2]
    assert list(relu.top) == list(relu.bottom) == list(ip2.bottom) == ["ip1"]
    assert (loss.include[0].phase, loss.loss_param.ignore_label) == (caffe_pb2.TRAIN, 3)
    assert "loss" in [name for layer in Net(net, caffe_pb2.TRAIN).layers for name in layer.tops]


def test_what_is_not_named_is_numbered_by_type() -> None:
    data = L.Input(shape=dict(dim=[1, 3, 4, 4]))
    branches = [L.Convolution(data, kernel_size=1, num_output=2) for _ in range(2)]
    net = to_proto(L.Eltwise(*branches), L.Silence(data, ntop=0))
    assert [(layer.name, list(layer.bottom), list(layer.top)) for layer in net.layer] == [
        ("Input1", [], ["Input1"]),
        ("Convolution1", ["Input1"], ["Convolution1"]),
        ("Convolution2", ["Input1"], ["Convolution2"]),
        ("Eltwise1", ["Convolution1", "Convolution2"], ["Eltwise1"]),
        ("Silence1", ["Input1"], []),
    ]


def test_names_can_be_set_read_and_removed() -> None:
    n = NetSpec()
    n["conv 1"] = L.Convolution(L.Input(name="in"), num_output=1, kernel_size=1, name="mine")
    n.relu = L.ReLU(n["conv 1"])
    assert "relu" in n
    del n.relu
    with pytest.raises(AttributeError, match="has no top 'relu'"):
        _ = n.relu
    net = n.to_proto()
    assert [(layer.name, list(layer.top)) for layer in net.layer] == [("in", ["Input1"]), ("mine", ["conv 1"])]


def test_a_very_deep_net_is_written() -> None:
    top = L.Input(shape=dict(dim=[1, 1]))
    for _ in range(3000):
        top = L.ReLU(top)
    assert len(to_proto(top).layer) == 3001


def test_values_may_be_numpys_and_messages() -> None:
    net = to_proto(
        L.Convolution(
            L.Input(),
            num_output=np.int64(3),
            kernel_size=np.array([3, 5]),
            pad=(1, 2),
            weight_filler=caffe_pb2.FillerParameter(type="msra"),
        )
    )
    conv = net.layer[1].convolution_param
    assert (conv.num_output, list(conv.kernel_size), list(conv.pad), conv.weight_filler.type) == (3, [3, 5], [1, 2], "msra")
    assert param_name_dict()["InnerProduct"] == "inner_product"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: L.Convolution(L.Input(), kernal_size=3),
            r"\(Convolution\) kernal_size=3: there is no parameter 'kernal_size'; did you mean 'kernel_size'",
        ),
        (lambda: L.Pooling(L.Input(), pool="MAXX"), "'MAXX' is not one of MAX, AVE, STOCHASTIC"),
        (lambda: L.Convolution(L.Input(), num_output="many"), r"num_output='many'"),
        (lambda: L.Convolution(L.Input(), weight_filler=dict(kind="xavier")), "FillerParameter has no field 'kind'"),
    ],
)
def test_a_wrong_parameter_is_reported(make: object, message: str) -> None:
    with pytest.raises(NetError, match=message):
        to_proto(make())


def test_a_bottom_must_be_a_top() -> None:
    with pytest.raises(TypeError, match=r"ReLU input 0 is not a Top \(type is <class 'str'>\)"):
        L.ReLU("data")
    n = NetSpec()
    n.both = L.DummyData(ntop=2)
    with pytest.raises(TypeError, match="several tops are set as"):
        n.to_proto()


def test_coordinates_are_followed_through_windows() -> None:
    data = L.Input(shape=dict(dim=[1, 3, 100, 100]))
    conv = L.Convolution(data, kernel_size=5, stride=2, pad=0, num_output=1)
    pool = L.Pooling(L.ReLU(conv), kernel_size=3, stride=2, pad=1)
    axis, a, b = coord_map.coord_map_from_to(pool, data)
    assert (axis, a, b) == (1, 4, 2)  # pool: 2x + 0 of conv, conv: 2x + 2 of data
    assert coord_map.compose(coord_map.inverse((1, 4, 2)), (1, 4, 2)) == (1, 1, 0)
    up = L.Deconvolution(pool, convolution_param=dict(kernel_size=4, stride=4, num_output=1))
    axis, a, b = coord_map.coord_map_from_to(up, data)
    assert (axis, a, b) == (1, 1, 0.5)
    with pytest.raises(coord_map.UndefinedMapException):
        coord_map.coord_map_from_to(L.InnerProduct(data, num_output=1), data)
    with pytest.raises(coord_map.UndefinedMapException, match="are they connected by spatial layers"):
        coord_map.coord_map_from_to(L.Input(), data)
    with pytest.raises(coord_map.AxisMismatchException):
        coord_map.coord_map_from_to(L.Convolution(conv, kernel_size=1, num_output=1, axis=2), data)


def test_maps_may_differ_from_axis_to_axis() -> None:
    data = L.Input(shape=dict(dim=[1, 3, 100, 100]))
    conv = L.Convolution(data, kernel_h=3, kernel_w=5, pad=[1, 0], num_output=1)
    _, a, b = coord_map.coord_map_from_to(conv, data)
    np.testing.assert_array_equal(a, [1])
    np.testing.assert_array_equal(b, [0, 2])
    crop = coord_map.crop(data, conv)
    assert crop.fn.params["crop_param"] == {"axis": 2, "offset": [0, 2]}


@pytest.mark.parametrize(
    ("pad", "stride", "message"),
    [(0, 2, "differ in scale"), (3, 1, "negative offset"), (0, 1, None)],
)
def test_a_crop_that_cannot_be_right_is_refused(pad: int, stride: int, message: str | None) -> None:
    data = L.Input(shape=dict(dim=[1, 3, 100, 100]))
    conv = L.Convolution(data, kernel_size=5, pad=pad, stride=stride, num_output=1)
    if message is None:
        assert coord_map.crop(data, conv).fn.params["crop_param"]["offset"] == [2]
        return
    with pytest.raises(ValueError, match=message):
        coord_map.crop(data, conv)


def test_an_offset_between_pixels_is_refused() -> None:
    data = L.Input(shape=dict(dim=[1, 3, 100, 100]))
    with pytest.raises(ValueError, match="not a whole number of pixels"):
        coord_map.crop(data, L.Convolution(data, kernel_size=4, num_output=1))


def test_a_net_is_drawn_as_a_graph(tmp_path: Path) -> None:
    net = lenet(4).to_proto()
    net.layer[1].name = 'a "quoted" name'
    draw.draw_net_to_file(net, tmp_path / "net.dot", "TB", display_lrm=True)
    text = (tmp_path / "net.dot").read_text()
    assert 'rankdir="TB"' in text
    assert 'a \\"quoted\\" name (Convolution) kernel size: 5 stride: 1 pad: 0' in text
    assert '"blob ip1" -> layer4;' in text
    assert 'layer3 -> "blob ip1" [label="50"]' in text
    assert "lr mult: 1.0, 2.0" in text
    assert "(Pooling MAX)" in text
    assert "loss" not in draw.dot_text(net, phase=caffe_pb2.TEST)


def test_pictures_are_made_by_graphviz_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = lenet(4).to_proto()
    if shutil.which("dot"):
        draw.draw_net_to_file(net, tmp_path / "net.png")
        assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CaffeToolsError, match="needs Graphviz"):
        draw.draw_net_to_file(net, tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_written_nets_read_as_prototxts() -> None:
    text = str(lenet(2).to_proto())
    assert 'type: "Convolution"' in text
    assert format_text(lenet(2).to_proto()) == format_text(lenet(2).to_proto())


def test_labels_of_drawings_are_those_of_pycaffe() -> None:
    net = lenet(4).to_proto()
    conv = next(layer for layer in net.layer if layer.type == "Convolution")
    assert (
        draw.get_layer_label(conv, "LR", display_lrm=True)
        == f'"{conv.name}\\n(Convolution)\\nkernel size: 5\\nstride: 1\\npad: 0\\nlr mult: 1.0, 1.0"'
    )
    assert draw.get_layer_lr_mult(conv) == (1, 1)
    assert draw.get_edge_label(net.layer[-1]) == '""'
    with pytest.raises(ValueError, match="DummyData layers do not have a learning rate multiplier"):
        draw.get_layer_lr_mult(net.layer[0])


def test_params_of_an_unknown_message_are_an_attribute_error_as_in_pycaffe() -> None:
    with pytest.raises(AttributeError, match="no attribute 'FooParameter'"):
        _ = P.Foo.MAX
    assert not hasattr(P.Pooling, "SUM")


def test_a_bool_is_a_number_where_a_number_is_asked_for_and_a_number_a_bool() -> None:
    # What Caffe's NetSpec gives.
    layer = L.InnerProduct(num_output=True, axis=False, bias_term=0, weight_filler={"type": "constant", "value": np.bool_(True)})
    param = layer.to_proto().layer[0].inner_product_param
    assert (param.num_output, param.axis, param.bias_term, param.weight_filler.value) == (1, 0, False, 1)
    assert param.HasField("axis") and param.HasField("bias_term")
