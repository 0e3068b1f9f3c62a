"""A user's own code: plugins, whose layers are registered, and the classes of Python layers, from where Caffe looks for them."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import caffetools
from caffetools.errors import CaffeToolsError, NetError, did_you_mean, mark_user_error
from caffetools.layers import registry
from caffetools.util.process_settings import working_folder_importable

log = logging.getLogger("caffetools.pycaffe")


def load_plugin(path: str | os.PathLike[str]) -> list[str]:
    """Run the Python file ``path``, which registers layer classes (:func:`caffetools.layers.registry.register`).

    The file's code runs with the user's rights: name only files that you trust. A file that was loaded before is not run again.

    Returns:
        The layer types that it registered.

    Raises:
        CaffeToolsError: there is no such file, its code fails, a type is taken, or it registers nothing.
    """
    file = Path(path).resolve()
    name = f"caffetools_plugin_{file.stem}_{abs(hash(str(file))):x}"
    before = set(registry.layer_types())
    if name in sys.modules:
        return list(getattr(sys.modules[name], "caffetools_types", []))
    spec = importlib.util.spec_from_file_location(name, file) if file.suffix == ".py" and file.is_file() else None
    if spec is None or spec.loader is None:
        raise CaffeToolsError(f"the plugin {os.fspath(path)} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        registry.unregister(set(registry.layer_types()) - before)
        raise CaffeToolsError(
            f"the plugin cannot be loaded: {type(error).__name__}: {error}", path=os.fspath(path), line=_line(error, file)
        ) from error
    added = sorted(set(registry.layer_types()) - before)
    if not added:
        raise CaffeToolsError(f'the plugin {os.fspath(path)} registers no layer; decorate its classes with @register("Type")')
    module.caffetools_types = added  # type: ignore[attr-defined]
    return added


def _line(error: Exception, file: Path) -> int:
    """Return the line of ``file`` in which ``error`` was raised; 0 if unknown."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno or 0
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return (lines[-1] or 0) if lines else 0


def failed_place(error: BaseException) -> str:
    """Return the layer, file, line and method of a plugin in which ``error`` was raised; empty where none was running.

    A plugin is what registers layers and is not ours: a file of ``--plugin``, or an installed package.
    """
    classes = (layer_class for layer_class in registry.layer_types().values() if not layer_class.__module__.startswith("caffetools."))
    files = {getattr(sys.modules.get(layer_class.__module__), "__file__", None) for layer_class in classes} - {None}
    frames = [frame for frame in traceback.walk_tb(error.__traceback__) if frame[0].f_code.co_filename in files]
    if not frames:
        return ""
    frame, line = frames[-1]
    layers = [name for name in (getattr(inner.f_locals.get("self"), "name", None) for inner, _ in frames) if isinstance(name, str)]
    where = f"layer '{layers[-1]}': " if layers else ""
    return f"{where}{frame.f_code.co_filename}:{line}: {frame.f_code.co_name} failed"


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
    with working_folder_importable(), caffetools.import_caffe_as_caffetools():
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


def _file(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or "built in")
