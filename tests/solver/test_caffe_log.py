"""Log lines in Caffe's form, and reading them: Caffe's own logs, ours, and JSON lines."""

from __future__ import annotations

import csv
import math
import re
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from caffetools.errors import DataError
from caffetools.solver.callbacks import History
from caffetools.solver.control import Output
from caffetools.solver.logs.caffe_log import GlogWriter, number, output_text, read_log
from caffetools.solver.logs.training_log import LogRow
from caffetools.solver.run import train
from caffetools.solver.solver import Solver
from caffetools.solver.testing import load_test_net, test_net
from tests.conftest import GOLDEN

LOGS = GOLDEN / "logs"
_HEAD = re.compile(r"^[IWE]\d{4} \d{2}:\d{2}:\d{2}\.\d{6}\s+\d+ (\w+\.\w+:\d+)\] (.*)$")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny net, its data and its snapshots, as the working directory."""
    for name in ("net.prototxt", "solver.prototxt", "train.h5", "test.h5", "train.txt", "test.txt"):
        shutil.copy(LOGS / name, tmp_path)
    for name in ("tiny_iter_100.caffemodel", "tiny_iter_100.solverstate"):
        shutil.copy(LOGS / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_of(text: str, first: str) -> list[tuple[str, str]]:
    """(place, text) of the log's lines from ``first`` on, with timings masked."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.endswith(first))
    found = []
    for line in lines[start:]:
        head = _HEAD.match(line)
        assert head, line
        found.append((head[1], re.sub(r"\(\S+ iter/s, \S+s/", "(TIME/", head[2])))
    return found


# ---- writing ----


def test_a_line_has_glogs_head() -> None:
    lines: list[str] = []
    GlogWriter(lines.append, clock=lambda: datetime(2026, 11, 24, 3, 22, 5, 190337))("solver.cpp:239", "Iteration 20")
    assert re.fullmatch(r"I1124 03:22:05\.190337 +\d+ solver\.cpp:239\] Iteration 20\n", lines[0])


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (0.01, "0.01"), (0.0123193, "0.0123193"), (1e-5, "1e-05"), (1234567.0, "1.23457e+06"), (87.3365, "87.3365")],
)
def test_numbers_are_printed_as_cpp_streams_do(value: float, text: str) -> None:
    assert number(value) == text


def test_a_loss_shows_its_weight_and_other_outputs_do_not() -> None:
    assert output_text(Output("loss", 1.5, 0.3)) == "loss = 1.5 (* 0.3 = 0.45 loss)"
    assert output_text(Output("accuracy", 0.5)) == "accuracy = 0.5"


def test_a_run_resumed_from_caffes_snapshot_logs_caffes_lines(tiny: Path) -> None:
    """Line for line what Caffe logged between the iterations 100 and 150, whose snapshots these are; numbers to 1e-3."""
    train("solver.prototxt", snapshot="tiny_iter_100.solverstate", device="cpu")
    ours = lines_of((tiny / "tiny.log").read_text(), "Iteration 100, Testing net (#0)")
    caffes = lines_of((LOGS / "finetune.log").read_text(), "Iteration 100, Testing net (#0)")
    assert len(ours) == len(caffes)
    for (our_place, our_text), (place, text) in zip(ours, caffes, strict=True):
        assert our_place == place
        if text.startswith("Iteration 100 ("):
            # Caffe's smoothed loss still knew the iterations before 100, ours begins there.
            continue
        pattern = r"-?\d+\.\d+(?:e-?\d+)?|\d+e-\d+"
        assert re.sub(pattern, "N", our_text) == re.sub(pattern, "N", text)
        assert [float(n) for n in re.findall(pattern, our_text)] == pytest.approx([float(n) for n in re.findall(pattern, text)], rel=1e-3)


