"""The gradients of a whole net in float64 against central differences, and those that are trained with, in float32, against them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse

FILL = 'weight_filler { type: "gaussian" std: 0.3 } bias_filler { type: "gaussian" std: 0.2 }'
# Nothing in it has a kink, where a difference would be no gradient.
NET = f"""
layer {{ name: "input" type: "Input" top: "data" top: "other" top: "label" top: "target" input_param {{
  shape {{ dim: 3 dim: 4 dim: 9 dim: 10 }} shape {{ dim: 3 dim: 6 }} shape {{ dim: 3 }} shape {{ dim: 3 dim: 5 }} }} }}
layer {{ name: "grouped" type: "Convolution" bottom: "data" top: "grouped" convolution_param {{
  num_output: 6 kernel_size: 3 pad: 1 group: 2 bias_term: false weight_filler {{ type: "gaussian" std: 0.3 }} }} }}
layer {{ name: "bn" type: "BatchNorm" bottom: "grouped" top: "bn" batch_norm_param {{ use_global_stats: false }} }}
layer {{ name: "scale" type: "Scale" bottom: "bn" top: "scale" scale_param {{ bias_term: true
  filler {{ type: "uniform" min: 0.5 max: 1.5 }} bias_filler {{ type: "gaussian" std: 0.2 }} }} }}
layer {{ name: "tanh" type: "TanH" bottom: "scale" top: "tanh" }}
layer {{ name: "dilated" type: "Convolution" bottom: "tanh" top: "dilated" convolution_param {{
  num_output: 6 kernel_h: 3 kernel_w: 2 pad: 2 stride: 2 dilation: 2 {FILL} }} }}
layer {{ name: "elu" type: "ELU" bottom: "dilated" top: "elu" elu_param {{ alpha: 1 }} }}
layer {{ name: "across" type: "LRN" bottom: "tanh" top: "across" lrn_param {{ local_size: 3 alpha: 0.8 beta: 0.75 k: 1.5 }} }}
layer {{ name: "within" type: "LRN" bottom: "tanh" top: "within" lrn_param {{ local_size: 3 alpha: 2 norm_region: WITHIN_CHANNEL }} }}
layer {{ name: "sum" type: "Eltwise" bottom: "across" bottom: "within" bottom: "tanh" top: "sum" eltwise_param {{
  operation: SUM coeff: 1 coeff: -0.5 coeff: 2 }} }}
layer {{ name: "pool" type: "Pooling" bottom: "sum" top: "pool" pooling_param {{ pool: AVE kernel_size: 3 stride: 2 pad: 1 }} }}
layer {{ name: "up" type: "Deconvolution" bottom: "elu" top: "up" convolution_param {{ num_output: 4 kernel_size: 2 stride: 2 group: 2 {FILL} }} }}
layer {{ name: "bnll" type: "BNLL" bottom: "up" top: "bnll" }}
layer {{ name: "down" type: "Pooling" bottom: "bnll" top: "down" pooling_param {{ pool: AVE global_pooling: true }} }}
layer {{ name: "flat" type: "Flatten" bottom: "pool" top: "flat" }}
layer {{ name: "rows" type: "Reshape" bottom: "down" top: "rows" reshape_param {{ shape {{ dim: 0 dim: -1 }} }} }}
layer {{ name: "all" type: "Concat" bottom: "flat" bottom: "rows" bottom: "other" top: "all" }}
layer {{ name: "hidden" type: "InnerProduct" bottom: "all" top: "hidden" inner_product_param {{ num_output: 12 {FILL} }} }}
layer {{ name: "sigmoid" type: "Sigmoid" bottom: "hidden" top: "sigmoid" }}
layer {{ name: "parts" type: "Slice" bottom: "sigmoid" top: "left" top: "right" slice_param {{ slice_point: 6 }} }}
layer {{ name: "product" type: "Eltwise" bottom: "left" bottom: "right" top: "product" eltwise_param {{ operation: PROD }} }}
layer {{ name: "power" type: "Power" bottom: "product" top: "power" power_param {{ power: 1.5 scale: 0.5 shift: 1 }} }}
layer {{ name: "scores" type: "InnerProduct" bottom: "power" top: "scores" inner_product_param {{ num_output: 5 transpose: true {FILL} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" }}
layer {{ name: "softmax" type: "Softmax" bottom: "scores" top: "softmax" }}
layer {{ name: "distance" type: "EuclideanLoss" bottom: "softmax" bottom: "target" top: "distance" loss_weight: 0.7 }}
layer {{ name: "entropy" type: "SigmoidCrossEntropyLoss" bottom: "scores" bottom: "target" top: "entropy" loss_weight: 0.2 }}
layer {{ name: "size" type: "Reduction" bottom: "within" top: "size" reduction_param {{ operation: SUMSQ }} loss_weight: 0.01 }}
"""
STEP = 1e-5
# Elements of each parameter and bottom whose difference is computed.
_ELEMENTS = 8


@pytest.fixture
def net() -> Net:
    torch.manual_seed(3)
    return Net(parse(NET, NetParameter), TRAIN)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"data": (3, 4, 9, 10), "other": (3, 6), "target": (3, 5)}
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {**drawn, "target": drawn["target"].sigmoid(), "label": torch.tensor([1.0, 4, 0], dtype=torch.float64)}


def gradients(net: Net, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of the loss with respect to every learned blob and the inputs that it depends on smoothly."""
    wanted = [name for name in inputs if name in ("data", "other")]
    given = {name: value.clone().requires_grad_(name in wanted) for name, value in inputs.items()}
    learned = {f"{layer.name}[{i}]": blob for layer in net.layers for i, blob in enumerate(layer.blobs) if blob.requires_grad}
    found = torch.autograd.grad(net.total_loss(net(given)), [*learned.values(), *(given[name] for name in wanted)])
    return dict(zip([*learned, *wanted], found, strict=True))


def difference(values: Tensor, place: tuple[int, ...], loss: Callable[[], float]) -> float:
    """The central difference of ``loss`` at an element of ``values``, which are changed in place and back."""
    kept, ends = float(values[place]), []
    for step in (STEP, -STEP):
        values[place] = kept + step
        ends.append(loss())
    values[place] = kept
    return (ends[0] - ends[1]) / (2 * STEP)


def test_gradients_of_a_whole_net_are_central_differences_in_float64(net: Net) -> None:
    net.double()
    inputs = batch()
    found = gradients(net, inputs)
    assert len(found) == 13
    blobs = {f"{layer.name}[{i}]": blob for layer in net.layers for i, blob in enumerate(layer.blobs)}
    generator = torch.Generator().manual_seed(5)

    def loss() -> float:
        return float(net.total_loss(net(inputs)))

    with torch.no_grad():
        for name, gradient in found.items():
            values = inputs[name] if name in inputs else blobs[name].data
            scale = float(gradient.abs().max())
            assert scale > 1e-4, name
            for index in torch.randperm(values.numel(), generator=generator)[:_ELEMENTS]:
                place = tuple(int(i) for i in torch.unravel_index(index, values.shape))
                assert abs(difference(values, place, loss) - float(gradient[place])) <= 3e-6 * scale, (name, place)


def test_gradients_in_float32_are_those_in_float64(net: Net) -> None:
    """They come of other code: the native library computes float32 alone."""
    inputs = batch()
    single = gradients(net, {name: value.float() for name, value in inputs.items()})
    double = gradients(net.double(), inputs)
    for name, gradient in double.items():
        assert float((single[name] - gradient).abs().max()) <= 2e-5 * float(gradient.abs().max()), name
