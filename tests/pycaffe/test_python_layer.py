"""Layers that users write in Python: against Caffe, and what is said when their code is not found or fails."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.errors import NetError, user_error_context
from caffetools.net.net import Net as TorchNet
from caffetools.pycaffe.net import Net, torch_net
from caffetools.pycaffe.proto import caffe_pb2
from caffetools.pycaffe.solvers import SGDSolver
from tests.conftest import GOLDEN

Write = Callable[[str, str], str]
FOLDER = GOLDEN / "layers_files"
TRAIN, TEST = caffe_pb2.TRAIN, caffe_pb2.TEST


@pytest.fixture
def golden_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    sys.modules.pop("golden_python_layers", None)


@pytest.fixture
def module(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Write the module ``mine``, where scripts would have it: beside them."""
    monkeypatch.chdir(tmp_path)
    yield lambda text: (write("mine.py", "import numpy as np\nimport caffe\n\n" + text), None)[1]
    sys.modules.pop("mine", None)


def python(name: str, bottoms: str, tops: str, more: str = "", text: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "Python" {" ".join(f"bottom: {b!r}" for b in bottoms.split())} '
        f"{' '.join(f'top: {t!r}' for t in tops.split())} {more} "
        f"python_param {{ module: 'mine' layer: '{name}' param_str: \"{text}\" }} }}\n"
    )


def test_python_layers_give_the_numbers_of_caffe(golden_module: None) -> None:
    with np.load(FOLDER / "python.npz") as file:
        arrays = dict(file)
    net = Net(FOLDER / "python.prototxt", TEST)
    assert (net.params["shift"][0].data == 0.5).all()
    for key in [k for k in arrays if k.startswith("param:")]:
        _, layer, index = key.split(":")
        net.params[layer][int(index)].data[...] = arrays[key]
    net.forward(x=arrays["in:x"])
    for key in [k for k in arrays if k.startswith("topdiff:")]:
        net.blobs[key.split(":")[1]].diff[...] = arrays[key]
    forward = {name: blob.data.copy() for name, blob in net.blobs.items()}
    net.backward()
    for key, expected in arrays.items():
        kind, name = key.split(":", 1)
        if kind == "out":
            np.testing.assert_allclose(forward[name], expected, rtol=1e-5)
        elif kind == "indiff":
            np.testing.assert_allclose(net.blobs[name].diff, expected, rtol=1e-5)
        elif kind == "paramdiff":
            layer, index = name.split(":")
            np.testing.assert_allclose(net.params[layer][int(index)].diff, expected, rtol=1e-5)


def test_python_layers_run_in_a_module_run_and_hand_gradients_to_autograd(golden_module: None) -> None:
    with np.load(FOLDER / "python.npz") as file:
        arrays = dict(file)
    net = TorchNet.from_file(FOLDER / "python.prototxt", TEST)
    with torch.no_grad():
        net.layer("shift").blobs[0].copy_(torch.from_numpy(arrays["param:shift:0"]))
    x = torch.from_numpy(arrays["in:x"]).requires_grad_()
    blobs = net({"x": x}, keep=["s"])
    blobs["s"].retain_grad()
    np.testing.assert_allclose(blobs["y"].detach().numpy(), arrays["out:y"], rtol=1e-5)
    blobs["y"].backward(torch.from_numpy(arrays["topdiff:y"]))
    np.testing.assert_allclose(blobs["s"].grad.numpy(), arrays["indiff:s"], rtol=1e-5)
    assert torch.equal(x.grad, blobs["s"].grad)
    np.testing.assert_allclose(net.layer("shift").blobs[0].grad.numpy(), arrays["paramdiff:shift:0"], rtol=1e-5)


def test_the_log_reports_what_code_runs(golden_module: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="caffetools.pycaffe"):
        Net(FOLDER / "python.prototxt", TEST)
    assert (
        f"layer 'shift' runs the Python code of golden_python_layers.LearnedShift from {FOLDER / 'golden_python_layers.py'}" in caplog.text
    )