def test_caffe_test_lines_are_caffes(tiny: Path) -> None:
    lines: list[str] = []
    log = GlogWriter(lines.append)
    test_net(load_test_net("net.prototxt", LOGS / "tiny_iter_150.caffemodel", log=log), 4, log=log)
    ours = lines_of("".join(lines), "Running for 4 iterations.")
    caffes = lines_of((LOGS / "test.log").read_text(), "Running for 4 iterations.")
    assert [place for place, _ in ours] == [place for place, _ in caffes]
    pattern = r"\d+\.\d+"
    for (_, our_text), (_, text) in zip(ours, caffes, strict=True):
        assert re.sub(pattern, "N", our_text) == re.sub(pattern, "N", text)
        assert [float(n) for n in re.findall(pattern, our_text)] == pytest.approx([float(n) for n in re.findall(pattern, text)], rel=1e-3)


def test_a_multistep_is_logged_between_the_outputs_and_the_rate(tiny: Path) -> None:
    solver = Path("solver.prototxt").read_text().replace('"step"', '"multistep"').replace("stepsize: 60", "stepvalue: 10 stepvalue: 20")
    Path("solver.prototxt").write_text(solver.replace("max_iter: 150", "max_iter: 25"))
    train("solver.prototxt", device="cpu")
    texts = [text for _, text in lines_of((tiny / "tiny.log").read_text(), "Solving tiny")]
    assert "MultiStep Status: Iteration 10, step = 1" in texts
    at = texts.index("MultiStep Status: Iteration 20, step = 2")
    assert texts[at - 1].startswith("    Train net output #0")
    assert texts[at + 1] == "Iteration 20, lr = 0.0025"


# ---- reading ----


def table(name: str) -> list[dict[str, float]]:
    with (LOGS / name).open() as stream:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def test_caffes_log_gives_what_its_own_parser_makes_of_it() -> None:
    log = read_log(LOGS / "train.log")
    train_table, test_table = table("train.log.train"), table("train.log.test")
    assert [(r.iteration, r.seconds, r.outputs["loss"]) for r in log.train] == [
        (r["NumIters"], r["Seconds"], r["loss"]) for r in train_table
    ]
    # Caffe's parser gives a row the rate that was printed before it, and the first row the second one's; ours gives each its own.
    before = [row.lr for row in log.train[:1] + log.train[:-1]]
    assert before == [row["LearningRate"] for row in train_table]
    assert [(r.iteration, r.seconds, r.lr, r.outputs["accuracy"], r.outputs["loss"]) for r in log.test] == [
        (r["NumIters"], r["Seconds"], r["LearningRate"], r["accuracy"], r["loss"]) for r in test_table
    ]


def test_each_row_has_its_own_rate_and_the_smoothed_loss() -> None:
    log = read_log(LOGS / "train.log")
    assert {row.iteration: row.lr for row in log.train}[60] == 0.005
    assert {row.iteration: row.loss for row in log.train}[20] == 0.114638


@pytest.mark.parametrize("suffix", [".log", "_log.jsonl"])
def test_what_we_log_is_read_back(tiny: Path, suffix: str) -> None:
    done = train("solver.prototxt", device="cpu")
    log = read_log(f"tiny{suffix}")
    history: History = done.history
    assert [row.iteration for row in log.train] == [0, 20, 40, 60, 80, 100, 120, 140]
    assert [row.loss for row in log.train] == pytest.approx([row.loss for row in history.train], rel=1e-5)
    assert [row.lr for row in log.train] == pytest.approx([row.rate for row in history.train], rel=1e-5)
    assert [row.outputs["loss"] for row in log.train] == pytest.approx([row.outputs[0].value for row in history.train], rel=1e-5)
    assert [(row.iteration, row.net) for row in log.test] == [(0, 0), (50, 0), (100, 0), (150, 0)]
    for row, test in zip(log.test, history.test, strict=True):
        assert list(row.outputs) == ["accuracy", "loss"]
        assert list(row.outputs.values()) == pytest.approx([o.value for o in test.outputs], rel=1e-5)
    seconds = [row.seconds for row in log.train]
    assert seconds == sorted(seconds) and seconds[0] >= 0


