"""Sizes that an ONNX file leaves free, and those that it was exported with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import caffetools as ct
from caffetools.engines.input_shapes import fill_free_axes, shapes_to_properties
from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.onnx.export import export
from tests.cli.inprocess import run

DEPLOY = """\
name: "free"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "conv" top: "prob" }
"""


@pytest.fixture
def free(tmp_path: Path) -> Path:
    """A fully convolutional net, its weights, and its ONNX file for pictures of any size."""
    (tmp_path / "deploy.prototxt").write_text(DEPLOY)
    net = Net.from_file(tmp_path / "deploy.prototxt")
    save_weights(net, tmp_path / "w.caffemodel")
    export(net, tmp_path / "free.onnx", dynamic_axes=("batch", "height", "width"))
    return tmp_path


def test_a_model_of_free_sizes_runs_at_those_of_its_net(free: Path) -> None:
    engine = OnnxRuntimeEngine.load(free / "free.onnx")
    assert engine.inputs == {"data": (1, 3, 12, 10)} and engine.batch is None
    assert engine.predict({"data": np.zeros((2, 3, 33, 47), np.float32)})["prob"].shape == (2, 2, 31, 45)


def test_verify_takes_the_file_that_export_wrote(free: Path) -> None:
    done = run("verify", free / "deploy.prototxt", free / "w.caffemodel", free / "free.onnx")
    rows = [line for line in done.stdout.splitlines() if line.startswith("onnxruntime: free.onnx")]
    assert len(rows) == 1 and "prob" in rows[0] and "1.000000" in rows[0]


def test_import_gives_back_the_size(free: Path) -> None:
    ct.import_onnx(free / "free.onnx", free / "back")
    assert Net.from_file(free / "back" / "deploy.prototxt").blob_shapes["data"] == (1, 3, 12, 10)


def test_a_model_of_fixed_size_does_not_keep_it_twice(free: Path) -> None:
    export(Net.from_file(free / "deploy.prototxt"), free / "fixed.onnx")
    assert not [item for item in onnx.load(free / "fixed.onnx").metadata_props if "shapes" in item.key]


@pytest.mark.parametrize(
    ("dims", "properties", "shape"),
    [
        (["N", 3, 5, 6], {}, (1, 3, 5, 6)),
        ([2, 3, 0, 6], shapes_to_properties({"x": (7, 3, 5, 6)}), (2, 3, 5, 6)),
        ([None, 3, "H", "W"], {}, None),
        (["N", 3, "H", "W"], shapes_to_properties({"y": (1, 3, 5, 6)}), None),
        # Another layout or another net: what is fixed does not agree.
        (["N", "H", "W", 3], shapes_to_properties({"x": (1, 3, 5, 6)}), None),
        (["N", 3, "H"], shapes_to_properties({"x": (1, 3, 5, 6)}), None),
        (["N", 3, "H", "W"], {"caffetools.input_shapes": "{"}, None),
        (["N", 3, "H", "W"], {"caffetools.input_shapes": '{"x": [1, 3, -1, "a"]}'}, None),
        ([], {}, ()),
    ],
)
def test_free_axes_are_filled_from_the_metadata_only_where_it_fits(
    dims: list[int | str | None], properties: dict[str, str], shape: tuple[int, ...] | None
) -> None:
    assert fill_free_axes("x", dims, properties) == shape
