"""Properties: a run resumed at any iteration, of any solver type, ends on the bits of one that was not interrupted."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffetools.cancel import CancelToken
from caffetools.events import Event, Progress
from caffetools.solver.run import train
from tests.solver.together import RANDOM, project

DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.3 } }'
SOLVERS = ('type: "SGD"', 'type: "Adam" momentum2: 0.99', 'type: "AdaDelta" delta: 0.001', 'type: "Nesterov" lr_policy: "poly" power: 2')


def run(folder: Path, stop_at: int | None = None) -> bytes:
    """Train in ``folder``, resuming what is there, up to an iteration or the end; return the last weights."""
    token = CancelToken()

    def sink(event: Event) -> None:
        if isinstance(event, Progress) and event.done == stop_at:
            token.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = train("solver.prototxt", device="cpu", resume=True, events=sink, cancel=token)
        assert done.snapshot is not None
        return done.snapshot.weights.read_bytes() + done.snapshot.state.read_bytes()


@cache
def whole(solver: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return run(project(Path(folder) / "run", batch=4, transform=RANDOM, extra=DROPOUT, solver=solver))


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(solver=st.sampled_from(SOLVERS), stops=st.lists(st.integers(1, 9), max_size=2, unique=True))
def test_a_run_stopped_and_resumed_at_any_iterations_ends_on_the_same_bits(solver: str, stops: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = project(Path(folder) / "run", batch=4, transform=RANDOM, extra=DROPOUT, solver=solver)
        for stop in sorted(stops):
            run(place, stop)
        assert run(place) == whole(solver)
