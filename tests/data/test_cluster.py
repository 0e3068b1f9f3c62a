"""Work on a local Ray with two workers gives what one process gives."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffetools.cancel import CancelToken
from caffetools.data.cluster import Task, run_tasks
from caffetools.data.cluster_jobs import cluster_mean, cluster_verify, sum_shard
from caffetools.data.databases import LmdbWriter, new_lmdb, open_database, record_key
from caffetools.data.datasets.build import build_dataset
from caffetools.data.datasets.verify import verify_database
from caffetools.data.datasets.writing import write_pictures
from caffetools.data.datum import array_to_datum
from caffetools.data.means import compute_mean
from caffetools.data.sharding import shard_database
from caffetools.data.shards import read_index
from caffetools.errors import Cancelled, DataError, RunFailed
from tests.children import run_child

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


def die_once(task: Task) -> Task:
    """Worker whose process is killed in the middle of its first task."""
    marker = Path(task["marker"])
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": task["number"]}


def test_the_tasks_of_a_killed_worker_are_repeated(ray: Any, tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        tasks: list[Task] = [{"number": number, "marker": str(tmp_path / "died")} for number in range(4)]
        assert run_tasks(LOCAL, die_once, tasks) == [{"number": number} for number in range(4)]
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert (tmp_path / "died").exists()


def test_shards_at_a_url_are_read_by_the_workers(ray: Any, database: Path, tmp_path: Path) -> None:
    shard_database(database, f"file://{tmp_path}/sharded", 2)
    assert np.array_equal(cluster_mean(f"file://{tmp_path}/sharded", LOCAL), compute_mean(database))


def test_addresses_that_are_not_one() -> None:
    pytest.importorskip("ray.data", reason="needs the extra 'cluster'")
    with pytest.raises(DataError, match="'local:x' is not an address of a cluster"):
        run_tasks("local:x", sum_shard, [{}])


# Building


def records(path: Path) -> list[tuple[bytes, bytes]]:
    with closing(open_database(path)) as opened:
        return list(opened.records())


def check_equal(one: Path, other: Path) -> None:
    """The databases have the same records, and everything else is the same file."""
    for part in ("train", "val"):
        assert records(one / f"{part}_lmdb") == records(other / f"{part}_lmdb")
    for name in ("train.txt", "val.txt", "labels.txt", "mean.binaryproto"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture
def damaged(pictures: Path) -> Path:
    """Pictures of four classes, two of which cannot be used."""
    (pictures / "Katze_10/a.png").write_bytes(b"\x89PNG\r\n\x1a\nx")
    (pictures / "big dogs/p 2.png").write_bytes(b"no picture")
    return pictures


def test_a_cluster_builds_the_records_of_one_process(ray: Any, damaged: Path, tmp_path: Path) -> None:
    one = build_dataset(damaged, tmp_path / "one", size=8)
    found = build_dataset(damaged, tmp_path / "two", size=8, shards=3, cluster=LOCAL)
    check_equal(tmp_path / "one", tmp_path / "two")
    assert len(read_index(tmp_path / "two/train_lmdb").shards) == 3
    assert found.skipped == one.skipped
    assert not verify_database(tmp_path / "two/train_lmdb", classes=4).faults
    assert sorted(path.name for path in (tmp_path / "two/val_lmdb").iterdir()) == ["index.json", *(f"shard_0000{n}" for n in range(3))]


def test_shards_without_a_cluster(damaged: Path, tmp_path: Path) -> None:
    steps: dict[str, list[tuple[int, int]]] = {"one": [], "two": []}
    for name, shards in (("one", 0), ("two", 5)):
        mine = steps[name]

        def step(done: int, total: int, mine: list[tuple[int, int]] = mine) -> None:
            mine.append((done, total))

        build_dataset(
            damaged,
            tmp_path / name,
            size="10x8",
            encoded=True,
            resize_mode="crop",
            test=0.1,
            shards=shards,
            progress=step,
        )
    check_equal(tmp_path / "one", tmp_path / "two")
    assert records(tmp_path / "one/test_lmdb") == records(tmp_path / "two/test_lmdb")
    assert steps["one"] == steps["two"]


def test_a_strict_build_names_the_picture(ray: Any, damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: the picture is truncated|p 2\.png: not a picture"):
        build_dataset(damaged, tmp_path / "out", size=8, shards=2, cluster=LOCAL, strict=True)
    assert not (tmp_path / "out").exists()


def test_a_cancelled_build_continues_with_its_shards(pictures: Path, tmp_path: Path) -> None:
    token = CancelToken()

    def cancel_late(done: int, total: int) -> None:
        if done == 9:
            token.cancel()

    with pytest.raises(Cancelled):
        build_dataset(pictures, tmp_path / "out", size=8, shards=4, cancel=token, progress=cancel_late)
    work = next(path for path in tmp_path.iterdir() if path.name.startswith(".out"))
    kept = sorted(work.glob("train_lmdb/shard_*/data.mdb"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert kept
    written = list[Path]()

    def spy(writer: Any, *arguments: Any) -> None:
        written.append(writer)
        write_pictures(writer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("caffetools.data.datasets.cluster_writing.write_pictures", spy)
        build_dataset(pictures, tmp_path / "out", size=8, shards=4, resume=True)
    assert len(written) == 8 - len(kept)
    assert [(tmp_path / "out" / path.relative_to(work)).stat().st_mtime_ns for path in kept] == times
    build_dataset(pictures, tmp_path / "one", size=8)
    check_equal(tmp_path / "one", tmp_path / "out")


def test_ray_logs_nothing_to_the_terminal_but_errors() -> None:
    """Importing Ray Data, which the first use of a cluster does, sets its logger's level."""
    pytest.importorskip("ray.data", reason="needs the extra 'cluster'")
    program = """
import contextlib, logging
from caffetools.data import cluster

cluster._started = lambda ray, address: contextlib.nullcontext()
with cluster.connected("local:1"):
    print([logging.getLogger(name).getEffectiveLevel() for name in ("ray", "ray.data")])
"""
    done = run_child(["-c", program])
    assert done.stdout == f"[{logging.ERROR}, {logging.ERROR}]\n", done.stderr
