"""pycaffe's solvers: against Caffe update by update, and what scripts do between the updates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffetools.errors import CaffeToolsError, NetError
from caffetools.pycaffe import mode
from caffetools.pycaffe.net import Net
from caffetools.pycaffe.proto import caffe_pb2
from caffetools.pycaffe.solvers import AdamSolver, NesterovSolver, SGDSolver, Solver, get_solver
from tests.conftest import GOLDEN

Write = Callable[[str, str], str]
FOLDER = GOLDEN / "solvers"
INDEX: dict[str, list[dict[str, Any]]] = json.loads((FOLDER / "index.json").read_text())

NET = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 8 dim: 3 } } }
layer { name: "t" type: "Input" top: "t" input_param { shape { dim: 8 dim: 1 } } }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }
"""
SOLVER = 'net: "%s" base_lr: 0.1 lr_policy: "fixed" momentum: 0.5 max_iter: 12 %s'


def copy_params(solver: Solver, arrays: dict[str, Any]) -> None:
    for key, array in arrays.items():
        if key.startswith("init:"):
            _, layer, index = key.split(":")
            solver.net.params[layer][int(index)].data[...] = array
        elif key.startswith("in:"):
            solver.net.blobs[key.removeprefix("in:")].data[...] = array


def check_weights(solver: Solver, arrays: dict[str, Any], updates: int, *, loose: bool) -> None:
    rtol, atol = (1e-3, 1e-4) if loose else (1e-4, 1e-5)
    found = [key for key in arrays if key.startswith(f"weights@{updates}:")]
    assert found
    for key in found:
        _, layer, index = key.split(":")
        np.testing.assert_allclose(solver.net.params[layer][int(index)].data, arrays[key], rtol=rtol, atol=atol, err_msg=key)


