"""Settings of the process that several threads change for a while come back as they were."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from caffetools.util.process_settings import (
    environment_restored,
    import_path_kept,
    logger_level,
    warnings_ignored,
    working_folder_importable,
)


def overlapping(make: Callable[[], AbstractContextManager[None]], inside: Callable[[], object]) -> None:
    """Enter ``make()`` in a thread, then in another, and leave the first before the second; ``inside`` is called with one left."""
    entered, left = threading.Event(), threading.Event()

    def first() -> None:
        with make():
            entered.set()
            second.wait(30)
        left.set()

    second = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(30)
    with make():
        second.set()
        left.wait(30)
        inside()
    thread.join(30)


def test_warnings_are_ignored_until_the_last_thread_has_left_and_shown_again_then() -> None:
    before = list(warnings.filters)

    def inside() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("not to be shown", stacklevel=1)
        assert not caught

    overlapping(warnings_ignored, inside)
    assert list(warnings.filters) == before


def test_a_loggers_level_comes_back() -> None:
    logger = logging.getLogger("caffetools.tests.level")
    logger.setLevel(logging.INFO)
    overlapping(lambda: logger_level(logger.name, logging.ERROR), lambda: logger.level == logging.ERROR or pytest.fail("level"))
    assert logger.level == logging.INFO


def test_the_working_folder_is_importable_until_the_last_thread_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    overlapping(working_folder_importable, lambda: sys.path[-1] == str(tmp_path) or pytest.fail("path"))
    assert sys.path == before


def test_the_environment_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFFETOOLS_KEPT", "1")
    monkeypatch.setenv("CAFFETOOLS_REMOVED", "1")
    with environment_restored():
        os.environ["CAFFETOOLS_KEPT"], os.environ["CAFFETOOLS_NEW"] = "2", "3"
        del os.environ["CAFFETOOLS_REMOVED"]
    assert (os.environ["CAFFETOOLS_KEPT"], os.environ["CAFFETOOLS_REMOVED"]) == ("1", "1") and "CAFFETOOLS_NEW" not in os.environ


def test_a_package_leaves_no_folder_of_its_own_on_the_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "greedy" / "inner").mkdir(parents=True)
    (tmp_path / "greedy" / "__init__.py").write_text("import os, sys\nsys.path.append(os.path.join(os.path.dirname(__file__), 'inner'))\n")
    (tmp_path / "greedy" / "inner" / "greedy_part.py").write_text("")
    (tmp_path / "greedy" / "later.py").write_text("import greedy_part\n")
    before = list(sys.path)
    with import_path_kept("greedy"):
        importlib.import_module("greedy")
        assert sys.path != before
        sys.path.append(str(tmp_path / "other"))
    assert sys.path == [*before, str(tmp_path / "other")]
    sys.path.remove(str(tmp_path / "other"))
    with import_path_kept("greedy"):
        # As onnxruntime's quantization after its conversion to fp16: the package is there, and does not add its folder again.
        importlib.import_module("greedy.later")
    assert sys.path == before
    for name in ("greedy", "greedy.later", "greedy_part"):
        del sys.modules[name]
