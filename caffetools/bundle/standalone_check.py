#!/usr/bin/env python3
# ruff: noqa: UP006, UP035, UP045, B905
"""Check the bundle in this file's folder: its files are intact, and its runner gives the expected classes or boxes for its samples.

It needs what classify.py needs, but not caffetools; `caffetools bundle check` does the same.

    python3 check.py
    python3 check.py --backend tensorrt

Exit code 0 if all is well, 1 for other numbers, 2 for a damaged bundle. A bundle holds this file as check.py. It runs on Python 3.6.
"""

import argparse
import hashlib
import importlib
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

# Largest difference of a probability, or of a box's corner over the picture's size.
TOLERANCE = 1e-3
SUMS = "SHA256SUMS"
REQUIRED = ("model.onnx", "preprocessing.json", "labels.txt", "samples/expected.json")
# Called with a unit ("files", "samples"), how many are compared and how many there are: with 0 first, then after each; may raise to stop.
Report = Callable[[str, int, int], None]
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


class CheckError(Exception):
    """A bundle that does not pass.

    Attributes:
        kind: ``data`` for a missing or damaged file, ``model`` for one that the runtime cannot load, ``numbers`` for other results.
        path: The file at fault; None if ``message`` names it.
        line: Line in it; 0 if unknown.
    """

    def __init__(self, message: str, path: Optional[Path] = None, kind: str = "data", line: int = 0):
        super().__init__(message)
        self.message, self.path, self.kind, self.line = message, path, kind, line

    def __str__(self) -> str:
        place = "" if self.path is None else "{}{}: ".format(self.path, f":{self.line}" if self.line else "")
        return place + self.message


def _quiet(unit: str, done: int, total: int) -> None:
    pass


def check_sums(folder: Path, report: Report = _quiet) -> List[str]:
    """Compare the files with SHA256SUMS; files that it does not list, such as engines built later, are not looked at.

    Returns:
        The names of the files, all of them intact.

    Raises:
        CheckError: SHA256SUMS is missing or damaged, or a file is missing or changed.
    """
    listing = folder / SUMS
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise CheckError("cannot read SHA256SUMS: this is not a bundle, or it is incomplete", folder) from None
    names = []
    report("files", 0, len(lines))
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line)
        if found is None or Path(found.group(2)).is_absolute() or ".." in Path(found.group(2)).parts:
            raise CheckError("damaged: not a SHA-256 and a file's name", listing, line=number)
        path = folder / found.group(2)
        if not path.is_file():
            raise CheckError("missing, though SHA256SUMS lists it; copy the bundle again", path)
        if _sha256(path) != found.group(1):
            raise CheckError("changed: its SHA-256 is not that of SHA256SUMS; copy the bundle again", path)
        names.append(found.group(2))
        report("files", number, len(lines))
    return names


def check(folder: Path, runner: ModuleType, backend: str = "auto", tolerance: float = TOLERANCE, report: Report = _quiet) -> Dict[str, Any]:
    """Check a bundle with its runner, the module of classify.py.

    Returns:
        ``files`` and ``samples`` that were compared, the ``backend``, the ``largest_difference``, and ``others``: names of files that are not
        of the bundle, such as an engine that was built.

    Raises:
        CheckError: A file is missing, changed or damaged, the runtime cannot load the model, or it gives other results.
    """
    if not folder.is_dir():
        raise CheckError("not a folder", folder)
    files = check_sums(folder, report)
    missing = [name for name in REQUIRED if name not in files]
    if missing:
        raise CheckError(f"SHA256SUMS does not list {missing[0]}: the bundle is incomplete", folder)
    expected = read_expected(folder / "samples" / "expected.json")
    try:
        settings = runner.Settings(folder)
    except runner.BundleError as error:
        raise CheckError(str(error)) from None
    try:
        runtime = runner.open_backend(settings, backend)
    except runner.BundleError as error:
        raise CheckError(str(error), kind="model") from None
    largest = 0.0
    report("samples", 0, len(expected))
    for number, (name, wanted) in enumerate(expected.items(), 1):
        picture = folder / "samples" / Path(name).name
        try:
            image = runner.read_picture(picture, settings)
            outputs = runtime.run(runner.prepare(image, settings))
            if settings.detection is None:
                difference = compare_classes(picture, wanted, runner.best(outputs[0], settings, settings.classes), tolerance)
            else:
                size = image.shape[1::-1]
                difference = compare_boxes(picture, wanted, runner.detect(outputs, size, settings), size, tolerance)
        except runner.BundleError as error:
            raise CheckError(str(error)) from None
        largest = max(largest, difference)
        report("samples", number, len(expected))
    name = type(runtime).__name__.replace("Backend", "").lower()
    others = other_files(folder, files)
    return {"files": len(files), "samples": len(expected), "backend": name, "largest_difference": largest, "others": others}


