"""debug_info's lines and snapshot_diff's diffs."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from caffetools.proto.blobs import blob_to_array
from caffetools.proto.schema import NetParameter
from caffetools.solver.solver import Solver
from tests.solver.tiny import NET, tiny_solver, weights


def logged(fields: str = "", *, net: str = NET, updates: int = 1) -> tuple[Solver, list[str]]:
    """A solver after some updates, and what it logged (severity and text) since it was built."""
    lines: list[str] = []
    solver = tiny_solver(
        f"debug_info: true {fields if 'display' in fields else 'display: 5 ' + fields}",
        net=net,
        log=lambda place, text, severity="I": lines.append(f"{severity} {text}"),
    )
    lines.clear()
    solver.step(updates)
    return solver, lines


def test_every_blob_and_parameter_is_logged_in_caffes_words_and_order() -> None:
    _, lines = logged()
    shown = [re.sub(r"(?<=[ (])\d\S*?(?=[,);]|$)", "N", line[6:]) for line in lines if line[2:7] == "    ["]
    assert shown == [
        "[Forward] Layer data, top blob data data: N",
        "[Forward] Layer data, top blob label data: N",
        "[Forward] Layer ip1, top blob ip1 data: N",
        "[Forward] Layer ip1, param blob 0 data: N",
        "[Forward] Layer ip1, param blob 1 data: N",
        "[Forward] Layer relu1, top blob ip1 data: N",
        "[Forward] Layer ip2, top blob ip2 data: N",
        "[Forward] Layer ip2, param blob 0 data: N",
        "[Forward] Layer ip2, param blob 1 data: N",
        "[Forward] Layer loss, top blob loss data: N",
        "[Backward] Layer loss, bottom blob ip2 diff: N",
        "[Backward] Layer ip2, bottom blob ip1 diff: N",
        "[Backward] Layer ip2, param blob 0 diff: N",
        "[Backward] Layer ip2, param blob 1 diff: N",
        "[Backward] Layer relu1, bottom blob ip1 diff: N",
        "[Backward] Layer ip1, param blob 0 diff: N",
        "[Backward] Layer ip1, param blob 1 diff: N",
        "[Backward] All net params (data, diff): L1 norm = (N, N); L2 norm = (N, N)",
    ]
    assert [line for line in lines if line.startswith("E")] == [line for line in lines if "All net params" in line]


def value(lines: list[str], words: str) -> float:
    (line,) = (line for line in lines if words in line)
    return float(line.rpartition(" ")[2])


def test_the_numbers_are_mean_absolute_values() -> None:
    plain = tiny_solver()
    blobs = plain.net(plain.train_inputs, keep=["ip2"])
    plain.net.total_loss(blobs).backward()
    gradient = plain.net.layer("ip1").blobs[0].grad
    assert gradient is not None
    _, lines = logged("momentum: 0 weight_decay: 0")
    assert value(lines, "[Forward] Layer ip2, top blob ip2") == pytest.approx(float(blobs["ip2"].detach().abs().mean()), rel=1e-5)
    assert value(lines, "[Forward] Layer loss, top blob loss") == pytest.approx(float(blobs["loss"].detach()), rel=1e-5)
    assert value(lines, "[Backward] Layer ip1, param blob 0") == pytest.approx(float(gradient.abs().mean()), rel=1e-5)


def test_the_training_net_is_logged_at_displayed_iterations_only_as_in_caffe_1_0() -> None:
    # BVLC Caffe 1.0 sets the flag by `display && debug_info` in Solver::Step, and never writes [Update] lines.
    for fields, logged_passes in (("", 2), ("display: 0", 0), ("display: 3", 4)):
        _, lines = logged(fields, updates=10)
        assert sum("[Forward] Layer ip1, top blob" in line for line in lines) == logged_passes, fields
        assert sum("All net params" in line for line in lines) == logged_passes
        assert not any("[Update]" in line for line in lines)


def test_watching_changes_nothing() -> None:
    for fields in ("", 'type: "Adam" iter_size: 2', "clip_gradients: 0.1"):
        watched, _ = logged(fields, updates=6)
        plain = tiny_solver(fields)
        plain.step(6)
        for mine, theirs in zip(weights(watched), weights(plain), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_test_nets_are_watched_too_and_named_parameters_have_their_names() -> None:
    net = NET.replace("param { lr_mult: 1 decay_mult: 1 }", 'param { name: "w" }')
    _, lines = logged("test_iter: 2 test_interval: 5", net=net)
    assert sum("[Forward] Layer accuracy, top blob accuracy" in line for line in lines) == 2
    assert sum("[Forward] Layer ip1, param blob w data" in line for line in lines) == 3


# ---- snapshot_diff ----


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_snapshot_diff_stores_what_the_last_update_took_off(tmp_path: Path, kind: str, form: str) -> None:
    solver = tiny_solver(f'snapshot_diff: true type: "{kind}" snapshot_format: {form}', folder=tmp_path)
    solver.step(3)
    before = weights(solver)
    solver.step(1)
    files = solver.snapshot()
    steps = [old - new for old, new in zip(before, weights(solver), strict=True)]
    if form == "HDF5":
        with h5py.File(files.weights) as file:
            stored = [np.asarray(file[f"diff/{name}/{index}"]) for name in ("ip1", "ip2") for index in (0, 1)]
    else:
        model = NetParameter.FromString(files.weights.read_bytes())
        stored = [blob_to_array(blob, diff=True) for layer in model.layer for blob in layer.blobs]
    for step, array in zip(steps, stored, strict=True):
        np.testing.assert_allclose(array, step.numpy(), rtol=1e-3, atol=1e-7)
        assert np.abs(array).max() > 0
    if kind == "SGD":
        # With momentum the step is the history, to the last bit.
        for array, history in zip(stored, solver.rule.history, strict=True):
            np.testing.assert_array_equal(array, history.numpy())


def test_without_snapshot_diff_there_are_no_diffs(tmp_path: Path) -> None:
    files = tiny_solver(folder=tmp_path).snapshot()
    model = NetParameter.FromString(files.weights.read_bytes())
    assert all(not blob.diff for layer in model.layer for blob in layer.blobs)


def test_layer_wise_reduce_changes_nothing() -> None:
    plain, reduced = tiny_solver(), tiny_solver("layer_wise_reduce: false")
    for solver in (plain, reduced):
        solver.step(3)
    assert all(map(torch.equal, weights(plain), weights(reduced)))
