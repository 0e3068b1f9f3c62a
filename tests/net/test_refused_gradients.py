"""Gradients that a layer does not have, where Caffe's backward pass ends the process: one error that names the layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from caffetools.errors import NetError
from caffetools.net.net import Net
from caffetools.net.stepwise import Stepwise
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse
from caffetools.solver.solver import Solver

INPUTS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
FORCED = {
    "Accuracy": ('bottom: "ip" bottom: "label"', "ip"),
    "ArgMax": ('bottom: "ip"', "ip"),
    "Threshold": ('bottom: "ip"', "ip"),
    "Embed": ('bottom: "label" embed_param { num_output: 2 input_dim: 3 }', "label"),
    "BatchReindex": ('bottom: "ip" bottom: "label"', "label"),
    "Filter": ('bottom: "ip" bottom: "label"', "label"),
}


def run_of(text: str) -> Stepwise:
    run = Stepwise(Net(parse(text, NetParameter), TRAIN, fill=True))
    generator = torch.Generator().manual_seed(3)
    run.feed({name: torch.rand(run.blobs[name].shape, generator=generator) for name in run.net.inputs if name != "label"})
    run.forward()
    return run


@pytest.mark.parametrize("kind", FORCED)
def test_what_force_backward_asks_of_a_layer_without_a_gradient_is_refused(kind: str) -> None:
    fields, bottom = FORCED[kind]
    run = run_of(f'force_backward: true {INPUTS} layer {{ name: "top" type: "{kind}" {fields} top: "top" }}')
    with pytest.raises(NetError, match=rf"force_backward asks for the gradient of its bottom '{bottom}'") as raised:
        run.backward()
    assert raised.value.layer == "top"
    run.backward(start=3)
    assert run.blobs["data"].diff.value().abs().sum() > 0


@pytest.mark.parametrize(
    "layer",
    [
        'type: "Silence" bottom: "ip"',
        'type: "HingeLoss" bottom: "ip" bottom: "label" top: "top"',
        'type: "SigmoidCrossEntropyLoss" bottom: "ip" bottom: "data" top: "top"',
        'type: "Crop" bottom: "ip" bottom: "data" top: "top" crop_param { axis: 1 }',
    ],
)
def test_force_backward_leaves_out_what_caffe_leaves_out(layer: str) -> None:
    run = run_of(f'force_backward: true {INPUTS} layer {{ name: "top" {layer} }}')
    run.backward()
    assert run.blobs["data"].diff.value().abs().sum() > 0


def test_a_training_with_force_backward_over_an_accuracy_is_refused_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        f'force_backward: true {INPUTS} layer {{ name: "top" type: "Accuracy" bottom: "ip" bottom: "label" top: "top" }}'
    )
    (tmp_path / "solver.prototxt").write_text(f'net: "{tmp_path}/net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1')
    with pytest.raises(NetError, match="force_backward asks for the gradient of its bottom 'ip'"):
        Solver(tmp_path / "solver.prototxt")


TARGETS = """
layer { name: "data" type: "Input" top: "data" top: "t" input_param { shape { dim: 4 dim: 3 } } }
layer { name: "bn" type: "BatchNorm" bottom: "t" top: "tn" RATES }
layer { name: "abs" type: "AbsVal" bottom: "tn" top: "abs" }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "LOSS" bottom: "ip" bottom: "abs" top: "loss" }
"""


@pytest.mark.parametrize("rates", ["", "param { lr_mult: 0 }"])
def test_labels_above_statistics_are_refused_as_those_above_what_learns(rates: str) -> None:
    run = run_of(TARGETS.replace("RATES", rates).replace("LOSS", "SigmoidCrossEntropyLoss"))
    with pytest.raises(NetError, match="its bottom 'abs' depends on parameters"):
        run.backward()


def test_statistics_whose_rates_are_zero_in_the_prototxt_need_no_gradient() -> None:
    run = run_of(TARGETS.replace("RATES", "param { lr_mult: 0 } " * 3).replace("LOSS", "SigmoidCrossEntropyLoss"))
    run.backward()
    diffs: Callable[[str], float] = lambda rates: _diff_of_abs(TARGETS.replace("RATES", rates).replace("LOSS", "EuclideanLoss"))  # noqa: E731
    assert diffs("param { lr_mult: 0 } " * 3) == 0
    assert diffs("") > 0


def _diff_of_abs(text: str) -> float:
    run = run_of(text)
    run.backward()
    return float(run.blobs["abs"].diff.value().abs().sum())


def test_a_parameters_top_keeps_its_number_of_values() -> None:
    run = run_of('layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 2 dim: 3 } } }')
    run.blobs["p"].reshape((3, 2))
    run.forward()
    run.blobs["p"].reshape((4, 3))
    with pytest.raises(NetError, match="its top 'p' was reshaped to 4 x 3, but lies in the layer's parameter of 2 x 3"):
        run.forward()
