"""Training on the CPU keeps the memory that it frees, or gives it back where little is to be used."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

from caffetools.net.malloc_tuning import disable_malloc_trim


def test_is_left_alone_on_other_devices() -> None:
    assert disable_malloc_trim("cuda:0") is False


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_large_block_taken_again_costs_no_new_pages() -> None:
    code = """
import resource, torch
from caffetools.net.malloc_tuning import disable_malloc_trim
assert disable_malloc_trim()
for _ in range(20):
    torch.ones(1 << 24)  # until the C library's small caches are full, a few fresh blocks are taken
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert faults < (1 << 26) / resource.getpagesize() / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_large_blocks_are_given_back_though_smaller_ones_lie_behind_them() -> None:
    code = """
import torch
from pathlib import Path
from caffetools.net.malloc_tuning import return_large_blocks
assert return_large_blocks()
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
torch.ones(1 << 22)  # the C library's threshold would rise to this block's size
before = resident()
blocks = [torch.ones(1 << 21) for _ in range(40)]
blocks = blocks[1::2]
print((resident() - before) / (20 * (1 << 23)))
"""
    assert 0.9 < float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) < 1.2
