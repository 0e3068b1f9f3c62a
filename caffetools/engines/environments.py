"""Python environments of their own for engines that cannot share ours: OpenCV 4's Caffe importer, and a real Caffe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from caffetools.engines.base import EngineError
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]
_FILE = "engine.json"


@dataclass(frozen=True)
class Recipe:
    """How an engine's environment is made.

    Attributes:
        name: What ``engine add`` calls it.
        backend: The worker's class.
        packages: What pip installs.
        module: What must be importable afterwards.
        python: The Python version that the packages need, ``""`` for ours.
    """

    name: str
    backend: str
    packages: tuple[str, ...]
    module: str
    python: str = ""


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # OpenCV 5 has no Caffe importer any more.
        Recipe("opencv4", "opencv", ("opencv-python-headless<5", "numpy"), "cv2"),
        # A CPU build of Caffe 1.0 as a wheel, for Python 3.9.
        Recipe("caffe", "caffe", ("kendryte-caffe", "numpy<2"), "caffe", "3.9"),
    )
}


@dataclass(frozen=True)
class Environment:
    """An interpreter that can run an engine."""

    recipe: Recipe
    python: Path


def environments_folder() -> Path:
    """Return where environments are: ``$XDG_DATA_HOME/caffetools/engines``, usually ``~/.local/share/caffetools/engines``."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "share") / "caffetools" / "engines"


def find_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``. Raises :class:`EngineError` for an unknown one."""
    if name not in RECIPES:
        raise EngineError(f"there is no recipe for an engine '{name}'; there are ones for {', '.join(RECIPES)}")
    return RECIPES[name]


def find_environment(name: str) -> Environment:
    """Return the environment that was added for ``name``. Raises :class:`EngineError` where there is none."""
    recipe = find_recipe(name)
    try:
        settings = json.loads((environments_folder() / name / _FILE).read_text())
        python = Path(settings["python"])
    except (OSError, ValueError, KeyError, TypeError):
        raise EngineError(f"the engine '{name}' has no environment here", hint=f"make one with `caffetools engine add {name}`") from None
    if not python.is_file():
        raise EngineError(f"the engine '{name}' was added with {python}, which is not there", hint=f"`caffetools engine add {name}`")
    return Environment(recipe, python)


def add_environment(name: str, python: PathLike | None = None, report: Callable[[str], object] = lambda line: None) -> Environment:
    """Make an environment for ``name`` with uv or pip, or take an interpreter that has what it needs.

    Args:
        name: ``opencv4`` or ``caffe``.
        python: An interpreter to use as it is; None makes a virtual environment and installs the packages.
        report: Receives a line for each step.

    Raises:
        EngineError: The recipe is unknown, its Python version is not installed, the installation fails, or the interpreter cannot
            import what the engine needs.
    """
    recipe, folder = find_recipe(name), environments_folder() / name
    chosen = Path(python) if python is not None else _install(recipe, folder, report)
    _check(recipe, chosen)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / _FILE, "w") as stream:
        stream.write(json.dumps({"name": name, "python": str(chosen.absolute())}) + "\n")
    return Environment(recipe, chosen)


def _install(recipe: Recipe, folder: Path, report: Callable[[str], object]) -> Path:
    target, uv = folder / "venv", shutil.which("uv")
    folder.mkdir(parents=True, exist_ok=True)
    python = target / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    report(f"making {target}")
    if uv is not None:
        _run([uv, "venv", "--quiet", "--allow-existing", *(["--python", recipe.python] if recipe.python else []), str(target)])
        report(f"installing {' '.join(recipe.packages)}")
        _run([uv, "pip", "install", "--quiet", "--python", str(python), *recipe.packages])
        return python
    base = shutil.which(f"python{recipe.python}") if recipe.python else sys.executable
    if base is None:
        raise EngineError(
            f"the engine '{recipe.name}' needs Python {recipe.python}, which is not on PATH",
            hint="install it or uv, or give an interpreter that has it with --python",
        )
    _run([base, "-m", "venv", str(target)])
    report(f"installing {' '.join(recipe.packages)}")
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *recipe.packages])
    return python


def _check(recipe: Recipe, python: Path) -> None:
    code = f"import numpy, {recipe.module}"
    if recipe.backend == "opencv":
        code += "; import cv2; assert hasattr(cv2.dnn, 'readNetFromCaffe'), 'OpenCV ' + cv2.__version__ + ' has no Caffe importer'"
    with tempfile.TemporaryDirectory() as empty:
        # In an empty folder, where nothing is imported by chance.
        _run([str(python), "-c", code], cwd=empty)


def _run(command: Sequence[str], cwd: str | None = None) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise EngineError(f"`{' '.join(command[:4])} …` failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
