"""What holds for every command: an example in its help that can be run, --json, and --force before anything is replaced."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from caffetools.cli.app import app, take_global_options
from caffetools.cli.caffe_names import modern
from caffetools.cli.commands import CAFFE_TOOLS
from caffetools.cli.gflags import translate
from tests.bundle.conftest import DETECTOR, write_net
from tests.cli.inprocess import below, error_of, run, run_well
from tests.cli.materials import SOLVER
from tests.cli.test_help import names_of
from tests.conftest import GOLDEN
from tests.data.foreign import write_cifar, write_idx
from tests.project.shapes import draw_shapes

ROOT: Any = typer.main.get_command(app)
GROUPS = {words[0] for words in names_of(ROOT) if len(words) > 1}
COMMANDS = [words for words in [*names_of(ROOT), *((name,) for name in CAFFE_TOOLS)] if words[0] not in GROUPS or len(words) > 1]

# A script has its own output; a server runs until it is stopped.
WITHOUT_JSON = {("run",), ("visualize", "live")}
# They write into a folder of their own, whose content tells them to resume, to replace or to refuse.
WITHOUT_FORCE = {
    ("finetune",): "resumes in the folder of the same run",
    ("demo",): "replaces an earlier demo only",
}


def command_of(words: tuple[str, ...]) -> Any:
    found: Any = ROOT
    for word in words:
        found = found.commands[word] if word not in CAFFE_TOOLS else ROOT.get_command(None, word)
    return found


def flags_of(words: tuple[str, ...]) -> set[str]:
    return {flag for param in command_of(words).params for flag in getattr(param, "opts", [])}


def examples_of(words: tuple[str, ...]) -> list[str]:
    epilog = str(command_of(words).epilog or "")
    return re.findall(r"Example: (caffetools [^\n]+)", epilog)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_has_an_example_that_the_command_line_accepts(words: tuple[str, ...]) -> None:
    examples = examples_of(words)
    assert examples, f"{' '.join(words)} has no example"
    assert "Example: caffetools" in " ".join(run_well(*words, "--help").stdout.split())
    for example in examples:
        arguments, _ = take_global_options(shlex.split(example)[1:])
        arguments = translate(modern(arguments)[0])
        depth = len(words)
        command = command_of(tuple(arguments[:depth]))
        command.make_context(" ".join(words), list(arguments[depth:]))


@pytest.mark.parametrize("words", [words for words in COMMANDS if words not in WITHOUT_JSON], ids=" ".join)
def test_every_command_prints_json_where_asked(words: tuple[str, ...]) -> None:
    assert "--json" in flags_of(words)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_that_writes_has_force(words: tuple[str, ...]) -> None:
    params = command_of(words).params
    writes = any(
        param.name in ("out", "folder", "databases", "database") and "OUT" in f"{param.metavar} {param.opts}".upper() for param in params
    )
    if writes and words not in WITHOUT_FORCE:
        assert "--force" in flags_of(words), f"{' '.join(words)} writes and has no --force"


@pytest.fixture(scope="module")
def all_materials(made_materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nets, weights and data of the tests of bad input without the bad ones, and more, so that every command has its files."""
    folder = tmp_path_factory.mktemp("all") / "files"
    folder.mkdir()
    for name in ("good.*", "train.prototxt", "data", "pictures"):
        for path in made_materials.glob(name):
            shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder)
    shutil.copy(sorted((GOLDEN / "logs").glob("*.log"))[0], folder / "caffe.log")
    write_idx(folder / "idx")
    write_cifar(folder / "cifar")
    draw_shapes(folder / "more", each=2, size=40)
    run_well("dataset", "build", folder / "more", folder / "data2", "--size", 8, "--val", 0.5)
    (folder / "detector").mkdir()
    write_net(folder / "detector", DETECTOR)
    (folder / "augment.yaml").write_text("rotation: 5\n")
    (folder / "list.txt").write_text("".join(f"{path.relative_to(folder)} 0\n" for path in sorted((folder / "pictures" / "a b").glob("*"))))
    return folder


