"""Calibration, int8 and fp16 models, and tables: what comes out for a small net that was trained on drawn digits."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import caffetools as ct
from caffetools.data.databases import new_lmdb
from caffetools.data.datum import image_to_record
from caffetools.engines.onnxruntime import open_session
from caffetools.errors import CaffeToolsError, DataError, ExportError, NetError, RunFailed
from caffetools.events import Event, Warned
from caffetools.infer.sidecar import write_preprocessing
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, save_weights
from caffetools.quant.calibration import state_path
from caffetools.quant.fake import write_ranges
from caffetools.quant.quantize import Quantization
from caffetools.results import Preprocessing
from tests.cli.inprocess import error_of, run, run_well
from tests.quant.conftest import Digits


def inputs(digits: Digits) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The net's input as the training computed it."""
    return ((digits.images.astype(np.float32) - np.float32(128)) / np.float32(256))[:, None]


def float_net(digits: Digits) -> Net:
    net = Net.from_file(digits.deploy)
    load_weights(net, digits.weights)
    return net


def lines(path: Path) -> dict[str, list[float]]:
    return {words[0]: [float(word) for word in words[1:]] for words in map(str.split, path.read_text().splitlines())}


def test_int8_agrees_with_float_and_onnxruntime_gives_the_reported_agreement(digits: Digits, int8: Quantization) -> None:
    session = open_session(int8.path)
    got = session.run({"data": inputs(digits)})["prob"].argmax(axis=1)
    expected = float_net(digits)({"data": torch.from_numpy(inputs(digits))})["prob"].argmax(dim=1).numpy()
    assert int8.agreement == (got == expected).mean() >= 0.97
    assert (got == digits.labels).mean() > 0.9
    assert int8.bytes_after == int8.path.stat().st_size


