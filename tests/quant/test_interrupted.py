"""Calibrations that are cancelled, interrupted or killed, and disks that are full: nothing half-made remains, and what was counted is resumed."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

import caffetools as ct
from caffetools.cancel import CancelToken
from caffetools.data.databases import new_lmdb, record_key
from caffetools.data.datum import image_to_record
from caffetools.errors import Cancelled, DataError, WriteFailed
from caffetools.events import Event, Finished, Progress, Warned
from caffetools.quant.calibration import state_path
from caffetools.quant.quantize import Quantization
from caffetools.util.files import unfinished
from tests.children import Child, stopped_when
from tests.cli.inprocess import run_well
from tests.quant.conftest import Digits


def test_a_cancelled_calibration_is_resumed_to_the_same_files(digits: Digits, tmp_path: Path, int8: Quantization) -> None:
    token, events = CancelToken(), list[Event]()

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.done >= 96:
            token.cancel()

    out = tmp_path / "m.onnx"
    with pytest.raises(Cancelled):
        ct.quantize(digits.deploy, digits.weights, out, digits.pictures, method="entropy", events=stop, cancel=token)
    assert isinstance(events[-1], Finished) and events[-1].status == "cancelled"
    assert not out.exists() and state_path(out).exists()
    with pytest.raises(DataError, match="other images"):
        ct.quantize(digits.deploy, digits.weights, out, digits.pictures, method="entropy", images=150, resume=True)
    later: list[Event] = []
    resumed = ct.quantize(digits.deploy, digits.weights, out, digits.pictures, method="entropy", resume=True, events=later.append)
    assert next(event for event in later if isinstance(event, Progress)).done == 104
    whole = ct.quantize(digits.deploy, digits.weights, tmp_path / "whole.onnx", digits.pictures, method="entropy")
    for name, path in whole.tables.items():
        assert resumed.tables[name].read_bytes() == path.read_bytes()
    assert out.read_bytes() == whole.path.read_bytes()
    assert not state_path(out).exists()


def test_a_calibration_that_is_killed_is_resumed_to_the_same_files(digits: Digits, tmp_path: Path) -> None:
    def command(out: str) -> list[object]:
        return ["quantize", digits.deploy, digits.weights, "-c", digits.pictures, "-o", tmp_path / out, "--batch", "1"]

    state = state_path(tmp_path / "m.onnx")
    stopped_when(Child(["-m", "caffetools", *command("m.onnx")], env={**os.environ, "OMP_NUM_THREADS": "1"}), state.exists)
    with np.load(state) as saved:
        counted = json.loads(saved["head"].tobytes())["images"]
    # It may have been killed while it was writing the next state.
    assert counted > 0 and {*tmp_path.iterdir()} == {state, *unfinished(state)}
    (tmp_path / f".{state.name}.01234567.part").write_bytes(b"PK")
    assert len(unfinished(state)) in (1, 2)
    assert f"resumed after {counted} of 200 images" in run_well(*command("m.onnx"), "--resume").stderr
    assert "resumed" not in run_well(*command("whole.onnx"), "--resume").stderr
    for whole in list(tmp_path.glob("whole.*")):
        assert (tmp_path / whole.name.replace("whole", "m")).read_bytes() == whole.read_bytes()
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("kind", ["pictures", "database"])
def test_counts_of_other_pictures_at_the_same_places_are_not_resumed(digits: Digits, tmp_path: Path, kind: str) -> None:
    token = CancelToken()

    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            token.cancel()

    given = tmp_path / "given"
    shutil.copytree(digits.pictures if kind == "pictures" else digits.database, given)
    with pytest.raises(Cancelled):
        ct.quantize(digits.deploy, digits.weights, tmp_path / "m.onnx", given, events=stop, cancel=token)
    if kind == "pictures":
        # As long as before.
        os.utime(sorted(given.iterdir())[7], (1, 1))
    else:
        shutil.rmtree(given)
        with new_lmdb(given) as writer:
            for index, image in enumerate(digits.images):
                writer.put(record_key(index, str(index)), image_to_record(255 - image, 0))
    with pytest.raises(DataError, match="other images"):
        ct.quantize(digits.deploy, digits.weights, tmp_path / "m.onnx", given, resume=True)


def test_a_disk_that_is_full_after_the_tables_leaves_none_of_the_files(digits: Digits, tmp_path: Path, int8: Quantization) -> None:
    tables = max(path.stat().st_size for path in int8.tables.values())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that writing past the limit fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tables + int8.path.stat().st_size) // 2, limits[1]))
    try:
        with pytest.raises(WriteFailed, match=r"m\.onnx"):
            ct.quantize(digits.deploy, digits.weights, tmp_path / "m.onnx", digits.pictures, images=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path.name for path in tmp_path.iterdir() if path != state_path(tmp_path / "m.onnx")]


def test_a_run_that_is_cancelled_after_its_calibration_does_not_count_again(digits: Digits, tmp_path: Path) -> None:
    token, events, later = CancelToken(), list[Event](), list[Event]()

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.task == "compare":
            token.cancel()

    out = tmp_path / "m.onnx"
    with pytest.raises(Cancelled):
        ct.quantize(digits.deploy, digits.weights, out, digits.pictures, images=40, events=stop, cancel=token)
    assert [event.done for event in events if isinstance(event, Progress) and event.task == "calibrate"][-1] == 40
    # Other methods and tables are made of what was counted.
    ct.quantize(digits.deploy, digits.weights, out, digits.pictures, images=40, method="entropy", resume=True, events=later.append)
    assert not [event for event in later if isinstance(event, Progress) and event.task == "calibrate"]
    assert not state_path(out).exists()


def test_ctrl_c_keeps_what_was_counted_and_names_the_way_on(digits: Digits, tmp_path: Path) -> None:
    events = list[Event]()

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.done >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ct.quantize(digits.deploy, digits.weights, tmp_path / "m.onnx", digits.pictures, images=40, events=stop)
    assert "--resume continues" in next(event for event in events if isinstance(event, Warned)).message
    assert [path.name for path in tmp_path.iterdir()] == [state_path(tmp_path / "m.onnx").name]
