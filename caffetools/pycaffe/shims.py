"""Programs called ``caffe``, ``convert_imageset`` and so on, and a package ``caffe`` in this environment, for scripts written for Caffe.

What was written is recorded with its checksum, so that removing takes away exactly that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from caffetools.errors import CaffeToolsError, WriteFailed
from caffetools.pycaffe.install import SHIM_MARK, real_caffe
from caffetools.util.files import write_text

# Programs of a Caffe build: in tools/ and examples/ (compiled, with .bin too where scripts call them so), in tools/extra and python/ (Python).
PROGRAMS = (
    *("caffe", "caffe.bin", "convert_imageset", "convert_imageset.bin", "compute_image_mean", "compute_image_mean.bin"),
    *("upgrade_net_proto_text", "upgrade_net_proto_text.bin", "upgrade_net_proto_binary", "upgrade_net_proto_binary.bin"),
    *("upgrade_solver_proto_text", "upgrade_solver_proto_text.bin", "extract_features", "extract_features.bin"),
    *("device_query", "train_net", "finetune_net", "test_net", "net_speed_benchmark"),
    *("convert_mnist_data", "convert_mnist_data.bin", "convert_mnist_siamese_data", "convert_mnist_siamese_data.bin"),
    *("convert_cifar_data", "convert_cifar_data.bin", "draw_net.py", "parse_log.py", "plot_training_log.py"),
)
_RECORD = "caffetools-shims.json"

_PACKAGE = f'''"""{SHIM_MARK}: ``import caffe`` is caffetools in this environment. `caffetools shims remove` removes it."""

import caffetools

caffetools.install_as_caffe(force=True)
'''


@dataclass(frozen=True)
class ShimStatus:
    """What ``shims install`` has written.

    Attributes:
        files: The files that exist as they were written.
        changed: Files that were changed since, which ``remove`` leaves.
        missing: Files that were removed by hand.
        package: The package ``caffe`` of this environment; None if it is not installed.
        real: A Caffe that is not caffetools'; None if there is none.
    """

    files: tuple[Path, ...] = ()
    changed: tuple[Path, ...] = ()
    missing: tuple[Path, ...] = ()
    package: Path | None = None
    real: str | None = None


def install(bin_folder: Path | None = None) -> list[Path]:
    """Write the programs into a folder, and the package ``caffe`` into this environment.

    Args:
        bin_folder: The folder, created if missing; by default that of this environment's programs.

    Returns:
        The paths written.

    Raises:
        CaffeToolsError: A real Caffe is in this environment or on PATH, or a file of another origin is in the way; nothing is written then.
        WriteFailed: A file cannot be written.
    """
    known = _read_record()
    package = site_folder() / "caffe" / "__init__.py"
    folder = (bin_folder or Path(sysconfig.get_path("scripts"))).absolute()
    if real := real_caffe():
        raise CaffeToolsError("a real Caffe is installed in this environment", path=real, hint="the shims would hide it; use another one")
    program = shutil.which("caffe")
    if bin_folder is None and program is not None and str(Path(program).absolute()) not in known:
        raise CaffeToolsError("a program of this name is on PATH", path=program, hint="choose a folder of your own with --bin DIR")
    texts = {folder / name: _program(name) for name in PROGRAMS} | {package: _PACKAGE}
    for path in texts:
        if os.path.lexists(path) and str(path) not in known:
            raise CaffeToolsError("exists and was not written by caffetools", path=path, hint="choose another folder with --bin DIR")
    record = dict(known)
    for path, text in texts.items():
        record[str(path)] = _digest(text.encode())
    # First the record, so that an interrupted installation can be removed.
    _write_record(record)
    for path, text in texts.items():
        write_text(path, text)
        if path != package:
            _make_executable(path)
    return list(texts)


def remove() -> tuple[list[Path], list[Path]]:
    """Remove what :func:`install` wrote and nobody has changed since; return the paths removed and those left.

    Raises:
        WriteFailed: A file cannot be removed.
    """
    state, record = status(), _read_record()
    package = (site_folder() / "caffe").absolute()
    for path in state.files:
        try:
            path.unlink()
        except OSError as error:
            raise WriteFailed(path, error.strerror) from error
    if package / "__init__.py" in state.files:
        shutil.rmtree(package / "__pycache__", ignore_errors=True)
        # It is left where somebody has put files into it.
        with suppress(OSError):
            package.rmdir()
    left = {str(path): record[str(path)] for path in state.changed}
    if left:
        _write_record(left)
    else:
        _record_path().unlink(missing_ok=True)
    return list(state.files), list(state.changed)


def status() -> ShimStatus:
    """Return what is installed now."""
    files: list[Path] = []
    changed: list[Path] = []
    missing: list[Path] = []
    for name, digest in _read_record().items():
        path = Path(name)
        if not path.is_file():
            missing.append(path)
        else:
            (files if _digest(path.read_bytes()) == digest else changed).append(path)
    package = site_folder() / "caffe" / "__init__.py"
    return ShimStatus(tuple(files), tuple(changed), tuple(missing), package if package in files else None, real_caffe())


def site_folder() -> Path:
    """Return the folder of this environment's packages."""
    return Path(sysconfig.get_path("purelib")).absolute()


def _program(name: str) -> str:
    """Return the text of a program: ``caffe`` takes an action, the others are commands."""
    word = "caffe" if name.startswith("caffe") else name
    return f'#!/bin/sh\n# {SHIM_MARK}.\nexec {shlex.quote(sys.executable)} -m caffetools {word} "$@"\n'


def _make_executable(path: Path) -> None:
    try:
        path.chmod(path.stat().st_mode | 0o111)
    except OSError as error:
        raise WriteFailed(path, error.strerror) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _record_path() -> Path:
    return site_folder() / _RECORD


def _read_record() -> dict[str, str]:
    """Return path → checksum of what was written."""
    path = _record_path()
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(digest) for name, digest in values.items()}
    except (OSError, ValueError, AttributeError):
        raise CaffeToolsError("damaged, so it is not known what to remove", path=path, hint="remove the shims by hand") from None


def _write_record(record: dict[str, str]) -> None:
    write_text(_record_path(), json.dumps(record, indent=2) + "\n")
