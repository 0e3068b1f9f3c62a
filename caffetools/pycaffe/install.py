"""Making ``import caffe`` yield :mod:`caffetools.pycaffe`, for good or within a context."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from caffetools.errors import CaffeToolsError

# Module of `caffe` → the module that stands for it. `caffe` itself and `caffe.layers` are made by `_own_modules`.
MODULES = {
    "caffe": "caffetools.pycaffe",
    "caffe._caffe": "caffetools.pycaffe._caffe",
    "caffe.classifier": "caffetools.pycaffe.classifier",
    "caffe.coord_map": "caffetools.pycaffe.coord_map",
    "caffe.detector": "caffetools.pycaffe.detector",
    "caffe.draw": "caffetools.pycaffe.draw",
    "caffe.io": "caffetools.pycaffe.io",
    "caffe.layers": "caffetools.pycaffe.net_spec",
    "caffe.net_spec": "caffetools.pycaffe.net_spec",
    "caffe.proto": "caffetools.pycaffe.proto",
    "caffe.proto.caffe_pb2": "caffetools.pycaffe.proto.caffe_pb2",
    "caffe.pycaffe": "caffetools.pycaffe.pycaffe",
}


# In the package caffe of `caffetools shims install`, which is not a Caffe of its own.
SHIM_MARK = "Written by caffetools shims install"


def install_as_caffe(*, force: bool = False) -> None:
    """Make ``import caffe``, ``from caffe import layers as L``, ``import caffe.io`` and the like yield caffetools in this process.

    Args:
        force: Do so also where a real Caffe could be imported, or has been.

    Raises:
        CaffeToolsError: A real Caffe is importable, so scripts might be written for that one; names its file.
    """
    real = real_caffe()
    if real and not force:
        raise CaffeToolsError(
            f"a Caffe is installed here already ({real}); call install_as_caffe(force=True), or `caffetools run --force`, "
            "to run scripts on caffetools nevertheless"
        )
    with _alias.lock:
        if not is_installed():
            for name in _caffe_names():
                del sys.modules[name]
            sys.modules.update(_alias.modules())
        _alias.keep()


def is_installed() -> bool:
    """Return whether ``caffe`` is caffetools in this process now."""
    return isinstance(sys.modules.get("caffe"), _CaffeModule)


def real_caffe() -> str | None:
    """Return the file of a Caffe that is not ours and would be imported; None where there is none.

    A folder called caffe without a module is not one, nor are the sources of a Caffe that was never compiled.
    """
    if "caffe" in sys.modules:
        loaded = getattr(sys.modules["caffe"], "__file__", None)
        return None if is_installed() or (loaded and _is_shim(Path(loaded))) else str(loaded or "loaded already")
    spec = importlib.machinery.PathFinder.find_spec("caffe")
    if spec is None or not spec.origin or spec.loader is None:
        return None
    folder = Path(spec.origin).parent
    if _is_shim(Path(spec.origin)):
        return None
    is_source = spec.name == "caffe" and (folder / "pycaffe.py").exists() and not any(folder.glob("_caffe*.[spd][oyl]*"))
    return None if is_source else spec.origin


def _is_shim(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return SHIM_MARK.encode() in stream.read(200)
    return False


def import_caffe_as_caffetools() -> contextlib.AbstractContextManager[None]:
    """Return a context in which ``caffe`` is caffetools: for importing and running users' layers. ``sys.modules`` is restored after it."""
    return _alias.context()


class _CaffeModule(ModuleType):
    """The module ``caffe``: the names of :mod:`caffetools.pycaffe`, and as submodules also those of Caffe folders on ``sys.path``."""

    def __init__(self) -> None:
        super().__init__("caffe", importlib.import_module("caffetools.pycaffe").__doc__)
        self.__package__ = "caffe"
        self.__file__ = str(Path(__file__).with_name("__init__.py"))
        self.__path__ = ForkFolders()
        self.__spec__ = importlib.machinery.ModuleSpec("caffe", None, origin=self.__file__, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__version__", "__all__"):
            raise AttributeError(name)
        return getattr(importlib.import_module("caffetools.pycaffe"), name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(importlib.import_module("caffetools.pycaffe"))})


class ForkFolders(list[str]):
    """The folders ``caffe`` of ``sys.path`` as it is now: a fork's python folder has modules there that BVLC's Caffe has not.

    Args:
        inside: A folder inside of each of them.
    """

    def __init__(self, inside: str = ""):
        super().__init__()
        self._inside = inside

    def __iter__(self) -> Iterator[str]:
        for entry in sys.path:
            folder = Path(entry or ".", "caffe", self._inside)
            if folder.is_dir():
                yield str(folder)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Alias:
    """Which modules ``caffe`` and ``caffe.*`` are, for good or within contexts, which several threads may enter at once."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._depth = 0
        # Set where caffe was installed for good before the context, or is so inside it: the names are not removed again.
        self._installed = False
        self._before: dict[str, ModuleType] = {}
        self._modules: dict[str, ModuleType] = {}
        self._count = 0

    def modules(self) -> dict[str, ModuleType]:
        """Return the modules by name, and those of forks that were imported through them."""
        if not self._modules:
            self._modules = _own_modules()
        return self._modules

    def keep(self) -> None:
        """Leave the modules there when the present contexts end."""
        self._installed = True

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._exit()

    def _enter(self) -> None:
        with self.lock:
            self._depth += 1
            if self._depth > 1:
                return
            self._installed = is_installed()
            if self._installed:
                return
            self._before = {name: sys.modules.pop(name) for name in _caffe_names()} if "caffe" in sys.modules else {}
            sys.modules.update(self.modules())
            self._count = len(sys.modules)

    def _exit(self) -> None:
        with self.lock:
            self._depth -= 1
            if self._depth or self._installed:
                return
            if len(sys.modules) != self._count:
                self._modules.update({name: sys.modules[name] for name in _caffe_names()})
            for name in self._modules:
                sys.modules.pop(name, None)
            sys.modules.update(self._before)


_alias = _Alias()


def _caffe_names() -> list[str]:
    return [name for name in list(sys.modules) if name == "caffe" or name.startswith("caffe.")]


def _own_modules() -> dict[str, ModuleType]:
    modules = {name: importlib.import_module(here) for name, here in MODULES.items()}
    layers: Any = modules["caffe.net_spec"].layers
    layers.__name__, layers.__path__ = "caffe.layers", ForkFolders("layers")
    layers.__spec__ = importlib.machinery.ModuleSpec("caffe.layers", None, is_package=True)
    modules["caffe"], modules["caffe.layers"] = _CaffeModule(), layers
    return modules
