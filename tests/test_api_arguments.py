"""Wrong arguments of the public API: one clear error of caffetools, before anything is written, and no silent answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffetools as ct
from caffetools.net.weights import save_weights

DEPLOY, TRAIN = ct.zoo_prototxt("lenet"), ct.zoo_prototxt("lenet", "train_val")
DIGIT = np.zeros((28, 28), np.uint8)
SHAPE = (1, 1, 28, 28)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lenet") / "w.caffemodel"
    save_weights(ct.load_net(DEPLOY), path)
    return path


@pytest.mark.parametrize(
    "images",
    [b"\x89PNG", [b"a.png"], None, 5, {"a": DIGIT}, [None], torch.zeros(28, 28, dtype=torch.uint8)],
    ids=lambda value: str(type(value)),
)
def test_what_is_not_an_image_is_refused(images: Any, weights: Path) -> None:
    with pytest.raises(ct.errors.DataError, match="image 0: an image is a path, a Pillow image or a uint8 array .*, not "):
        ct.classify(images, DEPLOY, weights, mean=[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": 0}, "top must be at least 1, not 0"),
        ({"top": -1}, "top must be at least 1, not -1"),
        ({"top": 2.5}, "top must be an integer, not 2.5"),
        ({"batch": 0}, "batch must be at least 1, not 0"),
        ({"resize": 28}, r"resize must be \(width, height\), not 28"),
        ({"resize": "28x28"}, "resize must be"),
        ({"resize": (0, 28)}, "the width of resize must be at least 1, not 0"),
        ({"scale": "x"}, "the scale must be a finite number"),
        ({"device": None}, "unknown device 'None'"),
        ({"model": None}, "model must be a path .*, not NoneType"),
        ({"model": bytes(DEPLOY)}, "model must be a path .*, not bytes"),
    ],
    ids=str,
)
def test_wrong_options_of_classify(options: dict[str, Any], words: str, weights: Path) -> None:
    with pytest.raises(ct.CaffeToolsError, match=words):
        ct.classify(DIGIT, **{"model": DEPLOY, "weights": weights, "mean": [0], **options})


def test_labels_become_text_and_integers_of_numpy_are_integers(weights: Path) -> None:
    (result,) = ct.classify(DIGIT, str(DEPLOY), str(weights), mean=[0], labels=np.arange(10), top=np.int64(2))
    assert len(result.guesses) == 2 and all(type(guess.label) is str for guess in result.guesses)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ct.load_net(None), "prototxt must be a path"),
        (lambda: ct.load_net(DEPLOY, level="a"), "level must be an integer"),
        (lambda: ct.zoo_prototxt(None), "model must be the name of a model"),
        (lambda: ct.retarget(TRAIN, 1), "classes must be at least 2, not 1"),
        (lambda: ct.retarget(TRAIN, "5"), "classes must be an integer, not '5'"),
        (lambda: ct.retarget(TRAIN, True), "classes must be an integer, not True"),
        (lambda: ct.retarget(TRAIN, 3, input_shape=SHAPE, head_lr_mult=-1), "head_lr_mult must be a finite number of at least 0, not -1"),
        (lambda: ct.retarget(TRAIN, 3, input_shape=SHAPE, head_lr_mult=float("nan")), "head_lr_mult must be a finite"),
        (lambda: ct.retarget(TRAIN, 3, input_shape=SHAPE, epochs=0), "epochs must be at least 1, not 0"),
        (lambda: ct.retarget(TRAIN, 3, dataset=5), "dataset must be a path"),
        (lambda: ct.retarget(5, 3), "a prototxt's path, a NetParameter or a Net is expected, not int"),
        (lambda: ct.deploy(5), "a prototxt's path, a NetParameter or a Net is expected, not int"),
        (lambda: ct.inspect(5), "a prototxt's path, a NetParameter or a Net is expected, not int"),
        (lambda: ct.test(ct.load_net(DEPLOY, phase="TRAIN")), "the net is in the TRAIN phase"),
        (lambda: ct.test(ct.load_net(DEPLOY), "w.caffemodel"), "a Net has its weights already"),
        (lambda: ct.test(TRAIN, "w.caffemodel", iterations="2"), "iterations must be an integer"),
        (lambda: ct.train("solver.prototxt", max_iter=2.5), "max_iter must be an integer, not 2.5"),
        (lambda: ct.train(None), "solver must be a path"),
        (lambda: ct.verify("m.onnx", DEPLOY, "w.caffemodel", seed=-1), "seed must be at least 0, not -1"),
        (lambda: ct.export_onnx(DEPLOY, "w.caffemodel", "m.onnx", opset="17"), "opset must be an integer, not '17'"),
        (lambda: ct.fetch(None), "model must be the name of a model"),
        (lambda: ct.Solver(3), "a solver prototxt's path or a SolverParameter is expected, not int"),
        (lambda: ct.Solver("solver.prototxt"), "solver.prototxt: cannot read: No such file"),
        (lambda: ct.load_net("gogglenet"), "gogglenet: cannot read: No such file"),
        (lambda: ct.FinetuneConfig(pictures="photos", out="run", epochs=0), "the setting 'epochs' must be at least 1, not 0"),
        (lambda: ct.FinetuneConfig(pictures="photos", out="run", epochs="x"), "the setting 'epochs' must be a int, not 'x'"),
        (lambda: ct.FinetuneConfig(pictures=None, out="run"), "the setting 'pictures' is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_one_clear_error(
    call: Callable[[], object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ct.CaffeToolsError, match=words):
        call()
    assert list(tmp_path.iterdir()) == []


def test_one_name_may_stand_for_a_list_of_one(weights: Path, tmp_path: Path) -> None:
    exported = ct.export_onnx(DEPLOY, weights, tmp_path / "m.onnx", outputs="ip1", dynamic_axes="batch")
    assert [difference.blob for difference in exported.differences if difference.is_output] == ["ip1"]
    assert list(ct.compute_blobs(DIGIT, DEPLOY, weights, mean=[0], outputs="ip1")) == ["ip1"]
    assert ct.retarget(TRAIN, 3, input_shape=SHAPE, heads="ip2").reinitialized == ["ip2_3"]


def test_paths_of_a_config_may_be_text() -> None:
    config = ct.FinetuneConfig(pictures="photos", out="run", weights="w.caffemodel", val=0)
    assert config == ct.FinetuneConfig(Path("photos"), Path("run"), weights=Path("w.caffemodel"), val=0.0)
    assert config.command() == "caffetools finetune photos -o run --weights w.caffemodel --val 0"
