"""The C++ runner: built from a bundle's own copy, with AddressSanitizer and UBSan, and compared with the runner in Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from filelock import FileLock

from caffetools.bundle import standalone
from caffetools.bundle.build import build_bundle
from caffetools.infer.classifier import PreprocessOptions
from tests.bundle.conftest import DEPLOY, LABELS, OBJECTS, Nets, write_net

FUZZ = Path(__file__).parent / "fuzz"
# OpenCV itself is built without the sanitizers: vectors that it fills would be taken for overflows.
SANITIZERS = {"ASAN_OPTIONS": "detect_container_overflow=0:detect_leaks=0:hard_rss_limit_mb=6000", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def build(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runner's build, made once for all processes of the tests."""
    for tool in ("cmake", "c++"):
        if not shutil.which(tool):
            pytest.skip(f"the C++ runner is not tested: no {tool}")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "runner_build"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            configured = _run("cmake", "-S", FUZZ, "-B", folder, f"-DRUNNER={bundles['opencv'] / 'runner'}", "-DCAFFETOOLS_ONNXRUNTIME=OFF")
            if configured.returncode and "libopencv-dev" in configured.stderr:
                pytest.skip("the C++ runner is not tested: CMake finds no OpenCV headers (Debian: libopencv-dev)")
            assert configured.returncode == 0, configured.stdout + configured.stderr
            built = _run("cmake", "--build", folder, "--parallel", "2")
            assert built.returncode == 0, built.stdout + built.stderr
            (folder / "done").touch()
    return folder


