"""The command ``caffetools visualize``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from caffetools.cli.explain import _pictures_of, parse_unit, parse_units
from caffetools.cli.visualize import app
from caffetools.data.datasets.build import build_dataset
from caffetools.errors import CaffeToolsError, DataError, NetError
from caffetools.net.weights import save_weights
from caffetools.proto.binary import read_caffemodel
from caffetools.visualize.predictions import labelled_pictures
from tests.cli import inprocess
from tests.conftest import GOLDEN
from tests.net.test_net import net_of

LOGS = GOLDEN / "logs"
WEIGHTS = str(LOGS / "tiny_iter_100.caffemodel")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_show_without_a_desktop_is_one_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    out = tmp_path / "c.png"
    done = inprocess.run("visualize", "curves", LOGS / "train.log", "-o", out, "--show")
    assert done.returncode == 0 and out.is_file()
    assert f"there is no desktop to show it on; open {out} yourself" in done.stderr
    # Nothing of another program's either.
    assert capfd.readouterr() == ("", "")


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


def test_logs_of_the_same_name_are_distinguished(tmp_path: Path) -> None:
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


DEPLOY = """
name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 6 dim: 6 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 6 kernel_size: 3 pad: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "ip" type: "InnerProduct" bottom: "conv1" top: "ip" inner_product_param { num_output: 4 } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """DEPLOY, WEIGHTS and PICTURE."""
    (tmp_path / "deploy.prototxt").write_text(DEPLOY)
    cv2.imwrite(str(tmp_path / "picture.png"), np.random.default_rng(0).integers(0, 255, (9, 9), np.uint8))
    return [str(tmp_path / "deploy.prototxt"), WEIGHTS, str(tmp_path / "picture.png")]


def test_every_drawing_is_the_same_twice(tiny: list[str], tmp_path: Path) -> None:
    for suffixes, arguments in (
        (".png .svg .html", ["filters", WEIGHTS]),
        (".png", ["filters", WEIGHTS, "--before", WEIGHTS]),
        (".png .svg", ["activations", *tiny]),
        (".png", ["activations", *tiny, "--blob", "conv1", "--scale", "0.004"]),
        (".svg", ["activations", *tiny, "--blob", "prob"]),
        (".png .svg", ["weights", WEIGHTS]),
        (".png .svg", ["graph", tiny[0]]),
        (".png", ["explain", *tiny]),
        (".svg", ["explain", *tiny, "--method", "grad-cam", "--unit", "1", "--blob", "ip"]),
        (".png", ["occlusion", *tiny, "--window", "3"]),
        (".svg", ["receptive-field", tiny[0]]),
        (".png", ["top-images", *tiny, "--blob", "conv1", "--units", "0-2,5", "--top", "1"]),
        (".png", ["synthesize", *tiny[:2], "--steps", "3", "--unit", "1"]),
        (".png .svg", ["curves", str(LOGS / "train.log")]),
    ):
        for suffix in suffixes.split():
            first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
            for out in (first, second):
                run(*arguments, "-o", str(out), "--force")
            assert first.read_bytes() == second.read_bytes(), arguments
            assert first.stat().st_size > 1000


def test_weights_are_numbers_for_scripts(tmp_path: Path) -> None:
    rows = json.loads(run("weights", WEIGHTS, "--json"))
    assert [row["layer"] for row in rows] == ["conv1", "ip"]
    assert rows[0]["shape"] == [6, 1, 3, 3] and rows[0]["dead"] == 0


def test_bad_input_writes_nothing(tiny: list[str], tmp_path: Path) -> None:
    deploy, weights, picture = tiny
    out = tmp_path / "x.png"
    for message, arguments in (
        ("no blob 'conv9'", ["activations", deploy, weights, picture, "--blob", "conv9"]),
        ("not a picture|cannot read|no picture", ["activations", deploy, weights, deploy]),
        ("written as .png, .svg or .html", ["weights", WEIGHTS, "-o", str(tmp_path / "x.gif")]),
    ):
        with pytest.raises(CaffeToolsError, match=message):
            run(*arguments, *([] if "-o" in arguments else ["-o", str(out)]))
    assert not out.exists()
    assert CliRunner().invoke(app, ["weights", WEIGHTS]).exit_code == 2, "neither -o nor --show"