DATA_AND_LOSS = """
class Rings(caffe.Layer):
    '''Points in the plane, and which of two rings they lie in.'''
    def setup(self, bottom, top):
        if len(top) != 2:
            raise Exception("two tops are needed")
        self.batch, self.random = int(self.param_str), np.random.RandomState(0)

    def reshape(self, bottom, top):
        top[0].reshape(self.batch, 2)
        top[1].reshape(self.batch, 1)

    def forward(self, bottom, top):
        labels = self.random.randint(0, 2, self.batch)
        angles = self.random.uniform(0, 6.28, self.batch)
        top[0].data[...] = (1 + labels)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        top[1].data[:, 0] = labels

    def backward(self, top, propagate_down, bottom):
        pass


class Squares(caffe.Layer):
    '''Half of the mean squared difference.'''
    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception("two bottoms are needed")

    def reshape(self, bottom, top):
        if bottom[0].count != bottom[1].count:
            raise Exception("bottoms differ in size")
        self.diff = np.zeros_like(bottom[0].data)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.diff[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.diff ** 2) / bottom[0].num / 2.

    def backward(self, top, propagate_down, bottom):
        for i in range(2):
            if not propagate_down[i]:
                continue
            bottom[i].diff[...] = (1 if i == 0 else -1) * self.diff / bottom[i].num
"""
NET = (
    python("Rings", "", "points label", text="64") + 'layer { name: "fc1" type: "InnerProduct" bottom: "points" top: "fc1" '
    'inner_product_param { num_output: 16 weight_filler { type: "xavier" } } }\n'
    'layer { name: "relu" type: "ReLU" bottom: "fc1" top: "fc1" }\n'
    'layer { name: "fc2" type: "InnerProduct" bottom: "fc1" top: "fc2" '
    'inner_product_param { num_output: 1 weight_filler { type: "xavier" } } }\n'
) + python("Squares", "fc2 label", "loss", more="loss_weight: 1")


def test_a_python_data_layer_and_a_python_loss_train_a_net(module: Callable[[str], None], write: Write) -> None:
    module(DATA_AND_LOSS)
    net = write("net.prototxt", NET)
    solver = SGDSolver(write("solver.prototxt", f'net: "{net}" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 random_seed: 1'))
    solver.step(1)
    first = float(solver.net.blobs["loss"].data[0])
    solver.step(149)
    assert float(solver.net.blobs["loss"].data[0]) < 0.02 < first
    assert solver.net.layers[0].batch == 64  # the user's own object
    assert solver.net.layers[0].type == "Python"


def test_python_losses_agree_with_caffes_own(module: Callable[[str], None], write: Write) -> None:
    module(DATA_AND_LOSS)
    mine = Net(write("net.prototxt", NET), TRAIN)
    own = Net(
        write(
            "own.prototxt",
            NET.replace("'mine' layer: 'Squares'", "'mine'").replace('"Squares" type: "Python"', '"Squares" type: "EuclideanLoss"'),
        ),
        TRAIN,
    )
    own.share_with(mine)
    mine.forward()
    own.layers[0].random.seed(0)
    own.forward()
    for net in (mine, own):
        net.backward()
    np.testing.assert_allclose(mine.blobs["loss"].data[0], own.blobs["loss"].data, rtol=1e-5)
    np.testing.assert_allclose(mine.params["fc1"][0].diff, own.params["fc1"][0].diff, rtol=1e-4, atol=1e-6)


