"""Each command ends with the next one, which works when it is pasted."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from caffetools import cli, load_net
from caffetools.cli import show
from caffetools.cli.app import take_global_options
from caffetools.data.datasets.card import load_card
from caffetools.layers import registry
from caffetools.net.weights import to_caffemodel
from caffetools.project.config import command
from caffetools.project.evaluate import held_out
from caffetools.project.next_step import find_weights
from caffetools.proto.binary import write_caffemodel
from tests.cli.inprocess import Done, error_of, run, run_well
from tests.cli.published import publishing
from tests.data.foreign import write_cifar, write_idx
from tests.infer.colours import write_net
from tests.layers.test_plugin import registered
from tests.project.shapes import TRAIN_VAL, draw_shapes

__all__ = ["registered"]  # a fixture

GAIN = """
import torch
from caffetools.layers.base import Layer
from caffetools.layers.registry import register
from caffetools.proto.schema import FillerParameter


@register("Gain")
class Gain(Layer):
    def setup(self, bottoms):
        self.declare_blob((bottoms[0][1],), FillerParameter(type="constant", value=1))
        return [bottoms[0]]

    def forward(self, x):
        return x * self.blobs[0].view(1, -1, 1, 1)

    def to_onnx(self, graph):
        gain = graph.constant("gain", self.blobs[0].detach().numpy().reshape(1, -1, 1, 1))
        graph.node("Mul", [self.bottoms[0], gain], self.tops)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def next_of(done: Done) -> list[str]:
    """The words of the next command, of which there is one, in the last line."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("Next: ")]
    assert len(lines) == 1 and done.stdout.splitlines()[-1] == lines[0], done.stdout
    words = shlex.split(lines[0].removeprefix("Next: "))
    assert words[0] == "caffetools"
    return words[1:]


def paste(done: Done) -> tuple[str, Done]:
    """Run the next command; its name and what it gave."""
    words = next_of(done)
    name = " ".join(words[:2]) if words[0] in ("dataset", "zoo") or words[:2] == ["bundle", "check"] else words[0]
    return name, run_well(*words)


def follow(done: Done, most: int = 12) -> tuple[list[str], Done]:
    """Run the next commands until one has none."""
    names: list[str] = []
    while "\nNext: " in done.stdout and len(names) < most:
        name, done = paste(done)
        names.append(name)
    return names, done


_END = ["classify", "export", "classify", "bundle", "bundle check"]
# In this order: a command line, and the commands that follow when each next command is pasted.
WALKS: dict[str, list[str]] = {
    "dataset build 'my pictures' 'my data' --size 32": ["retarget", "train", "test", *_END],
    "verify net/deploy.prototxt WEIGHTS net/model.onnx": ["quantize", "classify"],
    "deploy net/train_val.prototxt -o net/again.prototxt": ["classify", "verify"],
    "trainable net/deploy.prototxt -o second --dataset 'my data' --epochs 1": ["train", "test", "deploy", *_END],
    "status": ["classify"],
    "import net/model.onnx -o imported": ["inspect"],
    "upgrade net/deploy.prototxt new.prototxt": ["inspect"],
    "retarget train_val.prototxt --dataset 'my data' -o third --epochs 1": ["train", "test", *_END],
    "extract-features WEIGHTS net/train_val.prototxt pool1 features 1": ["dataset inspect"],
    "convert-imageset 'my pictures/' list.txt listed_lmdb": ["mean"],
    "convert-mnist-data idx/train-images-idx3-ubyte idx/train-labels-idx1-ubyte mnist_lmdb": ["dataset inspect"],
    "convert-cifar-data cifar . lmdb": ["dataset inspect"],
    "dataset convert mnist idx converted": ["dataset inspect"],
    "dataset subset 'my data/val_lmdb' few": ["dataset inspect"],
    "dataset shard 'my data/train_lmdb' shards --shards 2": ["dataset verify"],
    "finetune 'my pictures' -o run --model train_val.prototxt --from-scratch --epochs 1": _END[2:],
    "report run": ["classify"],
    "zoo copy lenet lenet": ["inspect"],
    "zoo copy squeezenet zoo": ["zoo fetch", "export", "verify"],
}
# Where a next command is printed that the walks do not reach: file → how often, and what pastes it.
ELSEWHERE = {
    "demo.py": (1, "tests/project/test_demo.py, which runs the demo"),
    "train_caffe.py": (2, "as in train.py, with a real Caffe"),
    "train.py": (1, "of a stopped run: tests/cli/test_kill.py"),
    "status.py": (1, "of a folder of pictures alone: finetune with a network of the zoo, too slow here"),
}


def sites() -> set[tuple[str, int]]:
    """Every call of ``print_next`` in the commands: file and line."""
    found = set()
    for path in Path(cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print_next":
                found.add((path.name, node.lineno))
    return found


def test_the_next_step_of_every_command_works_when_it_is_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_shapes(Path("my pictures"), each=12)
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    Path("list.txt").write_text("".join(f"{path.relative_to('my pictures')} 0\n" for path in Path("my pictures").rglob("*.png")))
    write_idx(Path("idx"))
    write_cifar(Path("cifar"))
    printed: set[tuple[str, int]] = set()

    def print_next(command: str) -> None:
        caller = sys._getframe(1)
        if command:
            printed.add((Path(caller.f_code.co_filename).name, caller.f_lineno))
        show.print_next(command)

    for name in {name for name, _ in sites()}:
        monkeypatch.setattr(importlib.import_module(f"caffetools.cli.{name.removesuffix('.py')}"), "print_next", print_next)
    (tmp_path / "server").mkdir()
    with publishing(tmp_path / "server", monkeypatch):
        for line, names in WALKS.items():
            followed, _ = follow(run_well(*shlex.split(line.replace("WEIGHTS", str(find_weights("net/deploy.prototxt"))))))
            assert followed == names, line
    left = Counter(name for name, _ in sites() - printed)
    assert left == {name: count for name, (count, _) in ELSEWHERE.items()}, sites() - printed
    picture = sorted(Path("my pictures").rglob("*.png"))[0]
    assert "blue triangles" in run_well("classify", "net/model.onnx", picture).stdout


def test_a_net_without_a_deploy_net_is_deployed_first_and_the_exported_model_is_verified_and_quantized() -> None:
    draw_shapes(Path("pictures"), each=12)
    run_well("dataset", "build", "pictures", "data", "--size", 40)
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    retargeted = run_well("retarget", "--dataset", "data", "-o", "net", "--epochs", 2, "--head-lr-mult", 1, "--base-lr", 0.01)
    for name in ("deploy.prototxt", "deploy.json"):
        Path("net", name).unlink()
    assert next_of(retargeted) == ["train", "net/solver.prototxt"]
    assert "No weights are next to the net: training starts from random weights" in " ".join(retargeted.stdout.split())
    names, _ = follow(run_well("train", "net/solver.prototxt"))
    assert names == ["test", "deploy", "classify", "export", "classify", "bundle", "bundle check"]
    _, done = paste(run_well("verify", "net/deploy.prototxt", next(Path("net").glob("*.caffemodel")), "net/model.onnx"))
    assert next_of(done)[0] == "classify" and next_of(done)[1] == "net/model.int8.onnx"
    paste(done)


def test_the_next_commands_of_a_net_with_a_layer_of_a_plugin_name_the_plugin() -> None:
    draw_shapes(Path("pictures"), each=6)
    run_well("dataset", "build", "pictures", "data", "--size", 40)
    Path("my layers.py").write_text(GAIN)
    gain = 'layer { name: "gain" type: "Gain" bottom: "conv1" top: "gain" }'
    lines = TRAIN_VAL.replace('bottom: "conv1" top: "pool1"', 'bottom: "gain" top: "pool1"').splitlines()
    Path("train_val.prototxt").write_text("\n".join([*lines[:8], gain, *lines[8:]]))
    done = run_well("retarget", "--dataset", "data", "-o", "net", "--epochs", 1, "--plugin", "my layers.py", "--freeze", "gain")
    assert 'type: "Gain"\n  bottom: "conv1"\n  top: "gain"\n  param {\n    lr_mult: 0' in Path("net/train_val.prototxt").read_text()
    done = run_well("train", "net/solver.prototxt", "--plugin", "my layers.py")
    names = []
    while "\nNext: " in done.stdout:
        words = next_of(done)
        assert words[-2:] == ["--plugin", "my layers.py"]
        names.append(words[0])
        registry.unregister({"Gain"})
        sys.modules.pop(next((name for name in sys.modules if name.startswith("caffetools_plugin_")), ""), None)
        done = run_well(*words)
    assert names == ["test", "classify", "export", "classify", "bundle", "bundle"]


def test_a_model_that_verify_cannot_compare_with_its_net_has_no_next_command(tmp_path: Path) -> None:
    """A part of the net, other sizes, and bytes of pictures are not what the prototxt takes."""
    net = write_net(tmp_path)
    assert next_of(run_well("export", *net, "-o", tmp_path / "whole.onnx", "--mean", "0"))[0] == "verify"
    for name, options in {"part": ("--outputs", "score"), "bytes": ("--preprocess",), "size": ("--input-shape", "data=1,3,9,11")}.items():
        written = run_well("export", *net, "-o", tmp_path / f"{name}.onnx", "--mean", "0", *options)
        assert "Next: " not in written.stdout


@pytest.mark.parametrize("pictures", [True, False])
def test_a_net_with_a_layer_that_has_no_onnx_form_is_not_to_be_exported(pictures: bool) -> None:
    draw_shapes(Path("pictures"), each=6)
    run_well("dataset", "build", "pictures", "data", "--size", 40)
    Path("gain.py").write_text(GAIN.partition("    def to_onnx")[0])
    gain = 'layer { name: "gain" type: "Gain" bottom: "conv1" top: "gain" }'
    lines = TRAIN_VAL.replace('bottom: "conv1" top: "pool1"', 'bottom: "gain" top: "pool1"').splitlines()
    Path("train_val.prototxt").write_text("\n".join([*lines[:8], gain, *lines[8:]]))
    run_well("retarget", "--dataset", "data", "-o", "net", "--epochs", 1, "--plugin", "gain.py")
    run_well("train", "net/solver.prototxt", "--plugin", "gain.py", "--max-iter", 1)
    Path("net/solver.prototxt").write_text(re.sub("max_iter: .*", "max_iter: 1", Path("net/solver.prototxt").read_text()))
    if not pictures:
        Path("pictures").rename("moved")
    done = run_well("deploy", "net/train_val.prototxt", "-o", "net/again.prototxt", "--plugin", "gain.py")
    assert next_of(done)[0] == ("classify" if pictures else "inspect")
    assert "Next" not in paste(done)[1].stdout
    shown = next_of(run_well("status", "net", "--plugin", "gain.py"))
    assert shown[0] == ("classify" if pictures else "inspect") and shown[-2:] == ["--plugin", "gain.py"]
    paste(run_well("status", "net", "--plugin", "gain.py"))


def test_a_published_model_is_fetched_by_the_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_shapes(Path("pictures"), each=6, size=40)
    done = run_well("dataset", "build", "pictures", "data", "--size", 256)
    with publishing(tmp_path, monkeypatch) as server:
        name, done = paste(done)
        assert name == "retarget" and server.seen == []
        assert next_of(done) == ["train", "net/solver.prototxt", "--weights", "squeezenet_v1.1"]
        run_well(*next_of(done), "--max-iter", 0)
        assert len(server.seen) == 1


def test_a_retarget_that_finds_the_weights_of_the_net_names_them() -> None:
    draw_shapes(Path("pictures"), each=6)
    run_well("dataset", "build", "pictures", "data", "--size", 40)
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    run_well("retarget", "--dataset", "data", "-o", "net", "--epochs", 1)
    run_well("train", "net/solver.prototxt", "-q")
    again = run_well("retarget", "net/train_val.prototxt", "--classes", 3, "-o", "second")
    weights = str(next(Path("net").glob("*.caffemodel")))
    assert next_of(again) == ["train", "second/solver.prototxt", "--weights", weights]


def test_a_report_of_a_net_trained_step_by_step_is_answered_with_what_draws_it() -> None:
    draw_shapes(Path("my pictures"), each=6)
    run_well("dataset", "build", "my pictures", "data", "--size", 40)
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    run_well("retarget", "--dataset", "data", "-o", "net", "--epochs", 1)
    assert error_of(run("report")) == "no run of caffetools finetune is in this folder; give its folder as RUN"
    run_well("train", "net/solver.prototxt")
    message = error_of(run("report"))
    assert error_of(run("report", "net")).partition("; ")[2] == message.partition("RUN; ")[2]
    lines = message.partition("are drawn by ")[2].split("; ")
    assert [shlex.split(line)[:3] for line in lines] == [
        ["caffetools", "visualize", "all"],
        ["caffetools", "visualize", "confusion"],
        ["caffetools", "curves", "net/snapshot.log"],
    ]
    for line in lines:
        run_well(*shlex.split(line)[1:])


def test_a_folder_that_is_not_a_database_where_a_net_has_its_data_does_not_matter_to_another_dataset() -> None:
    draw_shapes(Path("none"), each=6)
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    assert "Next: " in run_well("retarget", "train_val.prototxt", "--classes", 3, "-o", "net").stdout
    run_well("finetune", "none", "-o", "run", "--model", "train_val.prototxt", "--from-scratch", "--epochs", 1, "--size", 32)


def test_training_a_fine_tuning_net_from_random_weights_is_noted() -> None:
    draw_shapes(Path("pictures"), each=6)
    run_well("dataset", "build", "pictures", "data", "--size", 40)
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    run_well("retarget", "--dataset", "data", "-o", "net", "--epochs", 1)
    done = run_well("train", "net/solver.prototxt")
    assert "net/solver.prototxt: starts from random weights, but base_lr 0.001" in done.stderr
    weights = next(Path("net").glob("*.caffemodel"))
    assert "random weights" not in run_well("train", "net/solver.prototxt", "--weights", weights).stderr


@pytest.mark.parametrize("model", ["cifar10_quick", "lenet"])
def test_networks_that_do_not_crop_take_pictures_of_the_size_of_the_dataset(model: str) -> None:
    draw_shapes(Path("pictures"), each=4)
    gray = ["--gray"] if model == "lenet" else []
    run_well("dataset", "build", "pictures", "data", "--size", "48x40", *gray)
    done = run_well("retarget", model, "--dataset", "data", "-o", "net")
    assert f"dim: {1 if gray else 3}\n      dim: 40\n      dim: 48" in Path("net/deploy.prototxt").read_text()
    run_well(*next_of(done), "--max-iter", 1)


def test_small_networks_of_the_zoo_without_weights_keep_their_own_settings() -> None:
    draw_shapes(Path("pictures"), each=6)
    run_well("dataset", "build", "pictures", "data", "--size", 32)
    done = run_well("retarget", "cifar10_quick", "--dataset", "data", "-o", "net")
    assert next_of(done) == ["train", "net/solver.prototxt"]
    assert "base_lr: 0.001" in Path("net/solver.prototxt").read_text()
    assert "lr_mult: 10" not in Path("net/train_val.prototxt").read_text()
    assert "random weights" not in run_well("train", "net/solver.prototxt", "--max-iter", 1).stderr


def test_a_project_seen_from_its_nets_folder_gives_commands_that_work_there(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_shapes(Path("pictures"), each=6)
    run_well("dataset", "build", "pictures", "data", "--size", 32)
    run_well("retarget", "cifar10_quick", "--dataset", "data", "-o", "net")
    assert next_of(run_well("dataset", "build", "pictures", "more", "--size", 32))[-2:] == ["-o", "net-2"]
    monkeypatch.chdir("net")
    shown = run_well()
    assert "3 classes" in shown.stdout and next_of(shown) == ["train", "solver.prototxt"]
    run_well("train", "solver.prototxt", "--max-iter", 1)
    Path("solver.prototxt").write_text(re.sub("max_iter: .*", "max_iter: 1", Path("solver.prototxt").read_text()))
    run_well("export", "deploy.prototxt", "snapshot_iter_1.caffemodel", "-o", "../model.onnx")
    assert re.search(r"ONNX +\.\./model\.onnx", run_well().stdout), "the model of the run is in the folder above"
    monkeypatch.chdir("..")
    run_well("retarget", "cifar10_quick", "--classes", 4, "-o", "other")
    assert next_of(run_well("status", "other"))[:2] == ["dataset", "build"]
    assert re.search("^project +other$", run_well("status", "other").stdout, re.MULTILINE), (
        "it says which project of the folder it is about"
    )


def test_chance_level_is_reported_after_a_training() -> None:
    draw_shapes(Path("pictures"), each=12)
    run_well("dataset", "build", "pictures", "data", "--size", 40)
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    run_well("retarget", "--dataset", "data", "-o", "net", "--epochs", 1, "--base-lr", 1e-9, "--seed", 1)
    done = run_well("train", "net/solver.prototxt")
    assert "no better than guessing one of 3 classes" in done.stderr


def test_a_bare_train_takes_the_only_solver_and_works_in_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no solver.prototxt is in this folder" in error_of(run("train"))
    draw_shapes(Path("pictures"), each=6)
    run_well("dataset", "build", "pictures", "data", "--size", 32)
    run_well("retarget", "cifar10_quick", "--dataset", "data", "-o", "net")
    done = run_well("train", "--max-iter", 1)
    assert "net/solver.prototxt: the only solver here" in done.stderr
    monkeypatch.chdir("net")
    inside = run_well("train", "solver.prototxt", "--max-iter", 2)
    assert Path("snapshot_iter_2.caffemodel").is_file() and not Path("net").exists()
    assert next_of(inside)[0] == "test"
    paste(inside)
    monkeypatch.chdir("..")
    run_well("retarget", "lenet", "--classes", 3, "-o", "other")
    assert "several solvers are here: net/solver.prototxt, other/solver.prototxt" in error_of(run("train"))


def test_a_bare_caffetools_shows_data_net_accuracy_and_the_next_step() -> None:
    draw_shapes(Path("pictures"), each=6)
    run_well("dataset", "build", "pictures", "data", "--size", 32)
    first = run_well()
    assert "3 classes" in first.stdout and next_of(first) == ["retarget", "cifar10_quick", "--dataset", "data", "-o", "net"]
    paste(first)
    paste(run_well())
    bare = run_well()
    assert "accuracy" in bare.stdout and "100" not in next_of(bare)
    assert next_of(bare)[0] == "export"
    paste(bare)


def test_quiet_verbose_and_debug_may_be_given_anywhere() -> None:
    assert take_global_options(["-q", "train", "s", "-v"]) == (["train", "s"], {"--quiet", "--verbose"})
    assert take_global_options(["run", "-v", "script.py", "-q"]) == (["run", "-v", "script.py", "-q"], set())
    assert take_global_options(["-v", "2", "train"]) == (["-v", "2", "train"], set())
    assert take_global_options(["classify", "--", "-q"]) == (["classify", "--", "-q"], set())


def test_quiet_leaves_out_what_is_not_the_result_and_verbose_adds_the_time() -> None:
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    done = run_well("retarget", "--classes", 3, "-o", "net", "-q")
    assert done.stdout == done.stderr == "" and Path("net/solver.prototxt").is_file()
    shown = run_well("-q", "inspect", "net/deploy.prototxt")
    assert "Convolution" in shown.stdout and "Next" not in shown.stdout
    assert "Convolution" in run_well("inspect", "net/deploy.prototxt").stdout
    assert "caffetools: took " in run_well("inspect", "net/deploy.prototxt", "-v").stderr


def test_command_lines_are_quoted_for_a_shell() -> None:
    assert command("classify", "my net/model.onnx", "a b.png") == "caffetools classify 'my net/model.onnx' 'a b.png'"


def test_the_next_step_of_a_dataset_needs_no_torch() -> None:
    script = "import sys, caffetools.cli.dataset_build, caffetools.project.surroundings; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_weights_next_to_a_net_are_proposed_only_where_they_fit() -> None:
    run_well("retarget", "lenet", "--classes", 3, "-o", "net")
    run_well("retarget", "lenet", "--classes", 7, "-o", "other")
    Path("other/solver.prototxt").write_text('net: "other/deploy.prototxt"')
    write_caffemodel("net/trained.caffemodel", to_caffemodel(load_net("net/deploy.prototxt")))
    assert find_weights("net/deploy.prototxt") == Path("net/trained.caffemodel")
    assert (
        "--weights net/trained.caffemodel"
        in run_well("retarget", "net/train_val.prototxt", "--classes", 4, "-o", "more", "--input-shape", "1,1,28,28").stdout
    )
    Path("net/trained.caffemodel").rename("other/trained.caffemodel")
    assert find_weights("other/deploy.prototxt") is None
    retargeted = run_well("retarget", "other/train_val.prototxt", "--classes", 4, "-o", "fresh", "--input-shape", "1,1,28,28")
    assert next_of(retargeted) == ["train", "fresh/solver.prototxt"]


def test_the_pictures_of_a_dataset_are_found_from_inside_its_project(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_shapes(Path("my pictures"), each=3)
    run_well("dataset", "build", "my pictures", "run/data", "--size", 32)
    monkeypatch.chdir("run/data")
    pictures = [path for path, _ in held_out(load_card(Path()))]
    assert len(pictures) == 3 and all(path.is_file() for path in pictures)


def test_a_training_that_replaces_the_snapshots_of_another_says_so() -> None:
    draw_shapes(Path("pictures"), each=4)
    run_well("dataset", "build", "pictures", "data", "--size", 40)
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    run_well("retarget", "--dataset", "data", "-o", "net", "--epochs", 1)
    assert "earlier" not in run_well("train", "net/solver.prototxt").stderr
    (state,) = Path("net").glob("*.solverstate")
    note = f"{state} is of an earlier training; this one begins at iteration 0 and replaces its snapshots (--resume auto continues it)"
    assert note in run_well("train", "net/solver.prototxt").stderr
    assert "earlier" not in run_well("train", "net/solver.prototxt", "--resume", "auto").stderr
