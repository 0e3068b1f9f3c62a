"""``caffetools run``: errors as Python shows them, scripts of Python 2, the magics of notebooks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from caffetools.errors import CaffeToolsError, DataError
from caffetools.pycaffe import python2
from caffetools.pycaffe.notebook_magics import Magics
from caffetools.pycaffe.script import ScriptFailed, run_script
from tests.children import run_child


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def book(folder: Path, *cells: str) -> Path:
    content = {"cells": [{"cell_type": "code", "source": cell} for cell in cells], "nbformat": 4}
    return write(folder, "book.ipynb", json.dumps(content))


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_child(["-m", "caffetools", "run", *arguments, path.name], cwd=path.parent)


def test_an_exception_is_shown_with_the_frames_of_the_user_only(tmp_path: Path) -> None:
    write(tmp_path, "helper_of_a_script.py", "def half(values):\n    return values[0] / 2\n")
    path = write(tmp_path, "script.py", "from helper_of_a_script import half\n\nhalf([])\n")
    with pytest.raises(ScriptFailed) as raised:
        run_script(path)
    sys.modules.pop("helper_of_a_script")
    text = str(raised.value)
    assert text.startswith("Traceback (most recent call last):\n")
    assert f'File "{path}", line 3, in <module>' in text
    assert 'helper_of_a_script.py", line 2, in half' in text
    assert text.splitlines()[-1] == "IndexError: list index out of range"
    assert "runpy" not in text
    assert "caffetools" not in text.replace(str(tmp_path), "")
    assert raised.value.exit_code == 1


def test_the_command_shows_it_and_ends_with_1(tmp_path: Path) -> None:
    done = run(write(tmp_path, "script.py", "import caffe\nraise KeyError('TEST')\n"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-3:] == ['  File "script.py", line 2, in <module>', "    raise KeyError('TEST')", "KeyError: 'TEST'"]
    done = run(tmp_path / "script.py", "--debug")
    assert done.returncode == 1
    assert "runpy" in done.stderr


@pytest.mark.parametrize(
    "line",
    ['print "x"', "try: pass\nexcept ValueError, e: pass", "x = 0777", "if 1 <> 2: pass", "raise ValueError, 'x'", "exec 'x'", "x = 10L"],
)
def test_python_2_is_recognized_by_its_syntax(line: str, tmp_path: Path) -> None:
    with pytest.raises(python2.Python2Error, match=r"script\.py:\d+: this is written for Python 2; `caffetools run --py2 .*script\.py`"):
        run_script(write(tmp_path, "script.py", f"import os\n{line}\n"))


def test_an_error_of_syntax_that_is_not_python_2_is_shown_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ScriptFailed, match=r"(?s)line 1\n    def f\(:\n.*SyntaxError"):
        run_script(write(tmp_path, "script.py", "def f(:\n"))


@pytest.mark.parametrize("line", ["range(3) + xrange(3)", "import cPickle", "{}.iteritems()"])
def test_names_of_python_2_get_a_hint(line: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptFailed, match=r"\(this is a name of Python 2; `caffetools run --py2 SCRIPT` converts the script\)$"):
        run_script(write(tmp_path, "script.py", f"{line}\n"))


PYTHON2 = """
import cPickle, StringIO
import numpy as np
from module_of_python2 import half

def main(d, (a, b)):
    for k, v in d.iteritems():
        print k, v, a + b
    try:
        raise ValueError, 'bad'
    except ValueError, e:
        print e
    n = 7
    n /= 2
    image = np.array([1.0, 3.0])
    image /= 2
    print d.has_key('a'), 7 / 2, 7 / 2., n, half(9), np.array([5, 7]) / 2, image, 0777, u'x', map(abs, [-1])[0], d.keys()[0]