def test_units_and_folders_that_are_not_there_are_reported_before_the_net_runs(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **named: object) -> None:
        raise AssertionError("the pictures were run")

    monkeypatch.setattr("caffetools.visualize.top_images.find_top_images", fail)
    monkeypatch.setattr("caffetools.visualize.live_server.LiveServer", fail)
    deploy, weights, picture = tiny
    for units in ("99-120", "3,99"):
        with pytest.raises(CaffeToolsError, match="has no unit 99"):
            run("top-images", deploy, weights, picture, "--blob", "conv1", "--units", units, "-o", str(tmp_path / "x.png"))
    with pytest.raises(CaffeToolsError, match="nowhere: there is no such picture or folder"):
        run("live", deploy, weights, "--pictures", str(tmp_path / "nowhere"), "--no-browser")
    other = tmp_path / "other.caffemodel"
    save_weights(net_of(DEPLOY.replace("num_output: 6", "num_output: 7")), other)
    monkeypatch.setattr("caffetools.visualize.live_model.newest_snapshot", lambda prefix: SimpleNamespace(iteration=5, weights=other))
    with pytest.raises(NetError, match=r"layer 'conv1': parameter blob 0 is 6 x 1 x 3 x 3 in the net but 7 x 1 x 3 x 3 in .*other"):
        run("live", deploy, weights, "--run", str(tmp_path), "--no-browser")


