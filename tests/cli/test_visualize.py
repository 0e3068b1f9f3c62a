"""The command ``caffetools visualize``."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner

from caffetools.cli.visualize import app
from caffetools.errors import DataError
from tests.conftest import GOLDEN

LOGS = GOLDEN / "logs"
WEIGHTS = str(LOGS / "tiny_iter_100.caffemodel")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_filters_are_drawn_and_described(tmp_path: Path) -> None:
    out = tmp_path / "new" / "filters.png"
    said = run("filters", WEIGHTS, "-o", str(out))
    assert f"{out}: 6 filters of one channel. Each filter is scaled by its own largest weight" in said
    assert cv2.imread(str(out)) is not None


def test_an_inner_product_is_drawn_as_the_picture_it_sees(tmp_path: Path) -> None:
    said = run("filters", WEIGHTS, "-o", str(tmp_path / "ip.png"), "--layer", "ip", "--picture", "6x6x6", "--common")
    assert "4 filters, each row is one filter, its tiles are 6 channels. All are scaled by the largest weight" in said
    with pytest.raises(DataError, match="--picture 6x6: a shape of channels x height x width"):
        run("filters", WEIGHTS, "-o", str(tmp_path / "no.png"), "--picture", "6x6")


def test_an_unknown_layer_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no layer 'nope' with weights; there are: conv1, ip"):
        run("filters", WEIGHTS, "-o", str(tmp_path / "x.png"), "--layer", "nope")


def test_logs_are_drawn_together(tmp_path: Path) -> None:
    out = tmp_path / "curves.svg"
    said = run("curves", str(LOGS / "train.log"), str(LOGS / "finetune.log"), "-o", str(out))
    assert "train.log: 8 rows of training, 4 of tests" in said
    drawn = out.read_text()
    assert "train.log  test accuracy" in drawn and "finetune.log  test accuracy" in drawn


def test_logs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    text = (LOGS / "train.log").read_bytes()
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.log").write_bytes(text)
    said = run("curves", str(tmp_path / "a/train.log"), str(tmp_path / "b/train.log"), "-o", str(tmp_path / "c.png"))
    assert said.count("8 rows of training") == 2


@pytest.mark.parametrize("content", ["", "I1124 03:22:05.190337 14691 caffe.cpp:197] Use CPU.\n"])
def test_a_log_without_training_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.log").write_text(content)
    with pytest.raises(DataError, match=r"empty\.log"):
        run("curves", str(tmp_path / "empty.log"), "-o", str(tmp_path / "c.png"))
    assert not (tmp_path / "c.png").exists()
