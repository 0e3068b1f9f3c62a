"""A small net and its solver for tests: four classes of noisy points, learned in a few iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import parse
from caffetools.solver.solver import Solver

NET = """
name: "tiny"
layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 8 dim: 6 } shape { dim: 8 } } }
layer { name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""

SOLVER = """
base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.001 max_iter: 20 random_seed: 3 solver_mode: CPU
"""


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of points around four centres, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(8) % 4
    centres = torch.eye(6)[:4] * 2
    return {"data": centres[label] + 0.1 * torch.randn(8, 6, generator=generator), "label": label.float()}


def solver_param(fields: str = "", net: str = NET) -> Any:
    """The solver's message with the net inside; ``fields`` are added, and replace those of their names."""
    param = parse(SOLVER + f"net_param {{ {net} }}", SolverParameter)
    given = parse(fields or "display: 0", SolverParameter)
    for field, _ in given.ListFields():
        param.ClearField(field.name)
    param.MergeFrom(given)
    return param


def tiny_solver(fields: str = "", *, net: str = NET, folder: Path | None = None, **options: Any) -> Solver:
    """A solver over the tiny net; snapshots go to ``folder``/tiny_iter_N."""
    param = solver_param(fields, net)
    if folder is not None:
        param.snapshot_prefix = str(folder / "tiny")
    solver = Solver(param, **options)
    solver.train_inputs = solver.test_inputs = inputs()
    return solver


def weights(solver: Solver) -> list[torch.Tensor]:
    """Copies of the net's parameters."""
    return [entry.parameter.detach().clone() for entry in solver.net.learnable]
