"""What users do with pycaffe, from beginning to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import caffetools
from caffetools.pycaffe.install import MODULES

Write = Callable[[str, str], str]

pytestmark = pytest.mark.usefixtures("no_caffe_yet")

HEAD = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }'
CONV = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
"""
CLASSIFY = f"""{HEAD} {CONV}
layer {{ name: "fc6" type: "InnerProduct" bottom: "pool1" top: "fc6"
  inner_product_param {{ num_output: 6 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }}
layer {{ name: "fc7" type: "InnerProduct" bottom: "fc6" top: "fc7"
  inner_product_param {{ num_output: 3 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "fc7" top: "prob" }}
"""
DENSE = f"""{HEAD} {CONV}
layer {{ name: "fc6-conv" type: "Convolution" bottom: "pool1" top: "fc6-conv"
  convolution_param {{ num_output: 6 kernel_size: 5 }} }}
layer {{ name: "relu6" type: "ReLU" bottom: "fc6-conv" top: "fc6-conv" }}
layer {{ name: "fc7-conv" type: "Convolution" bottom: "fc6-conv" top: "fc7-conv"
  convolution_param {{ num_output: 3 kernel_size: 1 }} }}
layer {{ name: "prob" type: "Softmax" bottom: "fc7-conv" top: "prob" }}
"""


def test_net_surgery_casts_fully_connected_layers_to_convolutions(write: Write, tmp_path: Path) -> None:
    caffetools.install_as_caffe()
    import caffe

    net = caffe.Net(write("net.prototxt", CLASSIFY), caffe.TEST)
    for name in net.params:
        net.params[name][1].data[...] = np.random.RandomState(len(name)).randn(*net.params[name][1].data.shape)
    weights = str(tmp_path / "net.caffemodel")
    net.save(weights)
    dense = caffe.Net(write("dense.prototxt", DENSE), weights, caffe.TEST)
    for old, new in (("fc6", "fc6-conv"), ("fc7", "fc7-conv")):
        dense.params[new][0].data.flat = net.params[old][0].data.flat  # (outputs, inputs) to (outputs, C, H, W)
        dense.params[new][1].data[...] = net.params[old][1].data
    dense.save(str(tmp_path / "dense.caffemodel"))
    dense = caffe.Net(write("dense.prototxt", DENSE), str(tmp_path / "dense.caffemodel"), caffe.TEST)

    picture = np.random.RandomState(0).randn(1, 3, 20, 16).astype(np.float32)
    dense.blobs["data"].reshape(*picture.shape)
    heatmap = dense.forward_all(data=picture)["prob"]
    assert heatmap.shape == (1, 3, 5, 3)
    # Position (i, j) of the map is the classifier on the window that starts at pixel (2i, 2j).
    for i, j in ((0, 0), (4, 2), (2, 1)):
        window = picture[:, :, 2 * i : 2 * i + 12, 2 * j : 2 * j + 12]
        np.testing.assert_allclose(heatmap[0, :, i, j], net.forward(data=window)["prob"][0], rtol=1e-4)


def test_features_between_two_layers_drive_the_rest_of_the_net(write: Write) -> None:
    caffetools.install_as_caffe()
    import caffe

    net = caffe.Net(write("net.prototxt", CLASSIFY), caffe.TEST)
    shapes = [(name, blob.data.shape) for name, blob in net.blobs.items()]
    assert shapes[-1] == ("prob", (1, 3))
    x = np.random.RandomState(0).randn(1, 3, 12, 12).astype(np.float32)
    net.blobs["data"].data[...] = x
    net.forward(start="conv1", end="pool1")
    features = net.blobs["pool1"].data.copy()
    whole = net.forward()["prob"].copy()
    net.blobs["data"].data[...] = 0
    net.forward()
    net.blobs["pool1"].data[...] = features
    np.testing.assert_allclose(net.forward(start="fc6")["prob"], whole, rtol=1e-6)


def test_a_picture_is_changed_along_the_gradient_of_a_layer(write: Write) -> None:
    caffetools.install_as_caffe()
    import caffe

    net = caffe.Net(write("net.prototxt", "force_backward: true\n" + CLASSIFY), caffe.TEST)
    src, dst = net.blobs["data"], net.blobs["conv1"]
    src.data[0] = np.random.RandomState(0).randn(3, 12, 12)
    sizes = []
    for _ in range(10):
        net.forward(end="relu1")
        sizes.append(float((dst.data**2).sum()))
        dst.diff[:] = dst.data
        net.backward(start="relu1")
        g = src.diff[0]
        src.data[:] += 0.05 / np.abs(g).mean() * g
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]


