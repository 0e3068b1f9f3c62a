"""Devices by the names that people give them."""

from __future__ import annotations

import pytest
import torch

from caffetools.errors import CaffeToolsError
from caffetools.net.device import find_device


def test_devices_are_found_by_name() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("auto", on_cpu=True) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "unknown device 'gpu'; it is one of cpu, cuda, cuda:N, auto"),
        ("meta", "unknown device 'meta'; it is one of cpu, cuda, cuda:N, auto"),
        ("cuda:99", "there is no device 'cuda:99' here: torch sees"),
    ],
)
def test_devices_that_are_not_there_are_refused(name: str, message: str) -> None:
    with pytest.raises(CaffeToolsError, match=message):
        find_device(name)
