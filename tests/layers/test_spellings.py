"""Types under other names give what their own types give, and refuse what these do not have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffetools.errors import NetError
from caffetools.layers.registry import traits
from caffetools.proto.schema import TRAIN
from tests.layers.helpers import one_layer
from tests.layers.test_forks import agree, exported, numbers

CONV = "convolution_param { num_output: 4 kernel_size: 2 stride: 2 weight_filler { type: 'xavier' } }"
SAME = [
    ("DeConvolution", "Deconvolution", CONV, (2, 4, 5, 5)),
    ("DepthwiseConv", "DepthwiseConvolution", CONV, (2, 4, 5, 5)),
    ("CuDNNGroupedConvolutionForward", "Convolution", CONV.replace("num_output", "group: 2 num_output"), (2, 4, 5, 5)),
    ("CuDNNLRNCrossChannel", "LRN", "lrn_param { local_size: 3 alpha: 0.5 }", (2, 4, 5, 5)),
    ("NormalizeBBox", "Normalize", "norm_param { across_spatial: false channel_shared: false scale_filler { value: 20 } }", (2, 4, 5, 5)),
    ("Embedding", "Embed", "embed_param { num_output: 3 input_dim: 5 weight_filler { type: 'xavier' } }", (4,)),
]


@pytest.mark.parametrize(("name", "own", "fields", "shape"), SAME)
def test_a_layer_under_another_name(name: str, own: str, fields: str, shape: tuple[int, ...]) -> None:
    layers = [one_layer(f'type: "{kind}" {fields}', shape) for kind in (name, own)]
    x = torch.tensor(numbers(*shape), dtype=torch.float32) if len(shape) > 1 else torch.tensor([0.0, 4.0, 2.0, 2.0])
    tops = [layer(x) for layer in layers]
    tops = [top[0] if isinstance(top, tuple) else top for top in tops]
    assert layers[0].type_name == name and layers[0].top_shapes == layers[1].top_shapes
    torch.testing.assert_close(tops[0], tops[1])
    assert traits(name).role == traits(own).role and traits(name).fork


def test_identity() -> None:
    agree('type: "Identity"', lambda x: x, numbers(2, 3))
    exported('type: "Identity"', (2, 3), opset=17)


def test_cudnn_batch_norm_has_all_four_blobs() -> None:
    mean, variance, scale, shift = numbers(3), np.abs(numbers(3, seed=1)) + 0.5, numbers(3, seed=2), numbers(3, seed=3)
    x = numbers(2, 3, 4, 2)
    wide = [b.reshape(1, 3, 1, 1) for b in (mean, variance, scale, shift)]
    expected = wide[2] * (x - wide[0]) / np.sqrt(wide[1] + 1e-5) + wide[3]
    text, params = 'type: "CuDNNBatchNorm"', [mean, variance, scale, shift]
    layer = one_layer(text, x.shape)
    for blob, value in zip(layer.blobs, params, strict=True):
        blob.data = torch.tensor(value, dtype=torch.float32)
    np.testing.assert_allclose(layer(torch.tensor(x, dtype=torch.float32)).detach(), expected, rtol=1e-4, atol=1e-5)
    exported(text, x.shape, opset=17, params=params)
    with pytest.raises(NetError, match="TEST phase only; use BatchNorm and Scale to train"):
        one_layer(text, x.shape, phase=TRAIN)


def test_lrn_within_channels_is_lrns() -> None:
    with pytest.raises(NetError, match="norm_region WITHIN_CHANNEL is LRN's"):
        one_layer('type: "CuDNNLRNCrossChannel" lrn_param { norm_region: WITHIN_CHANNEL }', (1, 4, 3, 3))
