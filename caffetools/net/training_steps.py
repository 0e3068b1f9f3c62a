"""What a pass runs in place of its layers one by one, with the same bits of results but for BatchNorm's rounding.

All three in training on the CPU, the last one on a GPU, in passes without gradients too:

- A ReLU below a max pooling runs after it, on a quarter of the values: max(0, max(x)) = max(max(0, x)), and so is the value that gets the
  gradient.
- A convolution and its ReLU are one operator, and so are convolutions with ReLUs whose tops nothing but a concatenation reads: each writes
  its channels of the concatenation.
- A BatchNorm by the batch's statistics, the Scale above it and the ReLU above that are one operator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from caffetools.layers import training_conv
from caffetools.layers.activation import ReLU
from caffetools.layers.base import Layer
from caffetools.layers.concat import Concat
from caffetools.layers.convolution import Convolution
from caffetools.layers.normalization import BatchNorm
from caffetools.layers.pooling import Pooling
from caffetools.layers.scale import Scale

Blobs = dict[str, Tensor]
Step = Callable[[Blobs], None]
RunLayer = Callable[[int, Layer, Blobs], None]


@dataclass(frozen=True)
class LateReLUs:
    """A max pooling, and the ReLUs below it whose tops nothing else reads.

    Attributes:
        pooling: The index of the pooling layer.
        relus: The indices of the ReLU layers.
        between: The indices of all layers whose tops the pass then lacks: the ReLUs, and the concatenation of their tops if there is one.
    """

    pooling: int
    relus: tuple[int, ...]
    between: tuple[int, ...]


@dataclass(frozen=True)
class Joined:
    """Convolutions, each with a ReLU that alone reads its top, and the concatenation that alone reads the ReLUs' tops.

    Attributes:
        convolutions: The indices of the convolutions.
        relus: The index of the ReLU of each.
        concat: The index of the concatenation; None for one convolution without any.
    """

    convolutions: tuple[int, ...]
    relus: tuple[int, ...]
    concat: int | None

    @property
    def last(self) -> int:
        """The index of the layer whose top is the result."""
        return self.relus[0] if self.concat is None else self.concat


@dataclass(frozen=True)
class Normalized:
    """A BatchNorm, and the layers above it that alone read one another's tops.

    Attributes:
        batch_norm: The index of the BatchNorm layer.
        scale: The index of the Scale layer; None without one.
        relu: The index of the ReLU layer; None without one.
    """

    batch_norm: int
    scale: int | None
    relu: int | None

    @property
    def above(self) -> tuple[int, ...]:
        """The indices of the layers above the BatchNorm, in order."""
        return tuple(index for index in (self.scale, self.relu) if index is not None)


class TrainingSteps:
    """The steps of training passes over a net.

    Args:
        layers: The layers of the net, in order.
        gradients: For each of them, which bottoms get a gradient.
        alone: The indices of layers that have to run by themselves.
    """

    def __init__(self, layers: Sequence[Layer], gradients: Sequence[Sequence[bool]], alone: Collection[int] = ()):
        self._layers, self._gradients = layers, gradients
        graph = _Graph(layers, gradients)
        late = (found for index in range(len(layers)) if (found := graph.late_relus(index)) is not None)
        self._late = [found for found in late if not {found.pooling, *found.between} & set(alone)]
        self._joined = [found for found in graph.joined() if not {*found.convolutions, *found.relus, found.last} & set(alone)]
        self._normalized = [found for found in graph.normalized() if not {found.batch_norm, *found.above} & set(alone)]

    def of_pass(self, layers: Sequence[Layer], wanted: Collection[str], run_layer: RunLayer) -> dict[int, Step]:
        """Return what to run in place of layers, by their indices.

        Args:
            layers: The layers as configured for the pass.
            wanted: The blobs that the pass returns.
            run_layer: Runs a layer of the given index over the blobs; :meth:`Net.run_layer`.
        """
        steps: dict[int, Step] = {}
        late: set[int] = set()
        for pool in self._late:
            pooling = layers[pool.pooling]
            seen = any(top in wanted for index in pool.between for top in layers[index].tops)
            if (
                not isinstance(pooling, Pooling)
                or pooling.window.has_empty_window
                or seen
                or _is_hooked(layers, pool.between, pool.pooling)
            ):
                continue
            pooling = copy.copy(pooling)
            pooling.rectifies = True
            steps[pool.pooling] = _runs(run_layer, pool.pooling, pooling)
            late.update(pool.relus)
        steps.update((index, _renames(layers[index])) for index in late)
        for joined in self._joined:
            trained = all(self._layers[index].training for index in joined.convolutions)
            if trained and not _is_observed(layers, (*joined.convolutions, *joined.relus, joined.last), wanted):
                steps.update(_JoinedPass(joined, layers, self._gradients, late, run_layer).steps())
        steps.update(self.normalizing(layers, wanted, run_layer, late))
        return steps

    @property
    def joined(self) -> set[int]:
        """The indices of layers that are part of another one's operator."""
        within = {index for pool in self._late for index in pool.between}
        within.update(index for joined in self._joined for index in (*joined.relus, joined.last))
        return within.union(*(found.above for found in self._normalized))

    @property
    def chains(self) -> list[tuple[int, ...]]:
        """The indices of a BatchNorm and the layers above it that :meth:`normalizing` joins, for each."""
        return [(found.batch_norm, *found.above) for found in self._normalized]

    def normalizing(
        self, layers: Sequence[Layer], wanted: Collection[str], run_layer: RunLayer, late: Collection[int] = (), *, again: bool = True
    ) -> dict[int, Step]:
        """Return the steps of :meth:`of_pass` for BatchNorm layers alone.

        Args:
            layers: As for :meth:`of_pass`.
            wanted: As for :meth:`of_pass`.
            run_layer: As for :meth:`of_pass`.
            late: The indices of ReLUs that run after a pooling.
            again: Whether convolutions may compute their results again in the backward pass rather than keep them.
        """
        steps: dict[int, Step] = {}
        for normalized, chain in zip(self._normalized, self.chains, strict=True):
            if not _is_observed(layers, chain, wanted):
                steps.update(_NormalizedPass(normalized, layers, self._layers, late, run_layer, again=again).steps())
        return steps


