"""``caffetools deploy``, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.text import read_net, write_prototxt
from caffetools.surgery.deploy import deploy_from
from caffetools.zoo.networks import build, prototxt_path
from tests.cli.inprocess import run, without_next
from tests.surgery.nets import TINY, net_of


def test_the_deploy_net_is_written_and_its_ends_are_shown(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deploy.prototxt"
    code, text, err = run("deploy", prototxt_path("bvlc_googlenet"), "-o", out)
    assert code == 0
    lacks, left_out = err.splitlines()
    assert lacks.startswith(f"caffetools: note: {out}: examples/imagenet/ilsvrc12_val_lmdb is not here, so deploy.json lacks ")
    assert left_out == f"caffetools: note: {out}: left out what the losses loss1/loss, loss2/loss read alone (--heads to choose)"
    assert without_next(text) == ["input data: 1 x 3 x 224 x 224", "output prob: 1 x 1000", f"Wrote {out}: 143 layers."]
    assert read_net(out) == deploy_from(build("bvlc_googlenet"))


def test_json_and_the_shape_that_is_given(tmp_path: Path) -> None:
    out = tmp_path / "deploy.prototxt"
    code, text, _ = run("deploy", prototxt_path("lenet"), "-o", out, "--input-shape", "4x1x28x28", "--json")
    assert code == 0
    assert json.loads(text) == {"deploy": str(out), "layers": 9, "inputs": {"data": [4, 1, 28, 28]}, "outputs": {"prob": [4, 10]}}


def test_a_file_that_exists_is_kept_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "deploy.prototxt"
    out.write_text("mine")
    code, _, err = run("deploy", prototxt_path("bvlc_alexnet"), "-o", out)
    assert (code, out.read_text()) == (2, "mine")
    assert f"{out}: already exists; give another name, or --force to replace it" in err
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


def test_no_file_is_written_over_another_of_the_run(tmp_path: Path) -> None:
    net, weights = tmp_path / "net.prototxt", tmp_path / "same.caffemodel"
    net.write_text(prototxt_path("resnet10").read_text())
    save_weights(Net.from_file(prototxt_path("resnet10", "deploy")), weights)
    before = weights.read_bytes()
    for out, reported in (
        ("same.prototxt", "is read here, so it cannot be written"),
        ("x.caffemodel", "the weights are written next to it"),
    ):
        code, _, err = run("deploy", net, "-o", tmp_path / out, "--fold-bn", "--weights", weights, "--force")
        assert code == 2 and reported in err
    code, _, err = run("deploy", net, "-o", net, "--force")
    assert code == 2 and f"{net}: is read here" in err
    assert weights.read_bytes() == before and sorted(path.name for path in tmp_path.iterdir()) == ["net.prototxt", "same.caffemodel"]


def test_an_output_that_is_made_in_place_is_shown(tmp_path: Path) -> None:
    text = TINY.split('layer { name: "fc"')[0] + 'layer { name: "loss" type: "CenterLoss" bottom: "conv" bottom: "label" top: "loss" }'
    write_prototxt(tmp_path / "net.prototxt", net_of(text))
    assert "output conv: 1 x 6 x 6 x 6" in run("deploy", tmp_path / "net.prototxt", "-o", tmp_path / "d.prototxt")[1]


def test_a_network_of_the_zoo_is_deployed_by_name(tmp_path: Path) -> None:
    out, other = tmp_path / "deploy.prototxt", tmp_path / "other.prototxt"
    assert run("deploy", "--model", "googlenet", "-o", out)[0] == 0
    assert run("deploy", "googlenet", "-o", other)[0] == 0
    assert read_net(out) == read_net(other) == deploy_from(build("bvlc_googlenet"))


def test_a_wrong_choice_of_the_net_to_deploy_is_one_error(tmp_path: Path) -> None:
    out = tmp_path / "deploy.prototxt"
    for words in ((), (prototxt_path("lenet"), "--model", "lenet")):
        code, _, err = run("deploy", *words, "-o", out)
        assert code == 2 and "deploy needs either a train_val prototxt or --model NAME" in err
    code, _, err = run("deploy", "--model", "googelnet", "-o", out)
    assert code == 2 and "the zoo has no model 'googelnet'; did you mean 'googlenet'?" in err and not out.exists()
