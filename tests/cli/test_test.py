"""``caffetools test``: a net's scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest

from tests.cli.inprocess import Done, run
from tests.conftest import GOLDEN

LOGS = GOLDEN / "logs"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs the command line in this process, in the folder of the tiny net."""
    monkeypatch.chdir(LOGS)

    return partial(run, "test")


@pytest.mark.parametrize("net", [["net.prototxt"], ["--model", "net.prototxt"]])
def test_scores_are_logged_in_caffes_words(net: list[str], command: Callable[..., Done]) -> None:
    done = command(*net, "--weights", "tiny_iter_150.caffemodel", "--iterations", "4", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "caffe.cpp:304] Batch 3, loss = 0.006055" in done.stderr
    assert "caffe.cpp:309] Loss: 0.0051735" in done.stderr
    assert "caffe.cpp:321] accuracy = 1\n" in done.stderr
    assert "accuracy  1" in done.stdout


def test_json_is_all_there_is_on_stdout(command: Callable[..., Done]) -> None:
    done = command("net.prototxt", "--weights", "tiny_iter_150.caffemodel", "--iterations", "4", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["iterations"] == 4
    assert answer["outputs"]["accuracy"] == 1
    assert answer["outputs"]["loss"] == pytest.approx(0.00517359, rel=1e-3)
    assert answer["loss"] == pytest.approx(0.00517359, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["net.prototxt"], "--weights is missing"),
        (["--weights", "tiny_iter_150.caffemodel"], "give the net's prototxt once"),
        (["net.prototxt", "--weights", "absent.caffemodel"], "absent.caffemodel: cannot read"),
        (["net.prototxt", "--weights", "tiny_iter_150.solverstate"], "tiny_iter_150.solverstate"),
        (["net.prototxt", "--weights", "tiny_iter_150.caffemodel", "-n", "0"], "iterations must be at least 1"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, command: Callable[..., Done]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("caffetools: error: ")
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
