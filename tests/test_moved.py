"""Old names of modules: they give the new modules, with a DeprecationWarning, for one more minor release."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

import caffetools
from caffetools._moved import MOVED, _OldPackage


@pytest.fixture(autouse=True)
def no_old_packages() -> Iterator[None]:
    """Old packages are attributes of ``caffetools`` once they were imported; other tests look at the public functions of these names."""
    yield
    for name, value in list(vars(caffetools).items()):
        if isinstance(value, _OldPackage):
            delattr(caffetools, name)


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_gives_the_new_module(old: str) -> None:
    sys.modules.pop(f"caffetools.{old}", None)
    with pytest.warns(DeprecationWarning, match="has moved to"):
        module = importlib.import_module(f"caffetools.{old}")
    assert module is importlib.import_module(f"caffetools.{MOVED[old]}")
    assert module.__spec__ is not None and module.__spec__.name == f"caffetools.{MOVED[old]}"


def test_renamed_names_of_a_moved_module_are_those_of_today() -> None:
    script = (
        "from caffetools.solver.observers import Observer\nfrom caffetools.proto.dialect import forced\n"
        "from caffetools.proto.options import read_options\nfrom caffetools.solver.callbacks import Callback\n"
        "with forced('ssd'):\n    print(read_options().dialect, Observer is Callback)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "ssd True\n"


def test_old_names_work_in_every_form_of_import() -> None:
    script = "from caffetools.locks import file_lock\nfrom caffetools.proto import dialect\nimport caffetools.deploy.classifier as c\nprint(c.__name__)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "caffetools.infer.classifier\n"


def test_a_public_function_works_where_an_old_package_has_its_name() -> None:
    script = (
        "import caffetools.deploy.classifier\nimport caffetools as ct\n"
        "net = ct.deploy(ct.zoo_prototxt('lenet', 'train_val'), input_shape=(1, 1, 28, 28))\nprint(net.layer[-1].top[0])\n"
        "import caffetools.deploy.features as f\nprint(f.__name__, ct.deploy(net).layer[-1].top[0])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "prob\ncaffetools.infer.features prob\n"


def test_an_unknown_name_is_unknown() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("caffetools.nothing.here")
