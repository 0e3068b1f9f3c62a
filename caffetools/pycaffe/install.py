"""Making ``import caffe`` mean :mod:`caffetools.pycaffe`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

from caffetools.errors import CaffeToolsError

# Module of `caffe` -> where it is here.
MODULES = {
    "caffe": "caffetools.pycaffe",
    "caffe.classifier": "caffetools.pycaffe.classifier",
    "caffe.coord_map": "caffetools.pycaffe.coord_map",
    "caffe.detector": "caffetools.pycaffe.detector",
    "caffe.draw": "caffetools.pycaffe.draw",
    "caffe.io": "caffetools.pycaffe.io",
    "caffe.net_spec": "caffetools.pycaffe.net_spec",
    "caffe.proto": "caffetools.pycaffe.proto",
    "caffe.proto.caffe_pb2": "caffetools.pycaffe.proto.caffe_pb2",
    "caffe.pycaffe": "caffetools.pycaffe",
    "caffe._caffe": "caffetools.pycaffe",
}


def install_as_caffe(*, force: bool = False) -> None:
    """Make ``import caffe``, ``from caffe import layers as L``, ``import caffe.io`` and the like mean caffetools, in this process.

    Args:
        force: Do so also where a real Caffe could be imported, or has been.

    Raises:
        CaffeToolsError: a real Caffe is importable, so scripts might mean that one; names where it is.
    """
    real = real_caffe()
    if real and not force:
        raise CaffeToolsError(
            f"a Caffe is installed here already ({real}); call install_as_caffe(force=True), or `caffetools run --force`, "
            "to run scripts on caffetools nevertheless"
        )
    for name in [name for name in sys.modules if name == "caffe" or name.startswith("caffe.")]:
        del sys.modules[name]
    sys.modules.update(_ours())


def is_installed() -> bool:
    """Whether ``caffe`` means caffetools in this process."""
    return getattr(sys.modules.get("caffe"), "__name__", None) == MODULES["caffe"]


def real_caffe() -> str | None:
    """Where a Caffe that is not ours would be imported from; None where there is none."""
    if "caffe" in sys.modules:
        return None if is_installed() else str(getattr(sys.modules["caffe"], "__file__", None) or "loaded already")
    spec = importlib.machinery.PathFinder.find_spec("caffe")
    # A mere folder called caffe (a checkout beside the script) is no module.
    return spec.origin if spec is not None and spec.origin and spec.loader is not None else None


@contextlib.contextmanager
def caffe_is_ours() -> Iterator[None]:
    """Import users' modules inside: ``caffe`` is caffetools there, and stays so unless there is a real one."""
    if real_caffe() is None:
        install_as_caffe()
        yield
        return
    before = {name: module for name, module in sys.modules.items() if name == "caffe" or name.startswith("caffe.")}
    install_as_caffe(force=True)
    try:
        yield
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _ours() -> dict[str, ModuleType]:
    return {name: importlib.import_module(here) for name, here in MODULES.items()}
