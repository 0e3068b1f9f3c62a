"""Blocks of a page pool: whole, separate, and made of the pages of freed ones."""

from __future__ import annotations

import gc
import random
import sys
import threading

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caffetools.layers import buffers
from caffetools.util.page_pool import UNIT, Block, PagePool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are moved on Linux alone")


def taken(pool: PagePool, size: int) -> NDArray[np.uint8]:
    block = pool.take(size)
    assert isinstance(block, Block)
    return np.asarray(block)


def test_blocks_hold_what_was_written_while_others_come_and_go() -> None:
    pool, draws = PagePool(), random.Random(5)
    alive: list[tuple[int, NDArray[np.uint8]]] = []
    most = now = 0
    for mark in range(300):
        if alive and draws.random() < 0.5:
            size = alive.pop(draws.randrange(len(alive)))[1].size
            now -= -(-size // UNIT) * UNIT
        alive.append((mark % 251, taken(pool, draws.randrange(1, 9 * UNIT))))
        newest = alive[-1][1]
        newest[::4096] = newest[-1] = mark % 251
        now += -(-newest.size // UNIT) * UNIT
        del newest
        most = max(most, now)
        assert pool.kept + now == most  # not a page more than were needed at once
        assert all((held[::4096] == value).all() and held[-1] == value for value, held in alive[-4:])
    assert all((held[::4096] == value).all() and held[-1] == value for value, held in alive[-4:])
    assert all((held[::4096] == value).all() for value, held in alive)


def test_the_pool_goes_on_after_the_system_refused_to_move_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PagePool()
    assert taken(pool, UNIT).size == UNIT  # and it is free again
    with monkeypatch.context() as patch:
        patch.setattr(pool._system, "move", lambda source, size, target: False)
        held = taken(pool, 2 * UNIT)
    held[:] = 7
    other = taken(pool, 2 * UNIT)
    other[:] = 9
    assert (held == 7).all() and pool.kept == 0


def test_a_block_may_be_freed_in_another_thread_and_after_its_views() -> None:
    pool = PagePool()
    tensor = torch.from_numpy(taken(pool, 3 * UNIT)).view(torch.float32)[5:].reshape(-1, 1)
    tensor.fill_(2.0)
    gc.collect()
    assert pool.kept == 0
    assert tensor.sum().item() == 2.0 * tensor.numel()
    held = [tensor]
    del tensor
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert pool.kept == 3 * UNIT
    pool.release()
    assert pool.kept == 0


def test_several_threads_take_blocks_that_do_not_overlap() -> None:
    pool = PagePool()
    wrong: list[int] = []

    def work(mark: int) -> None:
        draws = random.Random(mark)
        for _ in range(100):
            array = taken(pool, draws.randrange(1, 3 * UNIT))
            array[:] = mark
            if not (array == mark).all():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_size_that_the_system_does_not_have_is_none() -> None:
    assert PagePool().take(1 << 60) is None


@pytest.mark.parametrize("shape", [(2, 64, 128, 128), (1, 4, 1, 1 << 18), (1, 1, 1024, 1024), (64, 1, 256, 64)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_tensors_of_the_pool_are_laid_out_as_torchs(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], channels_last: bool) -> None:
    monkeypatch.setattr(buffers, "_state", {})
    assert buffers.recycle_pages()
    made = buffers.empty(*shape, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    expected = torch.empty(shape, memory_format=layout)
    assert made.shape == expected.shape and made.stride() == expected.stride() and made.dtype == expected.dtype
    assert not made._is_view() and made.is_contiguous(memory_format=layout)
    assert buffers.empty_like(made).stride() == torch.empty_like(expected).stride()
    made.fill_(1)
    address = made.data_ptr()
    del made
    assert buffers.empty(*shape).data_ptr() == address
