"""The number of threads honours control groups, affinity masks and OMP_NUM_THREADS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from caffetools.util.threads import core_limit, cpu_count, limit_openmp


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "250000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
        ({}, 64),
        ({"proc/self/cgroup": "strange\n0::/x\n", "sys/fs/cgroup/x/cpu.max": ""}, 64),
    ],
)
def test_control_groups_limit_the_threads(files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert core_limit(write(tmp_path, files)) == cores


def test_omp_num_threads_counts_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cpu_count() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert cpu_count() == core_limit()
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert cpu_count() == core_limit()


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_affinity_mask_of_a_real_process() -> None:
    first = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", first, sys.executable, "-c", "from caffetools.util.threads import core_limit; print(core_limit())"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "1"


@pytest.mark.skipif(shutil.which("taskset") is None or (os.cpu_count() or 1) < 2, reason="needs taskset and two processors")
@pytest.mark.parametrize(("given", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")])
def test_importing_the_library_limits_the_threads_of_torch(given: dict[str, str], threads: str) -> None:
    code = "import caffetools, os; print(os.environ['OMP_NUM_THREADS'])"
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", code]
    inherited = {name: value for name, value in os.environ.items() if "OMP_NUM_THREADS" not in name}
    assert subprocess.run(command, capture_output=True, text=True, check=True, env={**inherited, **given}).stdout.strip() == threads


def test_openmp_gets_the_limit_unless_the_user_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffetools.util.threads.core_limit", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setenv("CAFFETOOLS_OMP_NUM_THREADS", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    limit_openmp()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_openmp()
    assert os.environ["OMP_NUM_THREADS"] == "4"
    limit_openmp(2)
    assert os.environ["OMP_NUM_THREADS"] == "2"
