"""Batch normalization folded into the layer before it: in use it is a line, and so is a convolution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.errors import NetError
from caffetools.graph.classifiers import classifier_param, is_linear
from caffetools.graph.graph import Graph
from caffetools.layers.base import Shape
from caffetools.layers.inner_product import InnerProduct
from caffetools.layers.normalization import BatchNorm
from caffetools.layers.registry import traits
from caffetools.layers.scale import Scale
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.proto.binary import Caffemodel
from caffetools.proto.blobs import Array
from caffetools.proto.schema import TEST, NetParameter

# Of an output's largest value: what folding may change.
TOLERANCE = 1e-5


@dataclass
class Folded:
    """A deploy net and its weights after folding; ``layers`` are those that took others in, with the names of what they took."""

    net: Any
    weights: Caffemodel
    layers: dict[str, list[str]] = field(default_factory=dict)
    difference: float = 0.0


def fold_batch_norm(deploy: Any, model: Caffemodel, *, input_shapes: dict[str, Shape] | None = None) -> Folded:
    """Fold every BatchNorm (and the Scale behind it) into the Convolution or InnerProduct before it, where nothing else reads between.

    Args:
        deploy: A deploy ``NetParameter`` in today's form; it is not changed. model: its weights, which are not changed either.
        input_shapes: other shapes for the check's inputs than the net's own.

    Returns:
        The net and weights, checked: random pictures through both nets differ by at most 1e-5 of an output's largest value.

    Raises:
        NetError: there is nothing to fold, a layer's weights are missing, or the outputs differ more.
    """
    net = NetParameter()
    net.CopyFrom(deploy)
    folded = Folded(net, Caffemodel(net, dict(model.blobs)))
    gone: set[int] = set()
    graph = Graph(net, TEST)
    for index, layer in graph.layers.items():
        chain = _chain(graph, index)
        if chain:
            _fold(layer, [net.layer[i] for i in chain], folded)
            gone.update(chain)
    if not gone:
        raise NetError(f"the net '{net.name}' has no BatchNorm right behind a Convolution or InnerProduct; there is nothing to fold")
    kept = [layer for i, layer in enumerate(net.layer) if i not in gone]
    copies = NetParameter(layer=kept).layer
    del net.layer[:]
    net.layer.extend(copies)
    folded.difference = largest_difference((deploy, model), (net, folded.weights), input_shapes)
    if not folded.difference <= TOLERANCE:
        raise NetError(
            f"folded, the net '{net.name}' gives other numbers: {folded.difference:.1e} of the largest, more than {TOLERANCE:.0e}; "
            "it stays as it was (a variance near 0 does this)"
        )
    return folded


def largest_difference(
    first: tuple[Any, Caffemodel], second: tuple[Any, Caffemodel], input_shapes: dict[str, Shape] | None = None, seed: int = 1
) -> float:
    """The largest difference between what two deploy nets make of the same random input, relative to the blob's largest value.

    What is compared are the outputs, and the scores that a final Softmax or Sigmoid reads, for probabilities hide much.

    Raises:
        NetError: a net cannot be built, or the weights lack a layer.
    """
    results = []
    for param, model in (first, second):
        net = Net(param, TEST, fill=False, input_shapes=input_shapes)
        report = load_weights(net, model)
        if report.fresh:
            raise NetError("the weights hold nothing of it", layer=report.fresh[0])
        rng = np.random.default_rng(seed)
        inputs = [top for layer in net.layers if layer.TRAITS.role == "input" for top in layer.tops]
        batch = {name: torch.from_numpy(rng.normal(size=net.blob_shapes[name], scale=50).astype(np.float32)) for name in inputs}
        graph = Graph(param, TEST)
        last = [graph.layers[i] for i, _ in graph.outputs()]
        scores = [layer.bottom[0] for layer in last if traits(layer).loss and layer.bottom[0] not in layer.top]
        with torch.no_grad():
            results.append({name: value.double() for name, value in net(batch, keep=scores).items()})
    worst = 0.0
    for name, value in results[0].items():
        difference = float((value - results[1][name]).abs().max())
        # Not max(): a NaN must not be lost.
        relative = difference / max(float(value.abs().max()), 1e-30)
        worst = relative if not relative <= worst else worst
    return worst


def _chain(graph: Graph, index: int) -> list[int]:
    """The BatchNorm and the Scale behind the layer at ``index`` that can go into it."""
    layer = graph.layers[index]
    if not is_linear(layer) or len(layer.top) != 1 or any(spec.name for spec in layer.param):
        return []
    if traits(layer).class_axes[:1] != (0,) or classifier_param(layer).axis != 1:
        return []
    chain: list[int] = []
    place, blob = index, layer.top[0]
    for kind in (BatchNorm.TYPE, Scale.TYPE):
        readers = graph.readers(place, blob)
        if len(readers) != 1 or not _fits(graph.layers[readers[0]], kind):
            break
        place = readers[0]
        chain.append(place)
        blob = graph.layers[place].top[0]
    return chain


def _fits(layer: Any, kind: str) -> bool:
    if layer.type != kind or len(layer.bottom) != 1 or len(layer.top) != 1 or any(spec.name for spec in layer.param):
        return False
    if kind == Scale.TYPE:
        return bool(layer.scale_param.axis == 1 and layer.scale_param.num_axes == 1)
    return not layer.batch_norm_param.HasField("use_global_stats") or bool(layer.batch_norm_param.use_global_stats)


def _fold(layer: Any, chain: list[Any], folded: Folded) -> None:
    blobs = folded.weights.blobs
    for one in (layer, *chain):
        if one.name not in blobs:
            raise NetError("the weights hold nothing of it", layer=one.name)
    weights, *rest = (array.astype(np.float64) for array in blobs[layer.name])
    outputs = classifier_param(layer).num_output
    factor, offset = np.ones(outputs), (rest[0].reshape(-1) if rest else np.zeros(outputs))
    for one in chain:
        slope, shift = _line(one, [array.astype(np.float64).reshape(-1) for array in blobs.pop(one.name)])
        factor, offset = factor * slope, offset * slope + shift
    # Files of Caffe's first years have (1, 1, outputs, inputs) for a matrix.
    axis = 2 if layer.type == InnerProduct.TYPE and weights.ndim == 4 else 0
    weights = weights * factor.reshape([outputs if i == axis else 1 for i in range(weights.ndim)])
    blobs[layer.name] = [_single(weights), _single(offset)]
    classifier_param(layer).ClearField("bias_term")
    layer.top[0] = chain[-1].top[0]
    folded.layers[layer.name] = [one.name for one in chain]


def _line(layer: Any, arrays: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a BatchNorm or a Scale does to each channel: (slope, offset)."""
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