def test_int8_weights_are_stored_for_each_channel_and_blobs_keep_their_names(digits: Digits, int8: Quantization) -> None:
    graph = onnx.load(int8.path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = float_net(digits).layer("conv2").array(0)
    scales = arrays["conv2/0_scale"]
    assert np.allclose(scales, np.abs(weights).reshape(12, -1).max(axis=1) / 127, rtol=1e-6)
    stored = arrays["conv2/0_quantized"]
    assert stored.dtype == np.int8
    assert np.abs(stored * scales.reshape(-1, 1, 1, 1) - weights).max() <= scales.max() / 2 * 1.001
    made = {name for node in graph.node for name in node.output}
    assert {"conv1", "pool1", "conv2", "conv3", "ip", "prob"} <= made
    assert {"caffetools.kept_in_float", "caffetools.weights_sha256", "caffetools.scale"} <= {
        p.key for p in onnx.load(int8.path).metadata_props
    }


def test_the_tables_have_the_scales_that_the_activations_and_weights_give(digits: Digits, int8: Quantization) -> None:
    import torch

    net = float_net(digits)
    with torch.no_grad():
        blobs = net({"data": torch.from_numpy(inputs(digits))}, keep=["conv1", "pool1", "conv2", "conv3"])
    bottoms = {"conv1": torch.from_numpy(inputs(digits)), "conv2": blobs["pool1"], "conv3": blobs["conv2"], "ip": blobs["conv3"]}
    largest = {layer: float(blob.abs().max()) for layer, blob in bottoms.items()}
    ncnn, caffe = lines(int8.tables["ncnn"]), lines(int8.tables["caffe"])
    for layer, maximum in largest.items():
        assert ncnn[layer] == pytest.approx([127 / maximum], rel=1e-4)
        weights = np.abs(net.layer(layer).array(0).astype(np.float64))
        outputs = weights.reshape(len(weights), -1).max(axis=1).astype(np.float64)  # the tables divide in double precision
        if layer == "conv2":  # two groups of six outputs
            assert ncnn["conv2_param_0"] == pytest.approx([127 / outputs[:6].max(), 127 / outputs[6:].max()], abs=1e-5)
        else:  # 3x3 kernels have six bits
            assert ncnn[f"{layer}_param_0"] == pytest.approx((31 if layer == "conv3" else 127) / outputs, abs=1e-5)
        if layer != "ip":
            assert caffe[layer] == pytest.approx([127 / maximum], rel=1e-4)
            assert caffe[f"{layer}_param_0"] == pytest.approx(127 / outputs, rel=1e-5)
    assert list(ncnn) == [*(f"{layer}_param_0" for layer in largest), *largest]
    assert "ip" not in caffe
    header, *rest = int8.tables["tensorrt"].read_text().splitlines()
    assert re.fullmatch(r"TRT-\d+-EntropyCalibration2", header)  # of the calibrator of trtexec
    scales = {name: struct.unpack(">f", bytes.fromhex(code))[0] for name, code in (line.split(": ") for line in rest)}
    assert scales["data"] == pytest.approx(largest["conv1"] / 127, rel=1e-6)
    assert scales["pool1"] == pytest.approx(largest["conv2"] / 127, rel=1e-4)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_calibrations_clip_and_still_agree(digits: Digits, tmp_path: Path, int8: Quantization, method: str) -> None:
    made = ct.quantize(digits.deploy, digits.weights, tmp_path / "m.onnx", digits.pictures, method=method, percentile=99.9)
    assert made.agreement is not None and made.agreement >= 0.97
    clipped, whole = lines(made.tables["ncnn"]), lines(int8.tables["ncnn"])
    assert all(clipped[layer][0] >= whole[layer][0] for layer in ("conv1", "conv2", "conv3", "ip"))
    assert clipped["ip"][0] > whole["ip"][0]


def test_an_lmdb_gives_the_tables_of_the_same_pictures(digits: Digits, tmp_path: Path, int8: Quantization) -> None:
    made = ct.quantize(digits.deploy, digits.weights, tmp_path / "m.onnx", digits.database)
    assert made.tables["ncnn"].read_text() == int8.tables["ncnn"].read_text()


def test_a_list_gives_the_tables_of_its_pictures(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = sorted(digits.pictures.iterdir())[:30]
    (tmp_path / "own").mkdir()
    (tmp_path / "some").mkdir()
    for path in pictures:
        (tmp_path / "some" / path.name).symlink_to(path)
    # Paths from the list's folder with labels, and from the working directory without.
    (tmp_path / "labelled.txt").write_text("".join(f"some/{path.name} {path.stem[-1]}\n" for path in pictures))
    (tmp_path / "own" / "plain.lst").write_text("".join(f"some/{path.name}\n\n" for path in pictures))
    folder = ct.quantize(digits.deploy, digits.weights, tmp_path / "folder.onnx", tmp_path / "some", tables=["ncnn"])
    monkeypatch.chdir(tmp_path)
    for name in ("labelled.txt", "own/plain.lst"):
        made = ct.quantize(digits.deploy, digits.weights, tmp_path / "list.onnx", name, tables=["ncnn"], test="labelled.txt")
        assert made.images == 30 and made.tested == 30 and made.accuracy_before == 1
        assert made.tables["ncnn"].read_bytes() == folder.tables["ncnn"].read_bytes()


def test_the_ranges_that_training_learned_are_taken(digits: Digits, tmp_path: Path, int8: Quantization) -> None:
    weights, events = tmp_path / "digits_iter_9.caffemodel", list[Event]()
    weights.write_bytes(digits.weights.read_bytes())
    ranges = {"conv1": (-0.25, 0.5), "conv2": (0.0, 1.25), "ip": (0.0, 3.0)}
    write_ranges(tmp_path / "digits_iter_9.ranges.json", ranges)
    made = ct.quantize(digits.deploy, weights, tmp_path / "m.onnx", digits.pictures, events=events.append)
    assert "digits_iter_9.ranges.json" in next(event for event in events if isinstance(event, Warned)).message
    table, counted = lines(made.tables["ncnn"]), lines(int8.tables["ncnn"])
    assert [table[name] for name in ranges] == [[127 / 0.5], pytest.approx([127 / 1.25]), pytest.approx([127 / 3])]
    assert table["conv3"] == counted["conv3"]
    scales = {
        item.name: float(numpy_helper.to_array(item))
        for item in onnx.load(made.path).graph.initializer
        if item.name.endswith("_scale") and not item.dims
    }
    assert scales["data_scale"] == pytest.approx(0.75 / 255)
    # What is pooled to conv2's input has its scale.
    assert any(scale == pytest.approx(1.25 / 255) for scale in scales.values())
    plain = ct.quantize(digits.deploy, weights, tmp_path / "m.onnx", digits.pictures, ranges="none")
    assert lines(plain.tables["ncnn"]) == counted
    write_ranges(tmp_path / "other.json", {"conv9": (0, 1)})
    with pytest.raises(NetError, match="of another net: .* has no layer 'conv9'"):
        ct.quantize(digits.deploy, weights, tmp_path / "m.onnx", digits.pictures, ranges=tmp_path / "other.json")
    with pytest.raises(DataError, match="no such file"):
        ct.quantize(digits.deploy, weights, tmp_path / "m.onnx", digits.pictures, ranges=tmp_path / "none.json")


def test_layers_to_keep_remain_in_float_and_out_of_the_tables(digits: Digits, tmp_path: Path) -> None:
    made = ct.quantize(digits.deploy, digits.weights, tmp_path / "m.onnx", digits.pictures, keep=["conv1"])
    assert [layer.name for layer in made.layers if layer.kept] == ["conv1"]
    names = {tensor.name for tensor in onnx.load(made.path).graph.initializer}
    assert "conv1/0" in names and "conv2/0_quantized" in names
    assert "conv1" not in lines(made.tables["ncnn"]) and "conv2" in lines(made.tables["ncnn"])


def spoilt(digits: Digits, folder: Path) -> Path:
    """Weights with the same outputs whose conv2 has one channel 3000 times as large as the rest, and conv3 undoes it."""
    net = float_net(digits)
    import torch

    with torch.no_grad():
        for index in (0, 1):
            net.layer("conv2").blobs[index][0] *= 3000
        net.layer("conv3").blobs[0][:, 0] /= 3000
    save_weights(net, folder / "spoilt.caffemodel")
    return folder / "spoilt.caffemodel"


def test_min_agreement_finds_the_layer_that_int8_spoils(digits: Digits, tmp_path: Path) -> None:
    weights = spoilt(digits, tmp_path)
    bad = ct.quantize(digits.deploy, weights, tmp_path / "bad.onnx", digits.pictures)
    assert bad.agreement is not None and bad.agreement < 0.9
    worst = min(bad.layers, key=lambda layer: layer.sqnr or 0.0)
    assert worst.name == "conv3"
    good = ct.quantize(digits.deploy, weights, tmp_path / "good.onnx", digits.pictures, min_agreement=0.97)
    assert good.agreement is not None and good.agreement >= 0.97
    assert "conv3" in [layer.name for layer in good.layers if layer.kept]
    assert not all(layer.kept for layer in good.layers)


def test_batch_normalization_is_folded_before_int8(digits: Digits, tmp_path: Path) -> None:
    between = """
layer { name: "bn" type: "BatchNorm" bottom: "conv1" top: "conv1" batch_norm_param { use_global_stats: true } }
layer { name: "scale" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1\""""
    text = digits.deploy.read_text().replace('\nlayer { name: "relu1"', between)
    (tmp_path / "deploy.prototxt").write_text(text)
    (tmp_path / "deploy.json").write_text(digits.deploy.with_suffix(".json").read_text())
    net = Net.from_file(tmp_path / "deploy.prototxt")
    load_weights(net, digits.weights)
    for name, values in (("bn", (0.0, 4.0, 1.0)), ("scale", (1.5, 0.0))):  # x / 2 * 1.5
        for parameter, value in zip(net.layer(name).blobs, values, strict=True):
            parameter.data.fill_(value)
    save_weights(net, tmp_path / "bn.caffemodel")
    done = run_well("quantize", tmp_path / "deploy.prototxt", tmp_path / "bn.caffemodel", "-c", digits.pictures, "-o", tmp_path / "m.onnx")
    assert "2 BatchNorm and Scale layers were folded" in done.stderr
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert not [node for node in graph.node if node.op_type == "BatchNormalization"]
    weights = np.abs(float_net(digits).layer("conv1").array(0)).reshape(8, -1).max(axis=1)
    assert lines(tmp_path / "m.ncnn.table")["conv1_param_0"] == pytest.approx(127 / (0.75 * weights), rel=1e-4)


def test_an_agreement_of_pictures_of_one_class_says_little(digits: Digits, tmp_path: Path) -> None:
    """As of a net with random weights, whose pictures change their class all at once or not at all."""
    net = float_net(digits)
    with torch.no_grad():
        net.layer("ip").blobs[1][3] = 1e3
    save_weights(net, tmp_path / "one.caffemodel")
    seen: list[Event] = []
    ct.quantize(digits.deploy, tmp_path / "one.caffemodel", tmp_path / "one.onnx", digits.pictures, events=seen.append)
    notes = [event.message for event in seen if isinstance(event, Warned)]
    assert any(note.startswith("in float all pictures have the same best class, so the agreement says little") for note in notes)


def test_fp16_agrees_and_is_half_as_large(digits: Digits, tmp_path: Path) -> None:
    made = ct.quantize(digits.deploy, digits.weights, tmp_path / "m.onnx", digits.pictures, precision="fp16")
    assert made.agreement == 1.0 and not made.tables
    graph = onnx.load(made.path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in graph.initializer}
    assert stored["conv1/0"] == np.float16
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_the_signal_to_noise_ratio_is_that_of_rounding_to_8_bits(int8: Quantization) -> None:
    for layer in int8.layers:
        assert layer.sqnr is not None and math.isfinite(layer.sqnr) and 25 < layer.sqnr < 60


def test_the_command_prints_the_report_and_writes_the_files(digits: Digits, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    done = run_well("quantize", digits.deploy, digits.weights, "--calibration", digits.pictures, "--images", 40, "-o", out)
    assert "SQNR" in done.stdout and "Same best class as in float" in done.stdout and "Speed" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.caffe-int8.table", "m.ncnn.table", "m.onnx", "m.tensorrt.cache"]


@pytest.fixture(scope="session")
def labelled(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 60 digits in folders by class; the last 3 of them in the wrong one."""
    folder = tmp_path_factory.mktemp("labelled")
    for number, (image, label) in enumerate(zip(digits.images[:60], digits.labels[:60].tolist(), strict=True)):
        place = folder / str(label if number < 57 else (label + 1) % 10)
        place.mkdir(exist_ok=True)
        cv2.imwrite(str(place / f"{number}.png"), image)
    return folder


def test_the_accuracy_on_labelled_pictures_is_that_of_the_two_models(digits: Digits, labelled: Path, tmp_path: Path) -> None:
    weights = spoilt(digits, tmp_path)
    by_test = {}
    for name, test in (("database", digits.database), ("folder", labelled)):
        by_test[name] = ct.quantize(digits.deploy, weights, tmp_path / f"{name}.onnx", digits.pictures, test=test, images=30)
    images = ((digits.images.astype(np.float32) - 128) / 256)[:, None]
    session = open_session(tmp_path / "database.onnx")
    found = np.concatenate([session.run({"data": images[start : start + 8]})["prob"].argmax(1) for start in range(0, 200, 8)])
    net = Net.from_file(digits.deploy)
    load_weights(net, weights)
    own = net({"data": torch.from_numpy(images)})["prob"].detach().numpy().argmax(1)
    # The weights are spoilt for int8, not for float.
    result = by_test["database"]
    assert result.tested == 200
    assert result.accuracy_before == (own == digits.labels).mean() > 0.9
    assert result.accuracy_after == (found == digits.labels).mean() < 0.9
    of_folder = by_test["folder"]
    assert of_folder.tested == 60
    assert of_folder.accuracy_before == pytest.approx((own[:57] == digits.labels[:57]).sum() / 60)


def test_the_command_prints_the_accuracy(digits: Digits, labelled: Path, tmp_path: Path) -> None:
    given = (
        "quantize",
        digits.deploy,
        digits.weights,
        "--calibration",
        digits.pictures,
        "--images",
        20,
        "-o",
        tmp_path / "m.onnx",
        "--force",
    )
    assert "Accuracy on 60 labelled pictures: 95.00% in float, " in run_well(*given, "--test", labelled).stdout
    answer = json.loads(run_well(*given, "--test", digits.database, "--json").stdout)
    assert answer["tested"] == 200 and answer["accuracy_before"] == 1.0
    # With names, folders count by name: two classes only, the others have no pictures.
    deploy = tmp_path / "deploy.prototxt"
    deploy.write_text(digits.deploy.read_text())
    names = ("zero", "one", "two", *(f"digit {number}" for number in range(3, 10)))
    write_preprocessing(deploy, Preprocessing(channel_order="GRAY", mean_values=(128.0,), scale=1 / 256, labels=names))
    (tmp_path / "two").mkdir()
    for name, label in (("two", "2"), ("one", "1")):
        (tmp_path / "two" / name).symlink_to(labelled / label)
    given = ("quantize", deploy, digits.weights, "--calibration", digits.pictures, "--images", 20, "-o", tmp_path / "m.onnx", "--force")
    assert "labelled pictures: 100.00% in float, " in run_well(*given, "--test", tmp_path / "two").stdout
    (tmp_path / "two" / "one").rename(tmp_path / "two" / "onne")
    assert "the class 'onne' is not one of the net's labels; did you mean 'one'?" in error_of(run(*given, "--test", tmp_path / "two"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--calibration", "{pictures}", "--test", "none"], "none"),
        (["--calibration", "{pictures}", "--test", "{pictures}"], "no class folders"),
        (["--calibration", "{pictures}", "--test", "wrong_lmdb"], "labels from 10 to 10, but the net has 10 classes"),
        (["--calibration", "none"], "none"),
        (["--calibration", "empty"], "no pictures"),
        (["--calibration", "color_lmdb"], "3 channel"),
        (["--calibration", "words.png"], "words.png"),
        (["--calibration", "color_lmdb", "--calibration", "{pictures}"], "color_lmdb: a database is calibrated on alone"),
        (["--calibration", "empty.txt"], "no calibration pictures"),
        (["--calibration", "{pictures}", "--keep", "conv9"], "conv9"),
        (["--calibration", "{pictures}", "--precision", "int4"], "int4"),
        (["--calibration", "{pictures}", "--method", "best"], "best"),
        (["--calibration", "{pictures}", "--tables", "mnn"], "mnn"),
        (["--calibration", "{pictures}", "--percentile", "0"], "percentile"),
        (["--calibration", "{pictures}", "--min-agreement", "2"], "agreement"),
        (["--calibration", "{pictures}", "--resize", "8"], "smaller"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:

    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("words.png").write_text("these are words")
    Path("empty.txt").write_text("")
    with new_lmdb("color_lmdb") as writer:
        writer.put(b"0", image_to_record(np.zeros((16, 16, 3), np.uint8), 0))
    with new_lmdb("wrong_lmdb") as writer:
        writer.put(b"0", image_to_record(np.zeros((16, 16), np.uint8), 10))
    given = [argument.format(pictures=digits.pictures) for argument in arguments]
    assert words in error_of(run("quantize", digits.deploy, digits.weights, *given, "-o", "m.onnx"))
    assert not [path for path in Path().iterdir() if path.name.startswith(("m.", ".m."))]


def test_an_agreement_out_of_reach_is_a_failed_run_that_writes_nothing(digits: Digits, tmp_path: Path) -> None:
    weights = spoilt(digits, tmp_path)
    out = tmp_path / "m.onnx"
    with pytest.raises(RunFailed, match="not reached"):
        ct.quantize(digits.deploy, weights, out, digits.pictures, keep=["conv1", "conv2", "ip"], min_agreement=0.99)
    assert not out.exists() and not state_path(out).exists()


def test_the_classes_of_boxes_are_compared_along_their_own_axis(digits: Digits, tmp_path: Path) -> None:
    # Scores (N, 5 boxes, 2 classes) and offsets (N, 5, 2), as a detector's: only the first are classes.
    text = digits.deploy.read_text().rpartition("layer {")[0]
    rows = 'layer {{ name: "{0}" type: "Reshape" bottom: "ip" top: "{0}" reshape_param {{ shape {{ dim: 0 dim: 5 dim: 2 }} }} }}\n'
    softmax = 'layer { name: "scores" type: "Softmax" bottom: "rows" top: "scores" softmax_param { axis: 2 } }\n'
    python = 'layer { name: "group" type: "Python" bottom: "scores" top: "group" python_param { module: "nowhere" layer: "Group" } }\n'
    deploy = tmp_path / "deploy.prototxt"
    deploy.write_text(text + rows.format("rows") + softmax + rows.format("offsets") + python)
    given = {"mean": [128], "scale": 1 / 256, "images": 30, "outputs": ["scores", "offsets"], "tables": []}
    made = ct.quantize(deploy, digits.weights, tmp_path / "m.onnx", digits.pictures, **given)
    floats = torch.from_numpy(inputs(digits)[:: 200 // 30])
    before, after = float_net(digits)({"data": floats}), open_session(made.path).run({"data": floats.numpy()})
    assert after["scores"].shape[1:] == (5, 2)
    assert made.agreement is not None and made.agreement > 0.99 and made.decisions == 30 * 5
    raw = before["prob"].detach().numpy().reshape(-1, 5, 2)
    assert (raw.argmax(2) == after["scores"].argmax(2)).mean() > 0.98
    with pytest.raises(ExportError, match="no classes"):
        ct.quantize(deploy, digits.weights, tmp_path / "m.onnx", digits.pictures, **given | {"outputs": ["offsets"], "min_agreement": 0.9})


def test_the_boxes_of_several_pictures_may_lie_on_one_axis(digits: Digits, tmp_path: Path) -> None:
    # 1 x (N * 5) x 2, as in detectors whose Reshape names a batch of 1: the last batch of 25 pictures has fewer rows.
    text = digits.deploy.read_text().rpartition("layer {")[0]
    rows = 'layer { name: "rows" type: "Reshape" bottom: "ip" top: "rows" reshape_param { shape { dim: 1 dim: -1 dim: 2 } } }\n'
    softmax = 'layer { name: "scores" type: "Softmax" bottom: "rows" top: "scores" softmax_param { axis: 2 } }\n'
    deploy = tmp_path / "deploy.prototxt"
    deploy.write_text(text + rows + softmax)
    made = ct.quantize(deploy, digits.weights, tmp_path / "m.onnx", digits.pictures, mean=[128], scale=1 / 256, images=25, tables=[])
    assert made.agreement is not None and made.agreement > 0.98 and made.decisions == 25 * 5


def test_a_net_without_pictures_is_refused(tmp_path: Path, digits: Digits) -> None:
    (tmp_path / "deploy.prototxt").write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 } } }\n'
        'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }\n'
    )
    with pytest.raises(CaffeToolsError, match="no single input"):
        ct.quantize(tmp_path / "deploy.prototxt", digits.weights, tmp_path / "m.onnx", digits.pictures)
