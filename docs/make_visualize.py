"""Make the pictures of docs/visualize.md: a small net learns drawn shapes, and the page's commands draw what it learned.

Run it from anywhere: ``python docs/make_visualize.py``. It takes about a minute.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

PICTURES = Path(__file__).parent / "pictures"
CLASSES = ("circle", "cross", "square", "triangle")


def draw_shapes(folder: Path, *, each: int = 70, size: int = 40) -> None:
    """Write ``each`` pictures of every class: a shape of a random colour, place and size on a noisy ground."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            image = rng.integers(0, 70, (size, size, 3), np.uint8)
            colour = tuple(int(v) for v in rng.integers(120, 255, 3))
            r = int(rng.integers(7, 12))
            x, y = (int(v) for v in rng.integers(r + 2, size - r - 2, 2))
            if name == "circle":
                cv2.circle(image, (x, y), r, colour, -1)
            elif name == "cross":
                cv2.line(image, (x - r, y - r), (x + r, y + r), colour, 4)
                cv2.line(image, (x - r, y + r), (x + r, y - r), colour, 4)
            elif name == "square":
                cv2.rectangle(image, (x - r, y - r), (x + r, y + r), colour, -1)
            else:
                cv2.fillPoly(image, [np.array([(x, y - r), (x - r, y + r), (x + r, y + r)])], colour)
            cv2.imwrite(str(folder / name / f"{number:03}.png"), image)


def draw(*words: object) -> None:
    """Run a command of ``caffetools visualize``; the picture of an earlier run is replaced."""
    run("visualize", *words, "--force")


def run(*words: object) -> None:
    """Run a command of caffetools."""
    subprocess.run([sys.executable, "-m", "caffetools", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Train, and draw everything."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw_shapes(folder / "shapes")
        run(
            "finetune",
            folder / "shapes",
            "-o",
            folder / "run",
            "--model",
            "cifar10_quick",
            "--from-scratch",
            "--epochs",
            30,
            "--device",
            "cpu",
        )
        deploy = folder / "run" / "net" / "deploy.prototxt"
        weights = sorted((folder / "run" / "net").glob("*.caffemodel"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))
        net, picture = [deploy, weights[-1]], folder / "shapes" / "triangle" / "003.png"
        draw("filters", weights[-1], "--before", weights[0], "-o", PICTURES / "filters.png")
        draw("weights", weights[-1], "--before", weights[0], "-o", PICTURES / "weights.png")
        draw("activations", *net, picture, "-o", PICTURES / "activations.png")
        draw("explain", *net, picture, "-o", PICTURES / "explain.png")
        draw("curves", folder / "run" / "net" / "snapshot.log", "-o", PICTURES / "curves.png")
        draw("embedding", *net, folder / "run" / "data", "-o", PICTURES / "embedding.png")
        draw("top-images", *net, folder / "shapes", "--blob", "conv3", "--units", "0-5", "-o", PICTURES / "top-images.png")
        draw("synthesize", *net, "-o", PICTURES / "synthesize.png")
        draw("graph", deploy, "-o", PICTURES / "graph.svg")


if __name__ == "__main__":
    main()