@pytest.mark.parametrize("case", INDEX["cases"], ids=lambda c: c["name"])
def test_a_solver_follows_caffe(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    with np.load(case["npz"]) as file:
        arrays = dict(file)
    solver = get_solver(case["solver"])
    # The index names the type field, which the old spelling leaves at its default.
    assert solver.type == case["type"] or case["name"].startswith("old_enum")
    copy_params(solver, arrays)
    losses = []
    for updates in range(1, 21):
        solver.step(1)
        losses.append([float(x) for name in solver.net.outputs for x in np.ravel(solver.net.blobs[name].data)])
        if updates in (1, 5, 20):
            check_weights(solver, arrays, updates, loose=updates == 20)
    assert solver.iter == 20
    np.testing.assert_allclose(np.array(losses), arrays["loss"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", INDEX["resume"][:2], ids=lambda c: c["name"])
def test_a_solver_resumes_from_caffes_snapshot(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    with np.load(case["npz"]) as file:
        arrays = dict(file)
    solver = get_solver(case["solver"])
    copy_params(solver, {key: array for key, array in arrays.items() if key.startswith("in:")})
    solver.restore(case["solverstate"])
    assert solver.iter == 10
    check_weights(solver, arrays, 10, loose=False)
    solver.step(10)
    check_weights(solver, arrays, 20, loose=True)


def regression(solver: Solver) -> None:
    random = np.random.RandomState(0)
    x = random.randn(8, 3)
    solver.net.blobs["x"].data[...] = x
    solver.net.blobs["t"].data[:, 0] = x @ [1.0, -2.0, 0.5] + 3


def test_a_hand_written_loop_reads_and_changes_everything_between_steps(write: Write) -> None:
    solver = SGDSolver(write("solver.prototxt", SOLVER % (write("net.prototxt", NET), "")))
    regression(solver)
    losses = np.zeros(60)
    for it in range(60):
        solver.step(1)
        losses[it] = solver.net.blobs["loss"].data
        assert np.abs(solver.net.params["fc"][0].diff).sum() > 0
    assert losses[-1] < 1e-3 * losses[0]
    np.testing.assert_allclose(solver.net.params["fc"][0].data, [[1, -2, 0.5]], atol=0.1)
    solver.net.params["fc"][0].data[...] = 0
    solver.step(1)
    assert solver.net.blobs["loss"].data > 0.1


def test_updates_by_hand_are_those_of_the_solver(write: Write) -> None:
    net = write("net.prototxt", NET)
    solver = SGDSolver(write("solver.prototxt", (SOLVER % (net, "")).replace("momentum: 0.5", "momentum: 0")))
    mine = Net(net, caffe_pb2.TRAIN)
    for blob, other in zip(mine.params["fc"], solver.net.params["fc"], strict=True):
        blob.data[...] = other.data
    regression(solver)
    for name in ("x", "t"):
        mine.blobs[name].data[...] = solver.net.blobs[name].data
    for _ in range(5):
        solver.step(1)
        mine.clear_param_diffs()
        mine.forward()
        mine.backward()
        for blob in mine.params["fc"]:
            blob.data[...] -= 0.1 * blob.diff
    np.testing.assert_allclose(mine.params["fc"][0].data, solver.net.params["fc"][0].data, rtol=1e-5)


def test_apply_update_steps_with_the_diffs_that_there_are(write: Write) -> None:
    solver = SGDSolver(write("solver.prototxt", SOLVER % (write("net.prototxt", NET), "")))
    before = solver.net.params["fc"][0].data.copy()
    solver.net.params["fc"][0].diff[...] = 2
    solver.apply_update()
    np.testing.assert_allclose(solver.net.params["fc"][0].data, before - 0.2, rtol=1e-5)
    assert solver.iter == 1


def test_test_nets_share_the_weights_and_can_be_run_by_hand(write: Write) -> None:
    extra = "test_iter: 2 test_interval: 3 test_initialization: false"
    solver = SGDSolver(write("solver.prototxt", SOLVER % (write("net.prototxt", NET), extra)))
    regression(solver)
    (test_net,) = solver.test_nets
    for name in ("x", "t"):
        test_net.blobs[name].data[...] = solver.net.blobs[name].data
    solver.step(40)
    assert float(test_net.forward()["loss"]) == pytest.approx(float(solver.net.forward()["loss"]), rel=1e-5)
    (tested,) = solver.test_all()
    assert tested.outputs[0].value == pytest.approx(float(test_net.blobs["loss"].data), rel=1e-5)


@pytest.mark.parametrize("first", ["true", "false"])
def test_a_test_net_has_weights_of_its_own_until_the_first_test(write: Write, first: str) -> None:
    # What real Caffe gives: ShareTrainedLayersWith is called by each test.
    extra = f"test_iter: 1 test_interval: 3 test_initialization: {first}"
    solver = SGDSolver(write("solver.prototxt", SOLVER % (write("net.prototxt", NET), extra)))
    regression(solver)
    mine, theirs = solver.net.params["fc"][0], solver.test_nets[0].params["fc"][0]
    mine.data[...] = 2
    assert not np.any(theirs.data == 2)
    theirs.data[...] = 7
    assert np.all(mine.data == 2)
    solver.step(1)
    assert np.shares_memory(mine.data, theirs.data) == (first == "true")
    solver.step(3)
    mine.data[...] = 9
    assert np.all(theirs.data == 9)


def test_callbacks_run_around_the_gradients(write: Write) -> None:
    solver = SGDSolver(write("solver.prototxt", SOLVER % (write("net.prototxt", NET), "")))
    regression(solver)
    calls: list[tuple[str, int, bool]] = []
    note = lambda what: calls.append((what, solver.iter, bool(solver.net.params["fc"][0].diff.any())))  # noqa: E731
    solver.add_callback(lambda: note("start"), lambda: note("ready"))
    solver.step(2)
    assert [(what, it) for what, it, _ in calls] == [("start", 0), ("ready", 0), ("start", 1), ("ready", 1)]
    assert calls[1][2]
    # As in Caffe, an update by hand calls none.
    solver.apply_update()
    assert (len(calls), solver.iter) == (4, 3)


def test_snapshots_are_taken_up_again(write: Write, tmp_path: Path) -> None:
    extra = f'snapshot_prefix: "{tmp_path}/run" snapshot: 5'
    path = write("solver.prototxt", SOLVER % (write("net.prototxt", NET), extra))
    first = SGDSolver(path)
    regression(first)
    first.solve()
    assert sorted(p.name for p in tmp_path.glob("run_iter_*")) == [
        f"run_iter_{n}.{kind}" for n in (10, 12, 5) for kind in ("caffemodel", "runstate.json", "solverstate")
    ]
    second = SGDSolver(path)
    regression(second)
    second.solve(str(tmp_path / "run_iter_5.solverstate"))
    assert second.iter == 12 == second.param.max_iter
    np.testing.assert_array_equal(second.net.params["fc"][0].data, first.net.params["fc"][0].data)
    deployed = Net(write("deploy.prototxt", NET), str(tmp_path / "run_iter_12.caffemodel"), caffe_pb2.TEST)
    np.testing.assert_array_equal(deployed.params["fc"][1].data, first.net.params["fc"][1].data)


def test_weights_can_be_shared_with_another_net(write: Write) -> None:
    net = write("net.prototxt", NET)
    solver = SGDSolver(write("solver.prototxt", SOLVER % (net, "")))
    other = Net(net, caffe_pb2.TEST)
    solver.share_weights(other)
    regression(solver)
    solver.step(3)
    np.testing.assert_array_equal(other.params["fc"][0].data, solver.net.params["fc"][0].data)


def test_the_class_chooses_the_rule_and_get_solver_the_file(write: Write) -> None:
    net = write("net.prototxt", NET)
    path = write("solver.prototxt", SOLVER % (net, 'type: "Nesterov"'))
    assert isinstance(get_solver(path), NesterovSolver)
    assert AdamSolver(path).type == "Adam"
    old = write("old.prototxt", SOLVER % (net, "solver_type: ADAM"))
    assert isinstance(get_solver(old), AdamSolver)
    with pytest.raises(CaffeToolsError, match="unknown solver type 'Adamm'"):
        get_solver(write("bad.prototxt", SOLVER % (net, 'type: "Adamm"')))
    with pytest.raises(NetError, match=r"net\.prototxt:\d+: layer 'fc'"):
        SGDSolver(write("s.prototxt", SOLVER % (write("net.prototxt", NET.replace("num_output: 1", "num_output: 0")), "")))


def test_without_a_gpu_set_mode_gpu_reports_it_and_remains_on_the_cpu(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    mode.set_device(0)
    mode.set_mode_gpu()
    assert "no GPU" in caplog.text
    assert mode.device().type == "cpu"


def test_debug_info_is_written_to_the_log(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    solver = SGDSolver(write("solver.prototxt", SOLVER % (write("net.prototxt", NET), "debug_info: true")))
    regression(solver)
    with caplog.at_level("INFO", logger=mode.logger.name):
        solver.step(1)
    for words in (
        "[Forward] Layer fc, top blob y data: ",
        "[Backward] Layer loss, bottom blob y diff: ",
    ):
        assert sum(words in record.getMessage() for record in caplog.records) == 1


def test_a_warning_of_the_solver_is_one_in_the_log(write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    solver = SGDSolver(write("solver.prototxt", SOLVER % (write("net.prototxt", NET), f'snapshot_prefix: "{tmp_path}/run"')))
    solver.snapshot()
    (tmp_path / "run_iter_0.runstate.json").write_text("torn")
    with caplog.at_level("INFO", logger=mode.logger.name):
        solver.restore(tmp_path / "run_iter_0.solverstate")
    assert [record.levelname for record in caplog.records if "start over" in record.getMessage()] == ["WARNING"]


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "Adam"])
def test_a_step_leaves_what_it_took_off_the_parameters_in_their_diffs(kind: str, write: Write) -> None:
    """Also where nothing but weight decay changes a parameter, since no loss depends on it."""
    idle = 'layer { name: "idle" type: "InnerProduct" bottom: "x" top: "idle" inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }'
    solver = get_solver(write("solver.prototxt", SOLVER % (write("net.prototxt", NET + idle), f'type: "{kind}" weight_decay: 0.01')))
    assert solver.lr == pytest.approx(solver.param.base_lr)
    solver.net.blobs["x"].data[...] = np.random.default_rng(0).normal(size=(8, 3))
    solver.net.blobs["t"].data[...] = 1
    solver.step(2)
    before = {name: [blob.data.copy() for blob in blobs] for name, blobs in solver.net.params.items()}
    solver.step(1)
    for name, blobs in solver.net.params.items():
        for old, blob in zip(before[name], blobs, strict=True):
            np.testing.assert_allclose(blob.diff, old - blob.data, rtol=1e-3, atol=2e-7)
        assert np.abs(blobs[0].diff).sum() > 0


def test_a_net_without_parameters_resumes_from_its_snapshot(tmp_path: Path) -> None:
    text = 'layer { name: "d" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 } } } layer { name: "l" type: "Reduction" bottom: "x" top: "l" loss_weight: 1 }'
    (tmp_path / "net.prototxt").write_text(text)
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 1 lr_policy: "fixed" snapshot_prefix: "{tmp_path}/s"'
    )
    solver = get_solver(str(tmp_path / "solver.prototxt"))
    solver.step(2)
    solver.snapshot()
    solver.step(1)
    solver.restore(str(tmp_path / "s_iter_2.solverstate"))
    assert solver.iter == 2
