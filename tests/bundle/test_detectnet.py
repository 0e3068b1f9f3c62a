"""Bundles of DIGITS' DetectNet: the Python layer at its end is cut off, and its grid becomes boxes that every runner takes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from caffetools.bundle import standalone
from caffetools.bundle.build import TARGETS, build_bundle
from caffetools.bundle.check import check_bundle
from caffetools.bundle.detectnet import GridOutputs, find_grid
from caffetools.errors import DataError, NetError
from caffetools.infer.classifier import PreprocessOptions
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse
from tests.bundle.conftest import DETECTNET, Nets, write_net
from tests.bundle.test_runner import build, classify  # noqa: F401 (a fixture)

BODY = DETECTNET.partition('layer { type: "Python"')[0]


@pytest.mark.parametrize("target", TARGETS)
def test_boxes_are_those_of_the_grid(target: str, detectnets: dict[str, Path], detectnet: Nets) -> None:
    folder = detectnets[target]
    model = onnx.load(folder / "model.onnx")
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in (*model.graph.input, *model.graph.output)}
    assert shapes == {"input_0": [1, 3, 24, 32], "scores": [1, 48, 3], "boxes": [1, 48, 4]}
    assert (folder / "labels.txt").read_text().splitlines() == ["BACKGROUND", "car", "person"]
    card = {item.key: item.value for item in model.metadata_props}
    assert card["caffetools.source_sha256"] == hashlib.sha256(detectnet.deploy.read_bytes()).hexdigest()
    for backend in ("onnxruntime", "opencv"):
        assert check_bundle(folder, backend=backend, tolerance=1e-5).samples == 4
    # Against the net's own blobs, cell by cell.
    settings = standalone.Settings(folder)
    net = Net(parse(BODY, NetParameter))
    load_weights(net, detectnet.weights)
    counts = []
    for picture in sorted((folder / "samples").glob("*.png")):
        image = cv2.imread(str(picture))
        blobs = net({"data": torch.from_numpy(cv2.resize(image, (32, 24)).astype(np.float32).transpose(2, 0, 1)[None].copy())})
        coverage, corners = blobs["coverage"][0].detach().numpy(), blobs["bboxes"][0].detach().numpy()
        scores, boxes = standalone.open_backend(settings, "onnxruntime").run(standalone.prepare(image, settings))
        assert not scores[0, :, 0].any()
        for y in range(6):
            for x in range(8):
                cell = (corners[:, y, x] + [4 * x, 4 * y, 4 * x, 4 * y]) / [32, 24, 32, 24]
                np.testing.assert_allclose(boxes[0, 8 * y + x], cell, atol=1e-5)
                np.testing.assert_allclose(scores[0, 8 * y + x, 1:], coverage[:, y, x], atol=1e-5)
        found = standalone.detect([scores, boxes], (320, 240), settings)
        assert all(box["score"] > 0.5 and box["label"] in ("car", "person") for box in found)
        best = coverage.max()
        assert best <= 0.5 or abs(found[0]["score"] - best) < 1e-5
        counts.append(len(found))
    assert min(counts) < max(counts) and sum(counts) > 4


def test_the_runner_in_cpp_finds_the_same_boxes(build: Path, detectnets: dict[str, Path]) -> None:  # noqa: F811
    for bundle in detectnets.values():
        expected = json.loads((bundle / "samples" / "expected.json").read_text())
        answers = classify(build, bundle, bundle / "samples")
        assert [Path(answer["picture"]).name for answer in answers] == sorted(expected)
        for answer in answers:
            wanted = expected[Path(answer["picture"]).name]
            got = answer["boxes"][: len(wanted)]
            assert [(box["index"], box["label"]) for box in got] == [(box["index"], box["label"]) for box in wanted]
            assert np.allclose([box["box"] for box in got], [box["box"] for box in wanted], atol=0.02)


def test_low_boxes_are_left_out_by_all_runners(build: Path, detectnets: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    samples = detectnets["onnxruntime"] / "samples"
    every = [(box["box"][3] - box["box"][1]) / 240 * 24 for answer in classify(build, samples.parent, samples) for box in answer["boxes"]]
    limit = (min(every) + max(every)) / 2
    nets = write_net(tmp_path, DETECTNET.replace("4, 0.5, 3, 0.02, 2, 2", f"4, 0.5, 3, 0.02, {limit}, 2"))
    how = PreprocessOptions(mean="0", labels=("car", "person"))
    # The bundle is checked with the runner in Python.
    build_bundle(*nets, tmp_path / "out", "onnxruntime", how, pictures=sorted(samples.glob("*.png")))
    expected = json.loads((tmp_path / "out" / "samples" / "expected.json").read_text())
    answers = classify(build, tmp_path / "out", tmp_path / "out" / "samples")
    heights = [(box["box"][3] - box["box"][1]) / 240 * 24 for answer in answers for box in answer["boxes"]]
    assert heights == pytest.approx([height for height in every if height >= limit]) and 0 < len(heights) < len(every)
    assert [len(answer["boxes"][:5]) for answer in answers] == [len(boxes) for boxes in expected.values()]


def test_a_net_without_the_clustering_layer_is_known_by_its_blobs(detectnet: Nets, tmp_path: Path) -> None:
    (tmp_path / "deploy.prototxt").write_text(BODY)
    assert find_grid(detectnet.deploy) == GridOutputs("coverage", "bboxes", 0.5, 2)
    assert find_grid(tmp_path / "deploy.prototxt") == GridOutputs("coverage", "bboxes", 0.6)
    build_bundle(tmp_path / "deploy.prototxt", detectnet.weights, tmp_path / "out", "jetson", PreprocessOptions(mean="0"))
    assert json.loads((tmp_path / "out" / "preprocessing.json").read_text())["detection"]["threshold"] == pytest.approx(0.6)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "detectnet --model=model.onnx --input-blob=input_0 --output-cvg=scores --output-bbox=boxes" in readme


def test_grids_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "deploy.prototxt"
    bad.write_text(DETECTNET.replace("4, 0.5, 3, 0.02, 2, 2", "4"))
    with pytest.raises(DataError, match=r"param_str of the layer 'cluster' is not width, height, stride, threshold"):
        find_grid(bad)
    nets = write_net(tmp_path, DETECTNET.replace("num_output: 4 kernel_size: 1", "num_output: 8 kernel_size: 1"))
    with pytest.raises(NetError, match="are not the coverage and the corners of a DetectNet"):
        build_bundle(*nets, tmp_path / "out", "jetson", PreprocessOptions(mean="0"))
    assert not (tmp_path / "out").exists()
