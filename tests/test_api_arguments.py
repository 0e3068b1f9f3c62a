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
NO_SHAPE: Any = {"data": 3}


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
        ({"labels": 3}, "labels must be one text or a sequence of them, not 3"),
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
        (lambda: ct.FinetuneConfig(pictures="photos", out="run", epochs="x"), "the setting 'epochs' must be of type int, not 'x'"),
        (lambda: ct.FinetuneConfig(pictures=None, out="run"), "the setting 'pictures' is missing"),
        (lambda: ct.load_net(DEPLOY, 3), r"weights must be a path \(str or os.PathLike\), not int"),
        (lambda: ct.load_net(DEPLOY, {}), "weights must be a path .*, not dict"),
        (lambda: ct.load_net(DEPLOY, stages=3), "stages must be one text or a sequence of them, not 3"),
        (lambda: ct.retarget(TRAIN, 3, input_shape=SHAPE, heads=3), "heads must be one text or a sequence of them, not 3"),
        (lambda: ct.retarget(TRAIN, 3, input_shape=SHAPE, base_lr="x"), "base_lr must be a finite number of at least 0, not 'x'"),
        (lambda: ct.retarget(TRAIN, 3, input_shape=SHAPE, base_lr=0), "base_lr must be above 0, not 0"),
        (lambda: ct.retarget(TRAIN, 3, input_shape=SHAPE, seed=1.5), "seed must be an integer, not 1.5"),
        (
            lambda: ct.retarget(TRAIN, 3, input_shape="1x1x28x28"),
            r"input_shape must be a shape such as \(1, 3, 227, 227\), not '1x1x28x28'",
        ),
        (lambda: ct.retarget(TRAIN, 3, input_shape=3), "input_shape must be a shape"),
        (lambda: ct.inspect(DEPLOY, input_shape=NO_SHAPE), r"input_shape\['data'\] must be a shape"),
        (lambda: ct.inspect(DEPLOY, input_shape=(1, 1, "a", 2)), "each size of input_shape must be an integer, not 'a'"),
        (lambda: ct.deploy(TRAIN, input_shape=(1, 1, 0, 28)), "each size of input_shape must be at least 1, not 0"),
        (lambda: ct.deploy(TRAIN, input_shape=SHAPE, batch=1.5), "batch must be an integer, not 1.5"),
        (lambda: ct.export_onnx(DEPLOY, 3, "m.onnx"), "weights must be a path"),
        (lambda: ct.export_onnx(DEPLOY, None, "m.onnx"), "weights must be a path"),
        (lambda: ct.export_onnx(DEPLOY, "w.caffemodel", None), "path must be a path"),
        (lambda: ct.export_onnx(DEPLOY, "w.caffemodel", "m.onnx", input_shapes=[1]), "input_shapes must be a mapping"),
        (lambda: ct.verify(None, DEPLOY, "w.caffemodel"), "model must be a path"),
        (lambda: ct.import_onnx("m.onnx", None), "folder must be a path"),
        (lambda: ct.build_dataset(None, "data"), "pictures must be a path"),
        (lambda: ct.build_dataset("photos", 3), "out must be a path"),
        (lambda: ct.train("solver.prototxt", weights=3), "weights must be one text or a sequence"),
        (lambda: ct.train("solver.prototxt", events=[]), "events must be a function of one event, not list"),
        (lambda: ct.classify(DIGIT, DEPLOY, "w.caffemodel", cancel=True), "cancel must be a CancelToken, not bool"),
        (lambda: ct.finetune("photos"), "config must be a FinetuneConfig, not str"),
        (lambda: ct.Project(3), "folder must be a path"),
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


def test_an_input_is_not_replaced_by_what_is_made_of_it(weights: Path, tmp_path: Path) -> None:
    ours = tmp_path / "w.caffemodel"
    ours.write_bytes(weights.read_bytes())
    (tmp_path / "link").symlink_to(ours)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in (ours, tmp_path / "link"):
        with pytest.raises(ct.CaffeToolsError, match="is read here, so it cannot be written; give another name"):
            ct.export_onnx(DEPLOY, ours, path)
        with pytest.raises(ct.CaffeToolsError, match="is read here"):
            ct.quantize(DEPLOY, ours, path, pictures)
    assert ours.read_bytes() == weights.read_bytes()


def test_one_name_may_stand_for_a_list_of_one(weights: Path, tmp_path: Path) -> None:
    exported = ct.export_onnx(DEPLOY, weights, tmp_path / "m.onnx", outputs="ip1", dynamic_axes="batch")
    assert [difference.blob for difference in exported.differences if difference.is_output] == ["ip1"]
    assert list(ct.compute_blobs(DIGIT, DEPLOY, weights, mean=[0], outputs="ip1")) == ["ip1"]
    assert ct.retarget(TRAIN, 3, input_shape=SHAPE, heads="ip2").reinitialized == ["ip2_3"]


def test_paths_of_a_config_may_be_text() -> None:
    config = ct.FinetuneConfig(pictures="photos", out="run", weights="w.caffemodel", val=0)
    assert config == ct.FinetuneConfig(Path("photos"), Path("run"), weights=Path("w.caffemodel"), val=0.0)
    assert config.command() == "caffetools finetune photos -o run --weights w.caffemodel --val 0"