def other_files(folder: Path, names: List[str]) -> List[str]:
    """Return the names of files in the folder that are not in SHA256SUMS, but for what Python itself writes there."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path.as_posix() for path in found if path.as_posix() not in {SUMS, *names})


def read_expected(path: Path) -> Dict[str, List[Dict[str, Any]]]:
    """Return expected.json: file name to classes {index, probability} or boxes {index, probability, box}. Raises CheckError."""
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [_expected(item) for item in items] for name, items in expected.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckError(f"damaged ({error})", path) from None


def compare_classes(picture: Path, wanted: List[Dict[str, Any]], got: List[Dict[str, Any]], tolerance: float) -> float:
    """Return the largest difference of a probability. Raises CheckError where it is too large or the best class differs."""
    by_index = {guess["index"]: guess["probability"] for guess in got}
    unknown = [guess["index"] for guess in wanted if guess["index"] not in by_index]
    if unknown:
        raise CheckError(f"expected.json names class {unknown[0]}, but there are {len(got)}", picture)
    largest = max([abs(by_index[guess["index"]] - guess["probability"]) for guess in wanted] or [0.0])
    # NaN is never within the tolerance.
    if not largest <= tolerance:
        raise CheckError(f"a probability differs by {largest:.2g} from the expected one, more than {tolerance:g}", picture, "numbers")
    # Within the tolerance two classes may be equally probable.
    if wanted and got[0]["index"] != wanted[0]["index"] and got[0]["probability"] - by_index[wanted[0]["index"]] > tolerance:
        raise CheckError("the best class is {}, expected is class {}".format(got[0]["label"], wanted[0]["index"]), picture, "numbers")
    return float(largest)


def compare_boxes(picture: Path, wanted: List[Dict[str, Any]], got: List[Dict[str, Any]], size: Tuple[int, int], tolerance: float) -> float:
    """Return the largest difference of a score, or of a corner over the picture's size. Raises CheckError where it is too large."""
    largest = 0.0
    for box in wanted:
        of_class = [found for found in got if found["index"] == box["index"]]
        difference = min([_distance(box, found, size) for found in of_class] or [math.inf])
        if not difference <= tolerance:
            place = ", ".join(f"{value:.1f}" for value in box["box"])
            message = "the box {} of class {} is expected, but not found within {:g}".format(place, box["index"], tolerance)
            raise CheckError(message, picture, "numbers")
        largest = max(largest, difference)
    if not wanted and got and got[0]["score"] > tolerance:
        raise CheckError("a box of class {} is found, expected is none".format(got[0]["label"]), picture, "numbers")
    return largest


def _expected(item: Dict[str, Any]) -> Dict[str, Any]:
    if "box" not in item:
        return {"index": int(item["index"]), "probability": float(item["probability"])}
    x1, y1, x2, y2 = (float(value) for value in item["box"])
    return {"index": int(item["index"]), "probability": float(item["score"]), "box": (x1, y1, x2, y2)}


def _distance(wanted: Dict[str, Any], found: Dict[str, Any], size: Tuple[int, int]) -> float:
    differences = [abs(a - b) / side for a, b, side in zip(wanted["box"], found["box"], (*size, *size))]
    return float(max(abs(found["score"] - wanted["probability"]), *differences))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check the bundle in this folder: its files, and what its runner gives for its samples.")
    folder = Path(__file__).resolve().parent
    parser.add_argument("--bundle", type=Path, default=folder, help="the bundle's folder (default: this one)")
    parser.add_argument("--backend", default="auto", choices=("auto", "tensorrt", "onnxruntime", "opencv"))
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="largest difference of a probability (default 0.001)")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(folder))
    try:
        done = check(options.bundle, importlib.import_module("classify"), options.backend, options.tolerance)
    except CheckError as error:
        sys.stderr.write(f"check: error: {error}\n")
        return 1 if error.kind == "numbers" else 2
    except ImportError as error:
        sys.stderr.write(
            f"check: error: needs NumPy and OpenCV ({error}): pip install numpy opencv-python-headless, or apt install python3-opencv\n"
        )
        return 2
    print(
        "{files} files are intact; {samples} samples in {backend} give the expected results; largest difference {largest_difference:.1e}".format(
            **done
        )
    )
    if done["others"]:
        print("Not of the bundle, and not checked: " + ", ".join(done["others"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