def test_a_datasets_folder_is_the_pictures_that_it_holds_out(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            cv2.imwrite(str(tmp_path / "photos" / name / f"{i}.png"), np.full((6, 6), 40 * i, np.uint8))
    build_dataset(tmp_path / "photos", tmp_path / "data", size=6, val=0.4)
    held_out = labelled_pictures(tmp_path / "data").paths
    assert len(held_out) == 4
    assert _pictures_of([str(tmp_path / "data")]) == list(held_out), "and not its sheet of samples"
    assert _pictures_of([str(tmp_path / "photos")]) == sorted((tmp_path / "photos").rglob("*.png"))


def test_labelled_pictures_are_compared_with_the_answers(tiny: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "abcd":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            cv2.imwrite(str(tmp_path / "data" / name / f"{i}.png"), rng.integers(0, 255, (6, 6), np.uint8))
    deploy, weights, picture = tiny
    for command in ("confusion", "roc", "errors", "embedding"):
        out = tmp_path / f"{command}.png"
        said = run(command, deploy, weights, str(tmp_path / "data"), "-o", str(out))
        assert (cv2.imread(str(out)) is not None and "12 pictures" in said) or command == "roc"
    run("embedding", deploy, weights, str(tmp_path / "data"), "-o", str(tmp_path / "e.html"))
    for arguments in (["deepdream", picture, "--blob", "conv1"], ["style", picture, picture, "--steps", "2"]):
        made = tmp_path / f"{arguments[0]}.png"
        run(arguments[0], deploy, weights, *arguments[1:], "-o", str(made))
        assert cv2.imread(str(made)) is not None


def test_everything_is_on_one_page(tiny: list[str], tmp_path: Path) -> None:
    assert "5 drawings" in run("all", *tiny, "--before", WEIGHTS, "-o", str(tmp_path / "all.html"))
    text = (tmp_path / "all.html").read_text()
    assert text.count("<figure>") == 5 and "http://" not in text.replace("http://www.w3.org", "")
    with pytest.raises(DataError, match=r"written as \.html"):
        run("all", *tiny, "-o", str(tmp_path / "all.png"))


def test_units_are_read_from_text() -> None:
    assert parse_unit("3") == 3 and parse_unit("3, 1,2") == (3, 1, 2) and parse_unit(None) is None
    assert parse_units("0-2,5", 4) == [0, 1, 2, 5] and parse_units("1-99", 4) == [1, 2, 3]
    assert parse_units("4-9", 4) == [4], "to be reported as no unit of the blob"
    for wrong in ("a", "1,2", "-1"):
        with pytest.raises(typer.BadParameter):
            parse_unit(wrong)


def test_a_net_with_data_in_training_only_is_drawn_as_it_trains(tmp_path: Path) -> None:
    layer = 'layer { name: "d" type: "DummyData" top: "data" include { phase: TRAIN } dummy_data_param { shape { dim: 2 dim: 3 } } }\n'
    (tmp_path / "train.prototxt").write_text(layer + 'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }\n')
    assert "2 layers" in run("graph", str(tmp_path / "train.prototxt"), "-o", str(tmp_path / "g.svg"))
    with pytest.raises(NetError, match="made in another phase"):
        run("graph", str(tmp_path / "train.prototxt"), "-o", str(tmp_path / "h.svg"), "--phase", "test")


def test_a_page_of_a_graph_has_the_weights_of_a_file(tiny: list[str], tmp_path: Path) -> None:
    run("graph", tiny[0], "--weights", WEIGHTS, "-o", str(tmp_path / "g.html"))
    (data,) = re.findall(r'id="net">(.*?)</script>', (tmp_path / "g.html").read_text(), re.DOTALL)
    blobs = {row["layer"]: row["blobs"] for row in json.loads(data)["rows"]}
    stored = read_caffemodel(WEIGHTS).blobs["conv1"][0]
    name, shape, statistics, values = blobs["conv1"][0]
    assert (name, shape) == ("weights", "6 × 1 × 3 × 3") and f"mean {stored.mean():.4g}, " in statistics
    np.testing.assert_allclose([float(value) for value in values.split(", ")[:-1]], stored.ravel()[:32], rtol=1e-4)
    (tmp_path / "other.prototxt").write_text(DEPLOY.replace('"conv1"', '"first"').replace('"ip"', '"second"'))
    with pytest.raises(DataError, match=r"none of its layers \(conv1, ip\) is one of .*other\.prototxt"):
        run("graph", str(tmp_path / "other.prototxt"), "--weights", WEIGHTS, "-o", str(tmp_path / "no.html"))


def test_a_net_of_stages_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shapes = "shape { dim: 2 dim: 3 } shape { dim: 2 }"
    dummy = (
        'layer {{ name: "{0}-data" type: "DummyData" top: "data" top: "label" include {{ stage: "{0}" }} dummy_data_param {{ {1} }} }}\n'
    )
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" exclude { stage: "deploy" } }\n'
    ip = 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }\n'
    prob = 'layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" include { stage: "deploy" } }\n'
    Path("net.prototxt").write_text(dummy.format("train", shapes) + dummy.format("val", shapes) + ip + loss + prob)
    assert "drawn in the stages train, val" in inprocess.run_well("visualize", "graph", "net.prototxt", "-o", "net.svg").stderr
    assert "val-data" in Path("net.svg").read_text()
    message = inprocess.error_of(inprocess.run("visualize", "graph", "net.prototxt", "--stage", "deploy", "-o", "deploy.svg"))
    assert message.startswith("net.prototxt: ") and "--input-shape data=" in message
    inprocess.run_well("visualize", "graph", "net.prototxt", "--stage", "deploy", "--input-shape", "data=1x3", "-o", "deploy.svg")
    assert "Softmax" in Path("deploy.svg").read_text()


GATED = DEPLOY.replace(
    "dim: 6 dim: 6 } } }", 'dim: 6 dim: 6 } } }\nlayer { name: "gate" type: "Input" top: "gate" input_param { shape { dim: 1 dim: 6 } } }'
).replace(
    'layer { name: "ip" type: "InnerProduct" bottom: "conv1"',
    'layer { name: "gated" type: "Scale" bottom: "conv1" bottom: "gate" top: "gated" scale_param { axis: 0 } }\n'
    'layer { name: "ip" type: "InnerProduct" bottom: "gated"',
)


@pytest.fixture
def gated(tiny: list[str]) -> list[str]:
    """The same with a net of a second input, ``gate``, and two folders of pictures next to it."""
    folder = Path(tiny[0]).parent
    Path(tiny[0]).write_text(GATED)
    for name in "ab":
        for number in range(3):
            (folder / "classes" / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / "classes" / name / f"{number}.png"), np.random.default_rng(number).integers(0, 255, (6, 6), np.uint8))
    np.save(folder / "gate.npy", np.ones((1, 6), np.float32))
    (folder / "list.txt").write_text("".join(f"classes/a/{number}.png 1\n" for number in range(3)))
    return tiny


