"""What a net's forward pass takes: arrays by name, or one array for a net with one input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import caffetools as ct
from caffetools.errors import NetError
from caffetools.net.net import Net
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse
from tests.layers.helpers import input_layer

ONE = input_layer("x", 2, 3) + 'layer { name: "p" type: "Power" bottom: "x" top: "y" power_param { scale: 2 } }'
TWO = input_layer("x", 2, 3) + input_layer("z", 2, 3) + 'layer { name: "e" type: "Eltwise" bottom: "x" bottom: "z" top: "y" }'
VALUES = np.arange(6, dtype=np.float64).reshape(2, 3)


@pytest.mark.parametrize(
    "batch",
    [VALUES, VALUES.astype(np.uint8), torch.tensor(VALUES, dtype=torch.float32), {"x": VALUES}, {"x": VALUES[:, ::-1][:, ::-1]}],
    ids=["array", "bytes", "tensor", "mapping", "strided"],
)
def test_arrays_and_tensors_give_the_same_numbers(batch: object) -> None:
    y = Net(parse(ONE, NetParameter))(batch)["y"]
    assert y.dtype == torch.float32
    np.testing.assert_array_equal(y.numpy(), 2 * VALUES)


@pytest.mark.parametrize(
    ("text", "batch", "message"),
    [
        (TWO, VALUES, "has the inputs 'x', 'z'; give a mapping of arrays by name"),
        (ONE, {"w": VALUES}, "has no input 'w'; its inputs are 'x'"),
        (ONE, [VALUES], "a mapping of arrays by input name, or one array, not list"),
        (ONE, {"x": "photo.jpg"}, "blob 'x': a tensor or an array of numbers is expected, not str"),
        (ONE, {"x": np.array(["a"])}, "blob 'x': a tensor or an array of numbers is expected, not an array of <U1"),
        (ONE, {"x": VALUES.astype(complex)}, "not an array of complex128"),
    ],
)
def test_what_is_not_an_input_is_one_clear_error(text: str, batch: object, message: str) -> None:
    with pytest.raises(NetError, match=message):
        Net(parse(text, NetParameter))(batch)


def test_a_summary_is_printed_as_a_table() -> None:
    lines = str(ct.inspect("lenet")).splitlines()
    assert lines[0] == "LeNet in the TEST phase"
    assert lines[1].split() == ["Layer", "Type", "Output", "Parameters", "MACs"]
    assert lines[3].split() == ["conv1", "Convolution", "64x20x24x24", "520", "18,432,000"]
    assert lines[-1] == "9 layers, 431,080 parameters, 146,752,000 multiply-accumulates"
    assert len(lines) == 2 + 9 + 1
