"""``caffetools export``, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import caffetools.onnx.model as onnx_model
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.zoo.networks import prototxt_path
from tests.cli.inprocess import run
from tests.infer.colours import DEPLOY, write_labels, write_net, write_pictures


def test_the_file_is_written_and_the_measured_difference_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "colours.onnx"
    code, out, err = run("export", *write_net(tmp_path), "-o", path, "--mean", "0")
    assert (code, err) == (0, "")
    assert f"Wrote {path}" in out
    assert "any batch size" in out
    assert "Verified: largest error" in out
    assert "of the largest value of '" in out
    assert "random inputs (seed 0), batch size 1 and 2" in out
    onnx.checker.check_model(str(path), full_check=True)


def test_force_does_not_replace_what_is_read(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    before = weights.read_bytes()
    for command in (("export", "--mean", "0"), ("export", "--to", "torch"), ("quantize", "--mean", "0", "-c", write_pictures(tmp_path)[0])):
        code, _, err = run(*command, deploy, weights, "-o", weights, "--force")
        assert (code, err) == (2, f"caffetools: error: {weights}: is read here, so it cannot be written; give another name\n")
    assert weights.read_bytes() == before


def test_the_size_is_that_of_the_weights_in_a_file_of_their_own_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, weights = write_net(tmp_path)
    path, data = tmp_path / "a.onnx", tmp_path / "a.onnx.data"
    data.write_bytes(bytes(10_000_000))
    code, out, _ = run("export", net, weights, "-o", path, "--mean", "0", "--json")
    # Another model's file of weights is not counted.
    assert code == 0 and json.loads(out)["bytes"] == path.stat().st_size
    monkeypatch.setattr(onnx_model, "SIZE_LIMIT", 100)
    monkeypatch.setattr(onnx_model, "SMALL", 4)
    code, out, _ = run("export", net, weights, "-o", path, "--mean", "0", "--force", "--json")
    assert code == 0 and json.loads(out)["bytes"] == path.stat().st_size + data.stat().st_size
    code, out, _ = run("export", net, weights, "-o", path, "--mean", "0", "--force")
    assert f"Wrote {path} with its weights in a.onnx.data (" in out


def test_json_gives_a_script_what_was_measured(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    path = tmp_path / "colours.onnx"
    arguments = [
        "--opset",
        11,
        "--batch",
        2,
        "--labels",
        write_labels(tmp_path),
        "--mean",
        "20",
        "--pictures",
        pictures[0],
        "--pictures",
        pictures[2],
    ]
    code, out, _ = run("export", *write_net(tmp_path), "-o", path, *arguments, "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["model"], answer["bytes"], answer["opset"], answer["batch"]) == (str(path), path.stat().st_size, 11, "2")
    assert answer["largest_difference"] < 1e-5
    assert answer["measured_on"] == "the given inputs, batch size 2"
    assert [output["blob"] for output in answer["outputs"]] == ["prob"]
    model = onnx.load(path)
    assert model.opset_import[0].version == 11
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["caffetools.source"] == "deploy.prototxt"
    assert properties["caffetools.weights"] == "colours.caffemodel"
    assert properties["caffetools.channel_order"] == "BGR"
    assert json.loads(properties["caffetools.labels"]) == ["blue", "green", "red"]
    assert json.loads(properties["caffetools.mean"]) == [20.0]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--opset", 9], 2, "11"),
        (["--batch", "many"], 2, "'many' is neither a number"),
        (["--batch", "0"], 2, "'0' is neither a number"),
        (["--mean", "1,2"], 2, "the mean has 2 values, but the net's input has 3 channel"),
        (["--pictures", "none.png"], 2, "none.png: cannot read the picture"),
        (["--pictures", "*.none"], 2, "nothing matches this pattern"),
        (["--outputs", "nothing"], 2, "has no blob 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_reported_and_nothing_is_left(tmp_path: Path, options: list[object], code: int, message: str) -> None:
    path = tmp_path / "out" / "a.onnx"
    got, _, err = run("export", *write_net(tmp_path), "-o", path, *options)
    assert got == code
    assert message in " ".join(err.replace("│", " ").split())
    assert not path.parent.exists()


def test_a_part_of_a_network_of_the_zoo_has_its_cards_preprocessing_only_where_it_fits(tmp_path: Path) -> None:
    weights = tmp_path / "lenet.caffemodel"
    net = Net.from_file(prototxt_path("lenet", "deploy"))
    save_weights(net, weights)
    for number, (part, keys) in enumerate(
        [([], {"scale", "channel_order"}), (["--from", "ip1"], set()), (["--from", "pool2", "--outputs", "ip1"], set())]
    ):
        path = tmp_path / f"{number}.onnx"
        code, out, err = run("export", "lenet", weights, "-o", path, *part)
        assert code == 0, out + err
        names = {p.key.removeprefix("caffetools.") for p in onnx.load(path).metadata_props}
        assert names & {"mean", "scale", "channel_order", "labels"} >= keys
        assert bool(names & {"mean", "scale", "channel_order", "labels"}) is bool(keys)


def test_labels_of_another_number_are_refused(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("a\nb\n")
    code, _, err = run("export", *write_net(tmp_path), "-o", tmp_path / "a.onnx", "--labels", tmp_path / "two.txt")
    assert code == 2
    assert "there are 2 labels, but the net's outputs have 3 classes" in err


def test_weights_of_another_net_are_refused(tmp_path: Path) -> None:
    _, weights = write_net(tmp_path)
    other = tmp_path / "other.prototxt"
    other.write_text(DEPLOY.replace("num_output: 3", "num_output: 4"))
    code, _, err = run("export", other, weights, "-o", tmp_path / "a.onnx")
    assert code == 2
    assert "layer 'score': parameter blob 0 is 4 x 3 in the net but 3 x 3 in" in err
    assert not (tmp_path / "a.onnx").exists()


def test_a_net_without_pictures_takes_no_preprocessing(tmp_path: Path) -> None:
    deploy = tmp_path / "plain.prototxt"
    deploy.write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }\n'
        'layer { name: "r" type: "ReLU" bottom: "x" top: "y" }'
    )
    _, weights = write_net(tmp_path)
    assert run("export", deploy, weights, "-o", tmp_path / "a.onnx")[0] == 0
    code, _, err = run("export", deploy, weights, "-o", tmp_path / "b.onnx", "--mean", "1")
    assert code == 2
    assert "no single input for pictures" in err