def test_logistic_regression_from_hdf5(write: Write, tmp_path: Path) -> None:
    caffetools.install_as_caffe()
    import caffe
    from caffe import layers as L

    random = np.random.RandomState(0)
    x = random.randn(400, 4).astype(np.float32)
    y = (x @ [1.5, -2, 0.5, 0] > 0.2).astype(np.float32)
    for name, rows in (("train", slice(0, 300)), ("test", slice(300, 400))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"], file["label"] = x[rows], y[rows]
        write(f"{name}.txt", f"{tmp_path}/{name}.h5\n")

    def logreg(source: str) -> str:
        n = caffe.NetSpec()
        n.data, n.label = L.HDF5Data(batch_size=50, source=source, ntop=2)
        n.ip1 = L.InnerProduct(n.data, num_output=2, weight_filler=dict(type="xavier"))
        n.accuracy = L.Accuracy(n.ip1, n.label)
        n.loss = L.SoftmaxWithLoss(n.ip1, n.label)
        return write(f"{Path(source).stem}.prototxt", str(n.to_proto()))

    s = caffe.proto.caffe_pb2.SolverParameter()
    s.train_net = logreg(str(tmp_path / "train.txt"))
    s.test_net.append(logreg(str(tmp_path / "test.txt")))
    s.test_interval, s.max_iter, s.base_lr, s.lr_policy, s.momentum = 1000, 300, 0.1, "fixed", 0.9
    s.test_iter.append(2)
    s.snapshot_prefix = str(tmp_path / "log")
    solver = caffe.get_solver(write("solver.prototxt", str(s)))
    solver.solve()
    accuracy = 0.0
    for _ in range(4):
        solver.test_nets[0].forward()
        accuracy += float(solver.test_nets[0].blobs["accuracy"].data) / 4
    assert accuracy > 0.93
    w = solver.net.params["ip1"][0].data
    assert np.argmax(np.abs(w[1] - w[0])) == 1  # the feature that counts most


def test_siamese_twins_share_their_weights_and_learn_from_both(write: Write) -> None:
    caffetools.install_as_caffe()
    import caffe
    from caffe import layers as L

    names = [dict(name="w"), dict(name="b")]
    n = caffe.NetSpec()
    n.one, n.two, n.sim = L.Input(shape=[dict(dim=[8, 5]), dict(dim=[8, 5]), dict(dim=[8])], ntop=3)
    n.feat = L.InnerProduct(n.one, num_output=2, param=names, weight_filler=dict(type="xavier"))
    n.feat_p = L.InnerProduct(n.two, num_output=2, param=names, weight_filler=dict(type="xavier"))
    n.loss = L.ContrastiveLoss(n.feat, n.feat_p, n.sim, margin=1)
    path = write("siamese.prototxt", str(n.to_proto()))
    net = caffe.Net(path, caffe.TRAIN)
    random = np.random.RandomState(0)
    for name in ("one", "two"):
        net.blobs[name].data[...] = random.randn(8, 5)
    net.blobs["sim"].data[...] = np.arange(8) % 2
    net.forward()
    net.backward()
    shared = net.params["feat"][0].diff.copy()
    np.testing.assert_array_equal(shared, net.params["feat_p"][0].diff)
    parts = sum(net.blobs[top].diff.T @ net.blobs[data].data for top, data in (("feat", "one"), ("feat_p", "two")))
    np.testing.assert_allclose(shared, parts, rtol=1e-4, atol=1e-6)
    net.params["feat"][0].data[...] = 0.25
    assert (net.params["feat_p"][0].data == 0.25).all()
    solver = caffe.SGDSolver(write("solver.prototxt", f'net: "{path}" base_lr: 0.05 lr_policy: "fixed"'))
    for name in ("one", "two", "sim"):
        solver.net.blobs[name].data[...] = net.blobs[name].data
    solver.step(1)
    first = float(solver.net.blobs["loss"].data)
    solver.step(80)
    assert float(solver.net.blobs["loss"].data) < 0.5 * first
    np.testing.assert_array_equal(solver.net.params["feat"][0].data, solver.net.params["feat_p"][0].data)


def test_a_fully_convolutional_net_is_built_upsampled_and_cropped(write: Write) -> None:
    caffetools.install_as_caffe()
    import caffe
    from caffe import layers as L
    from caffe import params as P
    from caffe.coord_map import crop

    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, 23, 30]))
    n.conv1 = L.Convolution(n.data, kernel_size=3, num_output=4, pad=20, weight_filler=dict(type="xavier"))
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.score = L.Convolution(n.pool1, num_output=2, kernel_size=1, weight_filler=dict(type="xavier"))
    n.up = L.Deconvolution(
        n.score,
        convolution_param=dict(num_output=2, group=2, kernel_size=4, stride=2, bias_term=False, weight_filler=dict(type="bilinear")),
        param=[dict(lr_mult=0)],
    )
    n.cropped = crop(n.up, n.data)
    net = caffe.Net(write("fcn.prototxt", str(n.to_proto())), caffe.TEST)
    # conv1 moves by 19, pool1 halves, up doubles with an offset of 1: all together 20.
    assert list(n.to_proto().layer[-1].crop_param.offset) == [20]
    net.blobs["data"].data[...] = np.random.RandomState(0).randn(1, 3, 23, 30)
    out = net.forward(blobs=["up"])
    assert out["cropped"].shape == (1, 2, 23, 30)
    # The output comes from fused kernels, the inner blob from its layers: equal to float32's rounding, which differs by processor.
    np.testing.assert_allclose(out["cropped"], out["up"][:, :, 20:43, 20:50], rtol=1e-5, atol=1e-6)
    kernel = net.params["up"][0].data[0, 0]
    np.testing.assert_allclose(kernel, np.outer([0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25]), rtol=1e-6)


