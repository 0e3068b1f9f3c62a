"""Fold batch normalization into the layer before it: with stored statistics both are affine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.errors import NetError
from caffetools.graph.graph import Graph
from caffetools.graph.rewrite import Rewriter, run_passes
from caffetools.layers.base import Shape
from caffetools.layers.inner_product import InnerProduct
from caffetools.layers.normalization import BatchNorm
from caffetools.layers.registry import traits
from caffetools.layers.scale import Scale
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.proto.blobs import Array
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TEST, LayerParameter, NetParameter

# The largest change of an output that folding may make, relative to the output's largest value.
TOLERANCE = 1e-5


@dataclass
class FoldResult:
    """A deploy net and its weights after folding.

    Attributes:
        net: The ``NetParameter``.
        weights: Its weights.
        layers: The layers that took others in, with the names of those.
        difference: The largest difference of an output, relative to the output's largest value.
    """

    net: NetParameter
    weights: Caffemodel
    layers: dict[str, list[str]] = field(default_factory=dict)
    difference: float = 0.0


def fold_batch_norm(deploy: NetParameter, model: Caffemodel, *, input_shapes: dict[str, Shape] | None = None) -> FoldResult:
    """Fold the BatchNorm layers of a deploy net, and compare the result with the net on random images.

    Args:
        deploy: A deploy ``NetParameter`` in today's form; it is not changed.
        model: Its weights, which are not changed either.
        input_shapes: Other shapes for the inputs of the comparison than the net's own.

    Raises:
        NetError: There is nothing to fold, a layer's weights are missing, or an output differs by more than 1e-5 of its largest value.
    """
    net, weights, (layers,) = run_passes(deploy, [fold_batch_norms], model.blobs, phase=TEST)
    if not layers:
        raise NetError(f"the net '{net.name}' has no BatchNorm right after a Convolution or InnerProduct; there is nothing to fold")
    folded = FoldResult(net, Caffemodel(net, weights), layers)
    folded.difference = largest_difference((deploy, model), (net, folded.weights), input_shapes)
    if not folded.difference <= TOLERANCE:
        raise NetError(
            f"folded, the net '{net.name}' gives other numbers: {folded.difference:.1e} of the largest, more than {TOLERANCE:.0e}; "
            "it is not changed (a variance near 0 does this)"
        )
    return folded


def fold_batch_norms(rewriter: Rewriter) -> dict[str, list[str]]:
    """Fold every BatchNorm, and the Scale behind it, into the convolution or inner product before it; a pass.

    A layer is folded where nothing else reads the blobs between, the statistics are the stored ones, and no parameters are shared.

    Args:
        rewriter: The deploy net with its weights.

    Returns:
        The layers that took others in, with the names of those.

    Raises:
        NetError: A layer's weights are missing.
    """
    folded = {}
    for index, layer in rewriter.graph.layers.items():
        if chain := _foldable_successors(rewriter.graph, index):
            folded[layer.name] = [rewriter.layer(i).name for i in chain]
            _fold(rewriter, index, chain)
    return folded


def largest_difference(
    first: tuple[Any, Caffemodel], second: tuple[Any, Caffemodel], input_shapes: dict[str, Shape] | None = None, seed: int = 1
) -> float:
    """Return the largest difference between the outputs of two deploy nets on one random input, relative to the blob's largest value.

    Where a final Softmax or Sigmoid makes an output, the scores that it reads are compared instead: probabilities hide differences of
    scores, and of two large scores that are nearly equal they enlarge rounding errors.

    Args:
        first: A ``NetParameter`` and its weights.
        second: Another one, with the same inputs and outputs.
        input_shapes: Other shapes of the inputs than the nets' own.
        seed: Of the random input.

    Raises:
        NetError: A net cannot be built, or the weights lack a layer.
    """
    results = []
    for param, model in (first, second):
        net = Net(param, TEST, fill=False, input_shapes=input_shapes)
        report = load_weights(net, model)
        if report.fresh:
            several = "several layers have this name; give each a name of its own" if report.fresh[0] in report.ambiguous else None
            raise NetError("the weights hold nothing of it", layer=report.fresh[0], hint=several)
        rng = np.random.default_rng(seed)
        inputs = [top for layer in net.layers if layer.TRAITS.role == "input" for top in layer.tops]
        batch = {name: torch.from_numpy(rng.normal(size=net.blob_shapes[name], scale=50).astype(np.float32)) for name in inputs}
        graph = Graph(param, TEST)
        last = [graph.layers[i] for i, _ in graph.outputs()]
        scores = {layer.top[0]: layer.bottom[0] for layer in last if traits(layer).loss and layer.bottom[0] not in layer.top}
        with torch.no_grad():
            blobs = net(batch, keep=list(scores.values()))
        results.append({name: value.double() for name, value in blobs.items() if name not in scores})
    worst = 0.0
    for name, value in results[0].items():
        difference = float((value - results[1][name]).abs().max())
        # Not max(): a NaN must not be lost.
        relative = difference / max(float(value.abs().max()), 1e-30)
        worst = relative if not relative <= worst else worst
    return worst


def _foldable_successors(graph: Graph, index: int) -> list[int]:
    """Return the indices of the BatchNorm and the Scale behind the layer at ``index`` that can be folded into it."""
    layer = graph.layers[index]
    facts = traits(layer)
    if not facts.outputs or facts.class_axes != (0, 0) or len(layer.top) != 1 or any(spec.name for spec in layer.param):
        return []
    if facts.settings_of(layer).axis != 1:
        return []
    chain: list[int] = []
    place, blob = index, layer.top[0]
    for kind in (BatchNorm.TYPE, Scale.TYPE):
        readers = graph.consumers(place, blob)
        if len(readers) != 1 or not _fits(graph.layers[readers[0]], kind):
            break
        place = readers[0]
        chain.append(place)
        blob = graph.layers[place].top[0]
    return chain


def _fits(layer: LayerParameter, kind: str) -> bool:
    if layer.type != kind or len(layer.bottom) != 1 or len(layer.top) != 1 or any(spec.name for spec in layer.param):
        return False
    if kind == Scale.TYPE:
        return bool(layer.scale_param.axis == 1 and layer.scale_param.num_axes == 1)
    return not layer.batch_norm_param.HasField("use_global_stats") or bool(layer.batch_norm_param.use_global_stats)


def _fold(rewriter: Rewriter, index: int, chain: list[int]) -> None:
    layer, blobs = rewriter.layer(index), rewriter.weights
    for place in (index, *chain):
        if rewriter.layer(place).name not in blobs:
            raise NetError("the weights hold nothing of it", layer=rewriter.layer(place).name)
    weights, *rest = (array.astype(np.float64) for array in blobs[layer.name])
    outputs = traits(layer).num_output(layer)
    factor, offset = np.ones(outputs), (rest[0].reshape(-1) if rest else np.zeros(outputs))
    for place in chain:
        one = rewriter.layer(place)
        slope, shift = _affine_of(one, [array.astype(np.float64).reshape(-1) for array in blobs[one.name]])
        factor, offset = factor * slope, offset * slope + shift
        rewriter.remove(place)
    # Files of Caffe's first years have (1, 1, outputs, inputs) for a matrix.
    axis = 2 if layer.type == InnerProduct.TYPE and weights.ndim == 4 else 0
    weights = weights * factor.reshape([outputs if i == axis else 1 for i in range(weights.ndim)])
    blobs[layer.name] = [_single(weights), _single(offset)]
    traits(layer).settings_of(layer).ClearField("bias_term")
    layer.top[0] = rewriter.layer(chain[-1]).top[0]


def _affine_of(layer: LayerParameter, arrays: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (slope, offset) by which a BatchNorm or a Scale maps each channel."""
    if layer.type == Scale.TYPE:
        return arrays[0], arrays[1] if len(arrays) > 1 else np.zeros_like(arrays[0])
    mean, variance, weight, *own = arrays
    part = 0.0 if weight[0] == 0 else 1.0 / weight[0]
    eps = float(np.float32(layer.batch_norm_param.eps))
    slope = 1.0 / np.sqrt(variance * part + (max(eps, 1e-5) if own else eps))
    shift = -mean * part * slope
    # NVCaffe's has a scale and a bias of its own.
    return (slope * own[0], shift * own[0] + own[1]) if own else (slope, shift)


def _single(array: NDArray[np.float64]) -> Array:
    return array.astype(np.float32)
