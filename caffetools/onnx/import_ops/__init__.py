"""ONNX operators as Caffe layers, by family."""

from __future__ import annotations

import importlib

_FAMILIES = (
    "activation",
    "axes",
    "comparison",
    "elementwise",
    "matrix",
    "normalization",
    "padding",
    "pooling",
    "recurrent",
    "reduction",
    "resize",
    "shape",
    "slicing",
    "window",
)


def register() -> None:
    """Import the modules of all families, whose functions register themselves."""
    for family in _FAMILIES:
        importlib.import_module(f"caffetools.onnx.import_ops.{family}")
