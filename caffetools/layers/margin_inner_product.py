"""MarginInnerProduct: the angular margin of A-Softmax. Liu et al. (2017), SphereFace; its margin_inner_product_layer.cpp."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from caffetools.layers.autograd import Context
from caffetools.layers.base import Layer, Shapes, format_shape
from caffetools.layers.loss import as_index
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import TEST, LayerParameter, enum_name


@register("MarginInnerProduct")
class MarginInnerProduct(Layer):
    """Inner products with unit weights, (outer…, inner…) to (outer…, num_output), where the label's angle t is multiplied by a margin m.

    The label's score is |x| · (psi(t) + lambda · cos t) / (1 + lambda), psi(t) = (−1)^k · cos(m t) − 2 k for t in [k pi / m, (k + 1) pi / m];
    m is 1 to 4 (``type`` SINGLE, DOUBLE, TRIPLE, QUADRUPLE). lambda = max(base · (1 + gamma · i)^(−power), lambda_min) in the i-th forward
    pass after ``iteration``; a second top (1) holds it. Bottoms: features, and a label for each outer item.

    Blobs: weights (num_output, K), whose rows each forward pass scales to length 1, as SphereFace's does. The gradient is SphereFace's,
    too: the weights' is that of the plain product, and in the features' the margin's part is scaled to coefficients of length 1.
    """

    TRAITS = Traits(
        role="classifier",
        settings="margin_inner_product_param",
        outputs="num_output",
        class_axes=(0,),
        label_bottoms=(1,),
        weight_filler="weight_filler",
    )
    BOTTOMS = (2, 2)
    TOPS = (1, 2)
    NO_GRADIENT = frozenset({1})
    NEEDS_TOP = False

    def __init__(self, param: LayerParameter, phase: int = TEST):
        super().__init__(param, phase)
        self.passes = int(param.margin_inner_product_param.iteration)

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        return [(2, 8), (2,)]

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.margin_inner_product_param
        self.outer_axes = axis = self.axis(param.axis, bottoms[0])
        self.classes, self.features = int(param.num_output), math.prod(bottoms[0][axis:])
        if self.classes < 1:
            raise self.error("num_output must be at least 1")
        items = math.prod(bottoms[0][:axis])
        if math.prod(bottoms[1]) != items:
            raise self.error(f"needs one label for each of {items} items, but bottom '{self.bottoms[1]}' is {format_shape(bottoms[1])}")
        self.margin = ("SINGLE", "DOUBLE", "TRIPLE", "QUADRUPLE").index(enum_name(param, "type")) + 1
        self.declare_blob((self.classes, self.features), param.weight_filler)
        return [(*bottoms[0][:axis], self.classes), (1,)][: len(self.tops)]

    def next_lambda(self) -> float:
        """Count one more pass, and return its weight of the plain cosine."""
        param = self.param.margin_inner_product_param
        self.passes += 1
        return float(max(param.base * (1 + param.gamma * self.passes) ** -param.power, param.lambda_min))

    NO_ONNX = "it needs labels; for use replace it by an InnerProduct of its weights without bias"

    def forward(self, x: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        weight, share = self.blobs[0], self.next_lambda()
        # Not seen by autograd: several passes may come before one backward pass.
        weight.data.div_(weight.data.norm(dim=1, keepdim=True))
        index, outside = as_index(self, labels, self.classes)
        scores = _Margin.apply(x.reshape(-1, self.features), weight, index.reshape(-1), self.margin, share)
        if outside is not None:
            scores = scores.masked_fill(outside.reshape(-1, 1), float("nan"))
        scores = scores.reshape(*x.shape[: self.outer_axes], self.classes)
        return scores if len(self.tops) == 1 else (scores, x.new_tensor([share]))

    def get_state(self) -> dict[str, int]:
        """Return what a resumed run gives :meth:`set_state`: the number of passes, which lambda depends on."""
        return {"passes": self.passes}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue where :meth:`get_state` was called."""
        self.passes = int(state["passes"])

    def macs(self) -> int:
        return math.prod(self.top_shapes[0]) * self.features


class _Margin(torch.autograd.Function):
    """Scores (M, N) of features (M, K) and unit weights (N, K); each row's label has its margin."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, index: Tensor, margin: int, share: float) -> Tensor:
        scores = x @ weight.T
        ctx.save_for_backward(x, weight, index)
        ctx.margin, ctx.share = margin, share
        if margin > 1:
            length = x.norm(dim=1)
            own = scores.gather(1, index[:, None])[:, 0]
            bent = length * _psi(own / length, margin)[0]
            scores = scores.scatter(1, index[:, None], ((bent + share * own) / (1 + share))[:, None])
        return scores

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight, index = ctx.saved_tensors
        (grad,) = grads
        of_x = grad @ weight
        if ctx.margin > 1:
            rows, length = weight[index], x.norm(dim=1)
            cosine = (x * rows).sum(1) / length
            value, slope = _psi(cosine, ctx.margin)
            # d(|x| psi) / dx = slope · w + (psi − cos t · slope) · x / |x|; SphereFace scales the two coefficients to length 1.
            radial = (value - cosine * slope) / length
            norm = (slope * slope + radial * radial).sqrt()
            bent = (slope / norm)[:, None] * rows + (radial / norm)[:, None] * x
            own = grad.gather(1, index[:, None]) / (1 + ctx.share)
            of_x = of_x + own * (bent - rows)
        return of_x, grad.T @ x, None, None, None


def _psi(cosine: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """psi and its slope by the cosine; the number of the interval of the angle follows from the cosine's signs, as in SphereFace."""
    sign, square = cosine.sign(), cosine * cosine
    if margin == 2:
        return 2 * sign * square - 1, 4 * sign * cosine
    if margin == 3:
        outer = (cosine.abs() - 0.5).sign()
        shift = sign * (1 + outer) - 2
        return outer * (4 * square - 3) * cosine + shift, outer * (12 * square - 3)
    inner = sign * (2 * square - 1).sign()
    return inner * (8 * square * square - 8 * square + 1) + 2 * sign + inner - 3, inner * (32 * square - 16) * cosine
