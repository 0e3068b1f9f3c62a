"""``caffetools bundle``: what is in the folder, that it gives the net's own numbers, and that every fault is found."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

import caffetools as ct
from caffetools.bundle import standalone
from caffetools.bundle.build import TARGETS, build_bundle
from caffetools.bundle.check import check_bundle, write_sums
from caffetools.bundle.samples import draw_samples
from caffetools.cancel import CancelToken
from caffetools.data.images import encode_image
from caffetools.errors import Cancelled, DataError, ExportError, NetError
from caffetools.events import ArtifactWritten, Event, Finished, Progress, Started, Warned
from caffetools.infer.classifier import Classifier, PreprocessOptions
from caffetools.infer.sidecar import write_preprocessing
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.results import Preprocessing
from caffetools.util.checksums import file_sha256
from tests.bundle.conftest import DEPLOY, DETECTOR, LABELS, OBJECTS, Nets, write_net
from tests.cli.inprocess import error_of, run, run_well


@pytest.mark.parametrize("target", TARGETS)
def test_a_bundle_gives_the_nets_own_probabilities(target: str, bundles: dict[str, Path], tiny: Nets, options: PreprocessOptions) -> None:
    folder = bundles[target]
    model = onnx.load(folder / "model.onnx")
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input_0", "output_0"]
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 24, 32]
    assert (folder / "labels.txt").read_text().splitlines() == list(LABELS)
    samples = sorted((folder / "samples").glob("*.png"))
    expected = json.loads((folder / "samples" / "expected.json").read_text())
    assert [path.name for path in samples] == sorted(expected) and len(samples) == 4
    own = Classifier(*tiny, options).classify(samples, batch=1)
    for result in own:
        given = expected[Path(result.picture).name]
        assert [(g["index"], g["label"], g["probability"]) for g in given] == [(g.index, g.label, g.probability) for g in result.guesses]
    assert len({result.guesses[0].index for result in own}) > 1  # the samples differ, so that a wrong order of channels is found
    for backend in ("onnxruntime", "opencv"):
        checked = check_bundle(folder, backend=backend, tolerance=1e-5)
        assert (checked.samples, checked.backend) == (4, backend)


def test_the_model_for_jetson_takes_what_jetson_inference_gives(bundles: dict[str, Path], tiny: Nets) -> None:
    settings = standalone.Settings(bundles["jetson"])
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    rgb = picture[:, :, ::-1].transpose(2, 0, 1).astype(np.float64) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalized = ((rgb - mean[:, None, None]) / std[:, None, None]).astype(np.float32)[None]
    got = standalone.open_backend(settings, "onnxruntime").run(normalized)[0]
    own = Classifier(*tiny, PreprocessOptions(mean="104,117,123", scale=0.5)).classify([picture], channel_order="BGR", top=7)[0]
    assert np.allclose([got[0, guess.index] for guess in own.guesses], [guess.probability for guess in own.guesses], atol=1e-5)


@pytest.mark.parametrize("size", [(24, 32), (30, 40), (33, 44)])
@pytest.mark.parametrize("target", ["jetson", "opencv"])
def test_a_mean_image_of_any_size_is_kept(target: str, size: tuple[int, int], tiny: Nets, tmp_path: Path) -> None:
    mean = np.random.default_rng(1).uniform(80, 150, (3, *size)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean)
    resize = (40, 30) if size == (24, 32) else None
    build_bundle(*tiny, tmp_path / "out", target, PreprocessOptions(mean=tmp_path / "mean.npy", resize=resize))
    assert check_bundle(tmp_path / "out", backend="onnxruntime", tolerance=1e-5).samples == 4
    assert (tmp_path / "out" / "mean.f32").exists() == (target == "opencv")


def test_a_gray_net_is_bundled_with_a_warning_for_jetson(tmp_path: Path) -> None:
    events: list[Event] = []
    gray = write_net(tmp_path, DEPLOY.replace("dim: 1 dim: 3", "dim: 1 dim: 1"))
    build_bundle(*gray, tmp_path / "out", "jetson", PreprocessOptions(mean="128"), events=events.append)
    assert any("gray" in event.message for event in events if isinstance(event, Warned))
    assert check_bundle(tmp_path / "out", tolerance=1e-5).samples == 4
    assert "imagenet --model" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_a_detector_gives_the_nets_own_boxes(target: str, detectors: dict[str, Path], detector: Nets) -> None:
    folder = detectors[target]
    model = onnx.load(folder / "model.onnx")
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.output}
    assert list(shapes) == ["scores", "boxes"] and shapes["boxes"] == [1, 144, 4] and shapes["scores"] == [1, 144, 4]
    assert (folder / "labels.txt").read_text().splitlines() == ["BACKGROUND", *OBJECTS]
    expected = json.loads((folder / "samples" / "expected.json").read_text())
    assert all(len(boxes) == 5 for boxes in expected.values())
    for backend in ("onnxruntime", "opencv"):
        assert check_bundle(folder, backend=backend, tolerance=1e-5).samples == 4
    # All boxes, against the net's DetectionOutput layer itself.
    settings = standalone.Settings(folder)
    net = Net.from_file(detector.deploy)
    load_weights(net, detector.weights)
    found = 0
    for picture in sorted((folder / "samples").glob("*.png")):
        image = cv2.imread(str(picture))
        crop = cv2.resize(image, (40, 30))[3:27, 4:36].astype(np.float32) - np.array([104, 117, 123], np.float32)
        rows = net({"data": torch.from_numpy(crop.transpose(2, 0, 1)[None])})["found"].reshape(-1, 7).numpy()
        got = standalone.detect(
            standalone.open_backend(settings, "onnxruntime").run(standalone.prepare(image, settings)), (320, 240), settings
        )
        best = sorted(rows.tolist(), key=lambda row: -row[2])
        assert [box["index"] for box in got] == [int(row[1]) for row in best]
        assert np.allclose([box["score"] for box in got], [row[2] for row in best], atol=1e-5)
        corners = (np.array([row[3:] for row in best]) * [32, 24, 32, 24] + [4, 3, 4, 3]) * 8
        assert np.allclose([box["box"] for box in got], corners, atol=0.02)
        found += len(got)
    assert found > 30


@pytest.mark.parametrize("code", ["CORNER", "CORNER_SIZE", "CENTER_SIZE"])
@pytest.mark.parametrize("change", ["keep_top_k: 20", "keep_top_k: 20 variance_encoded_in_target: true", "keep_top_k: -1"])
def test_each_way_to_encode_boxes(code: str, change: str, detector: Nets, tmp_path: Path) -> None:
    text = DETECTOR.replace("CENTER_SIZE", code).replace("nms_threshold: 0.45", "nms_threshold: 0.6 eta: 0.9")
    text = text.replace("keep_top_k: 20", change)
    (tmp_path / "deploy.prototxt").write_text(text)
    build_bundle(tmp_path / "deploy.prototxt", detector.weights, tmp_path / "out", "opencv", PreprocessOptions(mean="110"))
    assert check_bundle(tmp_path / "out", backend="onnxruntime", tolerance=1e-5).samples == 4


def test_the_model_for_detectnet_takes_what_jetson_inference_gives(detectors: dict[str, Path]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    rgb = picture[:, :, ::-1].transpose(2, 0, 1).astype(np.float64) / 255
    got = standalone.open_backend(standalone.Settings(detectors["jetson"]), "onnxruntime").run(((rgb - 0.5) / 0.5).astype(np.float32)[None])
    pixels = picture.transpose(2, 0, 1).astype(np.float32) - np.array([104, 117, 123], np.float32)[:, None, None]
    own = standalone.open_backend(standalone.Settings(detectors["opencv"]), "onnxruntime").run(pixels[None])
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(got, own, strict=True))


@pytest.mark.parametrize(
    ("before", "after", "target", "message"),
    [
        ("background_label_id: 0", "background_label_id: 3", "jetson", "takes class 0 of a detector as the background; here it is 3"),
        ("share_location: true", "share_location: false", "opencv", "share_location: false, boxes for each class"),
        (
            'name: "found"',
            'name: "more" type: "ReLU" bottom: "conf_flat" top: "more" }\nlayer { name: "found"',
            "opencv",
            "several outputs",
        ),
    ],
)
def test_detectors_that_do_not_fit_are_refused(before: str, after: str, target: str, message: str, tmp_path: Path) -> None:
    text = DETECTOR.replace(before, after)
    if after == "share_location: false":
        text = text.replace('top: "loc" convolution_param { num_output: 12', 'top: "loc" convolution_param { num_output: 48')
    nets = write_net(tmp_path, text)
    with pytest.raises(NetError, match=message):
        build_bundle(*nets, tmp_path / "out", target, PreprocessOptions(mean="110"))
    assert not (tmp_path / "out").exists()


def test_one_of_several_outputs_is_chosen(tmp_path: Path) -> None:
    text = DETECTOR.replace('name: "found"', 'name: "more" type: "ReLU" bottom: "conf_flat" top: "more" }\nlayer { name: "found"')
    build_bundle(*write_net(tmp_path, text), tmp_path / "out", "opencv", PreprocessOptions(mean="110"), output="found")
    assert check_bundle(tmp_path / "out", backend="onnxruntime", tolerance=1e-5).samples == 4


def test_other_boxes_are_found(detectors: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(detectors["opencv"], tmp_path / "copy")
    path = copy / "samples" / "expected.json"
    expected = json.loads(path.read_text())
    for change in ({"score": 0.5}, {"index": 1}, {"box": [1, 2, 3, 4]}):
        path.write_text(json.dumps(expected | {"sample_0.png": [expected["sample_0.png"][0] | change]}))
        write_sums(copy)
        with pytest.raises(ExportError, match=r"the box .* is expected, but not found within 0.001"):
            check_bundle(copy)
    path.write_text(json.dumps(expected | {"sample_0.png": []}))
    write_sums(copy)
    with pytest.raises(ExportError, match="a box of class .* is found, expected is none"):
        check_bundle(copy)


def test_a_net_that_takes_rgb_is_kept(tiny: Nets, tmp_path: Path) -> None:
    swapped = write_net(tmp_path)
    write_preprocessing(swapped.deploy, Preprocessing(mean_values=(123.0, 117.0, 104.0), channel_order="RGB"))
    for target in ("jetson", "opencv"):
        build_bundle(*swapped, tmp_path / target, target)
        assert check_bundle(tmp_path / target, backend="onnxruntime", tolerance=1e-5).samples == 4


def test_events_come_in_order(tiny: Nets, options: PreprocessOptions, tmp_path: Path) -> None:
    events: list[Event] = []
    build_bundle(*tiny, tmp_path / "out", "opencv", options, events=events.append)
    # The export between them reports its own progress.
    assert isinstance(events[0], Started)
    assert [type(event) for event in events if not isinstance(event, Progress)] == [Started, ArtifactWritten, Finished]
    assert events[-2].to_dict()["what"] == "bundle"


# A trtexec of this version; it writes its arguments, and the header of the cache, in place of an engine.
TRTEXEC = """#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec $*"
for a in "$@"; do case $a in
    --calib=*) header="$(head -n 1 "${{a#*=}}")" ;;
esac; done
for a in "$@"; do case $a in --saveEngine=*) echo "$@" ${{header:-}} > "${{a#*=}}" ;; esac; done
"""


def test_the_script_builds_each_precision_with_trtexec(tiny: Nets, options: PreprocessOptions, tmp_path: Path) -> None:
    cache, out = tmp_path / "int8.cache", tmp_path / "out"
    cache.write_text("TRT-8601-MinMaxCalibration\ndata: 3c010a14\nconv: 3d010a14\nprob: 3c010204\n")
    build_bundle(*tiny, out, "jetson", options, calibration=cache)
    lines = (out / "calibration.cache").read_text().splitlines()
    assert lines[0] == "TRT-8601-EntropyCalibration2"  # trtexec's own calibrator
    assert lines[2:] == ["data: 3c010a14", "conv: 3d010a14", "output_0: 3c010204"]
    name, value = lines[1].split(": ")
    # White in the blue channel is the largest magnitude of a normalized picture.
    assert name == "input_0" and struct.unpack(">f", bytes.fromhex(value))[0] == pytest.approx((1 - 0.406) / 0.225 / 127)
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    path = {"PATH": f"{tool.parent}:/usr/bin:/bin"}
    for version, header in (("7103", "TRT-7103"), ("100300", "TRT-100300")):
        tool.write_text(TRTEXEC.format(version=version))
        tool.chmod(0o755)
        int8 = f" --fp16 --int8 --calib=calibration.cache.part {header}-EntropyCalibration2"
        for precision, flags in (("fp32", ""), ("fp16", " --fp16"), ("int8", int8)):
            subprocess.run([out / "build_engine.sh", precision], env=path, check=True, stdout=subprocess.DEVNULL)
            built = (out / f"model.{precision}.engine").read_text()
            assert built == f"--onnx=model.onnx --saveEngine=model.{precision}.engine.part{flags}\n"
    refused = subprocess.run([out / "build_engine.sh", "int4"], env=path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "'int4' is not one of fp32|fp16|int8" in refused.stderr
    assert not list(out.glob("*.part"))
    assert check_bundle(out, backend="onnxruntime").files > 10  # engines built later change nothing


def test_the_script_knows_that_tensorrt_11_has_no_options_for_precisions(
    bundles: dict[str, Path], tmp_path: Path, options: PreprocessOptions
) -> None:
    folder, tool = tmp_path / "out", tmp_path / "trtexec"
    shutil.copytree(bundles["jetson"], folder)
    tool.write_text(TRTEXEC.format(version="110000"))
    tool.chmod(0o755)

    def build(precision: str) -> subprocess.CompletedProcess[str]:
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return subprocess.run([folder / "build_engine.sh", precision], env=path, capture_output=True, text=True, check=False)

    assert build("fp32").returncode == 0
    refused = build("fp16")
    assert refused.returncode == 2 and "builds fp16 from model.fp16.onnx only" in refused.stderr
    (folder / "model.fp16.onnx").write_bytes(b"")
    assert build("fp16").returncode == 0
    assert (folder / "model.fp16.engine").read_text() == "--onnx=model.fp16.onnx --saveEngine=model.fp16.engine.part\n"


def test_batch_normalization_is_folded_as_in_quantize(squeezed: Nets, options: PreprocessOptions, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, image in draw_samples().items():
        (photos / name).write_bytes(encode_image(image, ".png"))
    ct.quantize(*squeezed, tmp_path / "int8.onnx", photos, mean="104,117,123", scale=0.5, resize=(40, 30), tables=["tensorrt"])
    how = {"mean": "104,117,123", "scale": 0.5, "resize": (40, 30), "labels": LABELS}
    with pytest.raises(ct.CaffeToolsError, match="not both"):
        ct.build_bundle(*squeezed, tmp_path / "out", "jetson", options, **how)
    ct.build_bundle(*squeezed, tmp_path / "out", calibration=tmp_path / "int8.tensorrt.cache", pictures=photos, **how)
    assert ct.check_bundle(tmp_path / "out", engine="onnxruntime").samples == 4
    with pytest.raises(ct.CaffeToolsError, match="'caffe' is not known"):
        ct.check_bundle(tmp_path / "out", engine="caffe")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    ranges = {line.rpartition(": ")[0] for line in (tmp_path / "out" / "calibration.cache").read_text().splitlines()[1:]}
    assert {name for node in model.graph.node for name in node.output} - ranges == {"weighted/operand/2"}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    card = {item.key: item.value for item in model.metadata_props}
    assert card["caffetools.weights_sha256"] == file_sha256(squeezed.weights)
    assert card["caffetools.source_sha256"] == file_sha256(squeezed.deploy)


def test_the_cache_of_another_net_is_refused(tiny: Nets, options: PreprocessOptions, tmp_path: Path) -> None:
    cache = tmp_path / "int8.cache"
    cache.write_text("TRT-8601-MinMaxCalibration\nother: 3c010a14\n")
    with pytest.raises(DataError, match="no range of the net's input 'data'"):
        build_bundle(*tiny, tmp_path / "out", "jetson", options, calibration=cache)
    cache.write_text("no cache")
    with pytest.raises(DataError, match="not a TensorRT calibration cache"):
        build_bundle(*tiny, tmp_path / "out", "jetson", options, calibration=cache)
    assert not (tmp_path / "out").exists()


def test_a_cancelled_bundle_leaves_nothing(tiny: Nets, options: PreprocessOptions, tmp_path: Path) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        build_bundle(*tiny, tmp_path / "new" / "out", "jetson", options, cancel=cancel)
    assert not list((tmp_path / "new").glob("[!.]*"))


def test_labels_that_do_not_fit_are_refused_with_their_file(tiny: Nets, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("a\r\nb\r\n")
    with pytest.raises(DataError, match=r"few.txt: there are 2 labels, but the net has 7 classes"):
        build_bundle(*tiny, tmp_path / "out", "opencv", PreprocessOptions(mean="0", labels=tmp_path / "few.txt"))
    assert not (tmp_path / "out").exists()


def test_a_net_without_probabilities_is_refused(tmp_path: Path) -> None:
    bare = write_net(tmp_path, DEPLOY.rpartition("layer {")[0])
    with pytest.raises(NetError, match="no probabilities"):
        build_bundle(*bare, tmp_path / "out", "jetson", PreprocessOptions(mean="0", scale=10))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "preprocessing.json", "samples/sample_1.png", "runner/CMakeLists.txt"])
def test_a_changed_or_missing_file_is_found(name: str, copy: Path) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    assert f"{copy / name}: changed" in error_of(run("bundle", "check", copy))
    (copy / name).unlink()
    assert f"{copy / name}: missing" in error_of(run("bundle", "check", copy))


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("preprocessing.json", '"format": 1', '"format": 9', "format 9"),
        ("preprocessing.json", '"BGR"', '"CMY"', "channel order"),
        ("preprocessing.json", '"shape"', '"form"', "'shape'"),
        ("labels.txt", "dog\n", "", "6 lines, but the model has 7 classes"),
        ("samples/expected.json", '"index": 1', '"index": 71', "class 71"),
        ("samples/expected.json", "{", "", "damaged"),
        ("SHA256SUMS", "  model", " model", "SHA256SUMS:"),
        ("SHA256SUMS", "  model", "  ../model", "SHA256SUMS:"),
    ],
)
def test_a_damaged_file_is_one_error_even_if_the_sums_fit(name: str, before: str, after: str, message: str, copy: Path) -> None:
    text = (copy / name).read_text()
    assert before in text
    (copy / name).write_text(text.replace(before, after, 1))
    if name != "SHA256SUMS":
        write_sums(copy)
    assert message in error_of(run("bundle", "check", copy))


def test_files_that_are_not_of_the_bundle_are_named(copy: Path) -> None:
    assert check_bundle(copy).others == []
    (copy / "samples" / "more.txt").write_text("")
    (copy / "model.fp16.engine.log").write_text("")
    assert check_bundle(copy).others == ["model.fp16.engine.log", "samples/more.txt"]


def test_other_probabilities_are_found(copy: Path) -> None:
    path = copy / "samples" / "expected.json"
    expected = json.loads(path.read_text())
    expected["sample_0.png"][0]["probability"] -= 0.002
    path.write_text(json.dumps(expected))
    write_sums(copy)
    with pytest.raises(ExportError, match="a probability differs by 0.002"):
        check_bundle(copy)


def test_the_commands(tiny: Nets, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bundle"
    done = run_well("bundle", "--target", "onnxruntime", *tiny, "--mean", "100", "-o", out)
    assert done.stdout.startswith(f"Wrote {out} (") and "4 samples in onnxruntime give the expected results" in done.stdout
    answer = json.loads(run_well("bundle", "check", out, "--json", "--engine", "opencv").stdout)
    assert answer["backend"] == "opencv" and answer["largest_difference"] < 1e-5
    assert "already exists" in error_of(run("bundle", *tiny, "-o", out))
    run_well("bundle", *tiny, "--mean", "100", "-o", out, "--force")
    (tmp_path / "mine").mkdir()
    assert "may not replace it" in error_of(run("bundle", *tiny, "-o", tmp_path / "mine", "--force"))
    assert "known are jetson" in error_of(run("bundle", "--target", "toaster", *tiny, "-o", tmp_path / "x"))
    assert "DEPLOY, WEIGHTS and -o DIR" in error_of(run("bundle", *tiny))
    assert "not a folder" in error_of(run("bundle", "check", tmp_path / "none"))


def test_pictures_may_be_given_as_samples(tiny: Nets, options: PreprocessOptions, tmp_path: Path) -> None:
    picture = np.random.default_rng(5).integers(0, 256, (50, 60, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "one.png"), picture)
    build_bundle(*tiny, tmp_path / "out", "opencv", options, pictures=[tmp_path / "one.png"])
    assert (tmp_path / "out" / "samples" / "00_one.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    (tmp_path / "bad.png").write_text("words")
    with pytest.raises(DataError, match=r"bad\.png"):
        build_bundle(*tiny, tmp_path / "other", "opencv", options, pictures=[tmp_path / "bad.png"])
