"""A user's own layers, registered from a Python file that the user names."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from pathlib import Path

from caffetools.errors import CaffeToolsError
from caffetools.layers import registry


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
        return list(getattr(sys.modules[name], "_caffetools_types", []))
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
    module._caffetools_types = added  # type: ignore[attr-defined]
    return added


def _line(error: Exception, file: Path) -> int:
    """Return the line of ``file`` in which ``error`` was raised; 0 if unknown."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno or 0
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return (lines[-1] or 0) if lines else 0
