"""The data and the solver of a fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffetools.data.databases import new_lmdb
from caffetools.data.datum import array_to_datum
from caffetools.errors import CaffeToolsError, DataError, NetError, RunFailed
from caffetools.project.data_config import set_data_sources
from caffetools.project.retargeting import DataOptions, check_free, prepare_retarget, write_retarget
from caffetools.project.solver_config import solver_for
from caffetools.proto.binary import write_binaryproto
from caffetools.proto.text import read_net, read_solver, write_prototxt
from caffetools.zoo.networks import build
from tests.surgery.nets import TINY, net_of


def test_each_phase_gets_its_source_its_batch_and_the_mean() -> None:
    net = net_of(TINY)
    changes = set_data_sources(net, train_source="a", val_source="b", mean_values=[1, 2.5], train_batch=8)
    train, val = net.layer[:2]
    assert (train.data_param.source, train.data_param.batch_size, train.data_param.backend) == ("a", 8, train.data_param.LMDB)
    assert (val.data_param.source, val.data_param.batch_size) == ("b", 2)
    assert (list(val.transform_param.mean_value), val.transform_param.mean_file) == ([1, 2.5], "")
    assert [str(change) for change in changes] == [
        "data: source nowhere/train_lmdb → a",
        "data: batch_size 4 → 8",
        "data: mean 104, 117, 123 → 1, 2.5",
        "data: source nowhere/val_lmdb → b",
        "data: mean nowhere/mean.binaryproto → 1, 2.5",
    ]
    assert list(net.layer)[2:] == list(net_of(TINY).layer)[2:]


def test_a_mean_file_replaces_values_and_nothing_given_changes_nothing() -> None:
    net = net_of(TINY)
    assert set_data_sources(net) == [] and net == net_of(TINY)
    set_data_sources(net, mean_file="m.binaryproto")
    assert [layer.transform_param.mean_file for layer in net.layer[:2]] == ["m.binaryproto"] * 2
    assert not net.layer[0].transform_param.mean_value


def test_a_leveldb_is_seen_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").touch()
    net = net_of(TINY)
    set_data_sources(net, train_source=str(tmp_path))
    assert net.layer[0].data_param.backend == net.layer[0].data_param.LEVELDB


def test_a_net_without_data_layers_has_no_source_to_set() -> None:
    with pytest.raises(NetError, match="the net 'x' has no data layer of the TRAIN phase"):
        set_data_sources(net_of('name: "x" layer { name: "in" type: "Input" top: "x" }'), train_source="a")


def test_a_solver_follows_the_number_of_pictures() -> None:
    solver = solver_for("n.prototxt", train_count=1000, val_count=101, train_batch=32, val_batch=10, epochs=9, snapshot_prefix="s")
    assert (solver.max_iter, solver.stepsize, solver.test_interval, list(solver.test_iter)) == (288, 192, 32, [11])
    assert (solver.net, solver.snapshot_prefix, solver.snapshot, solver.display) == ("n.prototxt", "s", 64, 20)
    assert (solver.lr_policy, round(solver.base_lr, 7), round(solver.gamma, 7)) == ("step", 0.001, 0.1)


def test_a_solver_learns_a_tenth_as_fast_as_the_one_before() -> None:
    solver = solver_for("n.prototxt", like=build("squeezenet_v1.1", "solver"), seed=1)
    assert (round(solver.base_lr, 7), round(solver.weight_decay, 7), round(solver.momentum, 7)) == (0.004, 0.0002, 0.9)
    assert (solver.max_iter, solver.random_seed) == (10000, 1)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_prototxt(tmp_path / "tiny.prototxt", net_of(TINY))
    return tmp_path / "tiny.prototxt"


def test_a_project_counts_the_pictures_and_its_files_name_each_other(tmp_path: Path, tiny: Path) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        for index in range(10):
            writer.put(b"%d" % index, array_to_datum(np.zeros((3, 9, 9), np.uint8), 1).SerializeToString())
    write_binaryproto(tmp_path / "mean.binaryproto", np.zeros((1, 3, 9, 9), np.float32))
    database = str(tmp_path / "db")
    data = DataOptions(database, database, mean=str(tmp_path / "mean.binaryproto"))
    project = prepare_retarget(tiny, 3, tmp_path / "run", data=data, epochs=2)
    files = write_retarget(project, tmp_path / "run")
    assert [path.name for path in files] == ["train_val.prototxt", "solver.prototxt", "deploy.prototxt"]
    assert read_net(files[0]) == project.retargeted.train_val
    solver = read_solver(files[1])
    assert (solver.net, solver.max_iter, list(solver.test_iter)) == (str(files[0]), 6, [5])
    assert list(read_net(files[2]).layer[0].input_param.shape[0].dim) == [1, 3, 8, 8]
    with pytest.raises(CaffeToolsError, match=r"train_val.prototxt: already exists; give another folder"):
        check_free(tmp_path / "run")
    check_free(tmp_path / "run", force=True)


def test_errors_name_the_file_and_nothing_is_written(tmp_path: Path, tiny: Path) -> None:
    write_prototxt(tmp_path / "deploy.prototxt", build("lenet", "deploy"))
    with pytest.raises(NetError, match=r"deploy.prototxt: the net 'LeNet' has no loss.*give its train_val"):
        prepare_retarget(tmp_path / "deploy.prototxt", 3, tmp_path / "run")
    with pytest.raises(DataError, match="none.binaryproto: no such mean file"):
        prepare_retarget(tiny, 3, tmp_path / "run", data=DataOptions(mean="none.binaryproto"))
    project = prepare_retarget(tiny, 3, tmp_path / "run")
    (tmp_path / "run").touch()
    with pytest.raises(RunFailed, match="cannot write"):
        write_retarget(project, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deploy.prototxt", "run", "tiny.prototxt"]