def _run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | SANITIZERS
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def classify(build: Path, bundle: Path, *arguments: object) -> list[dict[str, Any]]:
    """Run the C++ runner; returns its JSON lines."""
    done = _run(build / "runner" / "caffetools-classify", bundle, *arguments, "--json")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def error_of(build: Path, *arguments: object) -> str:
    """Run it on what cannot be used; returns the only line of its errors."""
    done = _run(build / "runner" / "caffetools-classify", *arguments)
    assert done.returncode == 2, (done.returncode, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("caffetools-classify: error: ")
    return line.removeprefix("caffetools-classify: error: ")


def inputs_of(build: Path, bundle: Path, pictures: list[Path], folder: Path) -> tuple[bytes, bytes]:
    """The model's inputs that the two runners make of pictures."""
    classify(build, bundle, *pictures, "--dump", folder / "cpp.f32")
    command = [sys.executable, "-I", bundle / "classify.py", *pictures, "--dump", folder / "python.f32"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return (folder / "cpp.f32").read_bytes(), (folder / "python.f32").read_bytes()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of many sizes and kinds: JPEG, one turned by its EXIF data, gray, transparent, 16 bits, one pixel."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(4)

    def noise(*shape: int) -> Any:
        return cv2.GaussianBlur(random.integers(0, 256, shape, np.uint8), (0, 0), 1.5)

    images = {"square.png": noise(40, 40, 3), "gray.png": noise(90, 31), "wide.jpg": noise(333, 501, 3), "gray.jpg": noise(64, 200)}
    images |= {"clear.png": noise(50, 70, 4), "deep.png": noise(33, 44, 3).astype(np.uint16) * 257, "as_is.bmp": noise(30, 40, 3)}
    images |= {"pixel.png": noise(1, 1, 3), "line.png": noise(1, 300, 3), "large.jpg": noise(900, 1203, 3)}
    for name, image in images.items():
        assert cv2.imwrite(str(folder / name), image)
    data = (folder / "wide.jpg").read_bytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (folder / "turned.jpg").write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    return sorted(folder.iterdir())


@pytest.mark.parametrize("target", ["jetson", "onnxruntime", "opencv"])
def test_it_gives_the_expected_classes(target: str, build: Path, bundles: dict[str, Path]) -> None:
    bundle = bundles[target]
    expected = json.loads((bundle / "samples" / "expected.json").read_text())
    answers = classify(build, bundle, bundle / "samples")
    assert [Path(answer["picture"]).name for answer in answers] == sorted(expected)
    for answer in answers:
        wanted = expected[Path(answer["picture"]).name]
        assert [(g["index"], g["label"]) for g in answer["guesses"]] == [(g["index"], g["label"]) for g in wanted]
        assert np.allclose([g["probability"] for g in answer["guesses"]], [g["probability"] for g in wanted], rtol=0, atol=1e-5)


def check_answers(build: Path, bundle: Path) -> None:
    """The runner gives the expected probabilities for the samples."""
    expected = json.loads((bundle / "samples" / "expected.json").read_text())
    for answer in classify(build, bundle, bundle / "samples"):
        wanted = expected[Path(answer["picture"]).name]
        assert np.allclose([g["probability"] for g in answer["guesses"]], [g["probability"] for g in wanted], rtol=0, atol=1e-5)


def test_a_net_that_slices_to_the_end_of_an_axis(build: Path, tmp_path: Path) -> None:
    between = 'layer { name: "cut" type: "Slice" bottom: "pool" top: "a" top: "b" slice_param { slice_point: 2 } }'
    between += 'layer { name: "swap" type: "Concat" bottom: "b" bottom: "a" top: "swap" }\nlayer { name: "score"'
    text = DEPLOY.replace('layer { name: "score"', between).replace('bottom: "pool" top: "score"', 'bottom: "swap" top: "score"')
    build_bundle(*write_net(tmp_path, text), tmp_path / "out", "opencv", PreprocessOptions(mean="100", labels=LABELS))
    check_answers(build, tmp_path / "out")


def test_a_squeeze_and_excitation_net(build: Path, squeezed: Nets, options: PreprocessOptions, tmp_path: Path) -> None:
    build_bundle(*squeezed, tmp_path / "out", "onnxruntime", options)
    check_answers(build, tmp_path / "out")


@pytest.mark.parametrize("target", ["jetson", "onnxruntime"])
def test_a_net_with_lrn(target: str, build: Path, tmp_path: Path) -> None:
    between = 'layer { name: "norm" type: "LRN" bottom: "pool" top: "norm" lrn_param { alpha: 0.5 } }\nlayer { name: "score"'
    text = DEPLOY.replace('layer { name: "score"', between).replace('bottom: "pool" top: "score"', 'bottom: "norm" top: "score"')
    build_bundle(*write_net(tmp_path, text), tmp_path / "out", target, PreprocessOptions(mean="100", labels=LABELS))
    operators = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert ("LRN" in operators) == (target == "jetson")
    check_answers(build, tmp_path / "out")


@pytest.mark.parametrize(("name", "value"), [("axis", 2**31 - 1), ("two", 2**40)])
def test_an_impossible_axis_is_one_error(name: str, value: int, build: Path, detectors: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(detectors["opencv"], tmp_path / "copy")
    model = onnx.load(copy / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == f"boxes/{name}")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([value], np.int64), tensor.name))
    onnx.save(model, copy / "model.onnx")
    assert "impossible size or axis" in error_of(build, copy, copy / "samples" / "sample_0.png")


def test_a_model_that_needs_too_much_memory_is_one_error(build: Path, tmp_path: Path) -> None:
    text = DEPLOY.replace("pool: MAX kernel_size: 3 stride: 2", "pool: AVE global_pooling: true")
    build_bundle(*write_net(tmp_path, text), tmp_path / "out", "opencv", PreprocessOptions(mean="100"))
    sample = tmp_path / "out" / "samples" / "sample_0.png"
    assert len(classify(build, tmp_path / "out", sample)) == 1
    model = onnx.load(tmp_path / "out" / "model.onnx")
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    conv.attribute.append(onnx.helper.make_attribute("pads", [30000] * 4))
    onnx.save(model, tmp_path / "out" / "model.onnx")
    assert "MiB for one image" in error_of(build, tmp_path / "out", sample)


@pytest.mark.parametrize("target", ["jetson", "opencv"])
def test_its_inputs_are_bit_for_bit_those_of_python(
    target: str, build: Path, bundles: dict[str, Path], pictures: list[Path], tmp_path: Path
) -> None:
    cpp, python = inputs_of(build, bundles[target], pictures, tmp_path)
    assert len(cpp) == len(pictures) * 3 * 24 * 32 * 4 and cpp == python
    turned = [np.frombuffer(cpp, np.float32).reshape(-1, 3, 24, 32)[i] for i, p in enumerate(pictures) if p.stem in ("turned", "wide")]
    assert not np.array_equal(*turned)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mean_image_and_gray_pictures_too(channels: int, build: Path, pictures: list[Path], tmp_path: Path) -> None:
    net = write_net(tmp_path, DEPLOY.replace("dim: 1 dim: 3", f"dim: 1 dim: {channels}"))
    np.save(tmp_path / "mean.npy", np.random.default_rng(1).uniform(80, 150, (channels, 29, 37)).astype(np.float32))
    build_bundle(*net, tmp_path / "out", "opencv", PreprocessOptions(mean=tmp_path / "mean.npy", scale=0.017, labels=LABELS))
    cpp, python = inputs_of(build, tmp_path / "out", pictures, tmp_path)
    assert len(cpp) == len(pictures) * channels * 24 * 32 * 4 and cpp == python


@pytest.mark.parametrize("target", ["jetson", "opencv"])
def test_it_finds_the_boxes_that_python_finds(
    target: str, build: Path, detectors: dict[str, Path], pictures: list[Path], tmp_path: Path
) -> None:
    bundle = detectors[target]
    settings = standalone.Settings(bundle)
    runtime = standalone.open_backend(settings, "opencv")
    answers = classify(build, bundle, *pictures)
    assert sum(len(answer["boxes"]) for answer in answers) > len(pictures)
    for answer in answers:
        image = standalone.read_picture(Path(answer["picture"]), settings)
        wanted = standalone.detect(runtime.run(standalone.prepare(image, settings)), image.shape[1::-1], settings)
        assert [(box["index"], box["label"]) for box in answer["boxes"]] == [(box["index"], box["label"]) for box in wanted]
        assert all(box["label"] in OBJECTS for box in wanted)
        for got, want in zip(answer["boxes"], wanted, strict=True):
            assert abs(got["score"] - want["score"]) < 1e-5
            assert np.allclose(got["box"], want["box"], rtol=1e-5, atol=1e-2)
    text = _run(build / "runner" / "caffetools-classify", bundle, pictures[0]).stdout
    own = subprocess.run(
        [sys.executable, bundle / "classify.py", pictures[0], "--backend", "opencv"], capture_output=True, text=True, check=True
    )
    assert text.splitlines()[:3] == own.stdout.splitlines()[:3]


def test_videos_and_text(build: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for number in range(4):
        video.write(np.full((48, 64, 3), 60 * number, np.uint8))
    video.release()
    answers = classify(build, bundles["opencv"], path, "--frames", 3, "--top", 1)
    assert [answer["picture"] for answer in answers] == [f"{path}#{number}" for number in range(3)]
    sample = bundles["opencv"] / "samples" / "sample_2.png"
    text = _run(build / "runner" / "caffetools-classify", bundles["opencv"], sample, "--top", 2).stdout
    own = subprocess.run(
        [sys.executable, bundles["opencv"] / "classify.py", sample, "--top", "2"], capture_output=True, text=True, check=True
    )
    assert text == own.stdout and len(text.splitlines()) == 3
    assert "camera:0" in _run(build / "runner" / "caffetools-classify", "-h").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a bundle's folder and at least one input are needed"),
        (("{}", "x.png", "--top", "0"), "--top needs a whole number of at least 1, not '0'"),
        (("{}", "x.png", "--top"), "--top needs a value"),
        (("{}", "x.png", "--size", "3"), "unknown option --size"),
        (("{}", "x.png", "--backend", "caffe"), "built without the back end 'caffe'"),
        (("{}", "/nowhere/x.png"), "/nowhere/x.png: cannot read the file: No such file or directory"),
        (("{}", "{}/runner"), "runner: the folder holds no pictures"),
        (("{}", "{}/labels.txt"), "labels.txt: not a picture, video or camera that OpenCV can open"),
        (("{}", "camera:first"), "camera:first: write camera:0 for the first camera"),
        (("{}", "{}/samples", "--dump", "/nowhere/x"), "/nowhere/x: cannot write the file"),
        (("/nowhere", "x.png"), "/nowhere/preprocessing.json: cannot read the file: No such file or directory"),
    ],
)
def test_wrong_arguments_are_one_error(arguments: tuple[str, ...], message: str, build: Path, bundles: dict[str, Path]) -> None:
    given = [argument.replace("{}", str(bundles["opencv"])) for argument in arguments]
    assert message in error_of(build, *given)


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("preprocessing.json", b'"format": 1', b'"format": 9', "preprocessing.json: damaged, or not of a bundle: the format is not 1"),
        ("preprocessing.json", b'"scale": [', b'"scale": {', "not JSON at byte"),
        ("preprocessing.json", b"104.0", b"1e999", "a number that is too large"),
        ("preprocessing.json", b"32", b"320", "the width to resize to is not a whole number from 320"),
        ("preprocessing.json", b'"BGR"', b'"GRAY"', "the channel order does not fit"),
        ("labels.txt", b"dog\n", b"", "labels.txt has 6 lines, but the model has 7 classes"),
        ("labels.txt", b"dog", b"d\xffg", "labels.txt is not UTF-8"),
        ("labels.txt", None, None, "labels.txt: cannot read the file: No such file"),
        ("model.onnx", None, None, "model.onnx: cannot read the file: No such file"),
        ("model.onnx", b"input_0", b"input_1", "model.onnx: damaged, or not of this bundle: the input is not 'input_0'"),
        ("samples/sample_0.png", b"IEND", b"IENT", "sample_0.png: the picture is truncated or empty"),
    ],
)
def test_damaged_files_are_one_error(
    name: str, before: bytes | None, after: bytes, message: str, build: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(bundles["opencv"], tmp_path / "copy")
    if before is None:
        (copy / name).unlink()
    else:
        data = (copy / name).read_bytes()
        assert before in data
        (copy / name).write_bytes(data.replace(before, after))
    assert message in error_of(build, copy, copy / "samples")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_one_error(share: float, build: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(bundles["opencv"], tmp_path / "copy")
    data = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(data[: int(len(data) * share)])
    assert "model.onnx: damaged, or not of this bundle: " in error_of(build, copy, copy / "samples" / "sample_0.png")


@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_2000_damaged_files_do_not_crash_it(
    kind: str, build: Path, bundles: dict[str, Path], detectors: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree((detectors if kind == "detector" else bundles)["opencv"], tmp_path / "copy")
    small = cv2.resize(cv2.imread(str(copy / "samples" / "sample_0.png")), (64, 48))
    cv2.imwrite(str(copy / "samples" / "photo.jpg"), small)
    cv2.imwrite(str(copy / "samples" / "drawing.bmp"), small)
    done = _run(build / "fuzz", copy, 2000)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [line.split() for line in done.stdout.splitlines()]
    assert [count[0] for count in counts] == ["settings:", "pictures:", "models:"]
    # Some damage is harmless, most is found.
    assert all(int(accepted) > 50 and int(refused) > 50 for _, accepted, _, refused, _ in counts), done.stdout


def test_cmake_states_what_is_missing(bundles: dict[str, Path], tmp_path: Path) -> None:
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("no cmake or no compiler")
    options = ("-DCMAKE_DISABLE_FIND_PACKAGE_OpenCV=ON", "-DCAFFETOOLS_ONNXRUNTIME=OFF", "-DCAFFETOOLS_TENSORRT=OFF")
    done = _run("cmake", "-S", bundles["opencv"] / "runner", "-B", tmp_path / "build", *options)
    assert done.returncode and "apt install libopencv-dev" in " ".join(done.stderr.split())


def test_the_sources_in_a_bundle_are_complete(bundles: dict[str, Path]) -> None:
    source = Path(standalone.__file__).parent / "runner"
    names = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in (bundles["jetson"] / "runner").iterdir()) == names
    text = (source / "CMakeLists.txt").read_text()
    assert [name for name in names if name.endswith(".cpp") and name not in text] == []