def test_a_python_layer_may_work_in_place_and_change_its_shape(module: Callable[[str], None], write: Write) -> None:
    module(
        "class Double(caffe.Layer):\n"
        "    def reshape(self, bottom, top): top[0].reshape(*bottom[0].data.shape)\n"
        "    def forward(self, bottom, top): top[0].data[...] *= 2\n"
        "    def backward(self, top, propagate_down, bottom): bottom[0].diff[...] = 2 * top[0].diff\n"
        "class Growing(caffe.Layer):\n"
        "    def setup(self, bottom, top): self.passes = 0\n"
        "    def reshape(self, bottom, top): top[0].reshape(self.passes + 1, 3)\n"
        "    def forward(self, bottom, top):\n"
        "        top[0].data[...] = 1\n"
        "        self.passes += 1\n"
    )
    text = python("Growing", "", "x") + python("Double", "x", "x")
    text += 'layer { name: "sum" type: "Reduction" bottom: "x" top: "sum" loss_weight: 1 }\n'
    net = Net(write("net.prototxt", "force_backward: true\n" + text), TRAIN)
    for rows in (1, 2, 3):
        assert float(net.forward()["sum"]) == 2 * 3 * rows
        net.backward()
        assert net.blobs["x"].data.shape == net.blobs["x"].diff.shape == (rows, 3)
        assert (net.blobs["x"].diff == 2).all()
    assert torch_net(net)()["sum"].item() == 2 * 3 * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"layer 'Odd': the Python module 'mine' was not found on sys.path or in .*PYTHONPATH"),
        ("x = 1\n", r"layer 'Odd': the module 'mine' \(.*mine\.py\) has no class 'Odd'"),
        ("class Odd: pass\n", r"'mine\.Odd' .* is not a class with a method forward"),
        ("import nonesuch\n", "the Python module 'mine' needs the module 'nonesuch', which is not installed"),
    ],
)
def test_code_that_is_not_there_or_fails_is_reported(text: str | None, message: str, module: Callable[[str], None], write: Write) -> None:
    if text is not None:
        module(text)
    with pytest.raises(NetError, match=message):
        Net(write("net.prototxt", python("Odd", "", "x")), TEST)


@pytest.mark.parametrize(
    ("text", "kind", "context"),
    [
        ("1 / 0\n", ZeroDivisionError, "layer 'Odd': the Python module 'mine' cannot be imported"),
        (
            "class Odd(caffe.Layer):\n    def setup(self, bottom, top): raise KeyError('no, thanks')\n",
            KeyError,
            r"layer 'Odd': mine\.Odd\.setup failed \(.*mine\.py:5\)",
        ),
    ],
)
def test_an_exception_of_the_users_code_is_passed_on_and_names_the_layer(
    text: str, kind: type[Exception], context: str, module: Callable[[str], None], write: Write
) -> None:
    module(text)
    with pytest.raises(kind) as raised:
        Net(write("net.prototxt", python("Odd", "", "x")), TEST)
    assert type(raised.value) is kind
    assert re.match(context, user_error_context(raised.value))


def test_a_class_with_an_init_of_its_own_gets_the_layers_parameter_and_phases_have_names(
    module: Callable[[str], None], write: Write
) -> None:
    module(
        "class Odd(caffe.Layer):\n"
        "    def __init__(self, p_object, *args, **kwargs):\n"
        "        super().__init__(p_object, *args, **kwargs)\n"
        "        self.factor = 5\n"
        "    def reshape(self, bottom, top): top[0].reshape(1)\n"
        "    def forward(self, bottom, top):\n"
        "        # BVLC's phase is a number, that of Fast R-CNN's fork is used by its name.\n"
        "        assert {'TRAIN': 0, 'TEST': 1}[str(self.phase)] == self.phase\n"
        "        top[0].data[...] = self.factor + 10 * (self.phase == caffe.TRAIN)\n"
    )
    path = write("net.prototxt", python("Odd", "", "x"))
    assert [float(Net(path, phase).forward()["x"][0]) for phase in (TRAIN, TEST)] == [15, 5]


def test_a_layer_may_give_its_top_another_shape_in_forward(module: Callable[[str], None], write: Write) -> None:
    module(
        "class Late(caffe.Layer):\n"
        "    def setup(self, bottom, top): top[0].reshape(1, 1)\n"
        "    def reshape(self, bottom, top): pass\n"
        "    def forward(self, bottom, top):\n"
        "        top[0].reshape(*bottom[0].data.shape)\n"
        "        top[0].data[...] = bottom[0].data + 1\n"
    )
    text = 'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 1 } } }\n' + python("Late", "d", "x")
    text += 'layer { name: "loss" type: "EuclideanLoss" bottom: "x" bottom: "d" top: "loss" }\n'
    net = Net(write("net.prototxt", text), TRAIN)
    for shape in ((1, 6), (2, 3)):
        net.blobs["d"].reshape(*shape)
        assert float(net.forward()["loss"]) == 6 / shape[0] / 2
        assert net.blobs["x"].shape == shape
        assert torch_net(net)({"d": torch.zeros(shape)})["loss"].item() == 6 / shape[0] / 2
