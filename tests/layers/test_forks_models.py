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
from caffetools.proto.text import format_text, parse, read_net
from caffetools.proto.unknown import unknown_fields
from tests.conftest import SHARED


@pytest.fixture
def models() -> Path:
    folder = SHARED / "golden" / "models"
    if not folder.is_dir():
        pytest.skip("no ../shared/golden/models here")
    return folder


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


@pytest.mark.parametrize(("name", "dialect"), [("ultraface_rfb_320", "ssd"), ("waifu2x_upresnet10", "ceil"), ("mtcnn_det2", "")])
def test_a_caffemodel_is_rewritten_byte_for_byte(models: Path, tmp_path: Path, name: str, dialect: str) -> None:
    model = read_caffemodel(models / f"{name}.caffemodel")
    assert model.dialect == dialect
    write_caffemodel(tmp_path / "again", model)
    assert (tmp_path / "again").read_bytes() == (models / f"{name}.caffemodel").read_bytes()


def test_a_net_with_an_unknown_layer_is_shown_and_printed_but_not_run(models: Path) -> None:
    path = models / "waifu2x_upresnet10.prototxt"
    net = read_net(path)
    crop = next(layer for layer in net.layer if layer.type == "CropCenter")
    assert unknown_fields(crop) == {"crop_center_param": [{"crop_size": [0, 0, 2, 2]}]}
    printed = format_text(net)
    assert "  crop_center_param {\n    crop_size: 0\n    crop_size: 0\n    crop_size: 2\n    crop_size: 2\n  }\n" in printed
    assert parse(printed, type(net)) == net
    summary = summarize(net)
    note = next(row.note for row in summary.unknown if row.type_name == "CropCenter")
    assert note.startswith("the type CropCenter is not known here")
    with pytest.raises(NetError, match=r"layer '/res1/crop': unknown layer type 'CropCenter'.*--plugin.*cut the net"):
        Net.from_file(path)
