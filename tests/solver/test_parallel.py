"""Several processes that train one net: their data, their weights, their signals and their errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from textwrap import indent

import lmdb
import numpy as np
import pytest

from caffetools.cli.app import main
from caffetools.data.databases import new_lmdb, open_database, record_key
from caffetools.data.sharding import shard_database
from caffetools.net.net import Net
from caffetools.proto.binary import read_caffemodel, read_solverstate
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse
from caffetools.solver.callbacks import Callback, History
from caffetools.solver.distributed import idle_layers
from caffetools.solver.launch import _agent, launch
from caffetools.solver.logs.caffe_log import read_log
from caffetools.solver.solver import Solver
from caffetools.solver.strategy import SingleProcess
from tests.children import Child
from tests.solver.together import RANDOM, Together, environment, project, train_together

DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.3 } }'
MIXING = """
layer { name: "mix" type: "Convolution" bottom: "data" top: "mix"
  convolution_param { num_output: 5 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "mixed" type: "Reduction" bottom: "mix" top: "mixed" reduction_param { operation: MEAN } loss_weight: 0.01 }
"""
IDLE = 'layer { name: "idle" type: "InnerProduct" bottom: "data" top: "idle" inner_product_param { num_output: 2 } }'
BATCH_NORM = 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }'


def alone(folder: Path, monkeypatch: pytest.MonkeyPatch, *callbacks: Callback) -> None:
    """The same run in this one process, to its end."""
    monkeypatch.chdir(folder)
    Solver.from_file("solver.prototxt", callbacks=callbacks).solve()


def expect_equal_weights(one: Path, other: Path, tolerance: float) -> None:
    first, second = read_caffemodel(one).blobs, read_caffemodel(other).blobs
    assert set(first) == set(second) and first
    for name, arrays in first.items():
        for a, b in zip(arrays, second[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)


# ---- what they compute ----


def test_two_processes_with_half_the_batch_follow_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = "iter_size: 2 clip_gradients: 0.5 snapshot: 1"
    # Also with a layer that never gets a gradient, which weight decay alone changes, and with one whose gradient torch lays out in its own way.
    project(tmp_path / "one", batch=8, solver=fields, extra=IDLE + MIXING)
    project(tmp_path / "two", batch=4, solver=fields, extra=IDLE + MIXING)
    history = History()
    alone(tmp_path / "one", monkeypatch, history)
    ended = train_together(tmp_path / "two")
    assert ended.codes == [0, 0], ended.errors
    for iteration in range(1, 11):
        name = f"run_iter_{iteration}"
        expect_equal_weights(tmp_path / "one" / f"{name}.caffemodel", tmp_path / "two" / f"{name}.caffemodel", 1e-5)
        histories = [read_solverstate(tmp_path / folder / f"{name}.solverstate").history for folder in ("one", "two")]
        for a, b in zip(*histories, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    # The root alone tests and logs, and its losses are those of the whole batch.
    assert ended.errors[1] == ended.outputs[1] == ""
    assert "Trained at iteration 10." in ended.outputs[0]
    log = read_log(tmp_path / "two" / "run.log")
    assert [row.iteration for row in log.train] == [0, 5]
    for mine, theirs in zip(log.train, history.train[:2], strict=True):
        assert mine.outputs["loss"] == pytest.approx({o.name: o.value for o in theirs.outputs}["loss"], rel=1e-4)
    assert [row.iteration for row in log.test] == [0, 5, 10]
    for test, other in zip(log.test, history.test, strict=True):
        assert test.outputs["loss"] == pytest.approx({o.name: o.value for o in other.outputs}["loss"], rel=1e-4)


def test_two_processes_train_on_the_shards_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path / "two", batch=4, records=24)
    project(tmp_path / "one", batch=8, records=24)
    whole = tmp_path / "two" / "whole_lmdb"
    (tmp_path / "two" / "train_lmdb").rename(whole)
    shard_database(whole, tmp_path / "two" / "train_lmdb", 2)
    # One process gets the same batches if its records alternate between the shards, four by four.
    with closing(open_database(whole)) as database:
        records = [value for _, value in database.records()]
    shutil.rmtree(tmp_path / "one" / "train_lmdb")
    with new_lmdb(tmp_path / "one" / "train_lmdb") as writer:
        for number in range(24):
            group, place = divmod(number, 8)
            shard, within = divmod(place, 4)
            writer.put(record_key(number, "x"), records[12 * shard + 4 * group + within])
    alone(tmp_path / "one", monkeypatch)
    ended = train_together(tmp_path / "two")
    assert ended.codes == [0, 0], ended.errors
    for iteration in (5, 10):
        name = f"run_iter_{iteration}.caffemodel"
        expect_equal_weights(tmp_path / "one" / name, tmp_path / "two" / name, 1e-5)


def test_a_resumed_run_of_two_processes_ends_on_the_same_bits(tmp_path: Path) -> None:
    # With random crops, flips and dropout in each process, and a layer that never gets a gradient.
    project(tmp_path / "whole", batch=4, transform=RANDOM, extra=DROPOUT + IDLE)
    assert train_together(tmp_path / "whole").codes == [0, 0]
    states = json.loads((tmp_path / "whole" / "run_iter_5.runstate.json").read_text())["processes"]
    assert len(states) == 2 and states[1]["layers"]["data"]["rng"] != states[0].get("layers")
    for name in ("run_iter_10.caffemodel", "run_iter_10.solverstate", "run_iter_10.runstate.json"):
        (tmp_path / "whole" / name).rename(tmp_path / name)
    ended = train_together(tmp_path / "whole", "--resume", "auto")
    assert ended.codes == [0, 0], ended.errors
    expect_equal_weights(tmp_path / "run_iter_10.caffemodel", tmp_path / "whole" / "run_iter_10.caffemodel", 0.0)


def test_a_run_resumes_with_another_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project(tmp_path, batch=4, solver="max_iter: 5")
    alone(folder, monkeypatch)
    ended = train_together(folder, "--resume", "auto", "--max-iter", "8")
    assert ended.codes == [0, 0], ended.errors
    assert "The snapshot is of 1 process(es), this run has 2; the data are divided again" in ended.errors[0]
    # Batches of 4 of 27 records: 5 were read by one process, then 3 by each of two.
    state = json.loads((folder / "run_iter_8.runstate.json").read_text())
    places = [state["nets"][0]["data"]["position"], state["processes"][1]["layers"]["data"]["position"]]
    assert places == [(20 + 23) % 27, (20 + 24) % 27]
    again = Solver.from_file("solver.prototxt")
    again.restore("run_iter_8.solverstate")
    assert again.iteration == 8


def test_all_processes_follow_the_mean_loss_of_lr_policy_plateau(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = 'lr_policy: "plateau" gamma: 0.1 plateau_winsize: 1 plateau_winsize: 1 plateau_winsize: 1'
    project(tmp_path / "one", batch=8, solver=fields)
    project(tmp_path / "two", batch=4, solver=fields)
    alone(tmp_path / "one", monkeypatch)
    assert train_together(tmp_path / "two").codes == [0, 0]
    states = [read_solverstate(tmp_path / folder / "run_iter_10.solverstate") for folder in ("one", "two")]
    assert states[0].current_step == states[1].current_step > 0 and states[0].iter_last_event == states[1].iter_last_event
    expect_equal_weights(tmp_path / "one" / "run_iter_10.caffemodel", tmp_path / "two" / "run_iter_10.caffemodel", 1e-5)


def test_processes_draw_their_own_crops_and_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All records are the same, so that equal draws would give equal gradients, and two processes the weights of one.
    for folder in ("one", "two"):
        project(tmp_path / folder, batch=4, transform=RANDOM, extra=DROPOUT, records=1, solver="max_iter: 2")
    alone(tmp_path / "one", monkeypatch)
    assert train_together(tmp_path / "two").codes == [0, 0]
    with pytest.raises(AssertionError):
        expect_equal_weights(tmp_path / "one" / "run_iter_2.caffemodel", tmp_path / "two" / "run_iter_2.caffemodel", 1e-5)


def test_batch_norm_counts_in_each_process_and_the_roots_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        project(tmp_path / folder, batch=4, extra=BATCH_NORM, solver="base_lr: 0")
    monkeypatch.chdir(tmp_path / "one")
    solver = Solver.from_file("solver.prototxt")
    solver.net.layer("data").shard(0, 2)
    solver.solve()
    assert train_together(tmp_path / "two").codes == [0, 0]
    one, two = (read_caffemodel(tmp_path / folder / "run_iter_10.caffemodel").blobs["bn"] for folder in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_layers_without_a_way_to_a_loss_are_found() -> None:
    text = """
    layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 2 } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 4 } }
    layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 2 } }
    layer { name: "c" type: "InnerProduct" bottom: "a" top: "c" inner_product_param { num_output: 2 } }
    layer { name: "stopped" type: "InnerProduct" bottom: "x" top: "stopped" inner_product_param { num_output: 2 } }
    layer { name: "sum" type: "Eltwise" bottom: "b" bottom: "stopped" top: "sum" propagate_down: true propagate_down: false }
    layer { name: "loss" type: "EuclideanLoss" bottom: "sum" bottom: "y" top: "loss" }
    """
    assert sorted(idle_layers(Net(parse(text, NetParameter), TRAIN))) == ["c", "stopped"]


def test_a_single_process_changes_and_waits_for_nothing() -> None:
    strategy = SingleProcess()
    assert strategy.all_reduce([1.5, 2]) == [1.5, 2] and strategy.all_reduce([1, 0], "max") == [1, 0]
    assert strategy.broadcast({"a": 1}) == {"a": 1} and strategy.gather(3) == [3]
    assert strategy.run_on_main(lambda: 7) == 7 and strategy.is_main


# ---- how they end ----


def test_an_error_in_one_process_ends_all_and_is_reported_once(tmp_path: Path) -> None:
    folder = project(tmp_path, batch=4, solver="test_iter: 1")
    with lmdb.open(str(folder / "train_lmdb"), lock=False).begin(write=True) as transaction:
        transaction.put(b"00000013_x", b"\xff\xff broken")
    ended = train_together(folder)
    assert 0 not in ended.codes
    (complaint,) = ended.complaints()
    assert "process 1 of 2: " in complaint and "00000013_x" in complaint
    assert "Traceback" not in "".join(ended.errors)
    assert re.search(r"^E\d{4} .*process 1 of 2: .*00000013_x", (folder / "run.log").read_text(), re.MULTILINE)


def test_an_error_that_names_a_connection_of_its_own_is_reported_as_it_is(tmp_path: Path) -> None:
    folder = project(tmp_path, batch=4)
    python_layer(folder, "asks", ASKS)
    ended = train_together(folder)
    assert 0 not in ended.codes
    text = "".join(ended.errors)
    assert "RuntimeError: Connection refused by the server of labels" in text and "no answer from" not in text, text


def test_what_is_wrong_from_the_start_is_reported_once(tmp_path: Path) -> None:
    ended = train_together(project(tmp_path, batch=4, solver='lr_policy: "cosine"'))
    assert ended.codes == [2, 2]
    (complaint,) = ended.complaints()
    assert "unknown lr_policy 'cosine'" in complaint
    assert "Traceback" not in "".join(ended.errors)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 400  # several processes start in between; on a busy machine that takes minutes
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def endless(folder: Path) -> Path:
    return project(folder, batch=4, solver="max_iter: 100000000 snapshot: 0 test_interval: 1000")


def displayed(folder: Path) -> bool:
    return (folder / "run.log").exists() and "Iteration 5, lr" in (folder / "run.log").read_text()


def test_sigterm_in_any_process_stops_all_with_one_snapshot(tmp_path: Path) -> None:
    with Together(endless(tmp_path), "solver.prototxt", "--device", "cpu") as run:
        wait_for(lambda: displayed(tmp_path))
        os.kill(run.processes[1].pid or 0, signal.SIGTERM)
        ended = run.wait()
    assert ended.codes == [0, 0], ended.errors
    (state,) = tmp_path.glob("run_iter_*.solverstate")
    assert f"Stopped at iteration {read_solverstate(state).iter}." in ended.outputs[0]


def test_a_hang_up_in_any_process_takes_one_snapshot_and_continues_until_ctrl_c(tmp_path: Path) -> None:
    with Together(endless(tmp_path), "solver.prototxt", "--device", "cpu") as run:
        wait_for(lambda: displayed(tmp_path))
        os.kill(run.processes[1].pid or 0, signal.SIGHUP)
        wait_for(lambda: any(tmp_path.glob("run_iter_*.solverstate")))
        os.kill(run.processes[1].pid or 0, signal.SIGINT)
        ended = run.wait()
    assert ended.codes == [0, 0], ended.errors
    assert len(list(tmp_path.glob("run_iter_*.solverstate"))) == 2


def test_a_process_that_does_not_answer_is_not_waited_for_endlessly(tmp_path: Path) -> None:
    # On a busy machine a process may need longer than the limit to begin at all; then it gets more.
    for limit in (3, 12, 48, 192):
        folder = endless(tmp_path / str(limit))
        python_layer(folder, "stops", STOPS)
        with Together(folder, "solver.prototxt", "--device", "cpu", environment={"CAFFETOOLS_TIMEOUT": str(limit)}) as run:
            wait_for(lambda: run.processes[0].exitcode is not None)
            assert run.processes[0].exitcode == 1
        if (folder / "stopped").exists():
            break
    text = (folder / "stderr0.txt").read_text()
    lost = f"no answer from process 1 of 2 on {socket.gethostname()} (killed, stopped, or the machine lost?)"
    assert text.splitlines()[-1] == f"caffetools: error: training in 2 processes has ended: {lost}"


def test_of_several_processes_the_killed_one_is_named_where_no_launcher_watches_it(tmp_path: Path) -> None:
    """As on several machines, where the agent of one does not see the processes of the others."""
    folder = endless(tmp_path)
    with Together(folder, "solver.prototxt", "--device", "cpu", count=3, environment={"CAFFETOOLS_TIMEOUT": "10"}) as run:
        wait_for(lambda: displayed(folder))
        run.processes[1].kill()
        ended = run.wait()
    assert ended.codes == [1, -signal.SIGKILL, 1]
    lost = f"no answer from process 1 of 3 on {socket.gethostname()} (killed, stopped, or the machine lost?)"
    assert ended.complaints() == [f"caffetools: error: training in 3 processes has ended: {lost}"]


# ---- how they are started ----


def process_of(parent: int, rank: int) -> int:
    """The process that trains as ``rank``, of those that ``parent`` started."""
    children = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return {Path(f"/proc/{pid}/environ").read_text().partition("\0LOCAL_RANK=")[2][:1]: pid for pid in children}[str(rank)]


def test_torchrun_starts_them_and_reports_the_one_that_dies(tmp_path: Path) -> None:
    """Starting them again is torchrun's, which ``--restarts`` uses too; the next test has it."""
    folder = project(tmp_path, batch=4, solver="max_iter: 100000000 snapshot: 10 test_interval: 1000 display: 10")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=0"]
    command += ["-m", "caffetools", "train", "solver.prototxt", "--resume", "auto"]
    log = folder / "run.log"
    with (folder / "stderr.txt").open("w") as stderr, subprocess.Popen(command, cwd=folder, env=environment(), stderr=stderr) as run:
        try:
            wait_for(lambda: log.exists() and "Iteration 20, lr" in log.read_text())
            os.kill(process_of(run.pid, 1), signal.SIGKILL)
            run.wait(60)
        finally:
            run.terminate()
    assert run.returncode == 1
    last = max(int(path.stem.rpartition("_")[2]) for path in folder.glob("run_iter_*.solverstate"))
    assert len(json.loads((folder / f"run_iter_{last}.runstate.json").read_text())["processes"]) == 2
    # torchrun itself reports the process that was killed; the other one says at most once what it saw of it.
    text = (folder / "stderr.txt").read_text()
    complaints = [line for line in text.splitlines() if line.startswith("caffetools: error: ")]
    assert all("no answer from process 1 of 2 on" in line for line in complaints) and len(complaints) <= 1
    assert "exitcode: -9" in text