class _JoinedPass:
    """One pass over a :class:`Joined`: convolutions wait for the concatenation; where the native operator does not take one, all run in order."""

    def __init__(
        self, joined: Joined, layers: Sequence[Layer], gradients: Sequence[Sequence[bool]], late: Collection[int], run_layer: RunLayer
    ):
        self._joined, self._layers, self._gradients, self._run_layer = joined, layers, gradients, run_layer
        self._late = late
        self._inputs: dict[int, Tensor] = {}
        self._is_done = False

    def steps(self) -> dict[int, Step]:
        convolutions, relus = self._joined.convolutions, self._joined.relus
        if self._joined.concat is None:
            # With a late ReLU there is nothing to join.
            return {} if relus[0] in self._late else {convolutions[0]: self._convolve_one, relus[0]: self._rectify_one}
        steps: dict[int, Step] = {index: self._holding(index) for index in convolutions}
        steps.update((index, _renames(self._layers[index])) for index in relus)
        return {**steps, self._joined.concat: self._convolve_all}

    def _holding(self, index: int) -> Step:
        """Return the step that keeps the input of convolution ``index`` until the concatenation."""
        layer = self._layers[index]

        def hold(blobs: Blobs) -> None:
            self._inputs[index] = blobs[layer.tops[0]] = blobs[layer.bottoms[0]]

        return hold

    def _branch(self, index: int, x: Tensor) -> training_conv.Branch | None:
        layer = self._layers[index]
        assert isinstance(layer, Convolution)  # noqa: S101 (_Graph looked for those)
        branch = layer.training_branch(x if self._gradients[index][0] else x.detach())
        return branch if branch is not None and training_conv.takes(branch) else None

    def _convolve_one(self, blobs: Blobs) -> None:
        (index,) = self._joined.convolutions
        layer = self._layers[index]
        if branch := self._branch(index, blobs[layer.bottoms[0]]):
            blobs[layer.tops[0]] = training_conv.convolve([branch], rectify=True)
            self._is_done = True
        else:
            self._run_layer(index, layer, blobs)

    def _rectify_one(self, blobs: Blobs) -> None:
        (index,) = self._joined.relus
        if self._is_done:
            _renames(self._layers[index])(blobs)
        else:
            self._run_layer(index, self._layers[index], blobs)

    def _convolve_all(self, blobs: Blobs) -> None:
        concat = self._joined.last
        branches = [branch for index, x in self._inputs.items() if (branch := self._branch(index, x)) is not None]
        in_order = len({branch.geometry.output(branch.x.shape, branch.weight.shape)[2:] for branch in branches}) == 1
        if len(branches) == len(self._inputs) and in_order:
            rectify = self._joined.relus[0] not in self._late
            inputs = dict(zip(self._inputs, branches, strict=True))
            ordered = [inputs[index] for index in self._joined.convolutions]
            blobs[self._layers[concat].tops[0]] = training_conv.convolve(ordered, rectify=rectify)
        else:
            self._run_in_order(blobs)
        self._inputs.clear()

    def _run_in_order(self, blobs: Blobs) -> None:
        for index, relu in zip(self._joined.convolutions, self._joined.relus, strict=True):
            layer = self._layers[index]
            local = {layer.bottoms[0]: self._inputs[index]}
            self._run_layer(index, layer, local)
            if relu not in self._late:
                self._run_layer(relu, self._layers[relu], local)
            top = self._layers[relu].tops[0]
            blobs[top] = local[top] if relu not in self._late else local[layer.tops[0]]
        self._run_layer(self._joined.last, self._layers[self._joined.last], blobs)


