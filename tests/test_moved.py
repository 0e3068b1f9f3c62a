"""Old names of modules: they give the new modules, with a DeprecationWarning, for one more minor release."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import caffetools
from caffetools._moved import MOVED, _OldPackage
from caffetools.solver.control import RunControl


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
        "from caffetools.solver.external import Follower\nfrom caffetools.proto.dialect import forced\n"
        "from caffetools.proto.options import read_options\nfrom caffetools.solver import observers\n"
        "with forced('ssd'):\n    print(read_options().dialect, Follower is observers.Follower)"
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


def test_a_followed_log_of_an_observer_calls_its_former_hooks(tmp_path: Path) -> None:
    from caffetools.errors import CaffeToolsError
    from caffetools.proto.schema import SolverParameter
    from caffetools.solver.observers import Displayed, Followed, Follower, Observer

    losses = []

    class Early(Observer):
        def displayed(self, solver: RunControl, what: Displayed) -> None:
            losses.append(what.loss)
            if what.loss < 1:
                solver.stop()

    with pytest.warns(DeprecationWarning, match="CaffeTrainResult"):
        followed = Followed(tmp_path / "x.log")
    with pytest.warns(DeprecationWarning, match="CaffeLogFollower"):
        follower = Follower(SolverParameter(), followed, [Early()])
    follower.feed("I1124 03:22:05.190337 1 solver.cpp:289] Solving n\n")
    for iteration, loss in ((0, 1.5), (10, 0.5)):
        follower.feed(f"I1124 03:22:05.190337 1 solver.cpp:239] Iteration {iteration} (1 iter/s, 1s/1 iters), loss = {loss}\n")
        follower.feed(f"I1124 03:22:05.190337 1 solver.cpp:258]     Train net output #0: loss = {loss} (* 1 = {loss} loss)\n")
        line = f"I1124 03:22:05.190337 1 sgd_solver.cpp:112] Iteration {iteration}, lr = 0.1\n"
        if loss < 1:
            with pytest.raises(CaffeToolsError, match="was not started by caffetools; send SIGINT"):
                follower.feed(line)
        else:
            follower.feed(line)
    assert losses == [1.5, 0.5]
