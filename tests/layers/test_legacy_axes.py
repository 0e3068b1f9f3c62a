"""Forks' layers on blobs of fewer axes, whose missing ones count 1, as Caffe's num(), channels(), height() and width() read them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffetools.errors import NetError
from caffetools.proto.schema import TRAIN
from tests.layers.helpers import one_layer


@pytest.mark.parametrize("settings", ["", "bn_param { bn_mode: LEARN }", "bn_param { bn_mode: INFERENCE }"])
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4)])
def test_normalization_of_vectors_is_that_of_maps_of_one_pixel(settings: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    few = one_layer(f'type: "BN" {settings}', shape, phase=TRAIN)
    four = (*shape, *(1,) * (4 - len(shape)))
    full = one_layer(f'type: "BN" {settings}', four, phase=TRAIN)
    assert few.top_shapes == [shape]
    torch.testing.assert_close(few(x), full(x.reshape(four)).reshape(shape))
    for one, other in zip(few.blobs, full.blobs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_vector_is_enlarged_and_has_prior_boxes_as_a_map_of_one_pixel() -> None:
    enlarged = one_layer('type: "Interp" interp_param { height: 3 width: 2 }', (2, 4))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(enlarged(x), x.reshape(2, 4, 1, 1).expand(2, 4, 3, 2).contiguous())
    settings = 'type: "PriorBox" prior_box_param { min_size: 4 img_size: 8 }'
    few = one_layer(settings, (1, 5), (1, 3, 8, 8))
    full = one_layer(settings, (1, 5, 1, 1), (1, 3, 8, 8))
    np.testing.assert_array_equal(few(torch.zeros(1, 5), torch.zeros(1, 3, 8, 8)), full(torch.zeros(1, 5, 1, 1), torch.zeros(1, 3, 8, 8)))


def test_more_than_four_axes_are_refused() -> None:
    with pytest.raises(NetError, match="must have at most 4 axes"):
        one_layer('type: "BN"', (1, 2, 3, 4, 5))
