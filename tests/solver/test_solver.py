"""The training loop: nets, tests, snapshots, resuming, and what stops it."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.errors import CaffeToolsError, ModelFileError, NetError, PrototxtError, RunFailed
from caffetools.net.weights import read_weights, save_weights
from caffetools.proto.binary import read_solverstate
from caffetools.proto.text import write_prototxt
from caffetools.solver.callbacks import History
from caffetools.solver.run import train
from caffetools.solver.solver import Solver
from tests.solver.tiny import NET, solver_param, tiny_solver, weights
from tests.solver.together import project


def test_training_learns(tmp_path: Path) -> None:
    history = History()
    solver = tiny_solver("display: 5 test_iter: 2 test_interval: 10 average_loss: 4", folder=tmp_path, callbacks=[history])
    solver.solve()
    assert [row.iteration for row in history.train] == [0, 5, 10, 15, 20]
    assert [row.last for row in history.train] == [False] * 4 + [True]
    assert history.train[-1].loss < 0.2 * history.train[0].loss
    assert [test.iteration for test in history.test] == [0, 10, 20]
    assert {o.name: o.value for o in history.test[-1].outputs}["accuracy"] == 1
    assert [s.iteration for s in history.snapshots] == [20]


def test_the_displayed_loss_is_the_mean_of_the_last_average_loss() -> None:
    history = History()
    solver = tiny_solver("display: 1 average_loss: 3", callbacks=[history])
    losses = []
    for _ in range(1):
        solver.step(6)
    losses = [row.outputs[0].value for row in history.train]
    for index, row in enumerate(history.train):
        assert row.loss == pytest.approx(np.mean(losses[max(0, index - 2) : index + 1]), rel=1e-6)


def test_a_random_seed_makes_runs_equal_and_another_one_other() -> None:
    first, again, other = tiny_solver(), tiny_solver(), tiny_solver("random_seed: 4")
    for solver in (first, again, other):
        solver.step(3)
    assert all(map(torch.equal, weights(first), weights(again)))
    assert not torch.equal(weights(first)[0], weights(other)[0])


def test_nothing_is_displayed_tested_or_saved_that_was_not_asked_for(tmp_path: Path) -> None:
    history = History()
    tiny_solver("snapshot_after_train: false", folder=tmp_path, callbacks=[history]).solve()
    assert history == History()
    assert list(tmp_path.iterdir()) == []


def test_test_nets_hold_the_training_nets_own_parameters() -> None:
    solver = tiny_solver("test_iter: 1 test_interval: 5")
    assert solver.test_nets[0].layer("ip1").blobs[0] is solver.net.layer("ip1").blobs[0]
    assert len(solver.test_nets[0].layers) == len(solver.net.layers) + 1


def test_layers_that_only_a_test_net_has_are_filled() -> None:
    extra = 'layer { name: "own" type: "InnerProduct" bottom: "ip1" top: "own" include { phase: TEST } inner_product_param { num_output: 3 '
    extra += 'weight_filler { type: "constant" value: 0.5 } } }'
    solver = tiny_solver("test_iter: 1 test_interval: 5", net=NET + extra)
    assert bool((solver.test_nets[0].layer("own").blobs[0] == 0.5).all())


def test_several_test_nets_by_stage_run_in_order() -> None:
    net = NET.replace("include { phase: TEST }", 'include { phase: TEST stage: "scored" }')
    history = History()
    fields = 'test_iter: 1 test_iter: 2 test_interval: 5 test_state { stage: "scored" } test_state { stage: "plain" }'
    tiny_solver(fields, net=net, callbacks=[history]).step(1)
    assert [[o.name for o in test.outputs] for test in history.test] == [["accuracy", "loss"], ["loss"]]


def test_test_compute_loss_gives_the_mean_loss() -> None:
    solver = tiny_solver("test_iter: 3 test_interval: 5 test_compute_loss: true")
    (result,) = solver.test_all()
    assert result.loss == pytest.approx(result.outputs[1].value)


def test_a_net_file_is_found_next_to_the_solver_and_the_log_reports_it(tmp_path: Path) -> None:
    param = solver_param()
    write_prototxt(tmp_path / "net.prototxt", param.net_param)
    param.ClearField("net_param")
    param.net = "net.prototxt"
    write_prototxt(tmp_path / "solver.prototxt", param)
    lines: list[str] = []
    solver = Solver.from_file(tmp_path / "solver.prototxt", log=lambda source, text, severity="I": lines.append(text))
    assert solver.net.name == "tiny"
    assert any("net.prototxt is not in the working directory; reading" in line for line in lines)
    assert solver.prefix == str(tmp_path / "solver")


def test_a_net_file_in_the_working_directory_comes_first_as_in_caffe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    param = solver_param()
    for folder, name in ((tmp_path / "here", "here"), (tmp_path / "there", "there")):
        param.net_param.name = name
        write_prototxt(folder / "net.prototxt", param.net_param)
    param.ClearField("net_param")
    param.net = "net.prototxt"
    write_prototxt(tmp_path / "there" / "solver.prototxt", param)
    monkeypatch.chdir(tmp_path / "here")
    assert Solver.from_file("../there/solver.prototxt").net.name == "here"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ('net: "other.prototxt"', "give exactly one of net, net_param, train_net, train_net_param"),
        ("test_iter: 1", "test_interval must be above 0"),
        ("test_iter: -1 test_interval: 5", "every test_iter must be at least 0"),
        ("test_iter: 1 test_interval: 5 test_state { } test_state { }", "2 test_state block"),
        ('type: "SGD" solver_type: ADAM', "both solver_type and type"),
    ],
)
def test_solvers_that_make_no_sense_are_refused(fields: str, words: str) -> None:
    with pytest.raises(CaffeToolsError, match=words):
        tiny_solver(fields)


def test_a_missing_net_file_is_named(tmp_path: Path) -> None:
    param = solver_param()
    param.ClearField("net_param")
    param.train_net = str(tmp_path / "absent.prototxt")
    with pytest.raises(PrototxtError, match=r"absent\.prototxt"):
        Solver(param)


# ---- snapshots ----


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "Adam", "AdaDelta"])
def test_a_resumed_run_ends_on_the_same_bits(tmp_path: Path, kind: str, form: str) -> None:
    fields = f'type: "{kind}" snapshot: 10 snapshot_format: {form} lr_policy: "multistep" gamma: 0.5 stepvalue: 4 stepvalue: 12'
    whole = tiny_solver(fields, folder=tmp_path)
    whole.solve()
    resumed = tiny_solver(fields + " random_seed: 9", folder=tmp_path)
    resumed.restore(tmp_path / f"tiny_iter_10.solverstate{'.h5' if form == 'HDF5' else ''}")
    assert (resumed.iteration, resumed.learning_rate.current_step) == (10, 1)
    resumed.solve()
    assert all(map(torch.equal, weights(whole), weights(resumed)))
    assert all(map(torch.equal, whole.rule.history, resumed.rule.history))


def test_snapshots_fall_on_their_interval_and_the_end(tmp_path: Path) -> None:
    tiny_solver("snapshot: 8", folder=tmp_path).solve()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"tiny_iter_{n}.{kind}" for n in (16, 20, 8) for kind in ("caffemodel", "runstate.json", "solverstate")
    ]


def test_the_pair_can_be_moved_together(tmp_path: Path) -> None:
    solver = tiny_solver(folder=tmp_path / "run")
    solver.solve()
    (tmp_path / "run").rename(tmp_path / "moved")
    fresh = tiny_solver("random_seed: 9")
    fresh.restore(tmp_path / "moved" / "tiny_iter_20.solverstate")
    assert all(map(torch.equal, weights(solver), weights(fresh)))


def test_weights_of_the_same_name_in_the_working_directory_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = tiny_solver(folder=tmp_path / "run")
    solver.solve()
    (tmp_path / "elsewhere").mkdir()
    save_weights(tiny_solver("random_seed: 8").net, tmp_path / "elsewhere" / "tiny_iter_20.caffemodel")
    monkeypatch.chdir(tmp_path / "elsewhere")
    fresh = tiny_solver("random_seed: 9")
    fresh.restore("../run/tiny_iter_20.solverstate")
    assert all(map(torch.equal, weights(solver), weights(fresh)))


def test_a_state_whose_weights_are_missing_names_where_it_looked(tmp_path: Path) -> None:
    solver = tiny_solver(folder=tmp_path)
    files = solver.snapshot()
    files.weights.unlink()
    with pytest.raises(ModelFileError, match=r"tiny_iter_0\.caffemodel' are missing \(looked for"):
        tiny_solver().restore(files.state)


def test_a_state_of_another_solver_type_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    files = tiny_solver('type: "Adam"', folder=tmp_path).snapshot()
    solver = tiny_solver()
    before = weights(solver)
    with pytest.raises(ModelFileError, match="holds 8 history blobs, but SGD keeps 4"):
        solver.restore(files.state)
    assert all(map(torch.equal, before, weights(solver)))


@pytest.mark.parametrize("name", ["tiny_iter_0.caffemodel", "empty.solverstate", "absent.solverstate", "broken.solverstate.h5"])
def test_what_is_not_a_state_is_refused(tmp_path: Path, name: str) -> None:
    tiny_solver(folder=tmp_path).snapshot()
    (tmp_path / "empty.solverstate").touch()
    (tmp_path / "broken.solverstate.h5").write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=name):
        tiny_solver().restore(tmp_path / name)


def test_a_truncated_state_is_refused(tmp_path: Path) -> None:
    files = tiny_solver(folder=tmp_path).snapshot()
    files.state.write_bytes(files.state.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"tiny_iter_0\.solverstate"):
        tiny_solver().restore(files.state)


def test_a_full_disk_is_one_error_and_earlier_snapshots_are_kept(tmp_path: Path) -> None:
    solver = tiny_solver(folder=tmp_path)
    solver.step(5)
    good = solver.snapshot()
    before = (good.weights.read_bytes(), good.state.read_bytes())
    solver.step(5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(RunFailed, match=r"cannot write .*tiny_iter_10\.caffemodel"):
            solver.snapshot()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (good.weights.read_bytes(), good.state.read_bytes()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"tiny_iter_5.{kind}" for kind in ("caffemodel", "runstate.json", "solverstate")]


def test_a_snapshot_without_a_prefix_is_refused() -> None:
    with pytest.raises(CaffeToolsError, match="snapshot_prefix is missing"):
        tiny_solver().snapshot()


def test_a_prefix_that_is_a_folder_takes_the_solvers_name(tmp_path: Path) -> None:
    assert Solver(solver_param(f'snapshot_prefix: "{tmp_path}"'), path="tasks/digits_solver.prototxt").prefix == str(
        tmp_path / "digits_solver"
    )


# ---- weights ----


def test_weights_are_loaded_by_layer_name_and_the_log_reports_what_became_of_them(tmp_path: Path) -> None:
    source = tiny_solver()
    save_weights(source.net, tmp_path / "a.caffemodel")
    lines: list[str] = []
    net = NET.replace('"ip2"', '"classes"')
    solver = tiny_solver(
        f'weights: "{tmp_path / "a.caffemodel"}" random_seed: 9',
        net=net,
        log=lambda source, text, severity="I": lines.append(f"{severity} {text}"),
    )
    assert torch.equal(weights(solver)[0], weights(source)[0])
    assert f"I Layers loaded from {tmp_path / 'a.caffemodel'}: ip1" in lines
    assert "I Layers that start fresh: classes" in lines
    assert "I Ignoring source layer ip2" in lines


def test_weights_of_which_nothing_fits_are_warned_of(tmp_path: Path) -> None:
    save_weights(tiny_solver(net=NET.replace('name: "ip', 'name: "other')).net, tmp_path / "a.caffemodel")
    lines: list[str] = []
    tiny_solver(f'weights: "{tmp_path / "a.caffemodel"}"', log=lambda source, text, severity="I": lines.append(f"{severity} {text}"))
    assert any(line.startswith("W No layer was loaded from") for line in lines)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_weights(tiny_solver(net=NET.replace("num_output: 4", "num_output: 5")).net, tmp_path / "a.caffemodel")
    with pytest.raises(NetError, match="layer 'ip2'"):
        tiny_solver(f'weights: "{tmp_path / "a.caffemodel"}"')


# ---- divergence ----


def test_weights_that_are_no_longer_finite_are_not_saved(tmp_path: Path) -> None:
    solver = tiny_solver(folder=tmp_path)
    good = solver.snapshot()
    with torch.no_grad():
        solver.net.layer("ip2").blobs[1][2] = math.inf
    with pytest.raises(RunFailed, match="iteration 0: parameter blob 1 of layer 'ip2' is no longer finite"):
        solver.snapshot()
    assert np.isfinite(read_weights(good.weights).blobs["ip2"][1]).all()
    assert read_solverstate(good.state).iter == 0


def test_a_net_of_which_nothing_learns_still_runs() -> None:
    frozen = NET.replace("param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }", "")
    frozen = frozen.replace("inner_product_param", "param { lr_mult: 0 } param { lr_mult: 0 } inner_product_param")
    solver = tiny_solver(net=frozen)
    before = weights(solver)
    solver.step(3)
    assert all(map(torch.equal, before, weights(solver)))


def test_a_test_iter_of_zero_tests_nothing_as_in_caffe() -> None:
    history = History()
    tiny_solver("test_iter: 0 test_interval: 5 snapshot_after_train: false", callbacks=[history]).solve()
    assert [(test.iteration, test.outputs) for test in history.test] == [(n, []) for n in (0, 5, 10, 15, 20)]


@pytest.mark.parametrize("start", ["net", "net/deep", ".", "elsewhere"])
def test_a_solver_finds_its_net_data_and_snapshots_from_wherever_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    project(tmp_path, batch=4, solver='max_iter: 2 net: "net/net.prototxt" snapshot_prefix: "out/run"')
    for folder in ("net/deep", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("net.prototxt", "solver.prototxt"):
        (tmp_path / name).rename(tmp_path / "net" / name)
    monkeypatch.chdir(tmp_path / start)
    train(os.path.relpath(tmp_path / "net" / "solver.prototxt"), device="cpu")
    assert sorted(p.name for p in (tmp_path / "out").glob("*")) == [
        *("run.log", "run_iter_2.caffemodel", "run_iter_2.runstate.json", "run_iter_2.solverstate", "run_log.jsonl")
    ]


def test_a_net_that_is_nowhere_is_one_error_that_names_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "solvers").mkdir()
    (tmp_path / "solvers" / "s.prototxt").write_text('net: "nets/x.prototxt" base_lr: 1 lr_policy: "fixed" max_iter: 1')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaffeToolsError, match=r"looked for nets/x.prototxt, solvers/nets/x.prototxt, solvers/x.prototxt; run it from the"):
        train("solvers/s.prototxt", device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["solvers"], "nothing was written"
