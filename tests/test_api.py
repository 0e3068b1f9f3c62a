"""The public API: its names, that it is lazy and typed, its examples, and that a Python script can do the whole job with it."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import caffetools as ct
from caffetools.net.weights import save_weights

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "cv2", "onnx", "onnxruntime", "matplotlib", "numpy")


def test_every_public_name_is_there_and_documented() -> None:
    assert len(ct.__all__) == len(set(ct.__all__))
    for name in ct.__all__:
        value = getattr(ct, name)
        assert name.startswith("_") or inspect.getdoc(value), name
    assert set(ct.__all__) <= set(dir(ct))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ct.nothing  # type: ignore[attr-defined]  # a type checker reports it, too


def test_no_module_hides_a_public_function() -> None:
    """A module ``caffetools/NAME`` would replace the function of that name as soon as it is imported."""
    for name in set(ct.__all__) - {"errors", "events", "visualize"}:
        assert not (ROOT / "caffetools" / f"{name}.py").exists(), name
        assert not (ROOT / "caffetools" / name).exists(), name


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = f"import sys, caffetools; dir(caffetools); print(sorted(set(sys.modules) & {set(HEAVY)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def modules_with_examples() -> list[str]:
    """Modules whose docstrings have examples; the bridges to frameworks that are extras have their own tests."""
    paths = [path for path in sorted((ROOT / "caffetools").rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(names[:-1] if names[-1] == "__init__" else names) for names in parts]


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_in_docstrings_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed


def test_every_argument_of_the_api_is_documented() -> None:
    for name in ct.__all__:
        value = getattr(ct, name)
        if inspect.isfunction(value) and value.__module__.startswith("caffetools._api"):
            for parameter in inspect.signature(value).parameters:
                assert f"\n    {parameter}: " in (inspect.getdoc(value) or ""), f"{name}: {parameter}"


def test_a_type_checker_sees_the_types(tmp_path: Path) -> None:
    (tmp_path / "consumer.py").write_text(
        "import caffetools as ct\n"
        "net: ct.Net = ct.load_net('deploy.prototxt')\n"
        "number: int = ct.load_net('deploy.prototxt')\n"
        "labels: list[str] = [r.guesses[0].label for r in ct.classify('a.png', 'm.onnx')]\n"
        "ct.classify('a.png', 'm.onnx', top='five')\n"
    )
    assert (ROOT / "caffetools" / "py.typed").exists()
    assert '"py.typed"' in (ROOT / "setup.py").read_text()
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "consumer.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)}, timeout=300, check=False
    )
    errors = [line.split("consumer.py:")[1] for line in done.stdout.splitlines() if "consumer.py:" in line]
    assert len(errors) == 2, done.stdout
    assert errors[0].startswith('3: error: Incompatible types in assignment (expression has type "Net"')
    assert errors[1].startswith('5: error: Argument "top" to "classify" has incompatible type "str"')


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes of 32 x 32 images that differ in brightness."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    rng = np.random.default_rng(1)
    for name, level in (("dark", 40), ("light", 200)):
        (root / name).mkdir(parents=True)
        for number in range(8):
            cv2.imwrite(str(root / name / f"{number}.png"), rng.normal(level, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A LeNet with random weights: (deploy prototxt, weights)."""
    weights = tmp_path_factory.mktemp("lenet") / "lenet.caffemodel"
    save_weights(ct.load_net(ct.zoo_prototxt("lenet")), weights)
    return ct.zoo_prototxt("lenet"), weights


