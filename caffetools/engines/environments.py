"""Python environments of their own for engines that cannot share ours: OpenCV 4's Caffe importer, and a real Caffe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
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
        # A CPU build of Caffe 1.0 as a wheel, for Python 3.9. Its generated code registers caffe.proto a second time under later protobufs,
        # and pycaffe uses names that NumPy 1.24 removed.
        Recipe("caffe", "caffe", ("kendryte-caffe", "protobuf<3.21", "numpy<1.24"), "caffe", "3.9"),
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
    # A new folder each time: what was added before works until this one does. One that is interrupted is removed by the next.
    target = folder / f"venv-{uuid.uuid4().hex[:8]}"
    try:
        chosen = Path(python) if python is not None else _install(recipe, target, report)
        _check(recipe, chosen)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / _FILE, "w") as stream:
        stream.write(json.dumps({"name": name, "python": str(chosen.absolute())}) + "\n")
    for other in folder.glob("venv*"):
        if other != target and other not in chosen.absolute().parents:
            shutil.rmtree(other, ignore_errors=True)
    return Environment(recipe, chosen)


def _install(recipe: Recipe, target: Path, report: Callable[[str], object]) -> Path:
    uv = shutil.which("uv")
    base = "" if uv is not None else _find_python(recipe)
    target.parent.mkdir(parents=True, exist_ok=True)
    python = target / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    report(f"making {target}")
    if uv is not None:
        _run([uv, "venv", "--quiet", *(["--python", recipe.python] if recipe.python else []), str(target)])
    else:
        _run([base, "-m", "venv", str(target)])
    report(f"installing {' '.join(recipe.packages)}")
    pip = (
        [uv, "pip", "install", "--python", str(python)]
        if uv is not None
        else [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    )
    hint = "are the package index and the network reachable? --python takes an interpreter that has the packages"
    _run([*pip, "--quiet", *recipe.packages], hint=hint)
    return python


def _find_python(recipe: Recipe) -> str:
    """Return an interpreter of the recipe's version: on PATH, or of pyenv's; one that does not start (pyenv's shims) is passed over."""
    if recipe.python in ("", f"{sys.version_info.major}.{sys.version_info.minor}"):
        return sys.executable
    name = f"python{recipe.python}"
    found = [shutil.which(name, path=folder) for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found += [str(path) for path in sorted(pyenv.glob(f"versions/{recipe.python}.*/bin/{name}"), reverse=True)]
    for python in filter(None, found):
        with suppress(EngineError):
            _run([python, "-c", "import ensurepip, venv"])
            return python
    raise EngineError(
        f"the engine '{recipe.name}' needs Python {recipe.python}, which is not on PATH" + (" as one that starts" if any(found) else ""),
        hint="install it or uv, or give an interpreter that has it with --python",
    )


def _check(recipe: Recipe, python: Path) -> None:
    code = f"import numpy, {recipe.module}"
    if recipe.backend == "opencv":
        code += "; import cv2; assert hasattr(cv2.dnn, 'readNetFromCaffe'), 'OpenCV ' + cv2.__version__ + ' has no Caffe importer'"
    with tempfile.TemporaryDirectory() as empty:
        # In an empty folder, where nothing is imported by chance.
        _run([str(python), "-c", code], cwd=empty)


def _run(command: Sequence[str], cwd: str | None = None, hint: str = "") -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        # pip's first error is the reason; what follows it is advice.
        reason = next((line for line in lines if line.lower().startswith("error:")), lines[-1] if lines else f"exit code {done.returncode}")
        raise EngineError(f"`{' '.join(command[:4])} …` failed: {reason}", hint=hint)
