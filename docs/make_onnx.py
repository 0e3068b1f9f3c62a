"""Write the tables of docs/onnx.md from the registries: python docs/make_onnx.py (a test compares the page with this)."""

from __future__ import annotations

from pathlib import Path

from caffetools.layers.registry import layer_types
from caffetools.onnx import import_ops
from caffetools.onnx.import_net import imported_operators

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "onnx.md"
_START, _END = "<!-- generated: {} -->\n", "<!-- end -->"


def page() -> str:
    """The text of docs/onnx.md with its tables renewed."""
    import_ops.register()
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (("layers", _layers()), ("operators", ", ".join(f"`{op}`" for op in imported_operators()) + "\n")):
        before, _, rest = text.partition(_START.format(name))
        text = before + _START.format(name) + table + _END + rest.partition(_END)[2]
    return text


def _layers() -> str:
    rows = []
    for kind, layer in layer_types().items():
        limits = layer.ONNX_LIMITS
        state = "input" if layer.IS_DATA else "–" if not layer.has_onnx_form() else "with limits" if limits else "exact"
        rows.append(f"| {kind} | {state} | {limits or layer.NO_ONNX} |")
    return "| Type | ONNX | Limits, or why it has no form |\n|---|---|---|\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
