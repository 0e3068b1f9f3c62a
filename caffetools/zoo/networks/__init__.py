"""Our own builders of the zoo's networks, and where the prototxts that they write are found.

``python -m caffetools.zoo.networks`` writes them anew; a test holds the files against the builders.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from caffetools.errors import ZooError
from caffetools.zoo.resources import prototxt_file

MODELS = ("lenet", "bvlc_alexnet", "bvlc_reference_caffenet", "bvlc_googlenet", "squeezenet_v1.0", "squeezenet_v1.1")
KINDS = ("train_val", "deploy", "solver")


def prototxt_path(model: str, kind: str = "train_val") -> Path:
    """The shipped prototxt of ``model`` (one of :data:`MODELS`); ``kind`` is train_val, deploy or solver.

    Raises:
        ZooError: there is no such model or kind, or the file is not installed.
    """
    check_names(model, kind)
    return prototxt_file(f"{model}/{kind}.prototxt")


def build(model: str, kind: str = "train_val") -> Any:
    """Build the ``NetParameter`` of ``model``, or its ``SolverParameter`` where ``kind`` is solver. Raises :class:`ZooError`."""
    from caffetools.zoo.networks import alexnet, googlenet, lenet, squeezenet

    check_names(model, kind)
    builders: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "lenet": (lenet, ()),
        "bvlc_alexnet": (alexnet, (alexnet.ALEXNET,)),
        "bvlc_reference_caffenet": (alexnet, (alexnet.CAFFENET,)),
        "bvlc_googlenet": (googlenet, ()),
        "squeezenet_v1.0": (squeezenet, (squeezenet.V1_0,)),
        "squeezenet_v1.1": (squeezenet, (squeezenet.V1_1,)),
    }
    module, variant = builders[model]
    return getattr(module, kind)(*variant)


def check_names(model: str, kind: str) -> None:
    """Raise :class:`ZooError` where ``model`` or ``kind`` is unknown; the message has the known ones."""
    if model not in MODELS:
        close = difflib.get_close_matches(model, MODELS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ZooError(f"no network is called '{model}'{hint} Known are {', '.join(MODELS)}")
    if kind not in KINDS:
        raise ZooError(f"a network has no '{kind}' prototxt; there are {', '.join(KINDS)}")
