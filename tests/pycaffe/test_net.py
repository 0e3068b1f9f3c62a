"""pycaffe's Net: what it shows, how it runs, and its errors when something does not fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caffetools.errors import NetError, PrototxtError
from caffetools.pycaffe.net import Net, torch_net
from caffetools.pycaffe.proto import caffe_pb2
from tests.conftest import GOLDEN

Write = Callable[[str, str], str]
TRAIN, TEST = caffe_pb2.TRAIN, caffe_pb2.TEST

SIMPLE = """
name: "testnet" force_backward: true
layer { name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param { num: 5 channels: 2 height: 3 width: 4 num: 5 channels: 1 height: 1 width: 1
    data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 11 kernel_size: 2 pad: 3 weight_filler { type: "gaussian" std: 1 } bias_filler { value: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip_blob"
  inner_product_param { num_output: 13 weight_filler { type: "gaussian" std: 2.5 } bias_filler { value: -3 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip_blob" bottom: "label" top: "loss" }
"""
DEPLOY = """
name: "deploy"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 7 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


@pytest.fixture
def simple(write: Write) -> Net:
    return Net(write("simple.prototxt", SIMPLE), TRAIN)


@pytest.fixture
def deploy(write: Write) -> Net:
    return Net(write("deploy.prototxt", DEPLOY), TEST)


def pictures(count: int = 4) -> np.ndarray:
    return np.random.RandomState(1).randn(count, 3, 6, 6).astype(np.float32)


def test_names_and_shapes(simple: Net) -> None:
    assert isinstance(simple.blobs, OrderedDict)
    assert list(simple.blobs) == simple._blob_names == ["data", "label", "conv", "ip_blob", "loss"]
    assert list(simple._layer_names) == ["data", "conv", "ip", "loss"]
    assert [layer.type for layer in simple.layers] == ["DummyData", "Convolution", "InnerProduct", "SoftmaxWithLoss"]
    assert simple.layer_dict["ip"] is simple.layers[2]
    assert (simple.inputs, simple.outputs) == ([], ["loss"])
    assert simple._outputs == [4]
    assert simple.top_names["data"] == ["data", "label"]
    assert simple.bottom_names["loss"] == ["ip_blob", "label"]
    assert (simple._bottom_ids(3), simple._top_ids(0)) == ([3, 1], [0, 1])
    assert simple.blob_loss_weights == {"data": 0, "label": 0, "conv": 0, "ip_blob": 0, "loss": 1}
    assert list(simple.params) == ["conv", "ip"]
    assert [b.data.shape for b in simple.params["conv"]] == [(11, 2, 2, 2), (11,)]
    assert len(simple.layers[2].blobs) == 2 == len(simple.params["ip"])
    blob = simple.blobs["data"]
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (5, 2, 3, 4, 120)
    assert (simple.blobs["loss"].num, tuple(simple.blobs["loss"].shape)) == (1, ())


def test_forward_and_backward_give_live_arrays(simple: Net) -> None:
    first = simple.forward(blobs=["conv"])
    assert set(first) == {"loss", "conv"}
    assert first["loss"].item() > 0
    loss = float(first["loss"])
    simple.backward(diffs=["conv"])
    assert np.abs(simple.params["ip"][0].diff).sum() > 0
    second = simple.forward()
    assert float(second["loss"]) == float(first["loss"]) != loss  # one and the same memory
    assert simple.blobs["loss"].diff == 1


def test_inputs_are_given_by_name_and_checked(deploy: Net) -> None:
    x = pictures()
    out = deploy.forward(data=x)
    assert set(out) == {"prob"}
    np.testing.assert_allclose(out["prob"].sum(axis=1), 1, rtol=1e-5)
    deploy.blobs["data"].data[...] = 0
    deploy.blobs["data"].data[...] = x
    np.testing.assert_array_equal(deploy.forward()["prob"], out["prob"])
    with pytest.raises(NetError, match="the net 'deploy' has the inputs data, but is given dta"):
        deploy.forward(dta=x)
    with pytest.raises(NetError, match="blob 'data' has a batch of 4, but is given 3 x 3 x 6 x 6"):
        deploy.forward(data=x[:3])
    with pytest.raises(NetError, match="blob 'data' is 4 x 3 x 6 x 6, but is given 4 x 2 x 6 x 6"):
        deploy.forward(data=x[:, :2])
    with pytest.raises(NetError, match="no layer 'porb'; did you mean 'prob'"):
        deploy.forward(end="porb")
    with pytest.raises(NetError, match="no blob 'cnv'; did you mean 'conv'"):
        deploy.forward(blobs=["cnv"])


def test_ranges_stop_and_continue(deploy: Net) -> None:
    whole = deploy.forward(data=pictures())["prob"].copy()
    features = deploy.forward(end="relu", data=pictures())
    assert set(features) == {"conv"}
    assert (features["conv"] >= 0).all()
    # A whole pass may run fused, whose sums end on other last bits.
    np.testing.assert_allclose(deploy.forward(start="fc")["prob"], whole, rtol=1e-6)
    deploy.blobs["conv"].data[...] = 0
    np.testing.assert_allclose(deploy.forward(start="fc")["prob"], 1 / 7, rtol=1e-6)


def test_forward_all_pads_the_last_batch(deploy: Net) -> None:
    x = pictures(10)
    out = deploy.forward_all(data=x, blobs=["conv"])
    assert (out["prob"].shape, out["conv"].shape) == ((10, 7), (10, 5, 4, 4))
    np.testing.assert_allclose(out["prob"][8:], deploy.forward(data=x[[8, 9, 8, 9]])["prob"][:2], rtol=1e-5)


def test_forward_backward_all_gives_data_and_diffs(write: Write) -> None:
    net = Net(write("forced.prototxt", "force_backward: true\n" + DEPLOY), TEST)
    x, top = pictures(6), np.random.RandomState(2).randn(6, 7).astype(np.float32)
    outs, diffs = net.forward_backward_all(data=x, prob=top, diffs=["fc"])
    assert (outs["prob"].shape, diffs["data"].shape, diffs["fc"].shape) == ((6, 7), (6, 3, 6, 6), (6, 7))
    p = outs["prob"]
    np.testing.assert_allclose(diffs["fc"], p * (top - (p * top).sum(1, keepdims=True)), rtol=1e-4, atol=1e-6)


def test_backward_takes_diffs_by_name_and_can_be_called_again(write: Write) -> None:
    net = Net(write("forced.prototxt", "force_backward: true\n" + DEPLOY), TEST)
    net.forward(data=pictures())
    jacobian = []
    for k in range(7):
        one = np.zeros((4, 7), np.float32)
        one[:, k] = 1
        jacobian.append(net.backward(prob=one)["data"].copy())
    np.testing.assert_allclose(sum(jacobian), 0, atol=1e-6)  # probabilities sum to one
    assert np.abs(jacobian[0]).max() > 1e-4
    with pytest.raises(NetError, match="has the outputs prob, but is given fc"):
        net.backward(fc=one)


def test_inputs_can_be_reshaped(deploy: Net, write: Write) -> None:
    text = DEPLOY.replace(
        '"InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 7',
        ('"Convolution" bottom: "conv" top: "fc" convolution_param { num_output: 7 kernel_size: 4'),
    )
    net = Net(write("full.prototxt", text), TEST)
    net.blobs["data"].reshape(1, 3, 9, 8)
    net.reshape()
    assert net.blobs["prob"].data.shape == (1, 7, 4, 3)
    net.blobs["data"].reshape(2, 3, 6, 6)
    assert net.forward()["prob"].shape == (2, 7, 1, 1)
    deploy.blobs["data"].reshape(4, 3, 9, 9)
    with pytest.raises(NetError, match="layer 'fc'.*parameter blob 0"):
        deploy.reshape()
    with pytest.raises(NetError, match="axes are 0 or more"):
        deploy.blobs["data"].reshape(-1, 3)


def test_reshaping_keeps_the_values_as_caffe_does(deploy: Net) -> None:
    blob = deploy.blobs["data"]
    blob.data[...] = np.arange(432).reshape(4, 3, 6, 6)
    blob.reshape(2, 6, 6, 6)
    np.testing.assert_array_equal(blob.data.ravel(), np.arange(432))
    blob.reshape(1, 10)
    np.testing.assert_array_equal(blob.data[0], np.arange(10))
    blob.data[...] = -1
    blob.reshape(4, 3, 6, 6)
    np.testing.assert_array_equal(blob.data.ravel(), [*[-1] * 10, *range(10, 432)])
    blob.reshape(1, 3, 6, 6)
    deploy.forward()
    blob.reshape(2, 3, 6, 6)
    np.testing.assert_array_equal(blob.data.ravel(), [*[-1] * 10, *range(10, 216)])
    blob.reshape(5, 3, 6, 6)
    assert not blob.data.any()


def test_editing_filters_changes_what_the_net_computes(deploy: Net) -> None:
    weights, bias = deploy.params["conv"]
    weights.data[...] = 0
    weights.data[1, 2, 1, 1] = 1
    bias.data[1] = 0.5
    bias.data.flat[0] = -1
    x = pictures()
    conv = deploy.forward(data=x, blobs=["conv"])["conv"]
    np.testing.assert_allclose(conv[:, 1], np.maximum(x[:, 2, 1:-1, 1:-1] + 0.5, 0), rtol=1e-6)
    assert (conv[:, 0] == 0).all()
    assert weights.data.flags["C_CONTIGUOUS"]
    weights.data.reshape(5, -1)[0, 0] = 3  # a view, as in Caffe
    assert deploy.params["conv"][0].data[0, 0, 0, 0] == 3


def test_param_diffs_add_up_and_can_be_cleared(simple: Net) -> None:
    simple.forward()
    simple.backward()
    held = simple.params["conv"][0].diff
    once = held.copy()
    simple.backward()
    np.testing.assert_allclose(held, 2 * once, rtol=1e-5)
    simple.clear_param_diffs()
    assert (held == 0).all()


def test_callbacks_are_called_for_each_layer(simple: Net) -> None:
    calls: list[tuple[str, int]] = []
    simple.before_forward(lambda layer: calls.append(("before", layer)))
    simple.after_forward(lambda layer: calls.append(("after", layer)))
    simple.before_backward(lambda layer: calls.append(("down", layer)))
    simple.after_backward(lambda layer: calls.append(("done", layer)))
    simple.forward(start="ip")
    assert calls == [("before", 2), ("after", 2), ("before", 3), ("after", 3)]
    calls.clear()
    simple.forward()
    calls.clear()
    simple.backward(end="ip")
    assert calls == [("down", 3), ("done", 3), ("down", 2), ("done", 2)]


def test_memory_data_takes_arrays() -> None:
    folder = GOLDEN / "layers_files"
    with np.load(folder / "memorydata.npz") as file:
        arrays = dict(file)
    net = Net(folder / "memorydata.prototxt", TEST)
    net.set_input_arrays(arrays["set:data"], arrays["set:labels"])
    for step in range(4):
        net.forward()
        for key in [k for k in arrays if k.startswith(f"pass{step}:")]:
            got = net.blobs[key.split(":")[1]].data
            assert got.shape == arrays[key].shape
            np.testing.assert_array_equal(got, arrays[key])


def test_input_arrays_are_for_memory_data_only(deploy: Net) -> None:
    with pytest.raises(NetError, match="needs a MemoryData layer as the first of the net, not Input"):
        deploy.set_input_arrays(pictures(), np.zeros(4, np.float32))


def test_dummy_data_keeps_what_is_written_where_its_filler_is_constant(simple: Net) -> None:
    simple.forward()
    first = simple.blobs["data"].data.copy()
    simple.blobs["label"].data[...] = 3
    simple.forward()
    assert not np.array_equal(simple.blobs["data"].data, first)  # gaussian: drawn again
    assert (simple.blobs["label"].data == 3).all()


def test_errors_name_file_and_line(write: Write, tmp_path: Path) -> None:
    with pytest.raises(PrototxtError, match=r"none\.prototxt: cannot read"):
        Net(str(tmp_path / "none.prototxt"), TEST)
    path = write("bad.prototxt", DEPLOY.replace('bottom: "fc"', 'bottom: "fcc"'))
    with pytest.raises(NetError, match=r"bad\.prototxt:8: layer 'prob': its bottom 'fcc'.*did you mean 'fc'"):
        Net(path, TEST)


def test_the_module_of_a_net_shares_its_parameters(deploy: Net) -> None:
    deploy.params["fc"][1].data[...] = 3
    assert (torch_net(deploy).layer("fc").blobs[1] == 3).all()


def test_a_memory_data_layer_reads_the_arrays_of_the_caller(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    text = 'layer { name: "m" type: "MemoryData" top: "data" top: "label" memory_data_param { batch_size: 2 channels: 1 height: 1 width: 1 } }\n'
    net = Net(write("memory.prototxt", text), TEST)
    data, labels = np.ones((2, 1, 1, 1), np.float32), np.zeros((2, 1, 1, 1), np.float32)
    net.set_input_arrays(data, labels)
    net.forward()
    data[...], labels[...] = 7, 1
    net.forward()
    assert net.blobs["data"].data.ravel().tolist() == [7, 7]
    assert net.blobs["label"].data.ravel().tolist() == [1, 1]
    assert not caplog.records
    net.set_input_arrays(data, labels[:, 0, 0, 0])
    net.forward()
    assert net.blobs["label"].data.ravel().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("data", "labels", "words"),
    [
        (np.zeros((2, 1, 1, 1)), np.zeros(2, np.float32), "data array must be float32"),
        (np.zeros((4, 1, 1, 1), np.float32)[::2], np.zeros(2, np.float32), "data array must be C contiguous"),
        (np.zeros((2, 1), np.float32), np.zeros(2, np.float32), "data array must be 4-d"),
        (np.zeros((2, 1, 1, 1), np.float32), np.zeros(2), "labels array must be float32"),
        (np.zeros((2, 1, 1, 1), np.float32), np.zeros((2, 1), np.float32), "labels array must be 4-d"),
    ],
)
def test_arrays_that_a_memory_data_layer_cannot_share_raise_what_caffe_raises(
    write: Write, data: NDArray[Any], labels: NDArray[Any], words: str
) -> None:
    text = 'layer { name: "m" type: "MemoryData" top: "data" top: "label" memory_data_param { batch_size: 2 channels: 1 height: 1 width: 1 } }\n'
    net = Net(write("memory.prototxt", text), TEST)
    with pytest.raises(RuntimeError, match=words):
        net.set_input_arrays(data, labels)


def test_a_blob_takes_integers_for_its_shape(deploy: Net) -> None:
    blob = deploy.blobs["data"]
    shape = tuple(blob.shape)
    blob.reshape(np.int64(shape[0]), 3.0, *shape[2:])
    assert tuple(blob.shape) == (shape[0], 3, *shape[2:])
    for wrong in ((2.5, 3), ("2", 3), ([2, 3],)):
        with pytest.raises(TypeError, match="integers"):
            blob.reshape(*wrong)


@pytest.mark.parametrize(("items", "diffs_given"), [(12, 4), (4, 12), (12, 0), (0, 6), (9, 5)])
def test_forward_backward_all_runs_the_batches_of_the_longer_and_keeps_what_the_net_has_for_the_shorter(
    items: int, diffs_given: int, write: Write
) -> None:
    weights = Net(write("forced.prototxt", "force_backward: true\n" + DEPLOY), TEST)

    def net() -> Net:
        made = Net(write("forced.prototxt", "force_backward: true\n" + DEPLOY), TEST)
        made.share_with(weights)
        made.forward(data=pictures()[::-1])
        made.blobs["prob"].diff[...] = 0.5
        return made

    def part(values: NDArray[np.float32], start: int) -> NDArray[np.float32]:
        batch = values[start : start + 4]
        return np.concatenate([batch, np.zeros((4 - len(batch), *batch.shape[1:]), np.float32)])

    x, top = pictures(items), np.random.RandomState(2).randn(diffs_given, 7).astype(np.float32)
    given = {name: values for name, values in (("data", x), ("prob", top)) if len(values)}
    outs, diffs = net().forward_backward_all(**given)
    by_hand, rows, gradients = net(), [], []
    for start in range(0, max(items, diffs_given), 4):
        rows.append(by_hand.forward(**({"data": part(x, start)} if start < items else {}))["prob"].copy())
        gradients.append(by_hand.backward(**({"prob": part(top, start)} if start < diffs_given else {}))["data"].copy())
    returned = items or diffs_given  # as many as the first array has, as in Caffe
    np.testing.assert_array_equal(outs["prob"], np.concatenate(rows)[:returned])
    np.testing.assert_array_equal(diffs["data"], np.concatenate(gradients)[:returned])


def test_paths_may_be_bytes_as_in_caffe(tmp_path: Path) -> None:
    from caffetools.pycaffe import get_solver

    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } } layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" '
    (tmp_path / "net.prototxt").write_text(text + "inner_product_param { num_output: 1 } }")
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 1 lr_policy: "fixed" snapshot_prefix: "{tmp_path}/s"'
    )
    path = bytes(tmp_path)
    net = Net(path + b"/net.prototxt", TEST)
    net.save(path + b"/w.caffemodel")
    net.save_hdf5(path + b"/w.h5")
    for name in (b"/w.caffemodel", b"/w.h5"):
        net.copy_from(path + name)
    net.load_hdf5(path + b"/w.h5")
    assert Net(path + b"/net.prototxt", path + b"/w.caffemodel", TEST).outputs == ["y"]
    solver = get_solver(path + b"/solver.prototxt")
    solver.snapshot()
    solver.restore(path + b"/s_iter_0.solverstate")


def test_labels_of_memory_data_have_one_value_an_item(write: Write) -> None:
    net = Net(
        write(
            "net.prototxt",
            'layer { name: "m" type: "MemoryData" top: "d" top: "l" memory_data_param { batch_size: 2 channels: 1 height: 1 width: 1 } }',
        ),
        TEST,
    )
    with pytest.raises(RuntimeError, match="labels array must be M x 1 x 1 x 1, not 2 x 2 x 1 x 1"):
        net.set_input_arrays(np.zeros((4, 1, 1, 1), np.float32), np.zeros((2, 2, 1, 1), np.float32))


def test_reshape_leaves_the_diff_of_a_loss(write: Write) -> None:
    net = Net(
        write(
            "net.prototxt",
            'input: "x" input_shape { dim: 2 dim: 3 } layer { name: "l" type: "EuclideanLoss" bottom: "x" bottom: "x" top: "l" }',
        ),
        TEST,
    )
    assert net.blobs["l"].diff == 1
    net.blobs["l"].diff[...] = 0.5
    net.reshape()
    assert net.blobs["l"].diff == 0.5


def test_arrays_of_a_blob_are_written_to_and_not_replaced(write: Write) -> None:
    blob = Net(write("net.prototxt", DEPLOY), TEST).blobs["data"]
    for name in ("data", "diff"):
        with pytest.raises(AttributeError, match=rf"blob\.{name}\[\.\.\.\] = values"):
            setattr(blob, name, np.zeros(3))
    assert np.shares_memory(blob.data_ro, blob.data)