@pytest.mark.timeout(900)
def test_a_lost_process_is_restarted_on_the_same_bits_gets_the_launchers_signals_and_is_named(tmp_path: Path) -> None:
    """In one run: it is started again after its first loss, passes SIGHUP on, and at the next loss ends with the rank's number."""
    project(tmp_path / "whole", batch=4, transform=RANDOM, extra=DROPOUT)
    project(tmp_path / "lost", batch=4, transform=RANDOM, extra=DROPOUT, solver="max_iter: 100000000")
    assert train_together(tmp_path / "whole").codes == [0, 0]
    # One of the processes is killed at its first update after the snapshot; then the run has no end of its own.
    folder = tmp_path / "lost"
    python_layer(folder, "die_once", DIE_ONCE)
    arguments = ["train", "solver.prototxt", "--processes", "2", "--restarts", "1", "--resume", "auto", "--quiet"]
    state = folder / "run_iter_10.solverstate"
    with Child(["-m", "caffetools", *arguments], cwd=folder, env=environment()) as run:
        try:
            wait_for(state.exists)
            expect_equal_weights(tmp_path / "whole" / "run_iter_10.caffemodel", folder / "run_iter_10.caffemodel", 0.0)
            assert (folder / "died").exists() and "Resuming from run_iter_5.solverstate" in (folder / "run.log").read_text()

            def snapshot_was_asked_for() -> bool:
                """Whether one was taken besides those that are due at every fifth iteration; asks for it."""
                assert run.poll() is None, f"it ended at SIGHUP: {run.communicate()}"
                run.send_signal(signal.SIGHUP)
                return any(int(path.stem.rpartition("_")[2]) % 5 for path in folder.glob("run_iter_*.solverstate"))

            wait_for(snapshot_was_asked_for)
            os.kill(process_of(run.pid, 1), signal.SIGKILL)
            _, errors = run.communicate()
        finally:
            # Passed on to whatever is still there.
            run.send_signal(signal.SIGTERM)
    assert run.returncode == 1
    complaints = [line for line in errors.splitlines() if line.startswith("caffetools: error: ")]
    assert len(complaints) == 1 and "process 1 of 2 was ended by SIGKILL" in complaints[0]


