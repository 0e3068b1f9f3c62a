"""The ``caffe`` module, as scripts written for Caffe expect it; :func:`caffetools.install_as_caffe` installs it under that name."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "1.0.0"

# Module of this package → the names that `caffe` has from it.
_PLACES = {
    "classifier": ["Classifier"],
    "detector": ["Detector"],
    "mode": [
        "has_nccl",
        "init_log",
        "layer_type_list",
        "log",
        "set_device",
        "set_devices",
        "set_logging_disabled",
        "set_mode_cpu",
        "set_mode_gpu",
        "set_multiprocess",
        "set_random_seed",
        "set_solver_count",
        "set_solver_rank",
        "solver_count",
        "solver_rank",
    ],
    "net": ["Net"],
    "net_spec": ["NetSpec", "layers", "params", "to_proto"],
    "solvers": [
        "AdaDeltaSolver",
        "AdaGradSolver",
        "AdamSolver",
        "NesterovSolver",
        "RMSPropSolver",
        "SGDSolver",
        "get_solver",
    ],
    "timer": ["NCCL", "Timer"],
}
_NAMES = {name: place for place, names in _PLACES.items() for name in names}
_MODULES = ("_caffe", "classifier", "coord_map", "detector", "draw", "io", "net_spec", "proto", "pycaffe")

# Names of forks that are not here, and what to use.
_ABSENT = {
    "create_layer": ": single layers of NVCaffe are not supported; build a net of one layer with caffe.Net",
    "LayerBase": ": NVCaffe's class of single layers is not supported; build a net of one layer with caffe.Net",
    "LayerParameter": ": use caffe.proto.caffe_pb2.LayerParameter",
    "set_phase_test": ": it was removed from Caffe; give the phase to caffe.Net",
    "set_phase_train": ": it was removed from Caffe; give the phase to caffe.Net",
    "imagenet_classifier": ": it was removed from Caffe; use caffe.Classifier",
    "compile_net": ": Intel Caffe's compiler of nets is not supported; nets are made faster here when they run",
    "MultiSolver": ": several processes train under torchrun",
    "MultiSync": ": several processes train under torchrun",
    "P2PSync": ": several GPUs train in one process each, under torchrun",
    "MultiProcess": ": several GPUs train in one process each, under torchrun",
}

__all__ = ["TEST", "TRAIN", "Layer", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    """Import the names when they are used, so that importing this package loads neither torch nor OpenCV."""
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in ("TRAIN", "TEST"):
        return getattr(importlib.import_module("caffetools.proto.schema"), name)
    if name == "Layer":
        return importlib.import_module("caffetools.layers.python").Layer
    raise AttributeError(f"module 'caffe' has no attribute '{name}'{_ABSENT.get(name, '')}")


def __dir__() -> list[str]:
    return sorted(__all__)