main({'a': 1}, (1, 2))
print len(xrange(3)), `1`
"""


def test_a_script_of_python_2_runs_converted_with_its_modules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "module_of_python2.py", "def half(n):\n\tprint 'half of', n\n        return n / 2\n")
    finders = list(sys.meta_path)
    run_script(write(tmp_path, "script.py", PYTHON2), convert_python2=True)
    sys.modules.pop("module_of_python2")
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["a 1 3", "bad", "half of 9"]
    assert printed[3] == "True 3 3.5 3 4 [2 3] [0.5 1.5] 511 x 1 a"
    assert printed[4] == "3 1"
    assert sys.meta_path == finders


def test_lines_of_a_converted_script_are_those_of_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, "script.py", "print 'a'\nx = 0\nprint 1 / x\n")
    with pytest.raises(ScriptFailed, match=r'(?s)script\.py", line 3, in <module>\n    print 1 / x\n.*ZeroDivisionError'):
        run_script(path, convert_python2=True)


def test_lines_are_those_of_the_file_where_the_conversion_adds_some(tmp_path: Path) -> None:
    lines = ["import cPickle, StringIO", "def f((a, b)):", "    return a + b", "class A:", "    __metaclass__ = type", "reduce(max, [1])"]
    path = write(tmp_path, "script.py", "\n".join([*lines, "f((1,", "   2))", "raise ValueError, 'here'", ""]))
    with pytest.raises(ScriptFailed, match=r"(?s)script\.py\", line 9, in <module>\n    raise ValueError, 'here'\nValueError: here$"):
        run_script(path, convert_python2=True)


def test_comparisons_of_python_2_sort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "import numpy as np\nx = [2, 3, 1]\nprint sorted(x, cmp=lambda a, b: cmp(b, a))\nx.sort(lambda a, b: b - a)\nprint x\n"
    text += "x.sort(cmp)\nprint x\ny = np.array([[2, 1], [1, 3]])\ny.sort(0)\nprint y.tolist()\n"
    run_script(write(tmp_path, "script.py", text), convert_python2=True)
    assert capsys.readouterr().out.splitlines() == ["[3, 2, 1]", "[3, 2, 1]", "[1, 2, 3]", "[[1, 1], [2, 3]]"]


ORDERED = {
    "'abc' < 5, None < 1, 5 < 'a', (1, 2) < [1], None < -1e9": "False True True False True",
    "[1, 'a'] < [1, 2], (None, 1) < (0, 0), 1 < 2 < 3, 3 > 2 == 2": "False True True True",
    "sorted([3, None, 'a', 1.5]), max(None, 1), min('a', 3), min([4, 2], key=lambda v: -v)": "[None, 1.5, 3, 'a'] 1 3 4",
    "sorted({'b': 1, 'a': None}.items(), key=lambda p: p[1])": "[('a', None), ('b', 1)]",
    "cmp(1, 'a'), cmp(None, None), 0 < count() < 5, len(counted)": "-1 0 True 1",
    "V(1) < V(2), V(1) == V(1), V(2) / 1, {V(1): 2}[V(1)], max([V(1), V(3)]).x": "True True half 2 3",
    "array, (array < 2).tolist(), max(array), table.tolist(), map(raw_input, [])": "[1 2 3] [True, False, False] 3 [[2, 0], [3, 1]] []",
}
CLASS = """
import numpy as np
class V:
    def __init__(self, x): self.x = x
    def __cmp__(self, other): return cmp(self.x, other.x)
    def __div__(self, other): return 'half'
    def __hash__(self): return 1
counted = []
def count():
    counted.append(1)
    return len(counted)
array, table = np.array([3, 1, 2]), np.array([[3, 1], [2, 0]])
array.sort(); table.sort(0)
values = [None, 'a', 2]; values.sort(reverse=True)
assert values == ['a', 2, None]
try:
    1j < 2j
except TypeError:
    pass
else:
    raise AssertionError
