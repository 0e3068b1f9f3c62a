"""One name for one model in every command: short names and other spellings of the zoo's models."""

from __future__ import annotations

import os
import re
from pathlib import Path

from caffetools.errors import ZooError, closest

# Short name → model. Case, dashes, underscores and dots do not matter: ResNet-50 is resnet50.
ALIASES = {
    "alexnet": "bvlc_alexnet",
    "caffenet": "bvlc_reference_caffenet",
    "cifar10": "cifar10_quick",
    "densenet": "densenet121",
    "googlenet": "bvlc_googlenet",
    "inception_v1": "bvlc_googlenet",
    "mobilenet": "mobilenet_v1",
    "nin": "nin_imagenet",
    "rcnn": "bvlc_reference_rcnn_ilsvrc13",
    "squeezenet": "squeezenet_v1.1",
    "squeezenet1.0": "squeezenet_v1.0",
    "squeezenet1.1": "squeezenet_v1.1",
    "vgg_ilsvrc_16_layers": "vgg16",
    "vgg_ilsvrc_19_layers": "vgg19",
}
MODELS = (
    *("lenet", "bvlc_alexnet", "bvlc_reference_caffenet", "bvlc_reference_rcnn_ilsvrc13", "bvlc_googlenet", "squeezenet_v1.0"),
    *("squeezenet_v1.1", "cifar10_quick", "cifar10_full", "nin_imagenet", "vgg16", "vgg19", "resnet10", "resnet18", "resnet50"),
    *("resnet101", "resnet152", "se_resnet50", "densenet121", "mobilenet_v1", "mobilenet_v2", "mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet"),
)


def _key(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.lower())


# Files that are given where a network is expected.
_ENDINGS = (
    ".prototxt",
    ".prototext",
    ".pbtxt",
    ".txt",
    ".caffemodel",
    ".h5",
    ".onnx",
    ".solverstate",
    ".yaml",
    ".json",
    ".pt",
    ".pth",
    ".zip",
)
_BY_KEY = {**{_key(alias): model for alias, model in ALIASES.items()}, **{_key(model): model for model in MODELS}}


def find_model(name: str) -> str | None:
    """Return the zoo's model that ``name`` (or a short name, or another spelling) is, or None.

    Example:
        >>> find_model("AlexNet"), find_model("ResNet-50"), find_model("photo.jpg")
        ('bvlc_alexnet', 'resnet50', None)
    """
    return _BY_KEY.get(_key(name))


def known_names() -> list[str]:
    """Return the names to offer for completion: the short name of each model where there is one, else its own."""
    short: dict[str, str] = {}
    for alias, model in ALIASES.items():
        short.setdefault(model, alias)
    return sorted({short.get(model, model) for model in MODELS} | set(MODELS))


def short_name(model: str) -> str:
    """Return the name without its publisher, where that is one of the model's names: ``alexnet`` for ``bvlc_alexnet``.

    Args:
        model: One of :data:`MODELS`.
    """
    shorter = (model.removeprefix("bvlc_"), model.removeprefix("bvlc_reference_"))
    return next((name for name in shorter if name in ALIASES), model)


def get_name(name: str) -> str:
    """Return the zoo's model that ``name`` is.

    Raises:
        ZooError: It is not a model of the zoo; names the closest one, or says that a file does not exist.
    """
    found = find_model(name)
    if found is None and _is_path(name):
        if not Path(name).exists():
            raise ZooError("no such file", path=name, hint="check the path, or give a network of the zoo (caffetools zoo list)")
        raise ZooError(
            f"'{name}' is a file or folder, and the name of a network of the zoo is expected",
            hint="files are given without --model; caffetools zoo list shows the networks",
        )
    if found is None:
        raise ZooError(f"the zoo has no model '{name}'", hint=_hint(name))
    return found


def is_model(text: str | os.PathLike[str]) -> bool:
    """Return whether ``text`` is a model of the zoo, and not a file that exists.

    A folder is never given for a net or for weights; one of that name is what ``zoo copy NAME NAME`` writes.
    """
    return isinstance(text, str) and not Path(text).is_file() and find_model(text) is not None


def _is_path(name: str) -> bool:
    """Return whether a word that names no model is meant as a file: it has a folder or the ending of one, or exists."""
    path = Path(name)
    return path.exists() or len(path.parts) > 1 or name.startswith(("./", "../", "~")) or path.suffix.lower() in _ENDINGS


def _hint(name: str) -> str:
    close = closest(name.lower(), known_names()) or next((known for known in known_names() if name and name.lower() in known), None)
    return f"it has {', '.join(MODELS)} (caffetools zoo list)" if close is None else f"did you mean '{close}'?"
