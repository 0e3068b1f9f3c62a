"""``caffetools deploy``, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

from caffetools.proto.text import read_net
from caffetools.surgery.deploy import deploy_from
from caffetools.zoo.networks import build, prototxt_path
from tests.cli.inprocess import run


def test_the_deploy_net_is_written_and_its_ends_are_shown(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deploy.prototxt"
    code, text, err = run("deploy", prototxt_path("bvlc_googlenet"), "-o", out)
    assert code == 0
    assert err == f"caffetools: note: {out}: left out what the losses loss1/loss, loss2/loss read alone (--heads to choose)\n"
    assert text.splitlines() == ["input data: 1 x 3 x 224 x 224", "output prob: 1 x 1000", f"Wrote {out}: 143 layers."]
    assert read_net(out) == deploy_from(build("bvlc_googlenet"))


def test_json_and_the_shape_that_is_given(tmp_path: Path) -> None:
    out = tmp_path / "deploy.prototxt"
    code, text, _ = run("deploy", prototxt_path("lenet"), "-o", out, "--input-shape", "4x1x28x28", "--json")
    assert code == 0
    assert json.loads(text) == {"deploy": str(out), "layers": 9, "inputs": {"data": [4, 1, 28, 28]}, "outputs": {"prob": [4, 10]}}


def test_a_file_that_is_there_stays_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "deploy.prototxt"
    out.write_text("mine")
    code, _, err = run("deploy", prototxt_path("bvlc_alexnet"), "-o", out)
    assert (code, out.read_text()) == (2, "mine")
    assert f"{out} exists; give another name, or --force to replace it" in err
    assert run("deploy", prototxt_path("bvlc_alexnet"), "-o", out, "--force", "--batch", 3)[0] == 0
    assert list(read_net(out).layer[0].input_param.shape[0].dim) == [3, 3, 227, 227]


def test_errors_are_one_line_with_the_place_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "deploy.prototxt"
    code, _, err = run("deploy", prototxt_path("lenet"), "-o", out)
    assert (code, out.exists()) == (2, False)
    assert f"{prototxt_path('lenet')}:4: layer 'mnist': the size of its data is not known" in err
    assert err.endswith("\n") and err.count("\n") == 1
    bad = tmp_path / "bad.prototxt"
    bad.write_text(prototxt_path("bvlc_alexnet").read_text().replace("num_output: 4096", "num_outputs: 4096", 1))
    code, _, err = run("deploy", bad, "-o", out)
    assert (code, out.exists()) == (2, False)
    assert "InnerProductParameter has no field 'num_outputs'; did you mean 'num_output'?" in err