def test_a_gradient_that_is_checked_by_small_steps(write: Write) -> None:
    caffetools.install_as_caffe()
    import caffe

    text = CLASSIFY.replace(
        '"prob" type: "Softmax" bottom: "fc7" top: "prob"', '"loss" type: "SoftmaxWithLoss" bottom: "fc7" bottom: "label" top: "loss"'
    )
    label = 'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 } } }\n'
    net = caffe.Net(write("net.prototxt", label + text), caffe.TRAIN)
    net.blobs["data"].data[...] = np.random.RandomState(0).randn(1, 3, 12, 12)
    net.blobs["label"].data[...] = 2
    net.forward()
    net.backward()
    weights, diff = net.params["fc6"][0].data, net.params["fc6"][0].diff.copy()
    for index in ((0, 0), (3, 50), (5, 99)):
        losses = []
        for step in (0.01, -0.01):
            weights[index] += step
            losses.append(float(net.forward()["loss"]))
            weights[index] -= step
        assert (losses[0] - losses[1]) / 0.02 == pytest.approx(diff[index], rel=0.02, abs=1e-4)


def test_messages_are_read_changed_and_written(write: Write) -> None:
    caffetools.install_as_caffe()
    import caffe.io
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format

    net = caffe_pb2.NetParameter()
    text_format.Merge(CLASSIFY, net)
    net.layer[1].convolution_param.num_output = 9
    changed = caffe.Net(write("changed.prototxt", text_format.MessageToString(net)), caffe_pb2.TEST)
    assert changed.blobs["conv1"].channels == 9
    assert caffe_pb2.Phase.Value("TEST") == caffe.TEST == 1
    assert caffe_pb2.LayerParameter.DESCRIPTOR.full_name == "caffe.LayerParameter"
    assert caffe_pb2.V1LayerParameter.CONVOLUTION == 4
    assert caffe.io.array_to_datum(np.zeros((1, 2, 2), np.uint8), 3).label == 3


def test_seeds_make_fillers_repeatable(write: Write) -> None:
    caffetools.install_as_caffe()
    import caffe

    made = []
    for seed in (5, 5, 6):
        caffe.set_random_seed(seed)
        made.append(caffe.Net(write("net.prototxt", CLASSIFY), caffe.TEST).params["conv1"][0].data.copy())
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
    torch.manual_seed(0)


def test_the_module_has_the_names_that_scripts_use() -> None:
    caffetools.install_as_caffe()
    import caffe
    import caffe.draw
    import caffe.pycaffe

    for name in ("Net", "SGDSolver", "AdamSolver", "NetSpec", "Layer", "Classifier", "Detector", "io", "layers", "params", "TRAIN", "TEST"):
        assert getattr(caffe, name) is not None
        assert name in dir(caffe)
    caffe.set_mode_cpu()
    assert {"Convolution", "Python", "LSTM", "SPP"} <= set(caffe.layer_type_list())
    assert caffe.pycaffe.Net is caffe.Net
    assert (caffe.solver_count(), caffe.solver_rank(), caffe.has_nccl()) == (1, 0, False)
    with pytest.raises(AttributeError, match="module 'caffe' has no attribute 'NCLC'"):
        _ = caffe.NCLC
    assert set(MODULES) >= {"caffe", "caffe.io", "caffe.proto.caffe_pb2"}
