"""Work on several machines through Ray Data (extra ``cluster``): independent tasks, with plain values in and out.

A task is a JSON object, and so is its result: nothing else passes between machines. Ray repeats the tasks of a machine that fails, so
a task must give the same files however often it runs. caffetools must be installed on every machine, and the paths of a task must lead
to the same files everywhere: a shared folder, or URLs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import caffetools.errors as errors
from caffetools.cancel import CancelToken
from caffetools.errors import CaffeToolsError, DataError, RunFailed
from caffetools.util.process_settings import environment_restored, logger_level

Task = dict[str, Any]
Worker = Callable[[Task], Task]
LOCAL = "local"
# Tasks carry paths, not pictures, so that little of Ray's store of objects is needed.
_STORE_BYTES = 1 << 28
_ERROR_FIELDS = ("path", "line", "column", "layer", "blob", "record", "hint")


def run_tasks(
    address: str,
    worker: Worker,
    tasks: Sequence[Task],
    *,
    progress: Callable[[int, int], None] | None = None,
    on_result: Callable[[int, Task], None] | None = None,
    cancel: CancelToken | None = None,
) -> list[Task]:
    """Run ``worker`` on each of ``tasks`` on a cluster and return the results in their order.

    Args:
        address: Empty: the tasks run one after the other in this process. ``local`` starts Ray on this machine for the time of the call,
            ``local:N`` with N workers. Else the address of a cluster as ``ray.init`` takes it: ``auto``, ``HOST:PORT``,
            ``ray://HOST:PORT``.
        worker: A function of a module that the workers can import; called with a task, which is JSON, and returns JSON.
        tasks: The tasks.
        progress: Called with (tasks done, tasks in all).
        on_result: Called with the number of a task and its result, as soon as it is done.
        cancel: Checked after each task.

    Raises:
        DataError: Ray is not installed, or the cluster cannot be reached.
        CaffeToolsError: ``worker`` raised it; the first one that is known is raised here.
        RunFailed: A task failed in another way.
        Cancelled: ``cancel`` was set.
    """
    _workers(address)
    if not tasks:
        return []
    results: dict[int, Task] = {}

    def finish(number: int, result: Task) -> None:
        results[number] = result
        if on_result is not None:
            on_result(number, result)
        if progress is not None:
            progress(len(results), len(tasks))
        if cancel is not None:
            cancel.raise_if_cancelled("the work")

    if not address:
        for number, task in enumerate(tasks):
            finish(number, json.loads(json.dumps(worker(json.loads(json.dumps(task))))))
        return list(results.values())
    with connected(address) as ray:
        items = [{"number": number, "task": json.dumps(task)} for number, task in enumerate(tasks)]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(_Row(worker))
        try:
            for row in dataset.iter_rows():
                outcome = json.loads(row["result"])
                if "error" in outcome:
                    raise _error(outcome["error"])
                finish(int(row["number"]), outcome["result"])
        except CaffeToolsError:
            raise
        except Exception as error:  # of Ray's many kinds
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise RunFailed(f"a task of the cluster failed: {text[-1][:300]}") from error
    return [results[number] for number in range(len(tasks))]


class _Row:
    """Calls a worker with the task of a row, and keeps its error as fields."""

    def __init__(self, worker: Worker):
        self.worker = worker

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            outcome = {"result": self.worker(json.loads(row["task"]))}
        except CaffeToolsError as error:
            outcome = {"error": error_to_json(error)}
        except Exception as error:  # shown without Ray's frames around it
            outcome = {"error": {"kind": "RunFailed", "message": f"a task of the cluster failed: {type(error).__name__}: {error}"}}
        return {"number": row["number"], "result": json.dumps(outcome)}


def error_to_json(error: CaffeToolsError) -> Task:
    """Return an error as JSON, for :func:`error_from_json`."""
    fields = {name: getattr(error, name) for name in _ERROR_FIELDS if getattr(error, name)}
    return {"kind": type(error).__name__, "message": error.message, **fields}


def error_from_json(values: Task) -> DataError:
    """Return the error of a record or picture that :func:`error_to_json` gave."""
    return DataError(values["message"], **{name: values[name] for name in _ERROR_FIELDS if name in values})


def _error(values: Task) -> CaffeToolsError:
    kind = getattr(errors, values["kind"], CaffeToolsError)
    if not (isinstance(kind, type) and issubclass(kind, CaffeToolsError)) or kind is errors.WriteFailed:
        kind = RunFailed
    made: CaffeToolsError = kind(values["message"], **{name: values[name] for name in _ERROR_FIELDS if name in values})
    return made


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one, for the time of the block; a connection that the program has already is used and kept.

    Args:
        address: See :func:`run_tasks`; nothing is done if it is empty.

    Yields:
        The module ``ray``; None for an empty address.

    Raises:
        DataError: Ray is not installed, or the cluster cannot be reached.
    """
    if not address:
        yield None
        return
    with environment_restored():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
            import ray.data
        except ImportError:
            raise DataError("working on a cluster needs Ray: pip install 'caffetools[cluster]'") from None
        context = ray.data.DataContext.get_current()
        bars, context.enable_progress_bars = context.enable_progress_bars, False
        try:
            # Importing ray.data sets the level of its logger, so this comes after it.
            with logger_level("ray", logging.ERROR), logger_level("ray.data", logging.ERROR), _started(ray, address):
                yield ray
        finally:
            context.enable_progress_bars = bars


@contextlib.contextmanager
def _started(ray: Any, address: str) -> Iterator[None]:
    """Connect to the cluster for the block, where this process is not connected already."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"include_dashboard": False} if is_local(address) else {}
    if is_local(address):
        quiet |= {"address": "local", "object_store_memory": _STORE_BYTES, **({"num_cpus": n} if (n := _workers(address)) else {})}
    else:
        quiet["address"] = address
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise DataError(f"the cluster '{address}' cannot be reached: {' '.join(str(error).split())[:300]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def is_local(address: str) -> bool:
    """Return whether an address asks for Ray on this machine."""
    return address == LOCAL or address.startswith(f"{LOCAL}:")


def _workers(address: str) -> int:
    """Return N of ``local:N``; 0 for other addresses. Raises :class:`DataError` if it is not a number."""
    text = address.partition(":")[2] if is_local(address) else ""
    if text and not text.isdigit():
        raise DataError(f"'{address}' is not an address of a cluster; write local, local:2, auto or HOST:PORT")
    return int(text or 0)