@pytest.fixture
def place(all_materials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(all_materials, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    return tmp_path / "files"


IDX = "idx/train-images-idx3-ubyte idx/train-labels-idx1-ubyte"
NET = "good.prototxt good.caffemodel"
# Every command that writes (a test below asks for it): its command line, "OUT" where the output is named, and the output.
WRITERS: dict[str, tuple[str, str]] = {
    "bundle": (f"bundle {NET} --target onnxruntime -o OUT", "made"),
    "classify": (f"classify {NET} good.png --parquet OUT", "made"),
    "convert-cifar-data": ("convert-cifar-data cifar . lmdb", "cifar10_train_lmdb"),
    "convert-imageset": ("convert-imageset ./ list.txt OUT", "made"),
    "convert-mnist-data": (f"convert-mnist-data {IDX} OUT", "made"),
    "convert-mnist-siamese-data": (f"convert-mnist-siamese-data {IDX} OUT --backend lmdb", "made"),
    "curves": ("curves caffe.log -o OUT", "c.png"),
    "dataset add": ("dataset add data more -o OUT", "made"),
    "dataset build": ("dataset build pictures OUT --size 8", "made"),
    "dataset convert": ("dataset convert mnist idx OUT", "made"),
    "dataset export": ("dataset export data/val_lmdb OUT", "made"),
    "dataset inspect": ("dataset inspect data/val_lmdb -o OUT", "s.png"),
    "dataset merge": ("dataset merge OUT data data2", "made"),
    "dataset preview": ("dataset preview good.png --augment augment.yaml -o OUT", "p.png"),
    "dataset shard": ("dataset shard data/val_lmdb OUT --shards 2", "made"),
    "dataset subset": ("dataset subset data OUT --per-class 2", "made"),
    "deploy": ("deploy lenet -o OUT", "d.prototxt"),
    "detect": ("detect detector/deploy.prototxt detector/tiny.caffemodel good.png --parquet OUT", "made"),
    "export": (f"export {NET} -o OUT", "m.onnx"),
    "extract-features": ("extract-features good.caffemodel train.prototxt ip OUT 1", "made"),
    "import": ("import good.onnx -o OUT", "made/deploy.prototxt"),
    "infer": (f"infer {NET} good.png -o OUT", "made/good.prob.npy"),
    "mean": ("mean data/train_lmdb OUT", "m.binaryproto"),
    "quantize": (f"quantize {NET} -c pictures -o OUT", "q.onnx"),
    "quantize (tables)": (f"quantize {NET} -c pictures -o q.onnx", "q.ncnn.table"),
    "retarget": ("retarget lenet --classes 3 -o OUT", "made/solver.prototxt"),
    "trainable": ("trainable good.prototxt -o OUT", "made/solver.prototxt"),
    "upgrade": ("upgrade good.prototxt OUT", "new.prototxt"),
    "visualize activations": (f"visualize activations {NET} good.png -o OUT", "v.png"),
    "visualize all": (f"visualize all {NET} -o OUT", "v.html"),
    "visualize confusion": (f"visualize confusion {NET} data -o OUT", "v.png"),
    "visualize curves": ("visualize curves caffe.log -o OUT", "v.png"),
    "visualize deepdream": (f"visualize deepdream {NET} good.png --blob conv --steps 1 --octaves 1 -o OUT", "v.png"),
    "visualize embedding": (f"visualize embedding {NET} pictures -o OUT", "v.png"),
    "visualize errors": (f"visualize errors {NET} data -o OUT", "v.png"),
    "visualize explain": (f"visualize explain {NET} good.png --method saliency -o OUT", "v.png"),
    "visualize filters": ("visualize filters good.caffemodel -o OUT", "v.png"),
    "visualize graph": ("visualize graph good.prototxt -o OUT", "v.svg"),
    "visualize occlusion": (f"visualize occlusion {NET} good.png -o OUT", "v.png"),
    "visualize receptive-field": ("visualize receptive-field good.prototxt -o OUT", "v.png"),
    "visualize roc": (f"visualize roc {NET} data -o OUT", "v.png"),
    "visualize style": (f"visualize style {NET} good.png good.png --content-blob conv --style-blob conv --steps 1 -o OUT", "v.png"),
    "visualize synthesize": (f"visualize synthesize {NET} --unit 0 --steps 1 -o OUT", "v.png"),
    "visualize top-images": (f"visualize top-images {NET} pictures --blob conv --units 0 --top 1 -o OUT", "v.png"),
    "visualize weights": ("visualize weights good.caffemodel -o OUT", "v.png"),
    "zoo copy": ("zoo copy lenet OUT", "made/deploy.prototxt"),
}


def test_the_table_of_writers_has_every_command_with_force() -> None:
    forced = {" ".join(words) for words in COMMANDS if "--force" in flags_of(words)} - {"run"}
    # Caffe's tools replace their outputs; the report of a run is in test_next_steps.py, which has one.
    assert forced - {"report"} - set(CAFFE_TOOLS) == {name.partition(" (")[0] for name in WRITERS}


@pytest.mark.parametrize("words", WRITERS)
def test_what_exists_is_replaced_with_force_only(words: str, place: Path) -> None:
    line, name = WRITERS[words]
    arguments = shlex.split(line.replace("OUT", name.split("/")[0]))
    if Path(name).suffix:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("of the user")
    else:
        run_well(*arguments)
    before = below(place)
    message = error_of(run(*arguments))
    assert message.startswith(f"{name}: already exists; ") and message.endswith("--force to replace it"), message
    assert below(place) == before
    run_well(*arguments, "--force")
    assert {name: before[name]}.items() - below(place).items() or not Path(name).suffix


READERS: dict[str, Callable[[], tuple[str, ...]]] = {
    "inspect": lambda: ("inspect", "-"),
    "graph": lambda: ("visualize", "graph", "-", "-o", "g.svg", "--json"),
    "deploy": lambda: ("inspect", "-", "good.caffemodel"),
    "export": lambda: ("export", "-", "good.caffemodel", "-o", "m.onnx"),
    "classify": lambda: ("classify", "-", "good.caffemodel", "good.png"),
    "upgrade": lambda: ("upgrade", "-", "new.prototxt"),
    "diff": lambda: ("diff", "-", "good.prototxt", "--exit-code"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_dash_is_standard_input_where_a_prototxt_is_read(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caffetools.cli import models

    with (place / "good.prototxt").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        models._stdin_file.cache_clear()
        run_well(*READERS[name]())


def test_an_error_in_standard_input_names_it_and_the_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caffetools.cli import models

    Path("bad.prototxt").write_text('name: "n"\nlayer { nme: "x" }\n')
    with Path("bad.prototxt").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        models._stdin_file.cache_clear()
        assert error_of(run("inspect", "-")).startswith("<stdin>:2")


def test_a_dash_is_standard_input_for_lists_logs_and_pictures(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caffetools.cli import models

    Path("names.txt").write_text("good.png\n")
    for name, line in (
        ("caffe.log", "curves - -o c.png"),
        ("caffe.log", "parse_log - ."),
        ("list.txt", "convert-imageset ./ - made_lmdb"),
        ("names.txt", f"classify {NET} --list -"),
        ("good.png", f"classify {NET} -"),
        ("good.png", "classify good.onnx -"),
        ("good.onnx", "import - -o imported"),
        ("good.caffemodel", "inspect good.prototxt -"),
    ):
        with Path(name).open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            models._stdin_file.cache_clear()
            done = run_well(*shlex.split(line))
        assert not re.search(r"^Next: .* - ", done.stdout, re.MULTILINE), line
    assert Path("stdin.train").is_file() and Path("made_lmdb").is_dir()


def test_a_command_that_read_standard_input_has_no_next_command_that_would(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caffetools.cli import models

    for line in ("classify - good.caffemodel good.png", "export - good.caffemodel -o m.onnx"):
        with Path("good.prototxt").open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            models._stdin_file.cache_clear()
            assert "Next:" not in run_well(*shlex.split(line)).stdout


def test_a_dash_is_standard_output_of_upgrade_and_refused_elsewhere(place: Path) -> None:
    assert run_well("upgrade", "good.prototxt", "-").stdout == run_well("upgrade_net_proto_text", "good.prototxt", "-").stdout
    Path("same.prototxt").write_text(run_well("upgrade", "good.prototxt", "-").stdout)
    run_well("diff", "same.prototxt", "good.prototxt", "--exit-code")
    assert "not text" in error_of(run("upgrade", "good.caffemodel", "-"))
    assert "leave out --json" in error_of(run("upgrade", "good.prototxt", "-", "--json"))
    Path("solver.prototxt").write_text(SOLVER)
    for line in (
        *("deploy lenet -o -", f"export {NET} -o -", "mean data/train_lmdb -", "shims install --bin -"),
        *("train solver.prototxt --log -", "train solver.prototxt --tensorboard -"),
    ):
        assert "standard output" in error_of(run(*shlex.split(line))), line
    assert not Path("-").exists()


@pytest.mark.parametrize(
    "line",
    [
        *("test train.prototxt --weights good.caffemodel --iterations 1", "time train.prototxt --iterations 1"),
        *("test_net train.prototxt good.caffemodel 1", "caffe test -model train.prototxt -weights good.caffemodel -iterations 1"),
        *("compute_image_mean data/train_lmdb mean.binaryproto", "device_query", "inspect good.prototxt", "version", "status"),
    ],
)
def test_quiet_prints_the_result_of_a_command_that_asks_and_nothing_else(line: str, place: Path) -> None:
    done = run_well("-q", *shlex.split(line))
    assert done.stdout.strip() and done.stderr == ""
    assert "Next: " not in done.stdout


def test_a_bare_command_line_gives_json_of_the_project(place: Path) -> None:
    assert json.loads(run_well("--json").stdout) == json.loads(run_well("status", "--json").stdout)


def test_a_detector_with_wild_predictions_gives_no_warning(place: Path) -> None:
    for scale in ("1e6", "-1e6"):
        assert run_well("detect", "detector/deploy.prototxt", "detector/tiny.caffemodel", "good.png", "--scale", scale).stderr == ""


def test_a_synthesized_picture_that_is_not_finite_is_refused(place: Path) -> None:
    line = "visualize style good.prototxt good.caffemodel good.png good.png -o out.png --content-blob conv --style-blob conv --steps 1 --scale 1e-30"
    assert "values that are not finite" in error_of(run(*shlex.split(line)))
    assert not Path("out.png").exists()
