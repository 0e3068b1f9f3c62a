"""Running any number of items through a net that has a fixed batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import NetError
from caffetools.pycaffe.errors import expect_names

Arrays = dict[str, NDArray[Any]]


class BatchedNet(Protocol):
    """What is needed of a net here; see :class:`caffetools.pycaffe.net.Net`."""

    @property
    def name(self) -> str:
        """The net's name."""

    @property
    def inputs(self) -> list[str]:
        """The names of the input blobs."""

    @property
    def outputs(self) -> list[str]:
        """The names of the output blobs."""

    @property
    def blobs(self) -> Mapping[str, Any]:
        """The blobs by name."""

    def forward(
        self, blobs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **inputs: NDArray[Any]
    ) -> Arrays:
        """Run the layers from ``start`` to ``end`` and return the outputs and ``blobs``, by name."""

    def backward(
        self, diffs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **tops: NDArray[Any]
    ) -> Arrays:
        """Run the layers backward from ``start`` to ``end`` and return the inputs' gradients and those of ``diffs``, by name."""


def forward_all(net: BatchedNet, blobs: list[str], inputs: Mapping[str, Any]) -> Arrays:
    """Run all items of ``inputs`` through the net, batch by batch.

    Args:
        net: The net.
        blobs: Names of further blobs to return.
        inputs: Input name → values (items, C, H, W).

    Returns:
        Copies of the outputs and of ``blobs``, by name.

    Raises:
        NetError: The inputs are not those of the net, or differ in length.
    """
    expect_names(inputs, net.inputs, "inputs", net.name)
    collected: dict[str, list[Any]] = {}
    batches = 0
    for batch in batches_of(net, inputs):
        _collect(collected, net.forward(blobs, None, None, **batch))
        batches += 1
    return _joined(collected, _length(inputs), _batch_size(net, inputs), batches)


def forward_backward_all(net: BatchedNet, blobs: list[str], diffs: list[str], values: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """Run all items of ``values``, arrays (items, …), through the net and back, batch by batch.

    Args:
        net: The net.
        blobs: Names of further blobs whose data to return.
        diffs: Names of further blobs whose diffs to return.
        values: Values of inputs, and diffs of outputs, by name. Where inputs and diffs differ in length, the net keeps what it has for the
            batches that the shorter ones lack, and as many items are returned as the first array has.

    Returns:
        Copies of data and of diffs, by name.

    Raises:
        NetError: A name is neither an input nor an output of the net, lengths of inputs or of diffs differ, or there are no values.
    """
    if not values:
        raise _nothing_given(net)
    unknown = [name for name in values if name not in (*net.inputs, *net.outputs)]
    if unknown:
        raise NetError(f"the net '{net.name}' has no input or output {', '.join(unknown)}")
    inputs = {name: values[name] for name in values if name in net.inputs}
    tops = {name: values[name] for name in values if name not in net.inputs}
    data: dict[str, list[Any]] = {}
    gradients: dict[str, list[Any]] = {}
    # Caffe runs the batches of the longer of the two (for the others the net keeps the values or diffs that it has), and returns as many items
    # as the first array has.
    pairs: Iterator[tuple[Arrays, Arrays]] = itertools.zip_longest(_batches_or_none(net, inputs), _batches_or_none(net, tops), fillvalue={})
    batches = 0
    for batch, top_diffs in pairs:
        _collect(data, net.forward(blobs, None, None, **batch))
        _collect(gradients, net.backward(diffs, None, None, **top_diffs))
        batches += 1
    total, size = len(next(iter(values.values()))), _batch_size(net, values)
    return _joined(data, total, size, batches), _joined(gradients, total, size, batches)


def _batches_or_none(net: BatchedNet, values: Mapping[str, Any]) -> Iterator[Arrays]:
    return batches_of(net, values) if values else iter(())


def batches_of(net: BatchedNet, inputs: Mapping[str, Sequence[Any]]) -> Iterator[Arrays]:
    """Yield ``inputs``, arrays (items, …), in batches of the net's size, the last one padded with zeros. Raises :class:`NetError` without any."""
    if not inputs:
        raise _nothing_given(net)
    size = _batch_size(net, inputs)
    for start in range(0, _length(inputs), size):
        batch = {}
        for name, values in inputs.items():
            part = np.asarray(values[start : start + size])
            missing = size - len(part)
            batch[name] = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) if missing else part
        yield batch


def _nothing_given(net: BatchedNet) -> NetError:
    return NetError(f"the net '{net.name}' is given no values to run")


def _length(inputs: Mapping[str, Any]) -> int:
    lengths = {len(values) for values in inputs.values()}
    if len(lengths) != 1:
        raise NetError(f"inputs must have one length, not {', '.join(f'{len(v)} ({name})' for name, v in inputs.items()) or 'none'}")
    return lengths.pop()


def _collect(into: dict[str, list[Any]], arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        into.setdefault(name, []).extend(np.atleast_1d(array).copy())


def _joined(collected: dict[str, list[Any]], total: int, size: int, batches: int) -> Arrays:
    joined: Arrays = {}
    for name, items in collected.items():
        # Some blobs have several rows an item; one without a batch axis (a loss) has one value a batch, and none is of padding only.
        rows = len(items) // batches
        joined[name] = np.asarray(items[: total * (rows // size)] if rows % size == 0 else items)
    return joined


def _batch_size(net: BatchedNet, inputs: Mapping[str, Any]) -> int:
    return int(net.blobs[next(iter(inputs))].shape[0])
