"""Diffs of blobs that several layers read, which Caffe keeps in the tops of its Split layers, and those that nothing asks for."""

from __future__ import annotations

import torch

from caffetools.net.net import Net
from caffetools.net.stepwise import Stepwise
from caffetools.proto.schema import TEST, NetParameter
from caffetools.proto.text import parse


def power(name: str, bottom: str, scale: int, more: str = "") -> str:
    return f'layer {{ name: "{name}" type: "Power" bottom: "{bottom}" top: "{name}" power_param {{ scale: {scale} }} {more} }} '


def run_of(text: str) -> Stepwise:
    return Stepwise(Net(parse(text, NetParameter), TEST))


def first_diffs(run: Stepwise, names: str) -> list[float]:
    return [float(run.blobs[name].diff.value().flatten()[0]) for name in names]


def test_readers_of_a_blob_keep_their_diffs_until_caffes_split_adds_them() -> None:
    # What real Caffe gives for these passes, whose Split of a stands between a and b.
    run = run_of(
        'force_backward: true input: "x" input_shape { dim: 1 dim: 2 } ' + power("a", "x", 2) + power("b", "a", 3) + power("c", "a", 5)
    )
    run.forward()
    for name in "bc":
        run.blobs[name].diff.store(torch.ones(1, 2))
    run.backward(3, 2)
    assert first_diffs(run, "xabc") == [0, 0, 1, 1]
    run.backward(1, 1)
    assert first_diffs(run, "xabc") == [0, 0, 1, 1]
    run.backward(2, 1)
    assert first_diffs(run, "xabc") == [16, 8, 1, 1]
    run.blobs["b"].diff.store(torch.full((1, 2), 7.0))
    run.backward(2, 2)
    run.forward()
    run.backward(3, 3)
    assert first_diffs(run, "xabc") == [16, 8, 7, 1]
    run.backward()
    assert first_diffs(run, "xabc") == [52, 26, 7, 1]


def test_a_blob_with_a_loss_weight_and_a_reader_gets_its_diff_from_both_on_the_way_back() -> None:
    run = run_of(
        'force_backward: true input: "x" input_shape { dim: 1 dim: 2 } ' + power("a", "x", 2, "loss_weight: 4") + power("b", "a", 3)
    )
    assert first_diffs(run, "xab") == [0, 0, 0]
    run.blobs["x"].data.store(torch.ones(1, 2))
    # The Split behind a has the loss weight, and a range that ends with a leaves it out.
    assert run.forward(0, 1) == 0 and run.forward() == 16
    run.blobs["b"].diff.store(torch.ones(1, 2))
    run.backward()
    assert first_diffs(run, "xab") == [14, 7, 1]


def test_a_scale_leaves_its_products_in_the_diff_that_nothing_asks_for() -> None:
    run = run_of(
        'input: "x" input_shape { dim: 1 dim: 2 dim: 3 } layer { name: "s" type: "Scale" bottom: "x" top: "s" scale_param { filler { value: 2 } } } '
        'layer { name: "l" type: "Reduction" bottom: "s" top: "l" loss_weight: 4 }'
    )
    run.blobs["x"].data.store(torch.arange(6.0).reshape(1, 2, 3))
    run.forward()
    run.backward()
    assert run.blobs["x"].diff.value().flatten().tolist() == [0, 4, 8, 12, 16, 20]
    assert run.net.layers[1].blobs[0].grad is not None and run.net.layers[1].blobs[0].grad.tolist() == [12, 48]
