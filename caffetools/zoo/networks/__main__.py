"""``python -m caffetools.zoo.networks [FOLDER]``: write every network's prototxts (into the checkout's prototxt/ by default)."""

from __future__ import annotations

import sys
from pathlib import Path

from caffetools.proto.text import write_prototxt
from caffetools.zoo.networks import KINDS, MODELS, build

CHECKOUT = Path(__file__).parents[3] / "prototxt"


def write_all(folder: Path) -> list[Path]:
    """Write ``folder/MODEL/KIND.prototxt`` for every model and kind; returns the paths."""
    paths = []
    for model in MODELS:
        for kind in KINDS:
            paths.append(folder / model / f"{kind}.prototxt")
            write_prototxt(paths[-1], build(model, kind), comment=comment(model, kind))
    return paths


def comment(model: str, kind: str) -> str:
    """Return the lines that stand at the top of a shipped prototxt."""
    return f"{model}: {kind}\nWritten by `python -m caffetools.zoo.networks`; change the builder in caffetools/zoo/networks/ and run it."


if __name__ == "__main__":
    for path in write_all(Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKOUT):
        sys.stdout.write(f"{path}\n")
