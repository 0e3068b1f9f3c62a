"""Fixtures of all tests: the golden data's folders, and an environment without this machine's engines."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The time that an example takes varies on a machine with other work.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

GOLDEN = Path(__file__).parent / "golden"
# Other people's prototxts and models, which are not ours to copy; only tests with the marker ``wild`` read them (make wild).
SHARED = Path(os.environ.get("CAFFETOOLS_WILD") or Path(__file__).parent.parent.parent / "shared")

# Files that take long, the longest first. Several workers begin with them, so that they end together.
LONG = (
    "solver/test_parallel.py",
    "documents/test_commands.py",
    "project/test_demo.py",
    "cli/test_kill.py",
    "bundle/test_runner.py",
    "proto/test_fuzz.py",
    "solver/test_resume.py",
    "zoo/test_published.py",
    "onnx/test_import.py",
    "pycaffe/test_shims.py",
    "net/test_golden_nets.py",
    "onnx/test_golden_layers.py",
    "project/test_finetune.py",
    "cli/test_train.py",
    "data/test_dataset_failures.py",
    "cli/test_visualize.py",
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script that runs the tests in the background makes them deaf to Ctrl-C, and with them the processes that they interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; within a file, and among the others, the order is as it was."""
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With ``-n``, give each file to one worker, whose module fixtures are made once, in the order of the collection."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def no_engines_of_this_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments that ``caffetools engine add`` made here must not change what tests see; those that need one add it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.fixture
def golden() -> Path:
    """What real Caffe computed."""
    return GOLDEN


@pytest.fixture
def wild() -> Path:
    """Prototxts from public repositories; they are not ours to copy, so tests that ask for them have the marker ``wild``."""
    assert (SHARED / "wild").is_dir(), f"there is no folder {SHARED}/wild; set CAFFETOOLS_WILD to the folder that has it"
    return SHARED / "wild"


@pytest.fixture
def wild_golden() -> Path:
    """What was computed of other people's files; for tests with the marker ``wild``."""
    assert (SHARED / "golden").is_dir(), f"there is no folder {SHARED}/golden; set CAFFETOOLS_WILD to the folder that has it"
    return SHARED / "golden"