@pytest.mark.parametrize("suffix", [".log", "_log.jsonl"])
def test_a_resumed_run_continues_in_the_same_files_and_replaces_what_was_lost(tiny: Path, suffix: str) -> None:
    train("solver.prototxt", device="cpu")
    train("solver.prototxt", device="cpu", snapshot="tiny_iter_100.solverstate")
    log = read_log(f"tiny{suffix}")
    assert [row.iteration for row in log.train] == [0, 20, 40, 60, 80, 100, 120, 140]
    assert [row.iteration for row in log.test] == [0, 50, 100, 150]
    seconds = [row.seconds for row in log.train]
    assert seconds == sorted(seconds)


def log_file(folder: Path, *lines: str) -> Path:
    path = folder / "some.log"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_new_glog_dates_old_caffe_lines_and_line_prefixes_are_read(tmp_path: Path) -> None:
    docker = "2026-01-01T00:00:00Z "
    path = log_file(
        tmp_path,
        docker + "I20261231 23:59:59.000000    77 solver.cpp:289] Solving net",
        docker + "I20270101 00:00:01.500000    77 solver.cpp:228] Iteration 0, loss = 2.5",
        docker + "I20270101 00:00:02.500000    77 solver.cpp:244]     Train net output #0: loss1/loss = 2.25 (* 0.3 = 0.675 loss)",
        docker + "I20270101 00:00:02.600000    77 sgd_solver.cpp:106] Iteration 0, lr = 1e-05",
    )
    log = read_log(path)
    assert log.train == [LogRow(0, 3.5, 1e-5, 2.5, {"loss1/loss": 2.25})]


def test_classic_dates_go_over_new_year(tmp_path: Path) -> None:
    path = log_file(
        tmp_path,
        "I1231 23:59:59.000000    77 solver.cpp:289] Solving net",
        "I0101 00:00:01.000000    77 solver.cpp:228] Iteration 0, loss = nan",
        "I0101 00:00:01.000000    77 solver.cpp:244]     Train net output #0: loss = nan",
    )
    (row,) = read_log(path).train
    assert row.seconds == 2 and row.loss is not None and math.isnan(row.loss)


def test_numbers_of_windows_that_are_not_finite(tmp_path: Path) -> None:
    head = "I0101 00:00:01.000000    77 solver.cpp:228] "
    words = ("-1.#IND", "1.#QNAN", "1.#INF", "-1.#INF", "-nan(ind)", "inf")
    lines = [
        [f"Iteration {i}, loss = {word}", f"    Train net output #0: loss = {word} (* 1 = {word} loss)"] for i, word in enumerate(words)
    ]
    log = read_log(log_file(tmp_path, *(head + text for pair in lines for text in pair)))
    np.testing.assert_array_equal([row.loss for row in log.train], [math.nan, math.nan, math.inf, -math.inf, math.nan, math.inf])
    np.testing.assert_array_equal([row.outputs["loss"] for row in log.train], [row.loss for row in log.train])


def test_several_values_of_a_blob_and_several_test_nets_are_kept_apart(tmp_path: Path) -> None:
    head = "I0101 00:00:01.000000    77 solver.cpp:1] "
    path = log_file(
        tmp_path,
        head + "Solving net",
        head + "Iteration 5, Testing net (#0)",
        head + "    Test net output #0: per_class = 0.5",
        head + "    Test net output #1: per_class = 0.25",
        head + "Iteration 5, Testing net (#1)",
        head + "Test loss: 0.75",
        head + "    Test net output #0: accuracy = 1",
    )
    first, second = read_log(path).test
    assert (first.net, first.outputs) == (0, {"per_class": 0.5, "per_class[1]": 0.25})
    assert (second.net, second.outputs, second.loss) == (1, {"accuracy": 1.0}, 0.75)


