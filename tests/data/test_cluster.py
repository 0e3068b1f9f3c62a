"""Work on a local Ray with two workers gives what one process gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffetools.cancel import CancelToken
from caffetools.data.cluster import run_tasks
from caffetools.data.cluster_jobs import cluster_mean, cluster_verify, sum_shard
from caffetools.data.databases import LmdbWriter, new_lmdb, record_key
from caffetools.data.datasets.verify import verify_database
from caffetools.data.datum import array_to_datum
from caffetools.data.means import compute_mean
from caffetools.data.sharding import shard_database
from caffetools.errors import Cancelled, DataError, RunFailed

LOCAL = "local:2"


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray with two workers, started once for the module."""
    ray = pytest.importorskip("ray", reason="needs the extra 'cluster'")
    pytest.importorskip("ray.data", reason="needs the extra 'cluster'")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40, object_store_memory=1 << 27)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    rng = np.random.default_rng(0)
    with new_lmdb(folder / "db") as writer:
        for number in range(20):
            array = rng.integers(0, 256, (3, 6, 5), np.uint8)
            writer.put(record_key(number, "x"), array_to_datum(array, number % 3).SerializeToString())
    return folder / "db"


def test_the_mean_is_that_of_one_process(ray: Any, database: Path, tmp_path: Path) -> None:
    shard_database(database, tmp_path / "sharded", 4)
    done: list[Any] = []
    assert np.array_equal(cluster_mean(tmp_path / "sharded", LOCAL, events=done.append), compute_mean(database))
    assert [event.done for event in done if event.kind == "progress"] == [1, 2, 3, 4]


def test_the_faults_are_those_of_one_process(ray: Any, tmp_path: Path) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        for number, (shape, label) in enumerate([((3, 4, 4), 0), ((3, 4, 4), 3), ((3, 4, 5), 1), ((3, 4, 4), -1)] * 2):
            array = np.full(shape, np.nan if number == 6 else 1, np.float32)
            writer.put(b"%d" % (number + 6), array_to_datum(array, label).SerializeToString())
    shard_database(tmp_path / "db", tmp_path / "sharded", 3)
    # An incomplete record, in a shard whose checksum then differs.
    writer_of_shard = LmdbWriter(tmp_path / "sharded/shard_00001")
    writer_of_shard.put(b"6", b"\x22\xff")
    writer_of_shard.close()
    wanted = verify_database(tmp_path / "db")
    found = cluster_verify(tmp_path / "db", LOCAL)
    assert found == wanted
    assert {fault.kind for fault in found.faults} == {"size", "values", "label", "gap", "order"}
    sharded = cluster_verify(tmp_path / "sharded", LOCAL)
    assert sharded.faults
    assert any("checksum" in fault.message for fault in sharded.faults)


def test_an_error_of_a_task_keeps_its_fields(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run_tasks(LOCAL, sum_shard, [{"path": str(tmp_path / "none"), "skip": 0}])
    assert caught.value.path == str(tmp_path / "none")
    with pytest.raises(RunFailed, match=r"a task of the cluster failed: KeyError: 'skip'"):
        run_tasks(LOCAL, sum_shard, [{}])


def test_a_cancelled_run_stops(ray: Any, database: Path) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        cluster_mean(database, LOCAL, cancel=token)


def test_addresses_that_are_not_one() -> None:
    pytest.importorskip("ray.data", reason="needs the extra 'cluster'")
    with pytest.raises(DataError, match="'local:x' is not an address of a cluster"):
        run_tasks("local:x", sum_shard, [{}])