@pytest.mark.parametrize(
    "command",
    [
        "activations NET PICTURE --blob gated",
        "activations NET PICTURE",
        "explain NET PICTURE",
        "occlusion NET PICTURE",
        "synthesize NET --unit 1 --steps 2",
        "deepdream NET PICTURE --blob gated --steps 1 --octaves 1",
        "style NET classes/a/1.png PICTURE --content-blob gated --style-blob gated --steps 20",
        "top-images NET PICTURE --blob gated",
        "embedding NET classes",
        "errors NET list.txt",
    ],
    ids=lambda command: " ".join(command.split()[:1]),
)
def test_values_of_another_input_are_given_on_the_command_line(gated: list[str], monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    deploy, weights, picture = gated
    monkeypatch.chdir(Path(deploy).parent)
    words = ["visualize", *command.replace("NET", f"{deploy} {weights}").replace("PICTURE", picture).split()]
    if command != "activations NET PICTURE":
        error = inprocess.error_of(inprocess.run(*words, "-o", "none.png"))
        assert "input 'gate' (1 x 6) is needed and not given; give its value: --input gate=… of caffetools visualize" in error
    for name, value in (("file", "gate.npy"), ("number", "1"), ("numbers", "1,1,1,1,1,1"), ("closed", "0,0,1,1,1,2")):
        inprocess.run_well(*words, "-o", f"{name}.png", "--input", f"gate={value}")
    assert Path("file.png").read_bytes() == Path("number.png").read_bytes() == Path("numbers.png").read_bytes()
    assert Path("closed.png").read_bytes() != Path("file.png").read_bytes()


def test_values_of_another_input_that_do_not_fit_are_refused(gated: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(gated[0]).parent)
    np.save("names.npy", np.array(["a", "b"]))
    Path("text.npy").write_text("these are words")
    with Path("large.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    for value, message in (
        ("gate=1,2", "the value of input 'gate' is 2, but 6 is expected"),
        ("door=1", "has no input 'door' next to the picture's 'data'; its inputs are data, gate"),
        ("gate", "'gate' is not NAME=VALUE"),
        ("gate=", "'gate=' is not NAME=VALUE"),
        ("gate=absent.npy", "absent.npy: cannot read a NumPy array (.npy) or numbers for input 'gate': No such file"),
        ("gate=names.npy", "names.npy: it holds values of type <U1, not numbers"),
        ("gate=text.npy", "text.npy: this is text, and a NumPy array (.npy) or numbers for input 'gate' is expected"),
        ("gate=large.npy", "large.npy: cannot be read as a NumPy array (.npy) or numbers for input 'gate': it is damaged"),
        ("gate=nan", "the value of input 'gate' has numbers that are NaN or infinite"),
    ):
        assert message in inprocess.error_of(inprocess.run("visualize", "activations", *gated, "-o", "no.png", "--input", value)), value
    assert not Path("no.png").exists()
