"""Notebooks as IPython runs them: values of cells, ``await``, ``display``, magics, and what needs IPython."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from caffetools.errors import CaffeToolsError
from caffetools.pycaffe.notebook_display import Lines
from caffetools.pycaffe.script import ScriptFailed, run_script

without_ipython = pytest.mark.skipif(importlib.util.find_spec("IPython") is not None, reason="IPython runs these itself")


def book(folder: Path, *cells: str, name: str = "book.ipynb") -> Path:
    content = {"cells": [{"cell_type": "code", "source": cell} for cell in cells], "nbformat": 4}
    (folder / name).write_text(json.dumps(content))
    return folder / name


def lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return capfd.readouterr().out.splitlines()


def test_the_value_of_a_cell_is_shown_and_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = (
        "x = 5\nx",
        "_ + 1",
        "print(Out[1], In[1].splitlines(), _1)",
        "7;",
        "print(_)",
        "8 ;  # not shown",
        "None",
        "print(_, __, ___)",
        "'text'",
        "%pwd",
    )
    run_script(book(tmp_path, *cells))
    assert lines(capfd) == ["5", "6", "5 ['x = 5', 'x'] 5", "7", "8 7 6", "'text'", repr(str(tmp_path))]


def test_cells_may_wait(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_script(
        book(tmp_path, "import asyncio\nasync def f(): return 3", "await asyncio.sleep(0)\nr = await f()\nprint(r)", "await f() + 1")
    )
    assert lines(capfd) == ["3", "4"]
    with pytest.raises(ScriptFailed, match=r'File "book\.ipynb, cell 1", line 2'):
        run_script(book(tmp_path, "import asyncio\nawait asyncio.nothing()"))


@without_ipython
def test_display_is_there_without_ipython(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"data")
    cells = (
        "display(3, 'a')",
        "from IPython.display import Image, HTML, clear_output, display\nimport IPython\nclear_output(wait=True)",
        "image = Image(filename='a.png')\nimage",
        "display(HTML('<b>'), image.data)\nIPython.get_ipython().magic('matplotlib inline')",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
    )
    run_script(book(tmp_path, *cells))
    image = "<IPython.core.display.Image object>"
    assert lines(capfd) == ["3", "'a'", image, "<IPython.core.display.HTML object>", "b'data'"]
    assert "IPython" not in sys.modules


def test_programs_read_a_cell_in_a_process_of_their_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = (
        "value, word = 1, 'a'",
        "%%python\ntry: value\nexcept NameError: print('not here')",
        "%%bash --out kept -s {word} b\necho $1 $2; echo err >&2",
        "print(repr(kept))",
        "%%script sh\necho scripted",
        "%%bash --no-raise-error\nexit 3",
        "%%time\n%%sh\necho timed",
    )
    run_script(book(tmp_path, *cells))
    assert lines(capfd) == ["not here", "'a b\\n'", "scripted", "timed"]


def test_run_takes_options_and_notebooks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside_a_script.py").write_text("word = 'beside'\n")
    (tmp_path / "sub" / "other.py").write_text(
        "import sys\nfrom beside_a_script import word\nvalue = sys.argv[1:]\nif __name__ == '__main__':\n    print('main', globals().get('mine'))\n"
    )
    book(tmp_path, "inner = 4", "!echo {inner}", name="inner.ipynb")
    cells = (
        "mine, path = 2, 'sub/other'",
        "%run $path a 1",
        "print(value, word, __name__)",
        "%run -i sub/other.py",
        "%run -n sub/other.py\n%run inner.ipynb\nprint(inner)",
        "%load sub/other.py",
    )
    run_script(book(tmp_path, *cells))
    sys.modules.pop("beside_a_script")
    assert lines(capfd) == ["main None", "['a', '1'] beside __main__", "main 2", "4", "4"]
    with pytest.raises(CaffeToolsError, match=r"book\.ipynb, cell 2:1: %run: the script none\.py does not exist"):
        run_script(book(tmp_path, "1;", "%run none"))


def test_variables_are_removed_and_listed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = (
        "x = 1; y = 2; yy = 3",
        "%who",
        "%xdel x\n%reset_selective -f ^yy$\n%who",
        "%reset -f\n%who",
        "print(In[1], 'y' in globals(), display is not None)",
    )
    run_script(book(tmp_path, *cells))
    assert lines(capfd) == ["x\ty\tyy", "y", "", "x = 1; y = 2; yy = 3 False True"]


def test_timeit_runs_as_often_as_asked_and_keeps_its_variables(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = (
        "calls = []",
        "%timeit -n 3 -r 2 own = calls.append(1)",
        "print(len(calls), 'own' in globals())",
        "times = %timeit -o -q -n1 -r2 pass\nprint(len(times))",
        "%%timeit -n 2 -r 1 other = 5\ncalls.append(other)\ncalls.append(other)",
        "print(len(calls))\na = %time 5 + 1\nprint(a)",
    )
    run_script(book(tmp_path, *cells))
    shown = lines(capfd)
    assert "per loop (mean of 2 runs, 3 loops each" in shown[0]
    assert [line for line in shown if "per loop" not in line] == ["6 False", "2", "10", "6"]


def test_outputs_of_commands_are_lists_with_ipythons_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = (
        "lines = !printf 'b 1\\na 2\\n'\nprint(lines.s, repr(lines.n), lines.l, lines.grep('A'), lines.grep('a', prune=True), lines.fields(1), lines.fields())",
        "!!echo twice",
        "words = %sx echo {len(lines)}\nwords",
        "!exit 3\nprint(_exit_code)",
    )
    run_script(book(tmp_path, *cells))
    assert lines(capfd) == [
        "b 1 a 2 'b 1\\na 2' ['b 1', 'a 2'] ['a 2'] ['b 1'] ['1', '2'] [['b', '1'], ['a', '2']]",
        "['twice']",
        "['2']",
        "3",
    ]
    (tmp_path / "f").write_text("")
    assert Lines([str(tmp_path / "f"), "none"]).p == [tmp_path / "f"]


def test_prompts_and_the_indentation_of_a_cell_are_taken_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = (
        ">>> for i in [1]:\n...     print(i)",
        "In [3]: y = 2\nIn [4]: print(y)",
        "    if True:\n        print('in')",
        "  %matplotlib inline",
    )
    run_script(book(tmp_path, *cells))
    assert lines(capfd) == ["1", "2", "in"]


@without_ipython
@pytest.mark.parametrize("cell", ["%store x", "%nosuch", "%%cython\nx"])
def test_magics_that_need_ipython_are_one_line_with_cell_and_line(cell: str, tmp_path: Path) -> None:
    name = cell.split()[0]
    with pytest.raises(CaffeToolsError, match=rf"^book\.ipynb, cell 2:1: the notebook's magic {name} needs IPython, .*pip install ipython"):
        run_script(book(tmp_path, "%load_ext autoreload\n%autoreload 2", cell))


def test_what_a_cell_of_python_2_takes_from_the_future_lasts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.py").write_text("print 'old', 7 / 2\n")
    cells = (
        "print 7 / 2",
        "from __future__ import division, print_function\nprint(7 / 2, end='!\\n')",
        "# later\nprint(7 / 2, 'a')",
        "%run old.py",
        "3 / 2",
    )
    run_script(book(tmp_path, *cells), convert_python2=True)
    assert lines(capfd) == ["3", "3.5!", "3.5 a", "old 3", "1.5"]


def test_functions_in_c_that_import_find_their_builtins(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_script(book(tmp_path, "import numpy as np\nprint(np.array([1]))", "eval('1 + 1')"))
    assert lines(capfd) == ["[1]", "2"]
