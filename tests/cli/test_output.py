"""Text of files on a terminal: names are shown as they are, never as markup or escape codes; full and closed outputs are one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.table import Table

from caffetools.cli.app import _report
from caffetools.cli.show import console, printable
from caffetools.proto.encoding import decode_text
from tests.children import run_child
from tests.cli.inprocess import run

NASTY = "\\033]0;owned\\007[bold]x[/bold][/y][link=http://a.example]\\r\\302\\233H"
NET = f"""name: "{NASTY}"
input: "data" input_shape {{ dim: 1 dim: 4 }}
layer {{ name: "{NASTY}" type: "InnerProduct" bottom: "data" top: "out[/z]" inner_product_param {{ num_output: 2 }} }}
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return path


def has_controls(text: str) -> bool:
    return any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in text)


@pytest.mark.parametrize(
    "command", [["inspect"], ["inspect", "--json"], ["time", "--iterations", "1", "--model"], ["time", "--iterations", "1"]]
)
def test_names_are_shown_as_they_are_and_never_act_on_the_terminal(net: Path, command: list[str]) -> None:
    done = run_child(["-m", "caffetools", *command, net])
    assert done.returncode == 0, done.stderr
    assert not has_controls(done.stdout) and not has_controls(done.stderr)
    shown = json.loads(done.stdout)["layers"][-1]["name"] if "--json" in command else done.stdout + done.stderr
    assert "[bold]x[/bold][/y][link=http://a.example]" in shown


def test_the_error_about_a_nasty_name_is_one_line_of_plain_characters(net: Path) -> None:
    net.write_text(NET.replace('bottom: "data"', 'bottom: "\\033[2Jno\\nsuch"'))
    done = run_child(["-m", "caffetools", "inspect", net])
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not has_controls(done.stderr)
    assert "\\x1b[2Jno\\nsuch" in done.stderr


def test_a_full_stdout_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "caffetools", "version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"caffetools: error: cannot write the output: No space left on device\n")


def test_a_closed_stdout_is_one_line() -> None:
    # A shell closes it before Python starts, so that there is no sys.stdout.
    line = [sys.executable, "-m", "caffetools", "version"]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *line], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0 and done.stderr.count(b"\n") == 1 and b"standard output is closed" in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 网 😀\t\n", "plain é 网 😀\t\n"),
        ("\x1b[31m\r\x7f\x9b", "\\x1b[31m\\x0d\\x7f\\x9b"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        (decode_text(b"r\xe9seau"), "r\\xe9seau"),
    ],
)
def test_what_is_printable_is_kept_and_the_rest_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_control_characters_that_rich_leaves_out_are_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("bell\x07", box=None)
    table.add_row("feed\x0c")
    console.print("return\r", table)
    assert capsys.readouterr().out.split() == ["return\\x0d", "bell\\x07", "feed\\x0c"]


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_one_plain_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert _report(error) == 1
    assert (
        capsys.readouterr().err == "caffetools: error: there is not enough memory for this; a smaller batch or smaller pictures need less\n"
    )


def test_a_table_takes_several_lines_a_row_on_a_terminal_that_is_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = re.compile(r"\x1b\[[0-9;]*m")
    wide = run("inspect", "lenet").stdout.splitlines()
    monkeypatch.setattr(console, "_width", 40)
    assert run("inspect", "lenet").stdout.splitlines() == wide, "a pipe has no width"
    narrow = plain.sub("", run("inspect", "lenet", terminal=True).stdout).splitlines()
    table = narrow[1 : narrow.index(next(line for line in narrow if "layers," in line))]
    assert max(map(len, table)) <= 40
    assert table[0].split() == ["Layer", "Type", "Output"] and table[1].split() == ["Parameters", "MACs", "Memory"]
    assert " ".join(table[2:]).split() == " ".join(wide[2 : 2 + len(table)]).split()[: len(" ".join(table[2:]).split())]
    monkeypatch.setattr(console, "_width", 200)
    assert plain.sub("", run("inspect", "lenet", terminal=True).stdout).splitlines() == wide
