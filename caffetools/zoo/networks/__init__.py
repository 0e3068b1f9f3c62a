"""Our own builders of the zoo's networks, and where the prototxts that they write are found.

``python -m caffetools.zoo.networks`` writes them again; a test compares the files with the builders.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from caffetools.errors import ZooError
from caffetools.zoo.names import get_name
from caffetools.zoo.resources import prototxt_file

# Model → the module of its builder, and the variant that this builds.
_BUILDERS = {
    "lenet": ("lenet", ""),
    "bvlc_alexnet": ("alexnet", "ALEXNET"),
    "bvlc_reference_caffenet": ("alexnet", "CAFFENET"),
    "bvlc_reference_rcnn_ilsvrc13": ("rcnn", ""),
    "bvlc_googlenet": ("googlenet", ""),
    "squeezenet_v1.0": ("squeezenet", "V1_0"),
    "squeezenet_v1.1": ("squeezenet", "V1_1"),
    "cifar10_quick": ("cifar10", "QUICK"),
    "cifar10_full": ("cifar10", "FULL"),
    "nin_imagenet": ("nin", ""),
    "vgg16": ("vgg", "VGG16"),
    "vgg19": ("vgg", "VGG19"),
    "resnet10": ("resnet10", ""),
    "resnet18": ("resnet", "RESNET18"),
    "resnet50": ("resnet", "RESNET50"),
    "resnet101": ("resnet", "RESNET101"),
    "resnet152": ("resnet", "RESNET152"),
    "se_resnet50": ("senet", ""),
    "densenet121": ("densenet", ""),
    "mobilenet_v1": ("mobilenet", "V1"),
    "mobilenet_v2": ("mobilenet", "V2"),
    "mtcnn_pnet": ("mtcnn", "PNET"),
    "mtcnn_rnet": ("mtcnn", "RNET"),
    "mtcnn_onet": ("mtcnn", "ONET"),
}
MODELS = tuple(_BUILDERS)
KINDS = ("train_val", "deploy", "solver")


def prototxt_path(model: str, kind: str = "train_val") -> Path:
    """Return the shipped prototxt of ``model`` (one of :data:`MODELS`); ``kind`` is train_val, deploy or solver.

    Raises:
        ZooError: there is no such model or kind, or the file is not installed.
    """
    return prototxt_file(f"{check_names(model, kind)}/{kind}.prototxt")


def build(model: str, kind: str = "train_val") -> Any:
    """Build the ``NetParameter`` of ``model``, or its ``SolverParameter`` where ``kind`` is solver. Raises :class:`ZooError`."""
    family, variant = _BUILDERS[check_names(model, kind)]
    module = importlib.import_module(f"caffetools.zoo.networks.{family}")
    return getattr(module, kind)(*([getattr(module, variant)] if variant else []))


def check_names(model: str, kind: str) -> str:
    """Return the model's own name for ``model``, which may be a short name. Raises :class:`ZooError` if it or ``kind`` is unknown."""
    name = get_name(model)
    if kind not in KINDS:
        raise ZooError(f"a network has no '{kind}' prototxt; there are {', '.join(KINDS)}")
    return name
