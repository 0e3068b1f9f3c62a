"""Finding the classes of Python layers, where Caffe looks for them."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from caffetools.errors import NetError, did_you_mean
from caffetools.pycaffe.install import caffe_is_ours

log = logging.getLogger("caffetools.pycaffe")


def find_class(module: str, name: str, layer: str) -> Any:
    """The class ``name`` of ``module``, which is looked for on ``sys.path`` and in the current directory.

    Raises:
        NetError: module or class are not given, not found, or the module fails; names ``layer``.
    """
    if not module or not name:
        raise NetError("a Python layer needs python_param { module: ... layer: ... }", layer=layer)
    loaded = _load(module, layer)
    found = getattr(loaded, name, None)
    if found is None:
        raise NetError(f"the module '{module}' ({_file(loaded)}) has no class '{name}'{did_you_mean(name, dir(loaded))}", layer=layer)
    if not (isinstance(found, type) and callable(getattr(found, "forward", None))):
        raise NetError(f"'{module}.{name}' ({_file(loaded)}) is not a class with a method forward", layer=layer)
    log.info("layer '%s' runs the Python code of %s.%s from %s", layer, module, name, _file(loaded))
    return found


def _load(module: str, layer: str) -> ModuleType:
    with _current_directory_too(), caffe_is_ours():
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module and not module.startswith(f"{error.name}."):
                raise NetError(
                    f"the Python module '{module}' needs the module '{error.name}', which is not installed", layer=layer
                ) from error
            raise NetError(
                f"there is no Python module '{module}' on sys.path or in {Path.cwd()}; put its folder on PYTHONPATH", layer=layer
            ) from None
        except Exception as error:
            raise NetError(f"the Python module '{module}' cannot be imported: {type(error).__name__}: {error}", layer=layer) from error


@contextlib.contextmanager
def _current_directory_too() -> Iterator[None]:
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _file(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or "built in")