"""


@pytest.mark.parametrize("text", ORDERED)
def test_values_of_any_two_types_are_ordered_as_by_python_2(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script(write(tmp_path, "script.py", f"{CLASS}print {text}\n"), convert_python2=True)
    assert capsys.readouterr().out == f"{ORDERED[text]}\n"


def test_division_of_the_future_is_left_alone_and_what_cannot_be_converted_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(write(tmp_path, "script.py", "from __future__ import division\nprint 7 / 2\n"), convert_python2=True)
    assert capsys.readouterr().out == "3.5\n"
    with pytest.raises(CaffeToolsError, match=r"script\.py:2: .*cannot be converted from Python 2"):
        run_script(write(tmp_path, "script.py", "print 1\ndef f(:\n"), convert_python2=True)


def test_cells_run_in_order_with_their_magics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "beside.txt", "42")
    path = book(
        tmp_path,
        "%matplotlib inline\nimport os",
        "%%time\ntotal = 0\nfor i in range(3):\n    total += 1",
        "if total:\n    !echo {total} and $total\n    names = !echo a; echo b\nprint(names)",
        '!echo one \\\n    two\n%time total += 1\nprint(total,\n  "%d"\n  % 5)',
        "%%writefile made.txt\nhello",
        "text = '''\n%not a magic\n!nor this'''\nprint(text.count('!'), open('made.txt').read(), open('beside.txt').read())\ntotal?",
        "%%bash\necho from bash",
    )
    folder = Path.cwd()
    run_script(path)
    assert capfd.readouterr().out.splitlines() == ["3 and 3", "['a', 'b']", "one two", "4 5", "1 hello 42", "from bash"]
    assert Path.cwd() == folder


def test_an_error_in_a_notebook_names_cell_and_line(tmp_path: Path) -> None:
    with pytest.raises(ScriptFailed, match=r'(?s)File "book\.ipynb, cell 2", line 3, in <module>\n    1 / x\n.*ZeroDivisionError'):
        run_script(book(tmp_path, "x = 0", "%%time\n# here\n1 / x"))
    with pytest.raises(CaffeToolsError, match=r"book\.ipynb, cell 1:2: none\.prototxt"):
        run_script(book(tmp_path, "import caffetools.pycaffe as caffe\nnet = caffe.Net('none.prototxt', caffe.TEST)"))
    with pytest.raises(python2.Python2Error, match=r"book\.ipynb, cell 1:1: .*Python 2"):
        run_script(book(tmp_path, "print 'x'"))
    if importlib.util.find_spec("IPython") is None:
        with pytest.raises(DataError, match="%%cython needs IPython"):
            Magics(type(sys)("m")).run_cell_magic("cython", "", "")

    with pytest.raises(ScriptFailed) as raised:
        run_script(book(tmp_path, "for i in range(3)\n    i"))
    assert "SyntaxError: expected ':'" in str(raised.value)
    assert "caffetools" not in str(raised.value).replace(str(tmp_path), "")


def test_shell_lines_take_expressions_and_leave_braces_of_their_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = book(
        tmp_path,
        "import os\nx = 4",
        "!echo {x + 1} $x {x:03d} {os.path.basename('/a/b.txt')} {{x}} $x.real",
        "!echo one two | awk '{print $2}'",
        "!FOO=5; export FOO; echo $$FOO {nothing} $x",
        "a = !echo {x!r}\nprint(a)",
    )
    run_script(path)
    assert capfd.readouterr().out.splitlines() == ["5 4 004 b.txt {x} 4", "two", "5 {nothing} 4", "['4']"]


def test_a_captured_cell_is_kept_under_its_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = (
        "%%capture kept\nimport sys\nprint('inside')\nsys.stderr.write('aside')",
        "print(repr(kept.stdout), repr(kept.stderr), str(kept))",
        "%%capture --no-stderr other\nprint('hidden')\nsys.stderr.write('shown')",
        "%%capture\nprint('gone')",
        "other.show()",
        "%%capture\n\nprint('gone')\n1 / 0",
    )
    with pytest.raises(ScriptFailed, match=r'File "book\.ipynb, cell 6", line 4'):
        run_script(book(tmp_path, *cells))
    shown = capfd.readouterr()
    assert shown.out.splitlines() == ["'inside\\n' 'aside' inside", "", "hidden"]
    assert shown.err == "shown"


BYTES_AS_TEXT = r"""
import cPickle as pkl, csv, string, types
print u'\u00fc'.encode('utf-8'), 'x: %s' % u'\u00fc'.encode('utf-8'), '%(a)s' % {'a': u'\u00fc'.encode('utf-8')}
print 'abc'.encode('hex'), 'YWJj'.decode('base64'), 'uryyb'.decode('rot13'), 'a\\n'.decode('string_escape') == 'a\n'
print string.join(['a', 'b'], '-'), string.upper('x'), string.letters[:2], string.atoi('7') + 1
print types.StringType is str, isinstance('a', types.StringTypes)
pkl.dump({'w': [1, 2]}, open('p.pkl', 'w')); print pkl.load(open('p.pkl')), pkl.loads(pkl.dumps('s'))
with open('t.csv', 'wb') as f: csv.writer(f).writerow(['a', 1])
print [row for row in csv.reader(open('t.csv', 'rb'))], csv.DictReader(open('t.csv', 'rb')).fieldnames
print round(2.5), round(-0.5), round(2.675, 2), map(None, [1, 2], [3]), map(None, [4])
import numpy as np
print np.fromstring(np.array([1, 2], 'u1').tostring(), np.uint8), np.fromstring('\xff', 'u1'), np.fromstring('1 2', sep=' ')
"""


def test_bytes_are_text_in_a_script_for_python_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_script(write(tmp_path, "script.py", BYTES_AS_TEXT), convert_python2=True)
    assert capsys.readouterr().out.splitlines() == [
        "ü x: ü ü",
        "616263 abc hello True",
        "a-b X ab 8",
        "True True",
        "{'w': [1, 2]} s",
        "[['a', '1']] ['a', '1']",
        "3.0 -1.0 2.67 [(1, 3), (2, None)] [4]",
        "[1 2] [255] [1. 2.]",
    ]


COMMANDS_AND_HASHES = """
import hashlib, subprocess
print subprocess.check_output('echo a; echo b', shell=True).splitlines()
print subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE).communicate('xyz')
hash = hashlib.sha1(); hash.update('a')
print hashlib.md5('a').hexdigest(), hash.hexdigest()
print oct(8), oct(0), oct(-9)
print sorted([3, 1, 2], lambda a, b: cmp(b, a)), sorted([3, 1, 2], None, lambda v: -v), sorted([1, 2], None, None, True)
values = [1, 3, 2]
values.sort(None, lambda v: -v)
print values
"""


def test_commands_give_text_hashes_take_it_and_sorted_takes_a_comparison_by_position(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_script(write(tmp_path, "script.py", COMMANDS_AND_HASHES), convert_python2=True)
    expected = ["['a', 'b']", "('xyz', None)", "0cc175b9c0f1b6a831c399e269772661 86f7e437faa5a7fce15d1ddcb9eaeaea377667b8"]
    assert capfd.readouterr().out.splitlines() == [*expected, "010 0 -011", "[3, 2, 1] [3, 2, 1] [2, 1]", "[3, 2, 1]"]


FILES_OF_PYTHON_2 = r"""
import sys
reload(sys)
sys.setdefaultencoding('utf-8')
f = open('t.txt', 'wb'); f.write('%d\n' % 3); f.write(u'\u20ac\n'.encode('utf-8')); f.close()
import numpy as np
with open('w.bin', 'w') as f: f.write('ab'); f.write(np.array([255], 'u1').tostring())
with open('r.bin', 'r+b' if False else 'w+b') as f: f.write('\xff'); f.seek(0); print np.fromstring(f.read(), 'u1')
print open('t.txt', 'r', 0).read().split(), np.fromfile('w.bin', 'u1')
try:
    raise ValueError, 'bad'
