"""Layers of one name, which Caffe allows: gradients, weights, states and files tell them apart by their place in the net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import caffetools.pycaffe as caffe
from caffetools.engines.torch import TorchEngine
from caffetools.errors import NetError
from caffetools.events import Event, Warned
from caffetools.net.net import Net
from caffetools.net.stepwise import Stepwise
from caffetools.net.weights import load_weights, read_weights, save_weights, to_caffemodel, write_weights_hdf5
from caffetools.proto.binary import write_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import parse
from caffetools.solver.run import train
from caffetools.visualize.filters import all_weights, find_weights
from caffetools.visualize.net_graph import net_graph

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
LABEL = 'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 } } }\n'


def fc(name: str, bottom: str, top: str, value: float = 0.0, outputs: int = 3, more: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" {more} inner_product_param '
        f'{{ num_output: {outputs} bias_term: false weight_filler {{ type: "constant" value: {value} }} }} }}\n'
    )


def net_of(text: str, phase: int = TEST) -> Net:
    return Net(parse(INPUT + text, NetParameter), phase)


def test_a_loss_and_a_metric_of_one_name_train_the_net() -> None:
    # The net of Caffe's own tests: what Accuracy does not need is no matter of the loss's gradient.
    text = LABEL + fc("ip", "x", "ip") + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }\n'
    text += 'layer { name: "loss" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }\n'
    net = net_of(text, TRAIN)
    assert net.gradients[-2:] == [[True, False], [False, False]]
    net.total_loss(net({"x": torch.ones(2, 3), "label": torch.tensor([0.0, 0.0])})).backward()
    gradient = net.layer("ip").blobs[0].grad
    torch.testing.assert_close(gradient[:, 0], torch.tensor([-2 / 3, 1 / 3, 1 / 3]))
    run = Stepwise(net)
    net.zero_grad()
    run.feed({"x": torch.ones(2, 3)})
    run.forward()
    run.backward()
    torch.testing.assert_close(net.layer("ip").blobs[0].grad, gradient)


def test_propagate_down_of_one_layer_is_not_that_of_another_of_its_name() -> None:
    text = fc("first", "x", "a", 1) + fc("same", "a", "b", 1, more="propagate_down: false") + fc("same", "a", "c", 1)
    text += 'layer { name: "sum" type: "Eltwise" bottom: "b" bottom: "c" top: "s" }\n'
    text += 'layer { name: "loss" type: "Reduction" bottom: "s" top: "loss" loss_weight: 1 }\n'
    net = net_of(text, TRAIN)
    net.total_loss(net({"x": torch.ones(2, 3)})).backward()
    # Only the second one leads back: 3 outputs of weight 1, over a batch of 2.
    assert (net.layer("first").blobs[0].grad == 6).all()


def test_losses_without_a_name_or_of_one_name_get_tops_of_their_own() -> None:
    loss = 'layer { name: "%s" type: "EuclideanLoss" bottom: "x" bottom: "%s" }\n'
    net = net_of(fc("a", "x", "a", 1) + fc("b", "x", "b", 2) + loss % ("", "a") + loss % ("", "b") + loss % ("a", "b"), TRAIN)
    assert [layer.tops for layer in net.layers[-3:]] == [["(automatic)"], ["(automatic)_2"], ["(automatic)_3"]]
    blobs = net({"x": torch.ones(2, 3)})
    # Half of the mean squared difference of 1 and 3, and of 1 and 6, the latter twice.
    assert float(net.total_loss(blobs)) == pytest.approx(3 * 4 / 2 + 2 * 3 * 25 / 2)


def test_each_layer_is_saved_and_a_file_is_loaded_as_caffe_loads_it(tmp_path: Path) -> None:
    text = fc("fc", "x", "a", 5) + fc("fc", "a", "b", 7) + fc("other", "b", "c", 1)
    net = net_of(text)
    save_weights(net, tmp_path / "net.caffemodel")
    model = read_weights(tmp_path / "net.caffemodel")
    assert {index: float(arrays[0].flat[0]) for index, arrays in model.repeated.items()} == {1: 5, 2: 7}
    again = tmp_path / "again.caffemodel"
    write_caffemodel(again, model)
    assert again.read_bytes() == (tmp_path / "net.caffemodel").read_bytes()
    other, lines = net_of(fc("fc", "x", "a", 1) + fc("fc", "a", "b", 3) + fc("other", "b", "c")), list[str]()
    report = load_weights(other, tmp_path / "net.caffemodel", warn=lines.append)
    # CopyTrainedLayersFrom goes to the first layer of the name for each of the file, so the last of them counts.
    assert [float(layer.blobs[0][0, 0]) for layer in other.layers[1:]] == [7, 3, 1]
    assert (report.loaded, report.fresh, report.ambiguous) == (["fc", "other"], ["fc"], ["fc"])
    assert len(lines) == 1
    assert "several layers are called 'fc'" in lines[0]


def test_an_old_file_with_two_layers_of_one_name_keeps_both_when_it_is_upgraded(tmp_path: Path) -> None:
    old = NetParameter(name="old", input=["x"], input_dim=[2, 3, 1, 1])
    for value in (1, 2):
        layer = old.layers.add(name="fc", type="INNER_PRODUCT", bottom=["x"], top=[f"y{value}"])
        layer.inner_product_param.num_output = 3
    arrays = {index: [np.full((3, 3), index + 1, np.float32)] for index in (0, 1)}
    write_caffemodel(tmp_path / "new.caffemodel", Caffemodel(old, {"fc": arrays[1]}, repeated=arrays))
    model = read_weights(tmp_path / "new.caffemodel")
    assert [float(a[0].flat[0]) for a in model.repeated.values()] == [1, 2]


def test_hdf5_cannot_hold_both_and_reports_it(tmp_path: Path) -> None:
    with pytest.raises(NetError, match="layer 'fc': two layers of this name cannot be stored in an HDF5 file"):
        write_weights_hdf5(tmp_path / "net.h5", net_of(fc("fc", "x", "a") + fc("fc", "a", "b")))
    assert not (tmp_path / "net.h5").exists()


def test_layers_have_keys_of_their_own() -> None:
    net = net_of(fc("fc", "x", "a") + fc("fc", "a", "b") + fc("fc#2", "b", "c"))
    assert list(net.layers_by_key) == ["x", "fc", "fc#2", "fc#2#2"]
    assert list(net.layers_by_key.values()) == net.layers
    assert len(to_caffemodel(net).repeated) == 2


def test_keys_of_many_layers_of_one_name_are_short() -> None:
    net = net_of("".join(f'layer {{ name: "r" type: "ReLU" bottom: "x" top: "r{i}" }}\n' for i in range(30)))
    keys = [name for name, _ in net.by_name.named_children()]
    assert keys[1:4] == ["r", "r_", "r__"] and keys[-1] == "r_29" and len(set(keys)) == 31


def test_weights_that_do_not_fit_the_first_layer_of_their_name_name_the_cause(tmp_path: Path) -> None:
    net = net_of(fc("fc", "x", "a", outputs=4) + fc("fc", "a", "b"))
    save_weights(net, tmp_path / "net.caffemodel")
    with pytest.raises(NetError, match="parameter blob 0 is 4 x 3 in the net but 3 x 4 .*several layers with parameters have this name"):
        load_weights(net, tmp_path / "net.caffemodel")


def write_training_net(path: Path) -> None:
    """Write a net for training with two layers of one name."""
    fields = 'type: "InnerProduct" inner_product_param { num_output: 6 weight_filler { type: "xavier" } }'
    path.write_text(
        'layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 4 dim: 6 } shape { dim: 4 } '
        'data_filler { type: "gaussian" } data_filler { type: "constant" } } } '
        f'layer {{ name: "ip" bottom: "x" top: "a" {fields} }} layer {{ name: "ip" bottom: "a" top: "b" {fields} }} '
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "b" bottom: "y" top: "loss" }'
    )


def test_training_two_layers_of_one_name_warns_at_its_start(tmp_path: Path) -> None:
    """A snapshot of them cannot be told apart when it is read; see the note of weights.py."""
    write_training_net(tmp_path / "net.prototxt")
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1 snapshot_prefix: "{tmp_path}/s" solver_mode: CPU'
    )
    seen: list[Event] = []
    result = train(tmp_path / "solver.prototxt", events=seen.append)
    warned = [event.message for event in seen if isinstance(event, Warned)]
    assert len(warned) == 1 and warned[0].startswith("2 layers with weights are named 'ip'")
    assert warned[0] in result.log.read_text()


def test_a_run_with_two_layers_of_one_name_is_resumed_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    write_training_net(tmp_path / "net.prototxt")
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 4 snapshot: 2 random_seed: 1 '
        f'snapshot_prefix: "{tmp_path}/s" solver_mode: CPU'
    )
    train(tmp_path / "solver.prototxt")
    whole = (tmp_path / "s_iter_4.caffemodel").read_bytes()
    train(tmp_path / "solver.prototxt", snapshot=tmp_path / "s_iter_2.solverstate")
    assert (tmp_path / "s_iter_4.caffemodel").read_bytes() == whole


def test_a_net_with_layers_of_one_name_is_not_run_on_a_file_of_weights(tmp_path: Path) -> None:
    text = fc("fc", "x", "a", 5) + fc("fc", "a", "b", 7) + fc("ip", "b", "c", 5) + fc("ip", "c", "d", 7)
    (tmp_path / "net.prototxt").write_text(INPUT + text)
    save_weights(net_of(text), tmp_path / "net.caffemodel")
    with pytest.raises(NetError, match=r"net.prototxt: several layers are called 'fc', 'ip', and .* give each layer a name of its own$"):
        TorchEngine.load(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")


def test_drawings_show_each_layer_of_one_name(tmp_path: Path) -> None:
    text = fc("fc", "x", "a", 5, outputs=4) + 'layer { name: "fc" type: "ReLU" bottom: "a" top: "b" }\n' + fc("fc", "b", "c", 7, outputs=2)
    save_weights(net_of(text), tmp_path / "net.caffemodel")
    assert [item.weights.shape for item in all_weights(tmp_path / "net.caffemodel")] == [(4, 3), (2, 4)]
    assert find_weights(tmp_path / "net.caffemodel", "fc").weights.shape == (4, 3)
    rows = [row for box in net_graph(parse(INPUT + text, NetParameter)).boxes for row in box.rows]
    assert [row.type for row in rows] == ["Input", "InnerProduct", "ReLU", "InnerProduct"]


def test_pycaffe_names_the_blobs_of_the_last_layer_of_a_name(tmp_path: Path) -> None:
    # As pycaffe, whose dictionaries of tops and bottoms have one entry a name, and which runs to the first layer of the name.
    (tmp_path / "net.prototxt").write_text("force_backward: true\n" + INPUT + fc("ip", "x", "a", 1.0) + fc("ip", "a", "b", 2.0, 4))
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    assert list(net.forward(end="ip")) == ["b"]
    assert list(net.backward(end="ip")) == ["a"] and list(net.backward(start="ip")) == ["x"]
