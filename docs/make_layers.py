"""Write docs/layers.md from the registry and the golden cases: python docs/make_layers.py (a test holds the page against this)."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from pathlib import Path

from caffetools.layers.base import SAME_AS_BOTTOMS, Arity, Layer
from caffetools.layers.registry import layer_types

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "layers.md"

# The page would be another one on a machine where these columns were measured; they are declared by the classes alone.
HEAD = """# Layers

Every layer type that caffetools computes; generated from the registry by `python docs/make_layers.py`.

- **Role**: what surgery, inspection and drawing take the layer for (`caffetools.layers.traits`).
- **Bottoms → tops**: the numbers of blobs that it takes and gives. **Gradient**: to which bottoms; labels never have one.
- **Parameters**: whether the layer has parameter blobs of its own. **ONNX**: whether it has an exact ONNX form.
- **Golden cases**: computed by BVLC Caffe 1.0 and held to in the tests: forward, of these also backward. Layers of forks have
  none, since they were never part of BVLC Caffe; their tests hold them against plain NumPy written from their definitions.

| Type | What it does | Role | Bottoms → tops | Parameters | Gradient | ONNX | Golden cases |
|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The text of docs/layers.md."""
    cases = json.loads((ROOT / "tests" / "golden" / "layers" / "index.json").read_text())["cases"]
    forward = Counter(kind for case in cases for kind in set(case["layer_types"]))
    backward = Counter(kind for case in cases if case["backward"] for kind in set(case["layer_types"]))
    rows = [_row(kind, layer, forward[kind], backward[kind]) for kind, layer in layer_types().items()]
    return HEAD + "\n".join(rows) + "\n"


def _row(kind: str, layer: type[Layer], forward: int, backward: int) -> str:
    file = Path(inspect.getsourcefile(layer) or "").resolve().relative_to(ROOT)
    cases = f"{forward}, {backward}" if forward else "–"
    cells = (
        f"[{kind}](../{file.as_posix()})",
        _summary(layer),
        "–" if layer.TRAITS.role == "other" else layer.TRAITS.role,
        f"{_arity(layer.BOTTOMS)} → {'as bottoms' if layer.TOPS == SAME_AS_BOTTOMS else _arity(layer.TOPS)}",
        "yes" if "declare_blob" in inspect.getsource(layer.setup) else "–",
        _gradient(layer),
        "yes" if layer.has_onnx_form() else "–",
        cases,
    )
    return "| " + " | ".join(cells) + " |"


def _summary(layer: type[Layer]) -> str:
    text = " ".join((layer.__doc__ or "").split())
    first = re.split(r"(?<=[.;:]) ", text, maxsplit=1)[0].rstrip(".;:")
    return first.replace("|", "\\|")


def _arity(arity: Arity) -> str:
    low, high = arity
    return f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"


def _gradient(layer: type[Layer]) -> str:
    if layer.IS_DATA:
        return "–"
    least = layer.BOTTOMS[0]
    if not layer.NO_GRADIENT:
        return "all"
    left = [index for index in range(max(least, 1)) if index not in layer.NO_GRADIENT]
    return "bottom " + ", ".join(map(str, left)) if left else "none"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
