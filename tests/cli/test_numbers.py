"""Numbers that cannot be: every option of every command refuses them when the command line is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from caffetools.cli.app import app
from caffetools.cli.commands import CAFFE_TOOLS
from caffetools.errors import CaffeToolsError
from tests.cli.inprocess import refused

BadParameter: type[Exception] = typer.BadParameter


def _line(command: Any, item: Any, value: str) -> list[str]:
    """Return a command line with all that the command needs, and ``value`` for one option or argument."""
    words: list[str] = []
    for other in command.params:
        given = value if other is item else "1"
        if other.param_type_name == "argument":
            words.append(given)
        elif other is item or other.required:
            words.append(f"{other.opts[0]}={given}")
    return words


def _kind(command: Any, item: Any) -> str:
    """Return "int" or "float" for what takes a number, by the error for a word; empty for the others."""
    if getattr(item, "is_flag", False):
        return ""
    try:
        command.make_context("x", _line(command, item, "word"))
    except (BadParameter, CaffeToolsError) as error:
        text = str(error)
        return "int" if "integer" in text else "float" if "valid number" in text or "valid float" in text else ""
    return ""


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    names = [*command.commands, *([] if words else CAFFE_TOOLS)] if hasattr(command, "commands") else []
    if not names:
        yield words, command
    for name in names:
        yield from _commands(command.commands[name], (*words, name))


NUMBERS = [
    pytest.param(command, item, kind, id=" ".join((*words, item.opts[0])))
    for words, command in _commands(typer.main.get_command(app))
    for item in command.params
    if (kind := _kind(command, item))
]


def test_the_numbers_of_all_commands_are_found() -> None:
    names = {str(case.id) for case in NUMBERS}
    assert len(names) > 100
    assert {
        "verify --seed",
        "verify --tolerance",
        "train --level",
        "visualize style --weight",
        "finetune --val",
        "plot-training-log chart",
    } <= names


@pytest.mark.parametrize(("command", "item", "kind"), NUMBERS)
def test_numbers_beyond_every_range_are_refused_by_the_option_s_name(command: Any, item: Any, kind: str) -> None:
    values = ("nan", "inf", "-inf", "1e400", "-1e39", "1e39") if kind == "float" else (str(2**63), str(-(2**63) - 1), "9" * 400)
    for value in values:
        if item.param_type_name == "argument" and value.startswith("-"):
            continue  # it would be a flag
        with pytest.raises(BadParameter) as caught:
            command.make_context("x", _line(command, item, value))
        assert getattr(caught.value, "param", None) is item, value


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("verify good.prototxt good.caffemodel good.onnx --tolerance 1e400", "'--tolerance': it must be a finite number, not inf"),
        ("verify good.prototxt good.caffemodel good.onnx --seed 4294967296", "'--seed'"),
        ("verify good.prototxt good.caffemodel good.onnx --scale 0", "the scale must be a finite number other than 0"),
        ("trainable good.prototxt -o out --scale nan", "the scale must be a finite number other than 0"),
        ("trainable good.prototxt -o out --base-lr 1e39", "'--base-lr': 1e+39 is beyond the range of float32"),
        ("retarget train.prototxt -o out --classes 3 --head-lr-mult inf", "'--head-lr-mult': it must be a finite number, not inf"),
        ("retarget lenet -o out --classes 3 --base-lr 0", "the learning rate must be above 0"),
        ("test train.prototxt -w good.caffemodel --level 2147483648", "'--level'"),
        ("test train.prototxt -w good.caffemodel -n 99999999999", "'-n'"),
        ("train solver.prototxt -q --restarts -1", "'--restarts'"),
        ("train solver.prototxt -q --processes 100000", "'--processes'"),
        ("mean data/train_lmdb out.binaryproto --skip-corrupt -1", "'--skip-corrupt'"),
        ("dataset subset data out --seed -1", "'--seed'"),
        ("dataset merge data data out --seed -1", "'--seed'"),
        ("dataset build pictures out --min-per-class -2", "'--min-per-class'"),
        ("convert-imageset pictures list.txt out --seed -1", "'--seed'"),
        ("dataset preview good.png -o out.png --augment augment.yaml --variants 100000", "more than 65500 pixels"),
        ("visualize synthesize good.prototxt good.caffemodel -o out.png --octaves 1000000", "octaves must be from 0 to 64"),
        ("visualize synthesize good.prototxt good.caffemodel -o out.png --jitter 1000000", "jitter must be from 0 to 1024"),
        ("visualize synthesize good.prototxt good.caffemodel -o out.png --blur 1e30", "blur must be from 0 to 100"),
        ("classify good.prototxt good.caffemodel good.png --scale 3e38", "the scale must be at most 1e+06"),
        ("visualize occlusion good.prototxt good.caffemodel good.png -o out.png --value nan", "'--value'"),
    ],
)
def test_numbers_out_of_the_range_of_their_option_are_refused(materials: Path, line: str, words: str) -> None:
    (materials / "augment.yaml").write_text("rotation: 15\n")
    refused(materials, line, words)
