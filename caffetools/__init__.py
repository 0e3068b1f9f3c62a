"""caffetools: Caffe models keep training, converting and shipping, with the numbers that Caffe itself gives.

The names in ``__all__`` are the public API; each is imported when it is first used, so that ``import caffetools`` loads neither
torch nor OpenCV. Everything else may move between releases. A change of a public name warns for one minor release first.

Example:
    >>> import caffetools as ct
    >>> net = ct.load_net(ct.zoo_prototxt("lenet"))
    >>> net.blob_shapes["prob"]
    (64, 10)
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caffetools import errors, events, visualize
    from caffetools._api.bundles import build_bundle, check_bundle
    from caffetools._api.inference import classify, compute_blobs, detect, export_onnx, import_onnx, quantize, verify
    from caffetools._api.nets import deploy, inspect, load_net, retarget, zoo_prototxt
    from caffetools._api.training import build_dataset, test, train
    from caffetools.cancel import CancelToken
    from caffetools.errors import CaffeToolsError, Cancelled
    from caffetools.net.net import Net
    from caffetools.net.weights import load_weights, save_weights
    from caffetools.project.config import FinetuneConfig
    from caffetools.project.finetune import finetune
    from caffetools.project.project import Project
    from caffetools.pycaffe.install import import_caffe_as_caffetools, install_as_caffe
    from caffetools.solver.compute_options import ComputeOptions
    from caffetools.solver.solver import Solver
    from caffetools.zoo.fetch import fetch

from caffetools._moved import install as _install_moved
from caffetools.util.threads import limit_openmp as _limit_openmp

_install_moved()
if "torch" not in sys.modules:
    # torch reads its number of threads from the environment once, and sees no control groups: in a container of 2 of 64 cores it takes 64.
    _limit_openmp()

__version__ = "0.1.0"

__all__ = [
    "CaffeToolsError",
    "CancelToken",
    "Cancelled",
    "ComputeOptions",
    "FinetuneConfig",
    "Net",
    "Project",
    "Solver",
    "__version__",
    "build_bundle",
    "build_dataset",
    "check_bundle",
    "classify",
    "compute_blobs",
    "deploy",
    "detect",
    "errors",
    "events",
    "export_onnx",
    "fetch",
    "finetune",
    "import_caffe_as_caffetools",
    "import_onnx",
    "inspect",
    "install_as_caffe",
    "load_net",
    "load_weights",
    "quantize",
    "retarget",
    "save_weights",
    "test",
    "train",
    "verify",
    "visualize",
    "zoo_prototxt",
]

# Public name → module that defines it; "" for a module of that name itself.
_HOMES = {
    **dict.fromkeys(("classify", "compute_blobs", "detect", "export_onnx", "import_onnx", "quantize", "verify"), "_api.inference"),
    **dict.fromkeys(("deploy", "inspect", "load_net", "retarget", "zoo_prototxt"), "_api.nets"),
    **dict.fromkeys(("build_dataset", "test", "train"), "_api.training"),
    **dict.fromkeys(("load_weights", "save_weights"), "net.weights"),
    **dict.fromkeys(("build_bundle", "check_bundle"), "_api.bundles"),
    "CaffeToolsError": "errors",
    "CancelToken": "cancel",
    "ComputeOptions": "solver.compute_options",
    "Cancelled": "errors",
    "FinetuneConfig": "project.config",
    "Net": "net.net",
    "Project": "project.project",
    "Solver": "solver.solver",
    "errors": "",
    "events": "",
    "fetch": "zoo.fetch",
    "finetune": "project.finetune",
    "import_caffe_as_caffetools": "pycaffe.install",
    "install_as_caffe": "pycaffe.install",
    "visualize": "",
}


def _imported(name: str) -> object:
    """Return a public name, imported when it is first used. Raises :class:`AttributeError` for others."""
    if name not in _HOMES:
        raise AttributeError(f"module 'caffetools' has no attribute '{name}'")
    home = _HOMES[name]
    if not home:
        return importlib.import_module(f"caffetools.{name}")
    value = getattr(importlib.import_module(f"caffetools.{home}"), name)
    globals()[name] = value
    return value


if not TYPE_CHECKING:
    # Type checkers know the names from the imports above, and report others.
    __getattr__ = _imported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
