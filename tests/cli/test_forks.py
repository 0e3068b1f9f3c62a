"""--dialect and --plugin, which several commands have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caffetools.layers import registry
from caffetools.proto.options import ReadOptions, read_options
from tests.cli.inprocess import error_of, run, run_well
from tests.layers.test_plugin import CROP, NET, registered

__all__ = ["registered"]  # a fixture

STRANGE = 'layer { name: "r" type: "ReLU" bottom: "y" top: "z" strange: 1 }'


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return path


def test_a_layer_of_a_plugin_is_shown_with_its_shape(net: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CROP)
    shown = json.loads(run_well("inspect", net, "--json", "--plugin", tmp_path / "mine.py").stdout)
    assert shown["layers"][1]["shapes"] == [[1, 1, 2, 3]]
    assert "CropCenter" in registry.layer_types()


def test_a_plugin_that_is_not_there_is_one_line_and_exit_code_2(net: Path, tmp_path: Path) -> None:
    assert "missing.py is not a Python file" in error_of(run("inspect", net, "--plugin", tmp_path / "missing.py"))


def test_a_plugin_whose_layer_fails_is_one_line_with_its_place(net: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CROP.replace("self.rows, self.columns = param", "self.rows, self.columns, _ = param"))
    done = run("inspect", net, "--plugin", tmp_path / "mine.py")
    place = f"layer 'c': {tmp_path / 'mine.py'}:16: setup failed: ValueError: not enough values to unpack"
    assert place in done.stderr and done.returncode == 1


def test_a_net_with_an_unknown_layer_is_shown(net: Path) -> None:
    shown = json.loads(run_well("inspect", net, "--json").stdout)
    assert "CropCenter is not known here" in shown["layers"][1]["note"]


def test_any_dialect_keeps_what_is_else_a_slip(net: Path) -> None:
    net.write_text(NET + STRANGE)
    assert "LayerParameter has no field 'strange'" in error_of(run("inspect", net))
    shown = json.loads(run_well("inspect", net, "--json", "--dialect", "any").stdout)
    assert len(shown["layers"]) == 3
    assert read_options() == ReadOptions()


def test_an_unknown_dialect_is_one_line_with_the_known_ones(net: Path) -> None:
    assert "the dialect 'sdd' is unknown; known are bvlc, ssd" in error_of(run("inspect", net, "--dialect", "sdd"))
