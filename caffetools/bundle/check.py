"""Check a bundle: its files are intact, and its runner gives the expected classes or boxes for its samples."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffetools.bundle import standalone
from caffetools.bundle.sums import check_sums
from caffetools.errors import DataError, ExportError, ModelFileError

PathLike = str | os.PathLike[str]
# Largest difference of a probability between the net in caffetools and the bundle's model in another runtime.
TOLERANCE = 1e-3
_REQUIRED = ("model.onnx", "preprocessing.json", "labels.txt", "samples/expected.json")


@dataclass(frozen=True)
class BundleCheck:
    """A bundle that passed its check.

    Attributes:
        files: Files compared with SHA256SUMS.
        samples: Sample pictures classified.
        backend: The runtime.
        largest_difference: Of a probability from the expected one, or of a box's corner over the picture's size.
    """

    files: int
    samples: int
    backend: str
    largest_difference: float


def check_bundle(folder: PathLike, *, backend: str = "auto", tolerance: float = TOLERANCE) -> BundleCheck:
    """Check a bundle.

    Args:
        folder: The bundle.
        backend: ``onnxruntime``, ``opencv`` or ``tensorrt``; ``auto`` takes the first that is there, TensorRT if an engine is built.
        tolerance: Largest difference of a probability to accept.

    Returns:
        What was compared.

    Raises:
        DataError: A file is missing, changed or damaged.
        ModelFileError: The runtime cannot load the model.
        ExportError: The model gives other classes, boxes or probabilities than expected.
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataError("not a folder", path=place)
    files = check_sums(place)
    if missing := [name for name in _REQUIRED if name not in files]:
        raise DataError(f"SHA256SUMS does not list {missing[0]}: the bundle is incomplete", path=place)
    expected = _read_expected(place / "samples" / "expected.json")
    try:
        settings = standalone.Settings(place)
    except standalone.BundleError as error:
        raise DataError(str(error)) from None
    try:
        runtime = standalone.open_backend(settings, backend)
    except standalone.BundleError as error:
        raise ModelFileError(str(error)) from None
    largest = 0.0
    for name, wanted in expected.items():
        picture = place / "samples" / Path(name).name
        try:
            image = standalone.read_picture(picture, settings)
            outputs = runtime.run(standalone.prepare(image, settings))
            if settings.detection is None:
                difference = _compare_classes(picture, wanted, standalone.best(outputs[0], settings, settings.classes), tolerance)
            else:
                size = image.shape[1::-1]
                difference = _compare_boxes(picture, wanted, standalone.detect(outputs, size, settings), size, tolerance)
        except standalone.BundleError as error:
            raise DataError(str(error)) from None
        largest = max(largest, difference)
    return BundleCheck(len(files), len(expected), type(runtime).__name__.removesuffix("Backend").lower(), largest)


def _read_expected(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [_expected(item) for item in items] for name, items in expected.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"damaged ({error})", path=path) from None


def _expected(item: dict[str, Any]) -> dict[str, Any]:
    if "box" not in item:
        return {"index": int(item["index"]), "probability": float(item["probability"])}
    x1, y1, x2, y2 = (float(value) for value in item["box"])
    return {"index": int(item["index"]), "probability": float(item["score"]), "box": (x1, y1, x2, y2)}


def _compare_classes(picture: Path, wanted: list[dict[str, Any]], got: list[dict[str, Any]], tolerance: float) -> float:
    """Return the largest difference. Raises :class:`ExportError` where it is too large or the best class differs."""
    by_index = {guess["index"]: guess["probability"] for guess in got}
    if unknown := [guess["index"] for guess in wanted if guess["index"] not in by_index]:
        raise DataError(f"expected.json names class {unknown[0]}, but there are {len(got)}", path=picture)
    differences = {guess["index"]: abs(by_index[guess["index"]] - guess["probability"]) for guess in wanted}
    largest = max(differences.values(), default=0.0)
    # NaN is never within the tolerance.
    if not largest <= tolerance:
        raise ExportError(f"a probability differs by {largest:.2g} from the expected one, more than {tolerance:g}", path=picture)
    # Within the tolerance two classes may be equally probable.
    if wanted and got[0]["index"] != wanted[0]["index"] and got[0]["probability"] - by_index[wanted[0]["index"]] > tolerance:
        raise ExportError(f"the best class is {got[0]['label']}, expected is class {wanted[0]['index']}", path=picture)
    return largest


def _compare_boxes(
    picture: Path, wanted: list[dict[str, Any]], got: list[dict[str, Any]], size: tuple[int, int], tolerance: float
) -> float:
    """Return the largest difference of a score, or of a corner over the picture's size. Raises :class:`ExportError` where it is too large."""
    largest = 0.0
    for box in wanted:
        of_class = [found for found in got if found["index"] == box["index"]]
        difference = min((_distance(box, found, size) for found in of_class), default=math.inf)
        if not difference <= tolerance:
            place = ", ".join(f"{value:.1f}" for value in box["box"])
            raise ExportError(f"the box {place} of class {box['index']} is expected, but not found within {tolerance:g}", path=picture)
        largest = max(largest, difference)
    if not wanted and got and got[0]["score"] > tolerance:
        raise ExportError(f"a box of class {got[0]['label']} is found, expected is none", path=picture)
    return largest


def _distance(wanted: dict[str, Any], found: dict[str, Any], size: tuple[int, int]) -> float:
    differences = [abs(a - b) / side for a, b, side in zip(wanted["box"], found["box"], (*size, *size), strict=True)]
    return float(max(abs(found["score"] - wanted["probability"]), *differences))
