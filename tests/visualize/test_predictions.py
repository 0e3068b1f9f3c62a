"""What is drawn from predictions: confusion, ROC, errors, embeddings."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from caffetools.errors import DataError, NetError
from caffetools.events import on_progress
from caffetools.net.weights import save_weights
from caffetools.visualize.embedding_page import write_embedding_page
from caffetools.visualize.evaluation_figures import embedding_figure, errors_figure, project_features, roc_curve, roc_figure
from caffetools.visualize.explanations import ALL_METHODS, explain, explain_all, explanations_figure, last_feature_layer, score_blob
from caffetools.visualize.picture_net import PictureNet
from caffetools.visualize.predictions import LabelledPictures, Predictions, feature_blob, labelled_pictures, predict
from caffetools.visualize.thumbnails import thumbnail_within
from tests.net.test_net import conv, data, net_of, relu
from tests.visualize.browser import run_in_page
from tests.visualize.test_attribution import linear

TEXT = data("dim: 1 dim: 3 dim: 8 dim: 8") + conv("conv1", "data") + relu("relu1", "conv1") + linear(3, "conv1")
TEXT += 'layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PictureNet:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    (folder / "deploy.prototxt").write_text(TEXT)
    save_weights(net_of(TEXT), folder / "w.caffemodel")
    return PictureNet(folder / "deploy.prototxt", folder / "w.caffemodel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("a<b>", "b", "c"):
        (root / name).mkdir()
        for i in range(4):
            cv2.imwrite(str(root / name / f"{i}.png"), rng.integers(0, 255, (10, 9, 3), np.uint8))
    return root


def test_labelled_pictures_come_from_folders_and_lists(folder: Path, tmp_path: Path) -> None:
    found = labelled_pictures(folder)
    assert found.classes == ("a<b>", "b", "c") and found.labels == (0,) * 4 + (1,) * 4 + (2,) * 4
    (tmp_path / "list.txt").write_text("x/a picture.png 1\ny.png 0\n\n")
    listed = labelled_pictures(tmp_path / "list.txt")
    assert listed.paths == (tmp_path / "x/a picture.png", tmp_path / "y.png")
    assert listed.labels == (1, 0) and listed.classes == ("0", "1")
    (tmp_path / "bad.txt").write_text("x.png 1\nx.png one\n")
    with pytest.raises(DataError, match=r"bad\.txt:2: a picture and the number"):
        labelled_pictures(tmp_path / "bad.txt")


def test_a_picture_in_place_of_a_list_is_named(folder: Path) -> None:
    picture = next(folder.rglob("*.png"))
    with pytest.raises(DataError, match=r"this is a PNG picture, and a list of pictures with the number of each one's class is expected"):
        labelled_pictures(picture)


def test_predictions_are_the_nets(model: PictureNet, folder: Path) -> None:
    pictures = labelled_pictures(folder)
    predictions = predict(model, pictures, features="conv1", batch=5)
    images = torch.from_numpy(np.stack([model.prepare(path).input for path in pictures.paths]))
    with torch.no_grad():
        blobs = model.net({"data": images}, keep=["conv1"])
    np.testing.assert_allclose(predictions.probabilities, blobs["prob"], atol=1e-6)
    assert predictions.features is not None
    # Other kernels may run where inner blobs are not kept: sums of products of pixels up to 255, in another order.
    np.testing.assert_allclose(predictions.features, blobs["conv1"].flatten(1), atol=1e-6 * float(blobs["conv1"].abs().max()), rtol=1e-6)
    assert predictions.confusion().total == 12
    assert feature_blob(model.net) == "conv1"
    with pytest.raises(NetError, match="3 values a picture, but there are 2 classes"):
        predict(model, LabelledPictures(pictures.paths, pictures.labels, ("a", "b")))


def test_features_need_no_classes(model: PictureNet, folder: Path, tmp_path: Path) -> None:
    pictures = LabelledPictures(labelled_pictures(folder).paths[:8], (0,) * 4 + (1,) * 4, ("cats", "dogs"))
    predictions = predict(model, pictures, features="conv1")
    assert not predictions.classified and predictions.probabilities.shape == (8, 0)
    assert predictions.features is not None and predictions.features.shape[0] == 8
    points = project_features(predictions.features, "pca")
    write_embedding_page(tmp_path / "e.html", points, predictions, model, method="pca", blob="conv1")
    assert '"predicted": 1' in (tmp_path / "e.html").read_text()


def test_a_list_may_leave_out_the_last_classes(model: PictureNet, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{path} {path.parent.name == 'b':d}\n" for path in labelled_pictures(folder).paths))
    predictions = predict(model, labelled_pictures(tmp_path / "list.txt"))
    assert predictions.pictures.classes == ("0", "1", "2") and predictions.probabilities.shape == (12, 3)
    assert predictions.confusion().total == 12
    (tmp_path / "list.txt").write_text(f"{labelled_pictures(folder).paths[0]} 3\n")
    with pytest.raises(NetError, match="3 values a picture, but there are 4 classes"):
        predict(model, labelled_pictures(tmp_path / "list.txt"))


def test_the_area_under_a_roc_curve_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.4
    scores = np.round(rng.random(60) + 0.3 * positive, 1).astype(np.float32)  # many equal ones
    pairs = scores[positive][:, None] - scores[~positive][None]
    expected = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    curve = roc_curve("a", positive, scores)
    assert curve.area == pytest.approx(expected)
    assert (curve.false_positive[0], curve.true_positive[-1]) == (0, 1)


def some(count: int = 30, classes: int = 9) -> Predictions:
    rng = np.random.default_rng(0)
    rows = rng.random((count, classes)).astype(np.float32)
    labels = tuple(int(i) for i in rng.integers(0, classes, count))
    names = tuple(f"${i}$" for i in range(classes))
    return Predictions(LabelledPictures(tuple(Path(f"{i}.png") for i in range(count)), labels, names), rows / rows.sum(1, keepdims=True))


def test_roc_draws_the_worst_classes() -> None:
    figure, caption = roc_figure(some())
    assert len(figure.axes[0].lines) == 1 + 6
    assert caption.startswith("9 classes, mean area 0.") and "6 classes with the smallest areas" in caption
    one = some(4, 2)
    with pytest.raises(DataError, match="at least two classes"):
        roc_figure(Predictions(LabelledPictures(one.pictures.paths, (0,) * 4, ("a", "b")), one.probabilities))


def test_errors_show_the_true_class_and_the_best_three(model: PictureNet, folder: Path) -> None:
    predictions = predict(model, labelled_pictures(folder))
    wrong = int((predictions.predicted != np.array(predictions.pictures.labels)).sum())
    figure, caption = errors_figure(model, predictions, most=3)
    assert caption.startswith(f"{wrong} of 12 pictures were classified wrongly")
    assert len(figure.axes) == min(3, wrong)
    right = Predictions(
        LabelledPictures(predictions.pictures.paths, tuple(map(int, predictions.predicted)), predictions.pictures.classes),
        predictions.probabilities,
    )
    figure, caption = errors_figure(model, right)
    assert not figure.axes and caption == "None of 12 pictures was classified wrongly (100.00% correct)."


def test_projections_keep_the_main_directions() -> None:
    rng = np.random.default_rng(0)
    features = np.zeros((40, 6), np.float32)
    features[:, 2] = rng.standard_normal(40) * 10
    features[:, 4] = rng.standard_normal(40) * 3
    points = project_features(features)
    centred = features - features.mean(0)
    assert np.allclose(np.abs(np.corrcoef(points[:, 0], centred[:, 2])[0, 1]), 1, atol=0.02)
    np.testing.assert_array_equal(points, project_features(features))
    assert project_features(features[:, 2:3]).shape == (40, 2)
    tsne = project_features(features, "tsne", seed=1)
    np.testing.assert_array_equal(tsne, project_features(features, "tsne", seed=1))
    with pytest.raises(DataError, match="pca, tsne or umap"):
        project_features(features, "lda")
    with pytest.raises(DataError, match="at least 3 pictures"):
        project_features(features[:2])


def test_the_embedding_page_shows_pictures_and_hides_classes(model: PictureNet, folder: Path, tmp_path: Path) -> None:
    predictions = predict(model, labelled_pictures(folder), features="conv1")
    assert predictions.features is not None
    points = project_features(predictions.features)
    figure, caption = embedding_figure(points, predictions, method="pca", blob="conv1")
    assert "12 pictures of 3 classes" in caption and len(figure.axes[0].collections) == 3
    write_embedding_page(tmp_path / "e.html", points, predictions, model, method="pca", blob="conv1")
    html = (tmp_path / "e.html").read_text()
    assert "a<b>" not in html
    script = """
      const marks = document.querySelectorAll('#plot path'); marks[5].dispatchEvent(new Event('pointerenter'));
      const card = document.getElementById('card'); const shown = [marks.length, card.querySelectorAll('img').length, card.querySelector('p').textContent];
      document.querySelector('#key button').click();
      done([...shown, [...marks].filter((m) => m.style.display === 'none').length, document.querySelector('#key button').textContent].join('|'));
    """
    assert run_in_page(html, script, tmp_path) == "12|1|b|4|a&lt;b&gt;"


def test_a_legend_of_many_classes_states_that_it_names_the_first_ones() -> None:
    for count, title in ((14, ""), (15, "first 14 of 15 classes")):
        names = tuple(f"class {number}" for number in range(count))
        predictions = Predictions(LabelledPictures((), tuple(range(count)), names), np.eye(count, dtype=np.float32))
        figure, _ = embedding_figure(np.zeros((count, 2)), predictions, method="pca", blob="fc")
        legend = figure.axes[0].get_legend()
        assert legend is not None and len(legend.get_texts()) == 14 and legend.get_title().get_text() == title


@pytest.mark.parametrize("shape", [(30, 9000), (9000, 20), (12, 12)])
def test_components_are_those_of_a_decomposition_of_the_whole_matrix(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    features = (random.normal(size=(shape[0], 5)) @ random.normal(size=(5, shape[1])) + 3).astype(np.float32)
    points = project_features(features)
    u, s, vt = np.linalg.svd(features - features.mean(0, dtype=np.float64), full_matrices=False)
    signs = np.sign(vt[np.arange(2), np.abs(vt[:2]).argmax(1)])
    np.testing.assert_allclose(points, (u * s)[:, :2] * signs, atol=1e-6 * s[0])
    assert (project_features(np.ones(shape, np.float32)) == 0).all()


@pytest.mark.parametrize("noise", [0, 60])
def test_pictures_of_an_embedding_page_keep_to_their_budget(noise: int) -> None:
    random = np.random.default_rng(0)
    y, x = np.mgrid[:227, :300]
    waves = 128 + 60 * np.sin(x / 9)[..., None] + 40 * np.sin(y / 7)[..., None] + np.array([0, 10, -20])
    photo = np.clip(waves + random.normal(0, noise, (227, 300, 3)), 0, 255).astype(np.uint8)
    sides = []
    for budget in (1000, 4000, 12_000):
        data = base64.b64decode(thumbnail_within(photo, budget).partition(",")[2])
        assert len(data) <= budget
        sides.append(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[1])
    assert sides == [63, 126, 168]
    assert thumbnail_within(np.zeros((28, 28), np.uint8), 1000).startswith("data:image/webp")


def test_an_embedding_page_with_a_very_long_class_name_is_as_wide_as_the_screen(model: PictureNet, folder: Path, tmp_path: Path) -> None:
    predictions = predict(model, labelled_pictures(folder), features="conv1")
    assert predictions.features is not None
    named = replace(predictions, pictures=replace(predictions.pictures, classes=("x" * 300, "b", "c")))
    points = project_features(predictions.features)
    write_embedding_page(tmp_path / "e.html", points, named, model, method="pca", blob="y" * 200)
    html = (tmp_path / "e.html").read_text()
    script = """
      document.querySelectorAll('#plot path')[0].dispatchEvent(new Event('pointerenter'));
      const card = document.getElementById('card'), widths = [card.scrollWidth <= card.clientWidth];
      done([...widths, document.documentElement.scrollWidth <= innerWidth].join());
    """
    assert run_in_page(html, script, tmp_path, size=(500, 900)) == "true,true"


def test_explanations_explain_the_scores_before_the_softmax(model: PictureNet, folder: Path) -> None:
    prepared = model.prepare(folder / "b" / "0.png")
    assert score_blob(model.net) == "ip" and last_feature_layer(model.net, "ip") == "relu1"
    for method in ALL_METHODS:
        options = {"window": 4} if method == "occlusion" else {}
        assert explain(model, prepared, method, blob="ip", unit=1, **options).shape[-2:] == (8, 8)
    with pytest.raises(DataError, match="unknown method 'lime'; it is one of saliency"):
        explain(model, prepared, "lime", blob="ip", unit=1)
    steps: list[tuple[int, int]] = []
    found = explain_all(
        model,
        prepared,
        ["saliency", "smooth-grad", "grad-cam", "occlusion"],
        options={"window": 4},
        events=on_progress(lambda *done: steps.append(done)),
    )
    assert (found.blob, found.layer) == ("ip", "relu1") and [name for name, _ in found.maps][2:] == ["grad-cam", "occlusion"]
    assert steps == sorted(steps) and steps[0][0] < 50 and steps[-1] == (100, 100)
    figure, caption = explanations_figure(model, prepared, found)
    assert len(figure.axes) == 5 and "of blob 'ip'" in caption
    with pytest.raises(DataError, match="unknown method 'lime'"):
        explain_all(model, prepared, ["saliency", "lime"])


def test_pixels_survive_preparing_and_back(model: PictureNet) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    prepared = model.prepare_pixels(pixels)
    np.testing.assert_array_equal(prepared.shown, pixels[..., ::-1])