def test_a_line_that_a_crash_cut_short_is_skipped(tmp_path: Path) -> None:
    path = log_file(
        tmp_path,
        '{"event": "train", "phase": "train", "iteration": 0, "seconds": 1.5, "loss": 1.0, "lr": 0.1, "outputs": {"loss": 1.0}}',
        '{"event": "train", "phase": "tr',
    )
    assert [row.iteration for row in read_log(path).train] == [0]


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "train", "iteration": "five", "seconds": 1}',
        '{"event": "train", "iteration": 1e999, "seconds": 1}',
        '{"event": "train", "iteration": -5, "seconds": 1}',
        '{"event": "test", "iteration": 5, "seconds": [1]}',
        '{"event": "test", "iteration": 5, "seconds": 1, "outputs": [0.5]}',
        '{"event": "train", "iteration": 5, "seconds": 1, "loss": "low"}',
    ],
)
def test_a_record_that_no_run_writes_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = log_file(tmp_path, '{"event": "start"}', line)
    with pytest.raises(DataError, match=r"2: damaged: not what a training run writes"):
        read_log(path)


@pytest.mark.parametrize("number", ["0..5", "1.2.3", "0.5x", "1e", "--1", "0.5.", "Ã5"])
def test_damaged_numbers_and_dates_of_a_log_are_left_out(tmp_path: Path, number: str) -> None:
    head = "I1124 03:22:05.190337 1 solver.cpp:239] "
    path = log_file(
        tmp_path,
        head + f"Iteration {'9' * 5000}, loss = 1",
        f"I99991231 23:59:59.999999 1 solver.cpp:239] Iteration 3 (1 iter/s, 1s/1 iters), loss = {number}",
        f"I99991299 23:59:59.999999 1 solver.cpp:258]     Train net output #0: loss = {number} (* 1 = 0.5 loss)",
        head + "    Train net output #1: accuracy = .25",
        head + f"Iteration 3, lr = {number}",
    )
    (row,) = read_log(path).train
    assert (row.iteration, row.loss, row.outputs) == (3, None, {"accuracy": 0.25})
    assert math.isnan(row.lr)


@pytest.mark.parametrize("text", ["", "hello\nworld\n"])
def test_what_is_not_a_log_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.log").write_text(text)
    with pytest.raises(DataError, match=r"x\.log: holds no lines of a training run"):
        read_log(tmp_path / "x.log")


def test_a_log_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.log: cannot read"):
        read_log(tmp_path / "absent.log")


def test_the_resumed_losses_are_caffes(tiny: Path) -> None:
    expected = {row.iteration: row for row in read_log(LOGS / "finetune.log").train}
    history = History()
    solver = Solver.from_file("solver.prototxt", callbacks=[history])
    solver.restore("tiny_iter_100.solverstate")
    solver.solve()
    assert [row.iteration for row in history.train] == [100, 120, 140]
    for row in history.train:
        assert row.outputs[0].value == pytest.approx(expected[row.iteration].outputs["loss"], rel=1e-3)


def test_a_log_without_outputs_has_the_smoothed_losses(tmp_path: Path) -> None:
    head = "I0725 10:00:0{0}.123456  9 solver.cpp:204] Iteration {1}, {2} = {3}\r\n"
    rows = [(0, 3.0), (20, 2.5)]
    text = "".join(head.format(i, it, "loss", loss) + head.format(i, it, "lr", 0.1 / 10**i) for i, (it, loss) in enumerate(rows))
    path = tmp_path / "old.log"
    path.write_text(text)
    found = [(row.iteration, row.loss, row.outputs, row.lr) for row in read_log(path).train]
    assert found == [(0, 3.0, {"loss": 3.0}, 0.1), (20, 2.5, {"loss": 2.5}, 0.01)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_log_that_windows_redirected_is_read(tmp_path: Path, encoding: str) -> None:
    text = (GOLDEN / "logs" / "train.log").read_text()
    path = tmp_path / "train.log"
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert read_log(path) == read_log(GOLDEN / "logs" / "train.log")