LAYER = """
import os, pathlib, signal
import caffe

class Layer(caffe.Layer):
    passes = 0
    def setup(self, bottom, top):
        pass
    def reshape(self, bottom, top):
        pass
    def forward(self, bottom, top):
        self.passes += 1
        if os.environ["RANK"] == "1":
            self.disturb()
    def backward(self, top, propagate_down, bottom):
        pass
    def disturb(self):
"""


def python_layer(folder: Path, module: str, disturb: str) -> None:
    """Add a layer in Python to the training net of a project: process 1 runs ``disturb`` in each forward pass."""
    text = f'layer {{ name: "py" type: "Python" bottom: "data" include {{ phase: TRAIN }} python_param {{ module: "{module}" layer: "Layer" }} }}'
    with (folder / "net.prototxt").open("a") as file:
        file.write(text)
    (folder / f"{module}.py").write_text(LAYER + indent(disturb, " " * 8))


STOPS = """
pathlib.Path("stopped").touch()
os.kill(os.getpid(), signal.SIGSTOP)
"""

ASKS = """
raise RuntimeError("Connection refused by the server of labels")
"""

DIE_ONCE = """
if self.passes == 8 and not os.path.exists("died"):
    pathlib.Path("died").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_agent_leaves_the_handlers_of_signals(tmp_path: Path) -> None:
    # No variable tells torch here to leave them alone, which its older releases do not know.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        agent = _agent(1, ["-c", "pass"], str(tmp_path), 0)
        assert not agent.run().is_failed()
        after = {number: signal.getsignal(number) for number in numbers}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert after.pop(signal.SIGQUIT) != before.pop(signal.SIGQUIT), "torch sets none any more"
    assert after == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--processes", "0"], "invalid value for '--processes': it must be"),
        (["--processes", "2", "--precision", "fp8"], "unknown precision 'fp8'"),
    ],
)
def test_what_cannot_be_started_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(project(tmp_path, batch=4))
    monkeypatch.setattr(sys, "argv", ["caffetools", "train", "solver.prototxt", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("caffetools: error: ")]
    assert len(errors) == 1 and words in errors[0]


def test_the_exit_code_of_the_processes_is_the_launchers(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(2, ["train", "--nothing"]) == 2
    assert "--nothing" in capfd.readouterr().err
