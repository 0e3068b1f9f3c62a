"""Caffe's own tools by their names: the same arguments, and the files that they write."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from caffetools.cli.caffe_names import modern
from caffetools.proto.text import read_net, read_solver
from caffetools.solver.logs.training_log import read_log
from tests.cli.inprocess import error_of, run, run_well
from tests.conftest import GOLDEN

LOGS = GOLDEN / "logs"
OLD_NET = """
name: "old"
input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
layers { name: "ip" type: INNER_PRODUCT bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["upgrade_net_proto_text", "upgrade-net-proto-text", "upgrade_net_proto_text.bin"])
def test_a_net_is_upgraded_by_caffes_tool_which_replaces_its_output(name: str) -> None:
    Path("a.prototxt").write_text(OLD_NET)
    Path("b.prototxt").write_text("an earlier file")
    run_well(name, "a.prototxt", "b.prototxt")
    net = read_net("b.prototxt")
    assert [layer.type for layer in net.layer] == ["Input", "InnerProduct"]


def test_a_solver_is_upgraded() -> None:
    Path("a.prototxt").write_text('net: "n.prototxt" base_lr: 0.1 solver_type: NESTEROV')
    run_well("upgrade_solver_proto_text", "a.prototxt", "b.prototxt")
    assert read_solver("b.prototxt").type == "Nesterov"


def test_draw_net_takes_the_arguments_of_draw_net_py() -> None:
    Path("a.prototxt").write_text(OLD_NET)
    done = run_well("draw_net.py", "--rankdir", "TB", "--phase", "TEST", "--display_lrm", "a.prototxt", "a.dot")
    assert done.stdout == "Drawing net to a.dot\n"
    text = Path("a.dot").read_text()
    assert 'rankdir="TB"' in text and "ip" in text
    run_well("draw_net", "a.prototxt", "a.png")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert "'XY' is not one of TB, BT, LR, RL" in error_of(run("draw_net", "a.prototxt", "a.dot", "--rankdir", "XY"))


@pytest.fixture
def log() -> Path:
    found = sorted(LOGS.glob("*.log"))
    shutil.copy(found[0], "caffe.log")
    return Path("caffe.log")


def test_parse_log_writes_the_two_files_of_parse_log_py(log: Path) -> None:
    run_well("parse_log", log, "out")
    rows = list(csv.DictReader(Path("out/caffe.log.train").read_text().splitlines()))
    known = read_log(log)
    assert list(rows[0])[:3] == ["NumIters", "Seconds", "LearningRate"]
    assert [float(row["NumIters"]) for row in rows] == [row.iteration for row in known.train]
    name = next(iter(known.train[0].outputs))
    assert [float(row[name]) for row in rows] == pytest.approx([row.outputs[name] for row in known.train])
    tests = list(csv.DictReader(Path("out/caffe.log.test").read_text().splitlines()))
    assert len(tests) == len(known.test)
    run_well("parse_log.py", "--verbose", "--delimiter", ";", log, "out")
    assert Path("out/caffe.log.train").read_text().startswith("NumIters;Seconds;LearningRate;")
    assert "is not one character" in error_of(run("parse_log", log, "out", "--delimiter", "--"))


# As NVCaffe logs in a job of DIGITS: the epoch beside the iteration, and from a second GPU on the process before it.
DIGITS_LOG = """\
I0512 10:11:12.000001  4242 caffe.cpp:191] Using GPUs 0, 1
I0512 10:11:12.100001  4242 solver.cpp:48] Initializing solver from parameters:
test_iter: 10
base_lr: 0.01
I0512 10:11:13.000001  4242 solver.cpp:286] Solving LeNet
I0512 10:11:13.200001  4242 solver.cpp:339] Iteration 0, Testing net (#0)
I0512 10:11:13.300001  4242 solver.cpp:411]     Test net output #0: accuracy = 0.125
I0512 10:11:13.300101  4242 solver.cpp:411]     Test net output #1: loss = 2.25 (* 1 = 2.25 loss)
I0512 10:11:13.400001  4242 solver.cpp:242] Iteration 0 (0 iter/s, 0.4s/12 iter), loss = 2.5
I0512 10:11:13.400101  4242 solver.cpp:261]     Train net output #0: loss = 2.375 (* 1 = 2.375 loss)
I0512 10:11:13.400201  4242 sgd_solver.cpp:106] Iteration 0, lr = 0.01
I0512 10:11:14.400001  4242 solver.cpp:242] Iteration 12 (12.5 iter/s, 0.96s/12 iter), 0.3/10ep, loss = 1.9
I0512 10:11:14.400101  4242 solver.cpp:261]     Train net output #0: loss = 1.75 (* 1 = 1.75 loss)
I0512 10:11:14.400201  4242 sgd_solver.cpp:106] Iteration 12, lr = 0.005
I0512 10:11:15.400001  4242 solver.cpp:352]     [0.0] Iteration 24 (12.5 iter/s, 0.96s/12 iter), 0.6/10ep, loss = 1.2
I0512 10:11:15.400101  4242 solver.cpp:380]     [0.0]     Train net output #0: loss = 1.25 (* 1 = 1.25 loss)
I0512 10:11:15.400201  4242 sgd_solver.cpp:180] [0.0] Iteration 24, lr = 0.0025, m = 0.9, lrm = 0.025, wd = 0.0001, gs = 1
I0512 10:11:16.200001  4242 solver.cpp:479] Snapshotting to binary proto file snapshot_iter_24.caffemodel
I0512 10:11:16.200001  4242 solver.cpp:539] Iteration 24, Testing net (#0)
I0512 10:11:16.300001  4242 solver.cpp:624]     Test net output #0: accuracy = 0.75
I0512 10:11:16.300101  4242 solver.cpp:624]     Test net output #1: loss = 1.125 (* 1 = 1.125 loss)
"""


