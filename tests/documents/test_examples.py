"""Every script of examples/ runs, in the files of the pages, and prints what it is for."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from caffetools.layers import registry
from tests.cli.inprocess import run_well

EXAMPLES = Path(__file__).parents[2] / "examples"
# What each script prints, or what it writes.
EXPECTED = {
    "classify": r"photo\.jpg\n +\d+\.\d+%  (daisy|rose|tulip)\n",
    "features": r"photos/\d+\.jpg is most similar: cosine (1\.000|0\.\d+)",
    "retarget_net": r"ip2_5 +InnerProduct",
    "follow_training": r"iteration 0: loss \d(.|\n)*wrote snapshot_iter_\d+\.caffemodel",
    "plain_torch": r"step 4: loss \d",
    "export_both_ways": r"largest error(.|\n)*prob: largest difference \d\.\de",
    "explain": r"",
    "read_lmdb": r"30 records; \(8, 3, 40, 40\) \[",
    "write_net": r"618 parameters, \d+ multiply",
}
WRITTEN = {"explain": "heat.png", "plain_torch": "trained.caffemodel", "write_net": "small.prototxt", "follow_training": "snapshot.log"}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_script_runs(name: str, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for path in world.glob("snapshot*"):
        path.unlink()
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(EXPECTED[name], capsys.readouterr().out)
    assert name not in WRITTEN or (world / WRITTEN[name]).stat().st_size > 0


def test_the_old_script_runs_through_caffetools_run(world: Path) -> None:
    assert re.search(r"0\.\d+ (daisy|rose|tulip)\n", run_well("run", EXAMPLES / "old_script.py").stdout)


def test_the_layer_of_your_own_is_computed(world: Path) -> None:
    text = Path("deploy.prototxt").read_text().replace('type: "ReLU"', 'type: "Mish2"')
    Path("mine.prototxt").write_text(text)
    try:
        assert "Mish2" in run_well("inspect", "mine.prototxt", "--plugin", EXAMPLES / "my_layers.py").stdout
        run_well("classify", "mine.prototxt", "weights.caffemodel", "photo.jpg", "--plugin", EXAMPLES / "my_layers.py")
    finally:
        registry.unregister(["Mish2"])


def test_every_script_is_listed_and_tested() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in scripts if f"[{name}.py]" not in page] == []
    assert scripts == {*EXPECTED, "whole_job", "old_script", "my_layers"}  # whole_job.py is tested in test_api.py


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("finetune", r"1797 pictures(.|\n)*second/5/\d+\.png → [5-9] [01]\.\d\d\n(.|\n)*largest error"),
        (
            "net_surgery",
            r"map of probabilities: \(1, 10, 5, 5\)\n.*relative difference \de-0[678](.|\n)*\['conv1', 'conv2', 'conv3', 'ip1', 'ip2'\]",
        ),
    ],
)
def test_the_notebook_runs(name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = shutil.copy(EXAMPLES / "notebooks" / f"{name}.ipynb", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert re.search(expected, run_well("run", notebook).stdout)
