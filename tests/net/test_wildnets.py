"""Published deploy networks, read from their own files, give the numbers of BVLC Caffe under regenerated weights.

``tests/zoo/test_published.py`` holds those that our builders write, which need no files of others.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from numpy.typing import NDArray

from caffetools.layers.base import Layer
from caffetools.net.net import Net
from tests.conftest import SHARED

FOLDER = SHARED / "golden" / "wildnets"
INDEX: dict[str, dict[str, Any]] = json.loads((FOLDER / "index.json").read_text()) if FOLDER.is_dir() else {}
NETS = sorted(name for name, entry in INDEX.items() if "skip" not in entry)
# Of an output's largest value; the README asks for 1e-3.
TOLERANCE = 1e-3


@pytest.mark.wild
@pytest.mark.parametrize("name", NETS)
def test_a_published_network_gives_the_numbers_of_caffe(name: str, wild: Path) -> None:
    entry = INDEX[name]
    net = Net.from_file(wild / "prototxt" / entry["prototxt"], fill=False, input_shapes={k: tuple(v) for k, v in entry["inputs"].items()})
    with torch.no_grad():
        for layer in net.layers:
            fill(layer)
        rng = RandomState(7)
        batch = {blob: torch.from_numpy((rng.randn(*shape) * 5).astype(np.float32)) for blob, shape in entry["inputs"].items()}
        blobs = net(batch, keep=[blob for blob in entry["blobs"] if blob in net.blob_shapes])
    assert set(entry["blobs"]) <= set(blobs), "blobs that we do not have"
    for blob, (shape, absolute, largest) in entry["blobs"].items():
        got = blobs[blob].double()
        assert list(got.shape) == shape, blob
        assert got.abs().sum().item() == pytest.approx(absolute, rel=TOLERANCE), blob
        assert got.abs().max().item() == pytest.approx(largest, rel=TOLERANCE), blob
    with np.load(FOLDER / f"{name}.npz") as arrays:
        for key in arrays.files:
            values = blobs[key.replace("\\", "/")].numpy().reshape(-1)
            sample = values[:: max(1, values.size // 2000)][:2000]
            scale = max(float(np.abs(arrays[key]).max()), 1e-12)
            assert float(np.abs(sample - arrays[key]).max()) <= TOLERANCE * scale, key


def fill(layer: Layer) -> None:
    """The weights that the README describes; the draws of one blob do not depend on another."""
    for index, parameter in enumerate(layer.blobs):
        rng = RandomState(zlib.crc32(f"{layer.name}/{index}".encode()) % 2**31)
        parameter.copy_(torch.from_numpy(drawn(rng, layer.type_name, index, tuple(parameter.shape)).astype(np.float32)))


def drawn(rng: RandomState, type_name: str, index: int, shape: tuple[int, ...]) -> NDArray[Any]:
    if (type_name, index) in (("BatchNorm", 0), ("Scale", 1)):
        return rng.randn(*shape) * 0.1
    if (type_name, index) in (("BatchNorm", 1), ("Scale", 0)):
        return rng.uniform(0.5, 1.5, shape)
    if type_name == "BatchNorm":
        return np.ones(shape)
    return rng.randn(*shape) * (math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.05)
