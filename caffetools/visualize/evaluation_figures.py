"""Figures of a classifier's answers: ROC curves, sheets of errors, embeddings of features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from caffetools.errors import CaffeToolsError, DataError
from caffetools.results import share_text
from caffetools.util.process_settings import warnings_ignored
from caffetools.visualize import style
from caffetools.visualize.panels import TEXT_ROOM, Panel, enlarge, panels_figure, shorten_to, text_width
from caffetools.visualize.picture_net import PictureNet
from caffetools.visualize.predictions import Predictions
from caffetools.visualize.style import LIGHT, Theme

_MOST_CURVES = 6
_MOST_NAMES = 14  # classes up to which an embedding's legend names each
_MARKERS = "os^vDPX<>*"
_PROJECTIONS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
_BLOCK = 4096  # rows or columns of features that are taken in float64 at once
_SIDE = 232  # pixels of a picture on the sheet of errors


@dataclass(frozen=True)
class RocCurve:
    """One class against all others.

    Attributes:
        name: The class.
        false_positive, true_positive: Rates by falling threshold, from (0, 0) to (1, 1).
        area: Under the curve.
    """

    name: str
    false_positive: NDArray[np.float64]
    true_positive: NDArray[np.float64]
    area: float


def roc_curves(predictions: Predictions) -> list[RocCurve]:
    """Return the curves of the classes that have both pictures of their own and of other classes. Raises DataError where none has."""
    labels = np.array(predictions.pictures.labels)
    curves = [
        roc_curve(name, labels == index, predictions.probabilities[:, index])
        for index, name in enumerate(predictions.pictures.classes)
        if 0 < (labels == index).sum() < len(labels)
    ]
    if not curves:
        raise DataError("ROC curves need pictures of at least two classes")
    return curves


def roc_curve(name: str, positive: NDArray[np.bool_], scores: NDArray[np.float32]) -> RocCurve:
    """Return the curve of a score.

    Args:
        name: Of the class.
        positive: (M,) whether each picture is of the class.
        scores: (M,) larger for the class.
    """
    order = np.argsort(-scores, kind="stable")
    hits, ranked = positive[order], scores[order]
    # Equal scores have one threshold, so that only the last of them is a point.
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    true = np.append(0, np.cumsum(hits)[last]) / hits.sum()
    false = np.append(0, np.cumsum(~hits)[last]) / (~hits).sum()
    area = float(((false[1:] - false[:-1]) * (true[1:] + true[:-1]) / 2).sum())
    return RocCurve(name, false, true, area)


def roc_figure(predictions: Predictions, *, theme: Theme = LIGHT) -> tuple[Figure, str]:
    """Draw the ROC curves of up to six classes, those with the smallest areas, and return the figure and its caption."""
    curves = sorted(roc_curves(predictions), key=lambda curve: curve.area)
    mean = float(np.mean([curve.area for curve in curves]))
    figure = style.new_figure(9.2, 5.2, theme)
    axes = figure.add_subplot()
    style.style_axes(axes, theme)
    axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, linestyle=":")
    for number, curve in enumerate(curves[:_MOST_CURVES]):
        label = style.plain(f"{style.shorten(curve.name, 28)}: {share_text(curve.area, '.4f')}")
        look = ["-", "--", "-."][number % 3]
        axes.plot(curve.false_positive, curve.true_positive, color=theme.series[number], linewidth=1.8, linestyle=look, label=label)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel("false positive rate", fontsize=style.LABEL)
    axes.set_ylabel("true positive rate", fontsize=style.LABEL)
    axes.legend(
        fontsize=style.SMALL,
        frameon=False,
        labelcolor=theme.muted,
        title="area under the curve",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )
    axes.get_legend().get_title().set(color=theme.muted, fontsize=style.SMALL)  # type: ignore[union-attr]
    axes.set_title("ROC, one class against all others", fontsize=style.TITLE, weight="bold", color=theme.text, loc="left", pad=8)
    shown = "" if len(curves) <= _MOST_CURVES else f"; the {_MOST_CURVES} classes with the smallest areas are drawn"
    return figure, f"{len(curves)} classes, mean area {share_text(mean, '.4f')}{shown}."


def errors_figure(model: PictureNet, predictions: Predictions, *, most: int = 60, theme: Theme = LIGHT) -> tuple[Figure, str]:
    """Draw the pictures that were classified wrongly, the most confident first, with their three most probable classes."""
    classes, labels = predictions.pictures.classes, np.array(predictions.pictures.labels)
    rows = predictions.probabilities
    wrong = np.flatnonzero(predictions.predicted != labels)
    if not wrong.size:
        caption = f"None of {len(labels)} pictures was classified wrongly (100.00% correct)."
        return panels_figure([], "No errors", caption, theme=theme), caption
    order = wrong[np.argsort(-rows[wrong].max(1), kind="stable")][:most]
    panels = []
    for index in order:
        best = np.argsort(-rows[index], kind="stable")[:3]
        note = "\n".join(_named_share(classes[i], float(rows[index, i])) for i in best)
        panels.append(
            Panel(_square(model.prepare(predictions.pictures.paths[index]).shown), f"is {classes[labels[index]]}", note, good=False)
        )
    accuracy = 1 - wrong.size / len(labels)
    were = "was" if wrong.size == 1 else "were"
    caption = f"{wrong.size} of {len(labels)} pictures {were} classified wrongly ({share_text(accuracy, '.2%')} correct)"
    caption += f"; the {len(order)} most confident errors." if len(order) < wrong.size else "."
    caption += " Above: the true class; below: the most probable classes."
    return panels_figure(panels, "Errors", caption, theme=theme), caption


def check_projection(method: str) -> None:
    """Raise where features cannot be projected by ``method``, before a long pass over the pictures.

    Raises:
        DataError: it is not pca, tsne or umap.
        CaffeToolsError: the package that it needs is not installed.
    """
    if method not in _PROJECTIONS:
        raise DataError(f"unknown projection '{method}'; it is pca, tsne or umap")
    for name, module, package in (("tsne", "sklearn", "scikit-learn"), ("umap", "umap", "umap-learn")):
        if method == name and find_spec(module) is None:
            raise CaffeToolsError(f"{_PROJECTIONS[name]} needs {package}: pip install {package}")


def project_features(features: NDArray[np.float32], method: str = "pca", *, seed: int = 0) -> NDArray[np.float64]:
    """Project features to two dimensions.

    Args:
        features: (M, D), at least three rows.
        method: ``pca``, ``tsne`` (scikit-learn) or ``umap`` (umap-learn).
        seed: Of the last two.

    Returns:
        (M, 2) coordinates; signs are fixed, so that the same features give the same picture.

    Raises:
        DataError: an unknown method, fewer than three pictures, or features that are not finite.
        CaffeToolsError: the package that the method needs is not installed.
    """
    check_projection(method)
    if len(features) < 3:
        raise DataError(f"a projection needs at least 3 pictures, not {len(features)}")
    if not np.isfinite(features).all():
        raise DataError("the features are not finite; the net's weights have diverged")
    reduced = _principal(features, min(50, *features.shape))
    if method == "pca":
        return np.pad(reduced, ((0, 0), (0, max(0, 2 - reduced.shape[1]))))[:, :2]
    if method == "tsne":
        return _tsne(reduced, seed)
    return _umap(reduced, seed)


def embedding_figure(
    points: NDArray[np.float64], predictions: Predictions, *, method: str, blob: str, theme: Theme = LIGHT
) -> tuple[Figure, str]:
    """Draw projected features (M, 2), coloured (and marked) by class."""
    classes, labels = predictions.pictures.classes, np.array(predictions.pictures.labels)
    figure = style.new_figure(8.2, 6.2, theme)
    axes = figure.add_subplot()
    style.style_axes(axes, theme, grid=False)
    for index in range(len(classes)):
        mine = labels == index
        name = style.plain(style.shorten(classes[index], 24)) if index < _MOST_NAMES else None
        colour, marker = theme.series[index % len(theme.series)], _MARKERS[index % len(_MARKERS)]
        axes.scatter(points[mine, 0], points[mine, 1], s=16, color=colour, marker=marker, linewidths=0, alpha=0.8, label=name)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(
        style.plain(f"{blob}  ·  {_PROJECTIONS[method]}"),
        fontsize=style.TITLE, weight="bold", color=theme.text, loc="left", pad=8,
    )  # fmt: skip
    first = f"first {_MOST_NAMES} of {len(classes)} classes" if len(classes) > _MOST_NAMES else ""
    legend = axes.legend(
        title=first or None, fontsize=style.SMALL, frameon=False, labelcolor=theme.muted, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    legend.get_title().set(color=theme.muted, fontsize=style.SMALL)
    more = f" The {first} are named." if first else ""
    return figure, f"{len(points)} pictures of {len(classes)} classes by their features in '{blob}'.{more}"


def _named_share(name: str, share: float) -> str:
    """Return ``name  51%``, the name shortened where it is too long for its place on the sheet."""
    end = f"  {share:.0%}" if share >= 0.1 else f"  {share:.1%}"
    return shorten_to(name.replace("\n", " "), TEXT_ROOM - text_width(end, style.SMALL), style.SMALL) + end


def _square(image: NDArray[np.uint8], side: int = _SIDE) -> NDArray[np.uint8]:
    return enlarge(image, side)


def _principal(features: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Return the first ``count`` principal components of features (M, D), (M, count).

    From the products of the pictures with each other, or of the features where those are fewer, added up by blocks: the features of a
    convolution are a hundred thousand values a picture, for which a decomposition of the whole matrix takes ten times its memory.
    """
    mean = features.mean(0, dtype=np.float64)
    few = len(features) <= features.shape[1]

    def blocks() -> Iterator[NDArray[np.float64]]:
        for start in range(0, features.shape[1] if few else len(features), _BLOCK):
            part = slice(start, start + _BLOCK)
            yield features[:, part] - mean[part] if few else features[part] - mean

    products = np.zeros((min(features.shape),) * 2)
    for block in blocks():
        products += block @ block.T if few else block.T @ block
    values, vectors = np.linalg.eigh(products)
    lengths, vectors = np.sqrt(np.maximum(values[::-1][:count], 0)), vectors[:, ::-1][:, :count]
    # Shorter ones are rounding errors of the products.
    lengths[lengths <= 1e-7 * lengths[0]] = 0
    if few:
        directions, scores = np.concatenate([block.T @ vectors for block in blocks()]), vectors * lengths
    else:
        directions, scores = vectors, np.concatenate([block @ vectors for block in blocks()]) * (lengths > 0)
    signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(count)])
    return np.asarray(scores * np.where(signs == 0, 1, signs))


def _tsne(reduced: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(2.0, (len(reduced) - 1) / 3))
    return np.asarray(TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced), np.float64)


def _umap(reduced: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    from umap import UMAP

    neighbours = min(15, len(reduced) - 1)
    with warnings_ignored():
        # That a seed turns off its threads.
        return np.asarray(UMAP(n_components=2, n_neighbors=neighbours, random_state=seed).fit_transform(reduced), np.float64)
