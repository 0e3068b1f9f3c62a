"""The page of an embedding: points by class, the picture of a point on hover."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from caffetools.util.files import write_text
from caffetools.visualize.page import render_template
from caffetools.visualize.picture_net import PathLike, PictureNet
from caffetools.visualize.predictions import Predictions
from caffetools.visualize.style import DARK, LIGHT
from caffetools.visualize.thumbnails import thumbnail_within

_MOST_THUMBNAILS = 3000
# Bytes of all pictures together, before base64 makes four of three.
_PICTURES_SIZE = 3_000_000
_LARGEST_PICTURE = 12_000
# Up to this many pixels, a picture is enlarged with hard edges.
_SMALL = 32


def write_embedding_page(
    path: PathLike, points: NDArray[np.float64], predictions: Predictions, model: PictureNet, *, method: str, blob: str
) -> None:
    """Write one HTML file with all points; the first 3,000 have their pictures, in 4 MB for all.

    Args:
        path: .html.
        points: (M, 2).
        predictions: Of the same pictures.
        model: Reads them.
        method: The projection's name, for the heading.
        blob: The blob's name, for the heading.

    Raises:
        DataError: a picture cannot be read any more.
        RunFailed: the file cannot be written.
    """
    low, high = points.min(0), points.max(0)
    unit = (points - low) / np.where(high > low, high - low, 1)
    pictures = predictions.pictures
    answers = predictions.predicted.tolist() if predictions.classified else pictures.labels
    budget = min(_LARGEST_PICTURE, _PICTURES_SIZE // min(len(pictures.paths), _MOST_THUMBNAILS))
    rows: list[dict[str, object]] = []
    small = False
    for index, ((x, y), label, given, file) in enumerate(zip(unit, pictures.labels, answers, pictures.paths, strict=True)):
        image = ""
        if index < _MOST_THUMBNAILS:
            shown = model.prepare(file).shown
            small = max(shown.shape[:2]) <= _SMALL
            image = thumbnail_within(shown, budget)
        rows.append(
            {
                "x": round(float(x), 4),
                "y": round(float(1 - y), 4),
                "label": label,
                "predicted": given,
                "name": file.name,
                "image": image,
            }
        )
    title = f"{blob} by {method.upper().replace('TSNE', 't-SNE')}"
    colours = list(zip(LIGHT.series, DARK.series, strict=True))
    values = {"title": title, "classes": list(pictures.classes), "points": rows, "colours": colours, "blob": blob, "method": method}
    text = render_template("embedding.html.jinja", **values, small=small)
    write_text(path, text)
