"""``--help``: every command answers quickly, in 80 columns, and the commands are in panels."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from caffetools.cli.app import app
from caffetools.cli.commands import COMMANDS as listed_commands
from caffetools.zoo.networks import prototxt_path
from tests.cli.inprocess import run_well


def names_of(command: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command below ``command``, groups too, as words."""
    found = [before] if before else []
    for name, inner in getattr(command, "commands", {}).items():
        found += names_of(inner, (*before, name))
    return found


COMMANDS = names_of(typer.main.get_command(app))


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_in_narrow_terminals(words: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = run_well(*words, "--help")
    assert f"Usage: caffetools {' '.join(words)}" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= width
    # Names, words for values and effects are whole, and no name of a Python type is among them.
    shown = set(re.findall(r"--?[a-z][\w-]*", done.stdout))
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    assert {flag for param in command.params for flag in param.opts if flag.startswith("-")} <= shown
    text = " ".join(re.sub(r" *│\n│ *", " ", done.stdout).split())
    for param in command.params:
        assert getattr(param, "help", None) is None or " ".join(param.help.split()) in text, param.name  # type: ignore[attr-defined]
    assert not re.search(r"<[a-z ]+>|\[/?bold", text)
    assert done.stderr == ""


def test_examples_that_are_longer_than_a_line_can_still_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = run_well("dataset", "build", "--help").stdout
    examples = re.findall(r" Example: ((?:.*\\ *\n)*.*)", text)
    words = [shlex.split(re.sub(r"\\ *\n", "", example)) for example in examples]
    assert ["caffetools", "dataset", "build", "people.csv", "data", "--group-by", "person"] in words
    assert "\\" in text


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_of_a_name_reads_alike(words: tuple[str, ...]) -> None:
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    for param in command.params:
        text = getattr(param, "help", None) or ""
        # rich takes brackets for markup and leaves them out.
        assert not re.search(r"\[\w", text), f"{param.name}: {text}"
        assert not re.search(r"repeatable|; may be repeated|; else |Default:|; default:", text), text
        assert not text or text.endswith("."), f"{param.name}: {text}"


@pytest.mark.parametrize(
    "line",
    ["help zoo list --json", "zoo list --help --json", "help --json zoo list", "zoo list --json -h", "-q help zoo list --json"],
)
def test_help_is_json_where_it_is_asked_for(line: str) -> None:
    answer = json.loads(run_well(*line.split()).stdout)
    assert answer["command"] == "caffetools zoo list"
    assert answer["usage"] == "caffetools zoo list [OPTIONS]"
    assert answer["examples"] == ["caffetools zoo list"]
    assert "--json" in [option["name"] for option in answer["panels"]["Options"]]


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=" ".join)
def test_the_json_of_every_commands_help_has_what_its_text_has(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    text = run_well(*words, "--help").stdout
    answer = json.loads(run_well(*words, "--help", "--json").stdout)
    assert answer["command"] == " ".join(("caffetools", *words)) and answer["help"].split("\n\n")[0] in text
    rows = [row for panel in answer["panels"].values() for row in panel]
    assert rows and all(row["name"] in text and row["help"] in " ".join(text.split()) for row in rows)


def test_help_and_json_behind_a_script_are_the_scripts(tmp_path: Path) -> None:
    script = tmp_path / "words.py"
    script.write_text("import sys; print(sys.argv[1:])")
    assert run_well("run", str(script), "--help", "--json").stdout == "['--help', '--json']\n"
    assert json.loads(run_well("help", "run", "--json").stdout)["command"] == "caffetools run"


def test_the_commands_are_in_panels_in_the_order_in_which_they_are_met() -> None:
    lines = run_well("--help").stdout.splitlines()
    panels = [found[1] for line in lines if (found := re.match(r"╭─ (.+?) ─+╮", line))]
    assert panels == ["Options", "End to end", "Data", "Networks", "Training", "Inference", "Export and conversion", "Environment"]
    listed = [found[1] for line in lines if (found := re.match(r"│ ([a-z][a-z-]*) ", line))]
    assert listed[:3] == ["demo", "finetune", "dataset"]
    assert set(listed) == {words[0] for words in COMMANDS}


def test_help_and_what_needs_no_computing_import_nothing_heavy(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"photos/{name}").mkdir(parents=True)
        (tmp_path / f"photos/{name}/1.jpg").touch()
    nets = [prototxt_path("lenet", kind) for kind in ("deploy", "train_val")]
    commands = [
        "",
        "zoo list",
        "zoo list --json",
        "zoo show lenet",
        "engine list",
        f"diff {nets[0]} {nets[1]}",
    ]
    script = (
        "import sys\n"
        "from caffetools.cli.app import main\n"
        "for words in sys.argv[1:]:\n"
        "    sys.argv[1:] = words.split()\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, words\n"
        "print('HEAVY', sorted({'torch', 'cv2', 'onnx', 'onnxruntime', 'matplotlib', 'sklearn'} & set(sys.modules)))\n"
    )
    every = [*commands, *(" ".join((*words, "--help")) for words in COMMANDS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script, *every], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("HEAVY []")


def test_what_is_listed_of_a_command_is_the_beginning_of_its_own_help() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, entry in listed_commands.items():
        assert entry.help and commands[name].help.split("\n\n")[0] == entry.help, name
        assert commands[name].name == name


def test_every_command_shows_an_example() -> None:
    for name, entry in listed_commands.items():
        assert entry.example.startswith(f"caffetools {name}"), name
        assert entry.example.split()[0] in run_well(name, "--help").stdout


def test_the_list_of_commands_imports_none_of_them() -> None:
    script = (
        "import sys\n"
        "from caffetools.cli.app import main\n"
        "sys.argv = ['caffetools', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('LOADED', sorted(m for m in sys.modules if m.startswith('caffetools.cli.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = [f"caffetools.cli.{name}" for name in ("app", "caffe_names", "commands", "gflags", "help", "interrupts", "numbers", "usage")]
    assert done.stdout.rstrip().endswith(f"LOADED {modules}")