def test_the_log_of_a_digits_job_is_parsed_and_drawn() -> None:
    Path("caffe_output.log").write_text(DIGITS_LOG)
    assert [row.loss for row in read_log("caffe_output.log").train] == [2.5, 1.9, 1.2]
    run_well("parse_log", "caffe_output.log", ".")
    assert Path("caffe_output.log.train").read_text().splitlines() == [
        "NumIters,Seconds,LearningRate,loss",
        "0.0,0.4001,0.01,2.375",
        "12.0,1.4001,0.005,1.75",
        "24.0,2.4001,0.0025,1.25",
    ]
    assert Path("caffe_output.log.test").read_text().splitlines() == [
        "NumIters,Seconds,LearningRate,accuracy,loss",
        "0.0,0.3,0.01,0.125,2.25",
        "24.0,3.3,0.0025,0.75,1.125",
    ]
    assert "caffe_output.log: 3 rows of training, 2 of tests" in run_well("curves", "caffe_output.log", "-o", "curves.svg").stdout
    drawn = Path("curves.svg").read_text()
    assert all(text in drawn for text in ("test accuracy: 75.00%", "train loss: 1.25", "lr: 0.0025"))


@pytest.mark.parametrize("chart", [2, 3, 4, 5, 6, 7])
def test_plot_training_log_draws_the_charts_of_caffes_script(log: Path, chart: int) -> None:
    done = run_well("plot_training_log.py", chart, "chart.png", log)
    assert Path("chart.png").read_bytes().startswith(b"\x89PNG")
    assert ("Seconds" in done.stdout) == bool(chart % 2)


def test_a_chart_that_is_not_one_and_a_log_without_its_values_are_one_line(log: Path) -> None:
    assert "must be less than or equal to 7" in error_of(run("plot_training_log", 8, "chart.png", log))
    Path("bare.log").write_text(
        "I0101 00:00:00.000000 1 solver.cpp:1] Solving x\n"
        "I0101 00:00:01.000000 1 solver.cpp:2] Iteration 0, loss = 1.5\n"
        "I0101 00:00:01.000000 1 solver.cpp:3]     Train net output #0: loss = 1.5 (* 1 = 1.5 loss)\n"
    )
    assert "has no values for chart 0 (Test accuracy vs. Iters)" in error_of(run("plot_training_log", 0, "chart.png", "bare.log"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["train_net", "s.prototxt", "x.solverstate"], ["train", "s.prototxt", "--snapshot", "x.solverstate"]),
        (["finetune_net.bin", "s.prototxt", "w.caffemodel"], ["train", "s.prototxt", "--weights", "w.caffemodel"]),
        (["test_net", "n.prototxt", "w.caffemodel", "7", "GPU"], ["test", "n.prototxt", "--weights", "w.caffemodel", "--iterations", "7", "--gpu", "0"]),
        (["net_speed_benchmark", "n.prototxt", "3", "CPU"], ["time", "n.prototxt", "--iterations", "3", "--device", "cpu"]),
    ],
)  # fmt: skip
def test_deprecated_tools_run_what_replaced_them(old: list[str], new: list[str]) -> None:
    words, remark = modern(old)
    assert words == new and "deprecated" in remark and " ".join(new) in remark


def test_a_deprecated_tool_does_the_work() -> None:
    for name in ("net.prototxt", "solver.prototxt", "train.h5", "test.h5", "train.txt", "test.txt"):
        shutil.copy(LOGS / name, ".")
    done = run_well("train_net", "solver.prototxt", "--max-iter", 2)
    assert "train_net is a deprecated tool of Caffe; this runs: caffetools train solver.prototxt" in done.stderr
    weights = next(Path().glob("*_iter_2.caffemodel"))
    assert "Scores of net.prototxt" in run_well("test_net.bin", "net.prototxt", weights, 1, "CPU").stdout


def test_a_mistyped_tool_is_suggested() -> None:
    assert "did you mean 'compute_image_mean'?" in error_of(run("compute_image_meen"))


def test_glogs_environment_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("net.prototxt", "solver.prototxt", "train.h5", "test.h5", "train.txt", "test.txt"):
        shutil.copy(LOGS / name, ".")
    Path("logs").mkdir()
    monkeypatch.setenv("GLOG_minloglevel", "2")
    monkeypatch.setenv("GLOG_log_dir", "logs")
    done = run_well("caffe", "train", "-solver", "solver.prototxt", "--max-iter", 1)
    assert (done.stdout, done.stderr) == ("", "")
    assert Path("logs/solver.log").is_file()