except ValueError, e:
    print e.message, repr(KeyError(1, 2).message)
class Sent(object):
    message = 'own'
print Sent().message
"""


def test_files_take_text_and_bytes_in_either_mode_in_a_script_for_python_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_script(write(tmp_path, "script.py", FILES_OF_PYTHON_2), convert_python2=True)
    assert capsys.readouterr().out.splitlines() == ["[255]", "['3', '€'] [ 97  98 255]", "bad ''", "own"]


def test_a_pickle_that_python_2_wrote_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Protocol 0 of Python 2: the str 'a\xe9'.
    (tmp_path / "old.pkl").write_bytes(b"S'a\\xe9'\np0\n.")
    run_script(write(tmp_path, "script.py", "import pickle\nprint repr(pickle.load(open('old.pkl', 'rb')))\n"), convert_python2=True)
    assert capsys.readouterr().out == "'aé'\n"


def test_names_that_numpy_and_python_have_removed_are_there_while_a_script_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, bool_of_numpy = np.fromstring, vars(np).get("bool")  # NumPy 1.26 has none
    text = (
        "import collections, time, numpy as np\n"
        "print(np.zeros(1, np.float), np.array([1.7]).astype(np.int), np.asscalar(np.ones(1)), np.fromstring(b'\\1\\2', np.uint8))\n"
        "print(isinstance({}, collections.Mapping), time.clock() > 0, np.Inf)\n"
    )
    run_script(write(tmp_path, "script.py", text))
    assert capsys.readouterr().out.splitlines() == ["[0.] [1] 1.0 [1 2]", "True True inf"]
    assert np.fromstring is before
    assert vars(np).get("bool") is bool_of_numpy
    assert "float" not in vars(np)


# Each script prints what Python 2.7 prints.
PYTHON_2_PRINTS = [
    ("[x for x in range(5)]\nprint x\nprint [i * j for i in range(3) for j in range(i)], i, j\n", ["4", "[0, 0, 2] 2 1"]),
    (
        "def f(n):\n    [n for n in 'ab' if n < 'b']\n    return n\nprint f(5)\nprint [p() for p in [lambda: k for k in range(3)]]\n",
        ["b", "[2, 2, 2]"],
    ),
    ("i = 7\nw = list(i for i in range(3))\nprint i, [i for i in []], i\n", ["7 [] 7"]),
    (
        "def f(y):\n    out = []\n    for i in range(3):\n        [i for i in y]\n        out.append(i)\n    return out\nprint f([8, 9])\n",
        ["[9, 9, 9]"],
    ),
    (
        "print map(lambda a, b: (a, b), [1, 2], [3]), filter(lambda c: c in 'ab', 'xaybz'), filter(None, (0, 1))\n",
        ["[(1, 3), (2, None)] ab (1,)"],
    ),
    (
        "import itertools\nprint zip([1], 'a')[0], itertools.izip([1], [2]).next(), list(itertools.imap(abs, [-1]))\n",
        ["(1, 'a') (1, 2) [1]"],
    ),
    (
        "import md5, sha\nfrom sets import Set\nprint md5.new('abc').hexdigest(), sha.new('a').hexdigest()[:8], sorted(Set('ab'))\n",
        ["900150983cd24fb0d6963f7d28e17f72 86f7e437 ['a', 'b']"],
    ),
    ("import commands\nprint commands.getstatusoutput('echo a; false')\n", ["(256, 'a')"]),
    (
        "class V:\n    def __getslice__(self, i, j): return i, j\n    def __len__(self): return 9\nprint V()[1:3], V()[-2:-1]\n",
        ["(1, 3) (7, 8)"],
    ),
    (
        "class W(list):\n    def __getslice__(self, i, j): return W(list.__getslice__(self, i, j))\nprint type(W('abc')[:2]).__name__, W('ab')[1]\n",
        ["W b"],
    ),
    (
        "import numpy as np\na = np.ones(4); b = a[:2]; b /= 2; c = np.arange(4); d = c; d /= 2\nprint a, c\n",
        ["[0.5 0.5 1.  1. ] [0 0 1 1]"],
    ),
    ("x = [7]; x[0] /= 2; d = {'k': 9}; d['k'] /= 2\nclass O: v = 7\no = O(); o.v /= 2; print x, d, o.v\n", ["[3] {'k': 4} 3"]),
    ("print 1 / 3., str(0.1 + 0.2), '%s' % (2 / 3.), 1e16, 100.0, [0.1]\n", ["0.333333333333 0.3 0.666666666667 1e+16 100.0 [0.1]"]),
    (
        "import math\nprint math.floor(7 / 2.), math.ceil(7) / 2, range(math.ceil(2))\n".replace(
            "range(math.ceil(2))", "list(xrange(int(math.ceil(2))))"
        ),
        ["3.0 3.5 [0, 1]"],
    ),
    (
        "for line in open(__file__):\n    if line[:2] != 'pr': print 0, line,\nprint 'a', ; print 'b',\nprint\n",
        ["0 for line in open(__file__):", "0     if line[:2] != 'pr': print 0, line,", "a b"],
    ),
    ("print 'abc'.translate(None, 'b'), unicode('a', 'utf-8'), file(__file__).readline()[:5]\n", ["ac a print"]),
    ("import sys\ntry:\n    1 / 0\nexcept:\n    print sys.exc_type.__name__\n", ["ZeroDivisionError"]),
    ("try: raise IOError(2, 'x')\nexcept IOError, (a, b): print a, b\n", ["2 x"]),
    (
        "import operator\nfrom operator import div\nprint operator.div(7, 2), div(7., 2), reduce(div, [100, 3, 2]), operator.isCallable(len)\n",
        ["3 3.5 16 True"],
    ),
    ("b = buffer('abcdef', 2, 3)\nprint str(b), len(b), coerce(1, 2.5), coerce(1, 2)\n", ["cde 3 (1.0, 2.5) (1, 2)"]),
    ("print 'a\\n', 'b', 'c\\t', 'd'\nprint ('a', 'b')\n", ["a", "b c\td", "('a', 'b')"]),
    ("from __future__ import print_function\nprint('a\\n', 'b')\n", ["a", " b"]),
]


@pytest.mark.parametrize(("text", "lines"), PYTHON_2_PRINTS)
def test_a_script_prints_what_python_2_prints(text: str, lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script(write(tmp_path, "script.py", text), convert_python2=True)
    assert capsys.readouterr().out.splitlines() == lines


BINARY_FILES = r"""
import cPickle, json, struct
with open('t.txt', 'wb') as f: f.write('a 1\nb 2\n')
for line in open('t.txt', 'rb'):
    name, value = line.strip().split(' ')
    print name + '!', int(value)