class _NormalizedPass:
    """One pass over a :class:`Normalized`: the BatchNorm's step computes all; where the native operator does not take it, all run in order."""

    def __init__(
        self,
        normalized: Normalized,
        layers: Sequence[Layer],
        own: Sequence[Layer],
        late: Collection[int],
        run_layer: RunLayer,
        *,
        again: bool,
    ):
        self._normalized, self._layers, self._own, self._run_layer = normalized, layers, own, run_layer
        self._late, self._again = late, again
        self._is_done = False

    def steps(self) -> dict[int, Step]:
        steps: dict[int, Step] = {index: self._following(index) for index in self._normalized.above if index not in self._late}
        return {**steps, self._normalized.batch_norm: self._normalize}

    def _normalize(self, blobs: Blobs) -> None:
        index, relu = self._normalized.batch_norm, self._normalized.relu
        layer = self._layers[index]
        assert isinstance(layer, BatchNorm)  # noqa: S101 (_Graph looked for those)
        layer.__dict__["training"] = self._own[index].training
        scale, shift = self._scale()
        rectify = relu is not None and relu not in self._late
        y = layer.normalize_and_scale(blobs[layer.bottoms[0]], scale, shift, rectify=rectify, again=self._again)
        if y is None:
            self._run_layer(index, layer, blobs)
        else:
            blobs[layer.tops[0]] = y
            self._is_done = True

    def _scale(self) -> tuple[Tensor | None, Tensor | None]:
        if self._normalized.scale is None:
            return None, None
        layer = self._layers[self._normalized.scale]
        of_channels = layer.of_channels() if isinstance(layer, Scale) else None
        assert of_channels is not None  # noqa: S101 (_Graph looked for those)
        return of_channels

    def _following(self, index: int) -> Step:
        layer = self._layers[index]

        def follow(blobs: Blobs) -> None:
            if self._is_done:
                _renames(layer)(blobs)
            else:
                self._run_layer(index, layer, blobs)

        return follow


def _runs(run_layer: RunLayer, index: int, layer: Layer) -> Step:
    return lambda blobs: run_layer(index, layer, blobs)


def _renames(layer: Layer) -> Step:
    def rename(blobs: Blobs) -> None:
        blobs[layer.tops[0]] = blobs[layer.bottoms[0]]

    return rename


def _is_observed(layers: Sequence[Layer], indices: Sequence[int], wanted: Collection[str]) -> bool:
    """Return whether something is to see what layers that are one operator compute on the way to the last one's tops."""
    inner = {top for index in indices for top in layers[index].tops} - set(layers[indices[-1]].tops)
    return _is_hooked(layers, indices) or any(name in wanted for name in inner)


