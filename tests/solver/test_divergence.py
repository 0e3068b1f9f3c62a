"""A loss that is no number: found at its iteration, and blamed on the layer where it began."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from caffetools.errors import RunFailed
from caffetools.solver.solver import Solver
from tests.solver.tiny import NET, inputs, tiny_solver


def test_bad_data_is_blamed_on_the_data_at_the_iteration_that_met_it(tmp_path: Path) -> None:
    solver = tiny_solver("display: 4", folder=tmp_path)
    solver.step(2)
    solver.train_inputs = {**inputs(), "data": torch.full((8, 6), math.nan)}
    with pytest.raises(RunFailed, match=r"iteration 2: the training loss is nan.* in blob 'data' of layer 'data'; look for the record"):
        solver.step(10)
    assert solver.iteration == 2
    assert all(bool(torch.isfinite(p).all()) for p in solver.net.parameters()), "the bad values have not reached the weights"


@pytest.mark.parametrize(("layer", "own"), [("ip1", ", whose parameters are no longer finite"), ("ip2", "")])
def test_the_first_layer_with_values_that_are_not_finite_is_named(layer: str, own: str) -> None:
    solver = tiny_solver()
    solver.step(1)
    with torch.no_grad():
        if own:
            solver.net.layer(layer).blobs[0][0, 0] = math.inf
        else:
            # Finite weights whose products overflow.
            solver.net.layer(layer).blobs[0].fill_(3e38)
    words = rf"iteration 1: the training loss is \S+, so training has diverged; .* in blob '{layer}' of layer '{layer}'{own}; lower base_lr"
    with pytest.raises(RunFailed, match=words):
        solver.step(1)


def test_the_batch_that_a_data_layer_gave_is_looked_at_again() -> None:
    net = NET.replace('name: "data" type: "Input"', 'name: "data" type: "DummyData"').replace("input_param", "dummy_data_param")
    net = net.replace(
        "shape { dim: 8 } }", 'shape { dim: 8 } data_filler { type: "gaussian" std: 1e38 } data_filler { type: "constant" } }'
    )
    solver = tiny_solver("random_seed: 1", net=net)
    solver.train_inputs = {}
    solver.net.layer("ip1").blobs[0].data.fill_(1e10)
    with pytest.raises(RunFailed, match="blob 'ip1' of layer 'ip1'; lower base_lr"):
        solver.step(1)


def test_a_test_that_diverges_names_its_net_and_layer() -> None:
    solver = tiny_solver("test_iter: 1 test_interval: 5")
    solver.test_inputs = {**inputs(), "data": torch.full((8, 6), math.inf)}
    with pytest.raises(RunFailed, match=r"iteration 0: the loss 'loss' of test net #0 is nan.* in blob 'data' of layer 'data'"):
        solver.test_all()


def test_the_last_good_snapshot_is_named_and_kept(tmp_path: Path) -> None:
    solver: Solver = tiny_solver("snapshot: 5", folder=tmp_path)
    solver.step(6)
    solver.train_inputs = {**inputs(), "data": torch.full((8, 6), math.nan)}
    with pytest.raises(RunFailed, match="iteration 6: .*resume from the snapshot of iteration 5"):
        solver.solve()
    again = tiny_solver("random_seed: 9", folder=tmp_path)
    again.restore(tmp_path / "tiny_iter_5.solverstate")
    assert again.iteration == 5
