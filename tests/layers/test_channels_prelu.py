"""ChannelsPReLU against its definition, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from caffetools.errors import NetError
from tests.layers.helpers import one_layer
from tests.layers.test_forks import agree, numbers


def test_each_channel_has_its_slope() -> None:
    x, slope = numbers(2, 3, 4, 4), numbers(3, seed=2)
    agree('type: "ChannelsPReLU"', lambda x, s: np.where(x > 0, x, x * s.reshape(1, 3, 1, 1)), x, params=[slope])


def test_one_slope_for_all_channels_is_another_layers() -> None:
    with pytest.raises(NetError, match="channel_shared is PReLU's"):
        one_layer('type: "ChannelsPReLU" prelu_param { channel_shared: true }', (2, 3, 4, 4))
