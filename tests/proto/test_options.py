"""Read options hold for one thread or task, and reach the threads that caffetools starts."""

from __future__ import annotations

import threading

import pytest

from caffetools.errors import CaffeToolsError, PrototxtError
from caffetools.proto.options import ReadOptions, override_dialect, read_options
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse
from caffetools.util.threads import Prefetcher, ordered_map, parallel_for

PERMUTE = 'layer { name: "p" type: "Permute" bottom: "a" top: "b" permute_param { order: 0 } }'


def test_the_dialect_of_one_thread_does_not_affect_another() -> None:
    inside, done = threading.Event(), threading.Event()
    refused = []

    def reads_as_bvlc() -> None:
        with override_dialect("bvlc"):
            inside.set()
            done.wait(30)
            try:
                parse(PERMUTE, NetParameter)
            except PrototxtError as error:
                refused.append(error)

    thread = threading.Thread(target=reads_as_bvlc)
    thread.start()
    assert inside.wait(30)
    assert parse(PERMUTE, NetParameter).layer[0].name == "p"
    assert read_options() == ReadOptions()
    done.set()
    thread.join(30)
    assert len(refused) == 1


def test_an_error_restores_the_dialect() -> None:
    with pytest.raises(ZeroDivisionError), override_dialect("ssd"):
        raise ZeroDivisionError
    assert read_options().dialect is None


def test_an_unknown_dialect_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CaffeToolsError, match="the dialect 'sdd' is unknown; known are bvlc, ssd, "):
        ReadOptions("ssd+sdd")


def test_the_threads_of_caffetools_read_as_their_caller_does() -> None:
    with override_dialect("ssd"):
        mapped = list(ordered_map(lambda _: read_options().dialect, range(8), threads=3))
        ranges: list[str | None] = []
        parallel_for(lambda _: ranges.append(read_options().dialect), 4, threads=4)
        ahead = Prefetcher(lambda: read_options().dialect, 1)
    assert mapped == ["ssd"] * 8 and ranges == ["ssd"] * 4
    assert ahead.next() == "ssd"
    ahead.stop()
