"""What holds for every command: an example in its help that can be run, --json, and --force before anything is replaced."""

from __future__ import annotations

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
from tests.cli.inprocess import error_of, run, run_well
from tests.cli.test_help import names_of
from tests.conftest import GOLDEN

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


@pytest.fixture
def place(made_materials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_materials, tmp_path / "files", symlinks=True)
    monkeypatch.chdir(tmp_path / "files")
    shutil.copy(sorted((GOLDEN / "logs").glob("*.log"))[0], "caffe.log")
    return tmp_path / "files"


NET = ("good.prototxt", "good.caffemodel")
# Command line without its output → the output.
WRITERS: dict[str, tuple[tuple[str, ...], str]] = {
    "export": (("export", *NET, "-o", "m.onnx"), "m.onnx"),
    "deploy": (("deploy", "lenet", "-o", "d.prototxt"), "d.prototxt"),
    "retarget": (("retarget", "lenet", "--classes", "3", "-o", "net"), "net/solver.prototxt"),
    "trainable": (("trainable", "good.prototxt", "-o", "net"), "net/solver.prototxt"),
    "upgrade": (("upgrade", "good.prototxt", "new.prototxt"), "new.prototxt"),
    "mean": (("mean", "data/train_lmdb", "m.binaryproto"), "m.binaryproto"),
    "curves": (("curves", "caffe.log", "-o", "c.png"), "c.png"),
    "filters": (("visualize", "filters", "good.caffemodel", "-o", "f.png"), "f.png"),
    "graph": (("visualize", "graph", "good.prototxt", "-o", "g.svg"), "g.svg"),
    "receptive field": (("visualize", "receptive-field", "good.prototxt", "-o", "r.png"), "r.png"),
    "zoo copy": (("zoo", "copy", "lenet", "copy"), "copy/deploy.prototxt"),
}


@pytest.mark.parametrize("words", WRITERS)
def test_what_exists_is_replaced_with_force_only(words: str, place: Path) -> None:
    line, name = WRITERS[words]
    out = place / name
    out.parent.mkdir(exist_ok=True)
    out.write_text("of the user")
    message = error_of(run(*line))
    assert "exists" in message and "--force" in message and message.startswith(name), message
    assert out.read_text() == "of the user"
    run_well(*line, "--force")
    assert out.read_bytes() != b"of the user"


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