def test_one_image_is_classified_alike_from_a_file_an_array_and_pillow(tmp_path: Path) -> None:
    net = ct.retarget(ct.zoo_prototxt("cifar10_quick", "train_val"), 3, input_shape=(1, 3, 32, 32))
    deploy, weights = net.save(tmp_path / "net")[2], tmp_path / "w.caffemodel"
    built = net.net()
    torch.manual_seed(1)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    save_weights(built, weights)
    rgb = np.random.default_rng(1).integers(0, 256, (40, 48, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), rgb[:, :, ::-1])
    images: list[Path | np.ndarray[Any, Any] | Image.Image] = [tmp_path / "a.png", rgb, Image.fromarray(rgb)]
    file, array, pillow = ct.classify(images, deploy, weights, mean="104,117,123")
    # Three at a time too: batches of other sizes round differently.
    bgr, *_ = ct.classify([rgb[:, :, ::-1].copy()] * 3, deploy, weights, mean="104,117,123", channel_order="BGR")
    assert file.guesses == array.guesses == pillow.guesses == bgr.guesses
    (swapped,) = ct.classify(rgb, deploy, weights, mean="104,117,123", channel_order="BGR")
    assert abs(swapped.guesses[0].probability - file.guesses[0].probability) > 1e-4
    assert len(ct.classify(np.stack([rgb, rgb]), deploy, weights)) == 2


@pytest.mark.parametrize("pixels", [np.zeros((28, 28), np.float32), np.zeros((3, 28, 28, 3, 1), np.uint8), np.zeros((28, 28, 2), np.uint8)])
def test_arrays_that_are_not_8_bit_images_are_refused(pixels: object, lenet: tuple[Path, Path]) -> None:
    with pytest.raises(ct.errors.DataError, match="uint8 array"):
        ct.classify([pixels], *lenet)  # type: ignore[list-item]


def test_a_net_is_retargeted_from_a_path_a_message_and_a_net_alike(pictures: Path, tmp_path: Path) -> None:
    data = ct.build_dataset(pictures, tmp_path / "data", size="32")
    path = ct.retarget(ct.zoo_prototxt("cifar10_quick", "train_val"), dataset=data).save(tmp_path / "two")[0]
    net = ct.load_net(path)
    results = [ct.retarget(given, 4) for given in (path, net.full_param, net)]
    assert len({str(result.train_val) for result in results}) == 1
    assert results[0].weights is None
    kept = results[2].weights
    assert kept is not None and sorted(kept.blobs) == ["conv1", "conv2", "conv3", "ip1"]
    built = results[2].net()
    assert np.array_equal(built.layer("conv1").blobs[0].detach().numpy(), net.layer("conv1").blobs[0].detach().numpy())
    files = results[2].save(tmp_path / "net")
    assert [file.name for file in files] == ["train_val.prototxt", "solver.prototxt", "deploy.prototxt", "weights.caffemodel"]
    assert f'net: "{tmp_path / "net" / "train_val.prototxt"}"' in files[1].read_text()
    with pytest.raises(ct.CaffeToolsError, match="exists"):
        results[2].save(tmp_path / "net")


def test_long_work_reports_progress_and_stops_when_cancelled(lenet: tuple[Path, Path]) -> None:
    image = np.zeros((28, 28), np.uint8)
    token, seen = ct.CancelToken(), []

    def sink(event: ct.events.Event) -> None:
        seen.append(event)
        token.cancel()

    with pytest.raises(ct.Cancelled):
        ct.classify([image] * 3, *lenet, mean=[0], batch=1, events=sink, cancel=token)
    assert [(e.task, e.done, e.total, e.unit) for e in seen if isinstance(e, ct.events.Progress)] == [("classify", 1, 3, "images")]


def test_wrong_arguments_are_one_clear_error(lenet: tuple[Path, Path]) -> None:
    with pytest.raises(ct.CaffeToolsError, match="the phase is 'TRAIN' or 'TEST', not 'test'"):
        ct.load_net(lenet[0], phase="test")
    with pytest.raises(ct.CaffeToolsError, match="the number of classes is missing; give classes or dataset"):
        ct.retarget(lenet[0])
    with pytest.raises(ct.CaffeToolsError, match="a prototxt needs its weights"):
        ct.test(lenet[0])


def test_the_example_does_the_whole_job_in_fifteen_lines(pictures: Path, tmp_path: Path) -> None:
    script = ROOT / "examples" / "whole_job.py"
    assert len([line for line in script.read_text().splitlines() if line and not line.startswith('"""')]) <= 15
    done = subprocess.run([sys.executable, str(script), str(pictures)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith(f"{pictures}/dark/0.png dark ")
    assert last.startswith("largest error ")
    assert (tmp_path / "model.onnx").exists()
