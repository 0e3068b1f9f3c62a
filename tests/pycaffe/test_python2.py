"""``caffetools run --py2``: ``exec`` and ``eval``, classes, longs, seeds, binary data and databases, as Python 2.7 has them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from caffetools.pycaffe.script import ScriptFailed, run_script

# Each script prints what Python 2.7 prints.
PRINTS = {
    "exec sets variables of its function": (
        "def f(s):\n    'doc'\n    x = 5\n    exec s\n    return x, a + b\nprint f('x=7; a=1\\nb=2'), f.__doc__\n",
        ["(7, 3) doc"],
    ),
    "exec in a loop over settings": (
        "def f(cfg):\n    for k, v in sorted(cfg.items()): exec '%s = %r' % (k, v)\n    print lr, steps, [lr for _ in range(2)], sum([lr, 3])\n"
        "    lr += 1\n    print lr\nf({'lr': 3, 'steps': [1, 2]})\n",
        ["3 [1, 2] [3, 3] 6", "4"],
    ),
    "exec with dictionaries, of Python 2, and of a function's globals": (
        "def f():\n    global G\n    exec 'G = 3'\n    G = 1\n    d = {}\n    exec 'y = 7 / 2' in d\n    return d['y'], G\nexec 'print 1 + 1'\n"
        "exec 'a = 3'\nprint f(), eval('a / 2'), eval(' 3'), eval('x', {}, {'x': 4})\n",
        ["2", "(3, 1) 1 3 4"],
    ),
    "execfile and compile": (
        "open('included.py', 'w').write(\"print 'included'\\nvalue = 7 / 2\\n\")\nexecfile('included.py')\nprint value\n"
        "exec compile('print value', '<x>', 'exec')\nexec open('included.py')\n",
        ["included", "3", "3", "included"],
    ),
    "errors of eval": (
        "try: eval('1 +')\nexcept SyntaxError: print 'syntax'\ntry: eval('nope')\nexcept NameError, e: print e\n",
        ["syntax", "name 'nope' is not defined"],
    ),
    "exec under the division of the future": (
        "from __future__ import division\ndef f():\n    exec 'x = 7 / 2'\n    return x\nprint f(), eval('1 / 2')\n",
        ["3.5 0.5"],
    ),
    "list comprehensions of a class": (
        "class C:\n    n, k = 2, 3\n    t = [(a, b * k) for a, b in zip('xy', range(n))]\n    u = [[i * n for i in range(j)] for j in range(3) if j <= n]\n"
        "    w = tuple(x for x in [1, 2])\n    last = j\n    s = sum([q for q in range(n)]) if n else [z for z in k]\n"
        "print C.t, C.u, C.w, C.a, C.b, C.i, C.j, C.last, C.s, C.q, hasattr(C, 'z')\n",
        ["[('x', 0), ('y', 3)] [[], [0], [0, 2]] (1, 2) y 1 1 2 2 1 1 False"],
    ),
    "longs": (
        "x = 3L\nprint hex(255L), hex(255), hex(-1), oct(8L), `x`, [x], x, '%d %s %r' % (x, x, x), `x + 1`, `x * 2.0`, `-x`, `int(x)`, `x / 2`\n"
        "print repr(2**64), '%r' % 2**1 if 0 else '', isinstance(5, long), isinstance(x, long), isinstance(2**70, (list, long)), type(x) is long\n"
        "import numpy as np, json\nprint np.zeros(2L).shape, np.arange(2).astype(long), json.dumps([1L]), range(2L), 'a' * 2L, 0xFFL + 0L, long('7')\n",
        [
            "0xffL 0xff -0x1 010L 3L [3L] 3 3 3 3L 4L 6.0 -3L 3 1L",
            "18446744073709551616L  False True True True",
            "(2,) [0 1] [1] [0, 1] aa 255 7",
        ],
    ),
    "print writes a value before the next one is computed": ("x = [1, 2]\nprint x, x.pop(), x\n", ["[1, 2] 2 [1]"]),
    "random numbers of a seed": (
        "import random\nrandom.seed(7)\nl = range(9)\nrandom.shuffle(l)\n"
        "print l, random.sample(l, 3), random.sample(range(100), 6), random.randint(1, 6), random.randrange(0, 10, 3), random.choice('abc')\n"
        "random.seed('seed'); print random.random()\nr = random.Random(3); print r.choice(range(9)), r.random()\n",
        ["[6, 3, 5, 7, 8, 0, 4, 1, 2] [6, 7, 2] [9, 42, 82, 12, 22, 62] 6 6 b", "0.98929327586", "2 0.544229225296"],
    ),
    "streams of a process": (
        "import subprocess\np = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\np.stdin.write('a b\\nc\\n'); p.stdin.close()\n"
        "for line in p.stdout: print line.split(), line.strip() + '!'\n",
        ["['a', 'b'] a b!", "['c'] c!"],
    ),
    "text for struct, zlib, binascii and base64": (
        "import base64, binascii, struct, zlib\nf = open('m.bin', 'wb'); f.write('MAG' + struct.pack('<If', 3, 0.1)); f.close()\nd = open('m.bin', 'rb').read()\n"
        "print d[:3], struct.unpack('<If', d[3:]), struct.unpack('2s', 'ab')[0] == 'ab', struct.unpack('>H', '\\x01\\xff'), ord(d[0])\n"
        "print zlib.decompress(zlib.compress('abc')), binascii.hexlify('ab') + '!', base64.b64encode('a'), base64.encodestring('a').strip(), base64.b64decode('YQ==')\n",
        ["MAG (3, 0.10000000149011612) True (511,) 77", "abc 6162! YQ== YQ== a"],
    ),
    "StringIO takes text and bytes": (
        "import StringIO, io\nfrom cStringIO import StringIO as S\nb = S(); b.write('a 1\\nb'); b.write(open(__file__, 'rb').read(6)); print b.getvalue(), b.tell()\n"
        "s = StringIO.StringIO('x\\ny\\n')\nprint s.readline().rstrip(), s.read(), s.len, io.BytesIO('\\xff').read() == '\\xff', [l for l in S('p\\nq')]\n",
        ["a 1", "bimport 11", "x y", "4 True ['p\\n', 'q']"],
    ),
    "ends of lines": (
        "f = open('e.txt', 'w'); f.write('a\\r\\nb\\n'); f.close()\nprint open('e.txt').readlines(), open('e.txt', 'rU').readlines(), repr(open('e.txt', 'rb').read())\n",
        ["['a\\r\\n', 'b\\n'] ['a\\n', 'b\\n'] 'a\\r\\nb\\n'"],
    ),
    "what is gone": (
        "import inspect, xml.etree.ElementTree as ET\nfrom types import *\nr = ET.fromstring('<a><b>t</b></a>')\ndef f(a, b=1): pass\n"
        "print r.getchildren()[0].text, [e.tag for e in r.getiterator()], [e.tag for e in r.getiterator('b')], inspect.getargspec(f).args\n"
        "print isinstance([], ListType), isinstance('a', StringTypes), b'a' + 'b', {'ab': 1}[b'ab']\n",
        ["t ['a', 'b'] ['b'] ['a', 'b']", "True True ab 1"],
    ),
}

DATABASE = """
import lmdb
env = lmdb.open('db', map_size=1 << 24)
with env.begin(write=True) as txn:
    for i in range(3): txn.put('{:0>8d}'.format(i), 'v%d' % i)
