"""On a GPU: every golden layer, network and solver case against what BVLC Caffe computed, within the CPU's tolerances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.layers.test_golden import CASES, check_case
from tests.net.test_golden_nets import NETS, check_network
from tests.solver.test_golden import FOLDER, INDEX, check_updates


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['group']}-{c['id']}")
def test_a_layer_gives_the_numbers_of_caffe(case: dict[str, Any], device: torch.device) -> None:
    check_case(case, device)


@pytest.mark.parametrize("name", NETS)
def test_a_network_gives_the_numbers_of_caffe(name: str, device: torch.device) -> None:
    check_network(name, device)


@pytest.mark.parametrize("case", INDEX["cases"], ids=lambda c: c["name"])
def test_a_solver_gives_the_weights_of_caffe(case: dict[str, Any], device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(FOLDER))
    check_updates(case, str(device))