def _is_hooked(layers: Sequence[Layer], indices: Sequence[int], *more: int) -> bool:
    return any(layers[index]._forward_hooks or layers[index]._forward_pre_hooks for index in (*indices, *more))


class _Graph:
    """Which layer reads which layer's tops."""

    def __init__(self, layers: Sequence[Layer], gradients: Sequence[Sequence[bool]]):
        self._layers, self._gradients = layers, gradients
        producer: dict[str, int] = {}
        self._sources: list[list[int]] = []
        self._readers: list[list[int]] = [[] for _ in layers]
        for index, layer in enumerate(layers):
            self._sources.append([producer.get(bottom, -1) for bottom in layer.bottoms])
            for source in self._sources[-1]:
                if source >= 0:
                    self._readers[source].append(index)
            producer.update(dict.fromkeys(layer.tops, index))

    def late_relus(self, index: int) -> LateReLUs | None:
        """Return the ReLUs that may run after layer ``index``; None if it is not a max pooling, or has none."""
        layer = self._layers[index]
        if type(layer) is not Pooling or layer.method != "MAX" or len(layer.tops) > 1:
            return None
        below = self._sources[index][0]
        if self._is_relu(below, index):
            return LateReLUs(index, (below,), (below,))
        if below < 0 or self._readers[below] != [index] or type(self._layers[below]) is not Concat:
            return None
        relus = tuple(self._sources[below])
        return LateReLUs(index, relus, (*relus, below)) if all(self._is_relu(source, below) for source in relus) else None

    def joined(self) -> list[Joined]:
        """Return the convolutions that can be one operator with what is above them."""
        found: list[Joined] = []
        taken: set[int] = set()
        for index, layer in enumerate(self._layers):
            relus = self._sources[index]
            if type(layer) is not Concat or layer.concat_axis != 1 or not all(self._gradients[index]) or len(set(relus)) < len(relus):
                continue
            below = [self._convolution_below(relu) for relu in relus]
            if all(self._is_relu(relu, index) for relu in relus) and None not in below:
                found.append(Joined(tuple(source for source in below if source is not None), tuple(relus), index))
                taken.update(relus)
        for index, layer in enumerate(self._layers):
            source = self._convolution_below(index)
            if index not in taken and type(layer) is ReLU and source is not None and self._is_plain(index):
                found.append(Joined((source,), (index,), None))
        return found

    def normalized(self) -> list[Normalized]:
        """Return the BatchNorm layers that can be one operator with what is above them."""
        found: list[Normalized] = []
        for index, layer in enumerate(self._layers):
            if type(layer) is not BatchNorm or len(layer.tops) > 1 or not all(self._gradients[index]):
                continue
            scale = self._only_reader(index)
            if scale is not None and not self._scales_channels(scale):
                scale = None
            relu = self._only_reader(index if scale is None else scale)
            if relu is not None and not self._is_plain(relu):
                relu = None
            if scale is not None or relu is not None:
                found.append(Normalized(index, scale, relu))
        return found

    def _only_reader(self, index: int) -> int | None:
        return self._readers[index][0] if len(self._readers[index]) == 1 else None

    def _scales_channels(self, index: int) -> bool:
        layer = self._layers[index]
        return type(layer) is Scale and layer.of_channels() is not None and all(self._gradients[index])

    def _convolution_below(self, relu: int) -> int | None:
        """Return the convolution whose only top layer ``relu`` alone reads."""
        source = self._sources[relu][0] if relu >= 0 and len(self._sources[relu]) == 1 else -1
        if source < 0 or type(self._layers[source]) is not Convolution or self._readers[source] != [relu]:
            return None
        return source if len(self._layers[source].tops) == 1 else None

    def _is_relu(self, index: int, reader: int) -> bool:
        """Return whether layer ``index`` is a ReLU that ``reader`` alone reads."""
        return index >= 0 and self._readers[index] == [reader] and self._is_plain(index)

    def _is_plain(self, index: int) -> bool:
        """Return whether layer ``index`` is a ReLU without a slope, through which the gradient passes."""
        layer = self._layers[index]
        return type(layer) is ReLU and not layer.param.relu_param.negative_slope and all(self._gradients[index])