txn = env.begin()
print env.stat()['entries'], txn.get('00000001'), txn.get('none')
for key, value in txn.cursor(): print key, key.split('0')[-1], int(key), value + '!'
cursor = txn.cursor()
print cursor.first(), cursor.key(), cursor.next(), cursor.item(), cursor.set_key('00000002'), cursor.next()
"""


@pytest.mark.parametrize("name", PRINTS)
def test_a_script_prints_what_python_2_prints(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, lines = PRINTS[name]
    (tmp_path / "script.py").write_text(text)
    run_script(tmp_path / "script.py", convert_python2=True)
    assert capsys.readouterr().out.splitlines() == lines


def test_databases_take_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(DATABASE)
    run_script(tmp_path / "script.py", convert_python2=True)
    assert capsys.readouterr().out.splitlines() == [
        "3 v1 None",
        "00000000  0 v0!",
        "00000001 1 1 v1!",
        "00000002 2 2 v2!",
        "True 00000000 True ('00000001', 'v1') True False",
    ]


def test_what_only_python_2_on_linux_calls_its_platform(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script.py").write_text("import sys\nprint sys.platform\n")
    run_script(tmp_path / "script.py", convert_python2=True)
    assert capsys.readouterr().out.strip() == ("linux2" if sys.platform == "linux" else sys.platform)


def test_lines_of_exec_are_those_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def f():\n    exec 'x = 1'\n    exec 'y = 2'\n    return z\nf()\n")
    with pytest.raises(ScriptFailed, match=r"(?s)script\.py\", line 4, in f\n    return z\n.*NameError"):
        run_script(tmp_path / "script.py", convert_python2=True)


def test_numpys_scalars_have_the_texts_that_they_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    before = repr(np.float32(0.5))
    (tmp_path / "script.py").write_text("import numpy as np\nprint([np.float32(0.5)], (np.int64(3),), {'a': np.float64(2)})\n")
    run_script(tmp_path / "script.py")
    assert capsys.readouterr().out == "[0.5] (3,) {'a': 2.0}\n"
    assert repr(np.float32(0.5)) == before
    cell = {"cell_type": "code", "source": "import numpy as np\nprint([np.float32(0.5)])"}
    (tmp_path / "book.ipynb").write_text(json.dumps({"cells": [cell]}))
    run_script(tmp_path / "book.ipynb")
    assert capsys.readouterr().out == "[0.5]\n"
