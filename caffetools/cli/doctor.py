"""``caffetools doctor`` and ``caffetools version``: what belongs into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Annotated, Any

import typer

import caffetools
from caffetools.cli.show import console, print_json

_PACKAGES = (
    "torch",
    "numpy",
    "protobuf",
    "onnx",
    "onnxruntime",
    "opencv-python-headless",
    "lmdb",
    "plyvel",
    "h5py",
    "typer",
    "rich",
    "matplotlib",
)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, devices, native kernels and folders: what belongs into a bug report."""
    facts = _facts()
    if as_json:
        print_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"{name:<{width}}  {value}", markup=False)


def version(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the version of caffetools."""
    if as_json:
        print_json({"caffetools": caffetools.__version__})
        return
    typer.echo(f"caffetools {caffetools.__version__}")


def _facts() -> dict[str, Any]:
    import torch

    from caffetools.layers import native
    from caffetools.util.threads import cpu_count
    from caffetools.zoo.fetch import MIRROR, cache_folder

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "caffetools": caffetools.__version__,
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        **versions,
        "CPU cores": os.cpu_count(),
        "threads used": cpu_count(),
        "torch threads": torch.get_num_threads(),
        "GPUs": ", ".join(devices) or "none",
        "native kernels": native.status().removeprefix("native kernels are "),
        "zoo cache": str(cache_folder()),
        "zoo mirror": os.environ.get(MIRROR, "") or "none",
    }
