"""The callbacks' former interface: it works for one more minor release, with a DeprecationWarning. To be removed in 0.3.

Use :class:`caffetools.solver.callbacks.Callback` and :class:`caffetools.solver.caffe_process.CaffeLogFollower`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from typing_extensions import deprecated

from caffetools.proto.schema import SolverParameter
from caffetools.solver.caffe_process import CaffeLogFollower, CaffeTrainResult, ExternalRun
from caffetools.solver.callbacks import Callback, History
from caffetools.solver.control import Output, RunControl, Snapshot, TestResult, TrainStats

__all__ = ["Displayed", "Followed", "Follower", "Observer", "Output", "Snapshot", "Tested"]

Displayed: TypeAlias = TrainStats
Tested: TypeAlias = TestResult
# Former name of a hook → name of today.
_HOOKS = {
    "started": "on_train_begin",
    "stepping": "on_step_begin",
    "before_iteration": "on_iteration_begin",
    "before_update": "on_before_update",
    "after_update": "on_iteration_end",
    "displayed": "on_log",
    "testing": "on_test_begin",
    "test_batch": "on_test_batch_end",
    "tested": "on_test_end",
    "snapshotted": "on_checkpoint",
    "finished": "on_train_end",
}


class Observer(Callback):
    """A callback whose hooks have their former names: each is called where the hook of today's name is."""

    def __init_subclass__(cls) -> None:
        """Let today's hooks call the former ones that the class defines."""
        super().__init_subclass__()
        for old, new in _HOOKS.items():
            if old in vars(cls) and new not in vars(cls):
                setattr(cls, new, _calling(old))


def _calling(old: str) -> object:
    def hook(self: Observer, run: RunControl, *arguments: object) -> None:
        getattr(self, old)(run, *arguments)

    return hook


@deprecated("Followed is deprecated since 0.2; use caffetools.solver.caffe_process.CaffeTrainResult")
def Followed(log: Path) -> CaffeTrainResult:
    """Return the empty result of a training by real Caffe with the log file ``log``."""
    return CaffeTrainResult(log, History(), 0, False)


@deprecated("Follower is deprecated since 0.2; use caffetools.solver.caffe_process.CaffeLogFollower")
def Follower(param: SolverParameter, run: CaffeTrainResult, observers: Iterable[Callback]) -> CaffeLogFollower:
    """Return the reader of the log of a training by real Caffe with solver ``param``, which calls ``observers``."""
    return CaffeLogFollower(ExternalRun(param), observers)
