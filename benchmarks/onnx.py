"""Export to ONNX: seconds, memory and the speed of the exported graph. The benchmark is export_onnx.py; this is its short name.

    python benchmarks/onnx.py [the options of export_onnx.py]

Python looks for modules in the folder of the script that it runs, so every script of this folder that imports the ``onnx`` package meets
this file first. It then makes room for the package: without this folder in ``sys.path``, the package is what ``import onnx`` gives.
"""

import importlib
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def import_package() -> None:
    """Import the ``onnx`` package in place of this file."""
    searched = sys.path[:]
    sys.path[:] = [place for place in searched if Path(place).resolve() != FOLDER]
    sys.modules.pop("onnx", None)
    try:
        importlib.import_module("onnx")
    finally:
        sys.path[:] = searched


import_package()
if __name__ == "__main__":
    runpy.run_path(str(FOLDER / "export_onnx.py"), run_name="__main__")
