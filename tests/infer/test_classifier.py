"""Classifying pictures: answers, engines, batches, broken pictures, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffetools.engines.base import EngineError
from caffetools.errors import CaffeToolsError, DataError, ModelFileError, NetError
from caffetools.events import on_progress
from caffetools.infer.classifier import Classifier, PreprocessOptions, find_pictures
from caffetools.infer.export import ExportOptions, export_deployed
from tests.infer.colours import DEPLOY, LABELS, write_net, write_pictures


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_every_engine_names_the_colour_of_each_picture(tmp_path: Path, engine: str) -> None:
    pictures = write_pictures(tmp_path)
    classifier = Classifier(*write_net(tmp_path), PreprocessOptions(labels=LABELS), engine=engine)
    results = classifier.classify(pictures, top=2, batch=2)
    assert [result.picture for result in results] == pictures
    assert [result.guesses[0].label for result in results] == list(LABELS)
    expected = np.exp(2.5) / (np.exp(2.5) + 2 * np.exp(0.2))
    for result in results:
        assert result.error is None
        assert len(result.guesses) == 2
        assert result.guesses[0].probability == pytest.approx(expected, rel=1e-5)


def test_without_labels_a_class_is_its_number_and_the_lower_of_equals_comes_first(tmp_path: Path) -> None:
    guesses = Classifier(*write_net(tmp_path)).classify(write_pictures(tmp_path)[:1], top=9)[0].guesses
    assert [(guess.index, guess.label) for guess in guesses] == [(0, "0"), (1, "1"), (2, "2")]


def test_a_broken_picture_is_reported_and_the_rest_is_classified(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    broken, cut = tmp_path / "broken.jpg", tmp_path / "cut.png"
    broken.write_bytes(b"no picture")
    cut.write_bytes(Path(pictures[0]).read_bytes()[:60])
    names = [str(broken), pictures[2], str(tmp_path / "none.png"), str(cut), pictures[1]]
    steps: list[tuple[int, int]] = []
    results = Classifier(*write_net(tmp_path), PreprocessOptions(labels=LABELS)).classify(
        names, batch=2, events=on_progress(lambda done, total: steps.append((done, total)))
    )
    assert [result.picture for result in results] == names
    assert [result.guesses[0].label if result.guesses else None for result in results] == [None, "red", None, None, "green"]
    for result in (results[0], results[2], results[3]):
        assert result.picture in (result.error or "")
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_oversampling_averages_ten_crops(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    classifier = Classifier(*write_net(tmp_path), PreprocessOptions(labels=LABELS, resize=(10, 9)))
    image = classifier.preprocessor.read(pictures[0])
    single = np.mean(classifier.probabilities([crop[np.newaxis] for crop in classifier.preprocessor.oversample(image)]), axis=0)
    result = classifier.classify(pictures[:1], oversample=True, top=3)[0]
    assert [guess.probability for guess in result.guesses] == pytest.approx(sorted(single, reverse=True), rel=1e-5)


@pytest.mark.parametrize("batch", [None, 2])
def test_an_exported_file_knows_its_labels_mean_and_sizes(tmp_path: Path, batch: int | None) -> None:
    pictures = write_pictures(tmp_path)
    options = PreprocessOptions(mean=np.random.RandomState(0).rand(3, 9, 10) * 100, labels=LABELS, scale=0.5)
    deploy, weights = write_net(tmp_path)
    export_deployed(deploy, weights, tmp_path / "colours.onnx", options, ExportOptions(batch=batch), pictures=pictures)
    from_onnx = Classifier(tmp_path / "colours.onnx")
    assert from_onnx.labels == LABELS
    assert from_onnx.preprocessor.size == (10, 9)
    expected = Classifier(deploy, weights, options).classify(pictures)
    for got, wanted in zip(from_onnx.classify(pictures), expected, strict=True):
        assert [guess.label for guess in got.guesses] == [guess.label for guess in wanted.guesses]
        assert [guess.probability for guess in got.guesses] == pytest.approx([guess.probability for guess in wanted.guesses], rel=1e-5)


def test_options_override_what_the_file_has(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    export_deployed(deploy, weights, tmp_path / "colours.onnx", PreprocessOptions(mean=[1, 2, 3], labels=LABELS))
    classifier = Classifier(tmp_path / "colours.onnx", options=PreprocessOptions(labels=["a", "b", "c"]))
    assert classifier.labels == ("a", "b", "c")
    assert classifier.preprocessing.mean_values == (1, 2, 3)


def test_labels_of_another_number_are_refused(tmp_path: Path) -> None:
    classifier = Classifier(*write_net(tmp_path), PreprocessOptions(labels=["a", "b"]))
    with pytest.raises(NetError, match="there are 2 labels, but the net has 3 classes"):
        classifier.classify(write_pictures(tmp_path))


def test_outputs_that_are_no_probabilities_are_refused(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path, DEPLOY.replace('layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }', ""))
    with pytest.raises(NetError, match="output 'score' has values from 0.2 to 2.5, which are no probabilities"):
        Classifier(deploy, weights).classify(write_pictures(tmp_path))


def test_outputs_that_are_maps_are_refused(tmp_path: Path) -> None:
    deploy = tmp_path / "map.prototxt"
    deploy.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 8 } } }\n'
        'layer { name: "prob" type: "Softmax" bottom: "data" top: "prob" }'
    )
    with pytest.raises(NetError, match="output 'prob' is 3 x 3 x 6 x 8 for 3 picture.*one vector for each"):
        Classifier(deploy).classify(write_pictures(tmp_path))


def test_one_of_several_outputs_must_be_chosen(tmp_path: Path) -> None:
    text = DEPLOY + 'layer { name: "other" type: "Softmax" bottom: "mean" top: "other" }'
    files = write_net(tmp_path, text)
    with pytest.raises(NetError, match="several outputs; choose the probabilities among other, prob"):
        Classifier(*files)
    with pytest.raises(NetError, match="no output 'nix'"):
        Classifier(*files, output="nix")
    assert Classifier(*files, output="other").output == "other"


def test_wrong_files_are_clear_errors(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    other = tmp_path / "other.prototxt"
    other.write_text(DEPLOY.replace("num_output: 3", "num_output: 4"))
    renamed = tmp_path / "renamed.prototxt"
    renamed.write_text(DEPLOY.replace('name: "score"', 'name: "score_new"'))
    not_onnx = tmp_path / "not.onnx"
    not_onnx.write_bytes(b"no model")
    export_deployed(deploy, weights, tmp_path / "good.onnx")
    cases: list[tuple[type[CaffeToolsError], str, tuple[Path, Path | None], str | None]] = [
        (NetError, "layer 'score': parameter blob 0 is 4 x 3 in the net but 3 x 3 in .*colours.caffemodel", (other, weights), None),
        (NetError, "colours.caffemodel.* no weights for 1 layer.*'score_new'", (renamed, weights), None),
        (EngineError, "its weights .* are needed", (deploy, None), None),
        (EngineError, "unknown engine 'caffe2'; known are torch, onnxruntime", (deploy, weights), "caffe2"),
        (EngineError, "use --engine onnxruntime for ONNX files", (tmp_path / "good.onnx", None), "torch"),
        (EngineError, "an ONNX file has its weights in it", (tmp_path / "good.onnx", weights), None),
        (ModelFileError, "not.onnx: this is text, and an ONNX model is expected", (not_onnx, None), None),
        (ModelFileError, "none.onnx: no such file", (tmp_path / "none.onnx", None), None),
    ]
    for kind, message, files, engine in cases:
        with pytest.raises(kind, match=message):
            Classifier(*files, engine=engine)


def test_pictures_are_found_in_folders_and_by_patterns(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    inner = tmp_path / "more [1]"
    inner.mkdir()
    (inner / "x.JPG").write_bytes(b"")
    (inner / "notes.txt").write_text("")
    assert find_pictures([tmp_path]) == [*pictures[:2], str(inner / "x.JPG"), pictures[2]]
    assert find_pictures([tmp_path / "*e*.png"]) == pictures
    assert find_pictures([inner, "missing.png"]) == [str(inner / "x.JPG"), "missing.png"]
    with pytest.raises(DataError, match="nothing matches"):
        find_pictures([tmp_path / "*.bmp"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder holds no pictures"):
        find_pictures([tmp_path / "empty"])
