"""Typed events of a training, and cancelling at each kind of them: what is left behind is whole and resumes to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffetools.cancel import CancelToken
from caffetools.errors import Cancelled, ModelFileError, RunFailed
from caffetools.events import CheckpointWritten, Event, Finished, Metrics, Progress, Started, Tested, from_dict
from caffetools.net.net import Net
from caffetools.proto.schema import TEST
from caffetools.solver.run import train
from caffetools.solver.testing import test_net
from caffetools.solver.timing import time_net
from tests.solver.together import RANDOM, project

DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.3 } }'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted: random crops and flips, dropout, tests, snapshots."""
    folder = project(tmp_path_factory.mktemp("whole"), batch=4, transform=RANDOM, extra=DROPOUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train("solver.prototxt", device="cpu")
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project(tmp_path, batch=4, transform=RANDOM, extra=DROPOUT))
    return tmp_path


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events if not isinstance(event, Progress)]


def test_the_events_of_a_run_in_order(work: Path) -> None:
    seen: list[Event] = []
    train("solver.prototxt", device="cpu", events=seen.append)
    middle = ["tested", "metrics", "checkpoint", "tested", "metrics", "checkpoint"]
    assert kinds(seen) == ["started", *middle, "metrics", "tested", "finished"]
    assert [event.done for event in seen if isinstance(event, Progress)] == list(range(11))
    assert isinstance(seen[0], Started)
    facts = {"net": "shared", "solver": "SGD", "iteration": 0, "max_iter": 10, "resumed_from": ""}
    assert {key: value for key, value in seen[0].details.items() if key != "run"} == facts and seen[0].details["run"]
    (first, second) = (event for event in seen if isinstance(event, CheckpointWritten))
    assert (first.iteration, first.weights, second.state) == (5, "run_iter_5.caffemodel", "run_iter_10.solverstate")
    assert isinstance(seen[-1], Finished) and seen[-1].status == "done" and seen[-1].seconds > 0
    assert all(event.task == "train" and from_dict(event.to_dict()) == event for event in seen)


@pytest.mark.parametrize(
    ("kind", "number"), [(Started, 1), (Progress, 4), (Metrics, 1), (Metrics, 2), (Tested, 1), (Tested, 2), (CheckpointWritten, 1)]
)
def test_cancelling_at_any_event_leaves_a_run_that_resumes_to_the_same_bits(
    work: Path, whole: Path, kind: type[Event], number: int
) -> None:
    token, seen = CancelToken(), []

    def sink(event: Event) -> None:
        seen.append(event)
        if sum(isinstance(e, kind) for e in seen) == number:
            token.cancel()

    stopped = train("solver.prototxt", device="cpu", events=sink, cancel=token)
    assert stopped.stopped and stopped.solver.iteration < 10
    assert isinstance(seen[-1], Finished) and seen[-1].status == "cancelled"
    done = train("solver.prototxt", device="cpu", resume=True)
    assert not done.stopped
    for name in ("run_iter_10.caffemodel", "run_iter_10.solverstate"):
        assert (work / name).read_bytes() == (whole / name).read_bytes(), name


def test_cancelling_at_the_end_changes_nothing(work: Path, whole: Path) -> None:
    token = CancelToken()

    def sink(event: Event) -> None:
        if isinstance(event, Finished):
            token.cancel()

    assert not train("solver.prototxt", device="cpu", events=sink, cancel=token).stopped
    assert (work / "run_iter_10.caffemodel").read_bytes() == (whole / "run_iter_10.caffemodel").read_bytes()


def test_a_run_cancelled_before_its_first_iteration_computes_nothing(work: Path) -> None:
    token = CancelToken()
    token.cancel()
    done = train("solver.prototxt", device="cpu", cancel=token)
    assert done.stopped and done.solver.iteration == 0 and not done.history.test


def test_a_failed_run_ends_with_the_error(work: Path) -> None:
    text = Path("solver.prototxt").read_text().replace("base_lr: 0.05", "base_lr: 1e30")
    Path("solver.prototxt").write_text(text)
    seen: list[Event] = []
    with pytest.raises(RunFailed) as error:
        train("solver.prototxt", device="cpu", events=seen.append)
    assert isinstance(seen[-1], Finished) and seen[-1].status == "failed" and seen[-1].message == str(error.value)


def test_a_token_calls_back_once_and_at_once_if_it_is_cancelled_already() -> None:
    token, calls = CancelToken(), []
    with token.calling(lambda: calls.append("first")):
        token.cancel()
        token.cancel()
    with token.calling(lambda: calls.append("second")):
        pass
    assert calls == ["first", "second"] and token.wait(60) and token.wait(60)


def test_a_test_and_a_measurement_emit_events_and_can_be_cancelled(work: Path) -> None:
    net = Net.from_file("net.prototxt", TEST)
    for task, function in (("test", test_net), ("time", time_net)):
        seen: list[Event] = []
        function(net, 3, events=seen.append)
        assert [event.done for event in seen if isinstance(event, Progress)] == [1, 2, 3]
        assert kinds(seen) == (["started", "tested", "finished"] if task == "test" else ["started", "finished"])
        assert all(event.task == task for event in seen) and isinstance(seen[-1], Finished) and seen[-1].status == "done"
        token = CancelToken()
        seen.clear()

        def sink(event: Event, seen: list[Event] = seen, token: CancelToken = token) -> None:
            seen.append(event)
            if isinstance(event, Progress) and event.done == 2:
                token.cancel()

        with pytest.raises(Cancelled):
            function(net, 5, events=sink, cancel=token)
        assert isinstance(seen[-1], Finished) and seen[-1].status == "cancelled"


def test_a_missing_snapshot_is_an_error_that_names_those_there_are(work: Path) -> None:
    train("solver.prototxt", device="cpu")
    with pytest.raises(ModelFileError, match=r"run_iter_99\.solverstate: .*there are iterations 5, 10; --resume auto takes the newest"):
        train("solver.prototxt", device="cpu", snapshot="run_iter_99.solverstate")
