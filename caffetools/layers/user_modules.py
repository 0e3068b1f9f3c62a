"""Importing the classes of Python layers from where Caffe looks for them."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import caffetools
from caffetools.errors import NetError, did_you_mean, mark_user_error

log = logging.getLogger("caffetools.pycaffe")


def find_class(module: str, name: str, layer: str) -> Any:
    """Import the class ``name`` of ``module``, which is searched on ``sys.path`` and in the current directory.

    ``import caffe`` in the module yields caffetools.

    Args:
        module: Dotted name of the module.
        name: Name of the class.
        layer: Name of the layer, for errors.

    Raises:
        NetError: module or class are not given or not found, or the module needs one that is missing. What the module's own code
            raises is passed on, with a note that names the layer.
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
    with _current_directory_on_path(), caffetools.import_caffe_as_caffetools():
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module and not module.startswith(f"{error.name}."):
                raise NetError(
                    f"the Python module '{module}' needs the module '{error.name}', which is not installed", layer=layer
                ) from error
            raise NetError(
                f"the Python module '{module}' was not found on sys.path or in {Path.cwd()}; put its folder on PYTHONPATH", layer=layer
            ) from None
        except Exception as error:
            mark_user_error(error, f"layer '{layer}': the Python module '{module}' cannot be imported")
            raise


@contextlib.contextmanager
def _current_directory_on_path() -> Iterator[None]:
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
