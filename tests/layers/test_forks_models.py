"""Published models of forks: known layers give the golden numbers; a net with an unknown one is read, shown and rewritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import NetError
from caffetools.graph.summary import summarize
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.onnx.export import to_onnx
from caffetools.proto.binary import read_caffemodel, write_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import format_text, parse, read_net
from caffetools.proto.unknown import unknown_fields


@pytest.fixture
def models(wild_golden: Path) -> Path:
    return wild_golden / "models"


@pytest.mark.wild
def test_a_face_detector_with_permute_gives_its_boxes_and_scores(models: Path) -> None:
    net = Net.from_file(models / "ultraface_rfb_320.prototxt")
    report = load_weights(net, models / "ultraface_rfb_320.caffemodel")
    assert not report.fresh
    with np.load(models / "ultraface_rfb_320.npz") as file:
        arrays = dict(file)
    with torch.no_grad():
        blobs = net({net.inputs[0]: torch.from_numpy(arrays["in/data"])})
    exported = OnnxRuntimeEngine.load(to_onnx(net).SerializeToString()).predict({net.inputs[0]: arrays["in/data"]})
    for name in ("boxes", "scores"):
        expected = arrays[f"out/{name}"]
        assert np.abs(blobs[name].numpy() - expected).max() <= 1e-4 * np.abs(expected).max()
        assert np.abs(exported[name] - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.wild
@pytest.mark.parametrize(("name", "dialect"), [("ultraface_rfb_320", "ssd"), ("waifu2x_upresnet10", "ceil"), ("mtcnn_det2", "")])
def test_a_caffemodel_is_rewritten_byte_for_byte(models: Path, tmp_path: Path, name: str, dialect: str) -> None:
    model = read_caffemodel(models / f"{name}.caffemodel")
    assert model.dialect == dialect
    write_caffemodel(tmp_path / "again", model)
    assert (tmp_path / "again").read_bytes() == (models / f"{name}.caffemodel").read_bytes()


UPSCALER = """name: "upscaler"
input: "picture"
input_shape { dim: 1 dim: 3 dim: 20 dim: 20 }
layer { name: "up" type: "Deconvolution" bottom: "picture" top: "up" convolution_param { num_output: 8 kernel_size: 4 stride: 2 pad: 1 } }
layer {
  name: "rim"
  type: "CropCenter"
  bottom: "up"
  top: "rim"
  crop_center_param {
    crop_size: 0
    crop_size: 0
    crop_size: 2
    crop_size: 2
  }
}
layer { name: "out" type: "Convolution" bottom: "rim" top: "out" convolution_param { num_output: 3 kernel_size: 3 } }
"""


def test_a_net_with_an_unknown_layer_is_shown_and_printed_but_not_run(tmp_path: Path) -> None:
    path = tmp_path / "upscaler.prototxt"
    path.write_text(UPSCALER)
    net = read_net(path)
    crop = next(layer for layer in net.layer if layer.type == "CropCenter")
    assert unknown_fields(crop) == {"crop_center_param": [{"crop_size": [0, 0, 2, 2]}]}
    printed = format_text(net)
    assert "  crop_center_param {\n    crop_size: 0\n    crop_size: 0\n    crop_size: 2\n    crop_size: 2\n  }\n" in printed
    assert parse(printed, type(net)) == net
    summary = summarize(net)
    note = next(row.note for row in summary.unknown if row.type_name == "CropCenter")
    assert note.startswith("the type CropCenter is not known here")
    with pytest.raises(NetError, match=r"layer 'rim': unknown layer type 'CropCenter'.*--plugin.*cut the net"):
        Net.from_file(path)


@pytest.mark.parametrize(
    ("dialect", "text"),
    [
        ("ssd", 'layer { name: "p" type: "Permute" bottom: "x" top: "p" permute_param { order: 0 order: 2 order: 3 order: 1 } }'),
        ("ceil", 'layer { name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { kernel_size: 3 stride: 2 ceil_mode: false } }'),
        ("", 'layer { name: "p" type: "PReLU" bottom: "x" top: "p" }'),
    ],
)
def test_the_weights_of_a_forks_net_are_rewritten_byte_for_byte(tmp_path: Path, dialect: str, text: str) -> None:
    net = parse(f'name: "n" {text} layer {{ name: "c" type: "Convolution" bottom: "p" top: "c" }}', NetParameter)
    blobs = [np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), np.array([0.5, -1], np.float32)]
    write_caffemodel(tmp_path / "first", Caffemodel(net, {"c": blobs}))
    model = read_caffemodel(tmp_path / "first")
    assert model.dialect == dialect and model.net.layer[0] == net.layer[0]
    write_caffemodel(tmp_path / "again", model)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "first").read_bytes()