data = open('t.txt', 'rb').read()
print data.split('\n')[0], data.startswith('a'), 'b' in data, data[:1] == 'a', {'a': 7}[data[:1]], 'x' + data[:1], len(data)
print open('t.txt', 'rb').readlines(), [l for l in open('t.txt').xreadlines()][1].strip(), isinstance(data, str) or True
with open('p', 'wb') as f: cPickle.dump([1, 'x'], f); cPickle.dump({'a': 2}, f, 2)
with open('p', 'rb') as f: print cPickle.load(f), cPickle.load(f)
with open('b', 'wb') as f: f.write(struct.pack('<If', 3, 0.5)); f.write('\xff\x00')
with open('b', 'rb') as f: print struct.unpack('<If', f.read(8)), f.read() == '\xff\x00'
json.dump([1], open('j', 'wb')); print json.load(open('j', 'rb'))
from caffetools.pycaffe.proto import caffe_pb2
d = caffe_pb2.Datum(); d.data = data; print caffe_pb2.Datum.FromString(open('t.txt', 'wb') and d.SerializeToString()).data == data
import numpy as np
np.save(open('n.npy', 'wb'), np.arange(3)); print np.load(open('n.npy', 'rb')), np.fromfile(open('n.npy', 'rb'), 'u1')[1:6].tostring() == 'NUMPY'
"""


def test_what_a_script_for_python_2_reads_from_binary_files_is_text_and_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_script(write(tmp_path, "script.py", BINARY_FILES), convert_python2=True)
    assert capsys.readouterr().out.splitlines() == [
        "a! 1",
        "b! 2",
        "a 1 True True True 7 xa 8",
        "['a 1\\n', 'b 2\\n'] b 2 True",
        "[1, 'x'] {'a': 2}",
        "(3, 0.5) True",
        "[1]",
        "True",
        "[0 1 2] True",
    ]


COMPRESSED_FILES = r"""
import bz2, cPickle, gzip
f = gzip.open('t.gz', 'w'); f.write('a\nb\n'); f.close()
print gzip.open('t.gz').read().split('\n'), gzip.open('t.gz').readlines(), [line.strip() for line in gzip.GzipFile('t.gz')]
f = gzip.open('p.gz', 'wb'); cPickle.dump({'a': [1, 2]}, f, -1); f.close()
print cPickle.load(gzip.open('p.gz', 'rb'))
f = bz2.BZ2File('t.bz2', 'w'); f.write('c\n'); f.close()
print bz2.BZ2File('t.bz2').readline().strip(), bz2.BZ2File('t.bz2').read() == 'c\n'
"""


def test_compressed_files_of_a_script_for_python_2_take_and_give_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_script(write(tmp_path, "script.py", COMPRESSED_FILES), convert_python2=True)
    assert capsys.readouterr().out.splitlines() == ["['a', 'b', ''] ['a\\n', 'b\\n'] ['a', 'b']", "{'a': [1, 2]}", "c True"]
