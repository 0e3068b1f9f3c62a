"""A user's own layers from a Python file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import caffetools as ct
from caffetools.errors import CaffeToolsError, NetError
from caffetools.layers import registry
from caffetools.layers.plugin import failed_place, load_plugin
from caffetools.net.net import Net
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse
from caffetools.surgery.layer_spec import parse_added
from tests.layers.helpers import input_layer

CROP = '''
from caffetools.layers.base import Layer
from caffetools.layers.registry import register
from caffetools.proto.unknown import unknown_fields


@register("CropCenter")
class CropCenter(Layer):
    """Takes so many pixels off each side."""

    READS_UNKNOWN = True

    def setup(self, bottoms):
        n, c, h, w = self.expect_axes(bottoms[0], 4)
        (param,) = unknown_fields(self.param)["crop_center_param"]
        self.rows, self.columns = param["crop_size"][2:]
        return [(n, c, h - 2 * self.rows, w - 2 * self.columns)]

    def forward(self, x):
        return x[:, :, self.rows : x.shape[2] - self.rows, self.columns : x.shape[3] - self.columns]
'''
NET = input_layer("x", 1, 1, 6, 5) + (
    'layer { name: "c" type: "CropCenter" bottom: "x" top: "y"  crop_center_param { crop_size: 0 crop_size: 0 crop_size: 2 crop_size: 1 } }'
)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The registry is as it was, after each test."""
    before = set(registry.layer_types())
    yield
    registry.unregister(set(registry.layer_types()) - before)
    for name in [name for name in sys.modules if name.startswith("caffetools_plugin_")]:
        del sys.modules[name]


def written(folder: Path, text: str, name: str = "my_layers.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_layer_of_the_users_own_is_run_with_its_own_fields(tmp_path: Path) -> None:
    param = parse(NET, NetParameter)
    with pytest.raises(NetError, match="layer 'c': unknown layer type 'CropCenter'"):
        Net(param)
    path = written(tmp_path, CROP)
    assert load_plugin(path) == ["CropCenter"]
    x = torch.rand(1, 1, 6, 5)
    torch.testing.assert_close(Net(param)({"x": x})["y"], x[:, :, 2:4, 1:4])


def test_a_file_that_was_loaded_is_not_run_again(tmp_path: Path) -> None:
    path = written(tmp_path, CROP)
    assert load_plugin(path) == load_plugin(str(path)) == ["CropCenter"]


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("x = 1\n", "registers no layer", 0),
        ("import not_there_at_all\n", "cannot be loaded: ModuleNotFoundError: No module named 'not_there_at_all'", 1),
        ("def broken(:\n", "cannot be loaded: SyntaxError", 1),
        (CROP.replace("CropCenter", "ReLU"), "cannot be loaded: ValueError: layer type 'ReLU' is registered twice", 7),
        (CROP + "\nraise RuntimeError('late')\n", "cannot be loaded: RuntimeError: late", 22),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_names_it_and_leaves_nothing(
    tmp_path: Path, text: str, message: str, line: int
) -> None:
    path = written(tmp_path, text)
    before = set(registry.layer_types())
    with pytest.raises(CaffeToolsError) as error:
        load_plugin(path)
    assert str(path) in str(error.value) and message in str(error.value)
    # Python 3.10 gives a failing decorator the line of the class.
    assert error.value.line - line in ((0, 1) if "registered twice" in message else (0,))
    assert set(registry.layer_types()) == before


@pytest.mark.parametrize("name", ["missing.py", "layers.txt"])
def test_what_is_not_a_python_file_is_refused(tmp_path: Path, name: str) -> None:
    if name.endswith(".txt"):
        written(tmp_path, CROP, name)
    with pytest.raises(CaffeToolsError, match="is not a Python file"):
        load_plugin(tmp_path / name)


def test_a_failure_inside_a_plugin_is_placed_in_its_file(tmp_path: Path) -> None:
    path = written(tmp_path, CROP.replace("self.rows, self.columns = param", "self.rows, self.columns, _ = param"))
    load_plugin(path)
    with pytest.raises(ValueError, match="not enough values") as error:
        Net(parse(NET, NetParameter))
    line = path.read_text().split("\n").index('        self.rows, self.columns, _ = param["crop_size"][2:]') + 1
    assert failed_place(error.value) == f"layer 'c': {path}:{line}: setup failed"
    assert failed_place(ValueError("elsewhere")) == ""


PRODUCT = """
from caffetools.layers.base import Layer
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits


@register("NarrowProduct")
class NarrowProduct(Layer):
    TRAITS = Traits(role="classifier", settings="inner_product_param", outputs="num_output", class_axes=(0,), weight_filler="weight_filler")

    def setup(self, bottoms):
        self.declare_blob((self.param.inner_product_param.num_output, bottoms[0][1]), self.param.inner_product_param.weight_filler)
        return [(bottoms[0][0], self.param.inner_product_param.num_output)]

    def forward(self, x):
        return x @ self.blobs[0].t()
"""


def test_a_linear_layer_of_a_plugin_has_the_short_form_of_its_traits(tmp_path: Path) -> None:
    load_plugin(written(tmp_path, PRODUCT))
    added = parse_added("NarrowProduct:7").layer
    assert added.type == "NarrowProduct" and added.inner_product_param.num_output == 7
    with pytest.raises(CaffeToolsError, match="does not give the numbers that a NarrowProduct layer needs"):
        parse_added("NarrowProduct:7:3")


ROWS = """
import numpy as np
import torch
from caffetools.layers.base import Layer
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.unknown import unknown_fields


@register("Rows")
class Rows(Layer):
    READS_UNKNOWN = IS_DATA = True
    TRAITS = Traits(role="data", label_tops="numbers")
    BOTTOMS, TOPS = (0, 0), (2, 2)

    def setup(self, bottoms):
        (param,) = unknown_fields(self.param)["rows_param"]
        self.rows, self.size = np.load(param["source"][0]), int(param["batch_size"][0])
        return [(self.size, *self.rows.shape[1:]), (self.size,)]

    def forward(self):
        return torch.from_numpy(self.rows[: self.size]), torch.zeros(self.size)
"""


def test_a_data_layer_with_a_source_of_its_own_gives_the_shapes_of_its_first_batch(tmp_path: Path) -> None:
    load_plugin(written(tmp_path, ROWS))
    np.save(tmp_path / "rows.npy", np.zeros((9, 3, 8, 6), np.float32))
    net = tmp_path / "train_val.prototxt"
    net.write_text(
        f'layer {{ name: "data" type: "Rows" top: "data" top: "label" rows_param {{ source: "{tmp_path / "rows.npy"}" batch_size: 4 }} }}'
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 5 } }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'
    )
    shapes = {name: shape for layer in ct.inspect(net).layers for name, shape in zip(layer.tops, layer.shapes or [], strict=True)}
    assert shapes["data"] == (4, 3, 8, 6) and shapes["label"] == (4,)
    assert tuple(ct.deploy(net).layer[0].input_param.shape[0].dim) == (1, 3, 8, 6)
    (tmp_path / "rows.npy").unlink()
    with pytest.raises(
        NetError, match="layer 'data': the size of its data is not known: FileNotFoundError: .*rows.npy.*give --input-shape"
    ):
        ct.deploy(net)
