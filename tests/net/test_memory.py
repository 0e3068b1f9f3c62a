"""Training on the CPU keeps the memory that it frees, or gives it back where little is to be used."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest

from caffetools.net.malloc_tuning import disable_malloc_trim


def printed_by(code: str) -> str:
    """What a process of its own prints; NumPy's arrays come from the C library as torch's do, and need no import of torch."""
    variables = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=variables).stdout


def test_is_left_alone_on_other_devices() -> None:
    assert disable_malloc_trim("cuda:0") is False


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_large_block_taken_again_costs_no_new_pages() -> None:
    code = """
import resource, numpy
from caffetools.net.malloc_tuning import disable_malloc_trim
assert disable_malloc_trim()
for _ in range(20):
    numpy.ones(1 << 24, "f")  # until the C library's small caches are full, a few fresh blocks are taken
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    numpy.ones(1 << 24, "f")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(printed_by(code))
    assert faults < (1 << 26) / resource.getpagesize() / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_large_blocks_are_given_back_though_smaller_ones_lie_behind_them() -> None:
    code = """
import numpy
from pathlib import Path
from caffetools.net.malloc_tuning import return_large_blocks
assert return_large_blocks()
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
numpy.ones(1 << 22, "f")  # the C library's threshold would rise to this block's size
before = resident()
blocks = [numpy.ones(1 << 21, "f") for _ in range(40)]
blocks = blocks[1::2]
print((resident() - before) / (20 * (1 << 23)))
"""
    assert 0.9 < float(printed_by(code)) < 1.2
