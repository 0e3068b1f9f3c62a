"""A network of the zoo by its name in every command, fetched from a local server when it is first used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffetools.graph.summary import summarize
from caffetools.proto.text import read_net
from caffetools.zoo.cards import get_card, list_models
from tests.cli.inprocess import error_of, run, run_well
from tests.cli.published import MODEL, publishing
from tests.project.shapes import draw_shapes
from tests.zoo.server import Server


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("published")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.delenv("CAFFETOOLS_ZOO_MIRROR", raising=False)
        with publishing(folder, patch) as server:
            yield server


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.jpg", np.random.default_rng(2).integers(0, 256, (240, 260, 3), np.uint8))


def test_classify_fetches_once_and_needs_nothing_else(published: Server) -> None:
    before = len(published.seen)
    first = run_well("classify", "--model", "squeezenet", "photo.jpg", "--top", 1)
    again = run_well("classify", "SqueezeNet-v1.1", "photo.jpg", "--top", 1)
    assert first.stdout.splitlines()[:2] == again.stdout.splitlines()[:2]
    assert len(published.seen) <= before + 1
    label = first.stdout.splitlines()[1].split(maxsplit=1)[1]
    assert any(label in line for line in get_card(MODEL).read_labels())


@pytest.mark.parametrize("words", [("squeezenet",), ("--model", "squeezenet"), ("squeezenet", "squeezenet_v1.1")])
def test_export_by_name_knows_mean_and_labels(published: Server, words: tuple[str, ...]) -> None:
    run_well("export", *words, "-o", "m.onnx", "--outputs", "fire2/concat")
    whole = json.loads(run_well("export", *words, "-o", "whole.onnx", "--json").stdout)
    assert whole["model"] == "whole.onnx"
    by_file = run_well("classify", "whole.onnx", "photo.jpg", "--top", 1).stdout.splitlines()[:2]
    assert by_file == run_well("classify", "squeezenet", "photo.jpg", "--top", 1).stdout.splitlines()[:2]


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "squeezenet"),
        ("deploy", "squeezenet", "-o", "d.prototxt"),
        ("diff", "squeezenet", "squeezenet1.0"),
        ("time", "squeezenet", "-phase", "TEST", "-iterations", 1),
        ("trainable", "squeezenet", "-o", "trainable"),
        ("retarget", "squeezenet", "--classes", 4, "-o", "net", "--weights", "squeezenet"),
        ("verify", "squeezenet", "--engines", "torch,onnxruntime"),
        ("visualize", "filters", "squeezenet", "-o", "f.png"),
        ("visualize", "activations", "squeezenet", "photo.jpg", "-o", "a.png", "--blob", "fire2/concat"),
        ("visualize", "explain", "squeezenet", "photo.jpg", "-o", "e.png", "--method", "grad-cam"),
        ("visualize", "graph", "squeezenet", "-o", "g.svg"),
        ("visualize", "receptive-field", "squeezenet"),
        ("quantize", "squeezenet", "--calibration", "photo.jpg", "-o", "q.onnx", "--precision", "fp16"),
        ("bundle", "squeezenet", "--target", "onnxruntime", "-o", "bundle", "--pictures", "photo.jpg"),
        ("zoo", "copy", "squeezenet", "copied"),
        ("zoo", "fetch", "squeezenet", "--to", "fetched"),
        ("draw_net", "squeezenet", "n.dot"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_every_command_takes_the_name(published: Server, words: tuple[object, ...]) -> None:
    run_well(*words)


def test_a_name_that_is_not_a_model_is_a_missing_file(published: Server) -> None:
    assert "squeezenut" in error_of(run("export", "squeezenut", "w.caffemodel", "-o", "m.onnx"))


def test_the_list_has_operations_and_the_speed_once_it_is_measured(
    published: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from caffetools.cli import zoo
    from caffetools.zoo.speed import measure_speeds

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = run_well("zoo", "list")
    assert "--measure" in before.stderr and "387.7 M" in before.stdout
    speeds = measure_speeds(["lenet", "mtcnn_pnet"])
    rows = {row["name"]: row for row in json.loads(run_well("zoo", "list", "--json").stdout)}
    assert rows["lenet"]["milliseconds"] == speeds["lenet"] > 0 and rows["vgg16"]["milliseconds"] is None
    assert f"{speeds['lenet']:.1f}" in run_well("zoo", "list").stdout
    assert zoo._speeds(["lenet"], measure=False) == speeds


@pytest.mark.parametrize("name", list_models())
def test_the_figures_of_the_cards_are_those_of_the_nets(name: str) -> None:
    card = get_card(name)
    summary = summarize(read_net(card.network("deploy")))
    shape = summary.layers[0].shapes[0]
    assert shape is not None
    assert (card.parameters, card.macs) == (summary.parameters, summary.macs // shape[0])


def test_the_shell_completes_names_of_models() -> None:
    lines = [
        ("caffetools retarget goo", ["googlenet"]),
        ("caffetools classify goo", ["googlenet"]),
        ("caffetools export caffe", ["caffenet"]),
        ("caffetools train --weights alex", ["alexnet"]),
        ("caffetools visualize explain resnet5", ["resnet50"]),
        ("caffetools finetune photos --model nin", ["nin", "nin_imagenet"]),
        ("caffetools visualize filters goo", ["googlenet"]),
        ("caffetools visualize graph goo", ["googlenet"]),
        ("caffetools test goo", ["googlenet"]),
        ("caffetools trainable goo", ["googlenet"]),
    ]
    # All lines in one process, which forks for each: an interpreter's start is most of the time.
    program = (
        "import os, sys\nfrom caffetools.cli.app import main\nsys.argv[1:], lines = [], sys.argv[1:]\n"
        "for line in lines:\n    print('>', flush=True)\n    if os.fork():\n        os.wait()\n        continue\n"
        "    os.environ.update(_CAFFETOOLS_COMPLETE='complete_bash', COMP_WORDS=line, COMP_CWORD=str(len(line.split()) - 1))\n    main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *(line for line, _ in lines)], capture_output=True, text=True, check=False)
    assert [part.split() for part in done.stdout.split(">\n")[1:]] == [completions for _, completions in lines], done.stderr


@pytest.mark.parametrize(
    ("line", "hint"),
    [("inspect alexnt", "; did you mean 'alexnet'?"), ("deploy squeezent -o d.prototxt", "'squeezenet'?"), ("inspect alexnt.prototxt", "")],
)
def test_a_misspelled_model_in_place_of_a_file_is_named(line: str, hint: str) -> None:
    done = run(*line.split())
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert hint in done.stderr and ("did you mean" in done.stderr) == bool(hint)


def test_where_weights_are_not_published_for_machines_the_message_has_the_address() -> None:
    done = run("zoo", "fetch", "resnet50")
    assert done.returncode == 2 and "https://github.com/KaimingHe/deep-residual-networks" in done.stderr


def test_a_report_that_is_made_again_names_the_published_weights(published: Server) -> None:
    """No setting of the run names them: they are those of its model."""
    draw_shapes(Path("pictures"), each=4, size=64)
    run_well("finetune", "pictures", "-o", "run", "--epochs", 1, "--size", 64, "--crop", 64, "--batch", 4, "--device", "cpu")
    first = Path("run/report.html").read_text(encoding="utf-8")
    run_well("report", "run")
    again = Path("run/report.html").read_text(encoding="utf-8")
    for words in ("started from squeezenet_v1.1", "fine-tuned from squeezenet_v1.1", "Change of the weights of conv1"):
        assert words in first and words in again, words
