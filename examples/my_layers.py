"""A layer of your own: caffetools inspect net.prototxt --plugin my_layers.py computes layers of type "Mish2"."""

import torch

from caffetools.layers.base import Layer, Shapes
from caffetools.layers.registry import register


@register("Mish2")
class Mish2(Layer):
    """y = x * tanh(softplus(x)); its gradient comes from autograd."""

    def setup(self, bottoms: Shapes) -> Shapes:
        return [bottoms[0]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tanh(torch.nn.functional.softplus(x))
