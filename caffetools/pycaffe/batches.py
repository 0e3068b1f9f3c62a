"""Running any number of items through a net that has a fixed batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import NetError
from caffetools.net.net import Net as TorchNet
from caffetools.pycaffe.errors import expect_names

if TYPE_CHECKING:
    from caffetools.pycaffe.net import Net

Arrays = dict[str, NDArray[Any]]


def forward_all(net: Net, blobs: list[str], inputs: Mapping[str, Any]) -> Arrays:
    """What ``net.forward`` gives for all of ``inputs``, batch by batch; copies, one array for each output and each of ``blobs``."""
    expect_names(inputs, net.inputs, "inputs", net.name)
    collected: dict[str, list[Any]] = {}
    for batch in _batches(net, inputs):
        _collect(collected, net.forward(blobs, None, None, **batch))
    return _joined(collected, _length(inputs), _batch_size(net, inputs))


def forward_backward_all(net: Net, blobs: list[str], diffs: list[str], values: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """As :func:`forward_all` and back, for inputs and those outputs' diffs that ``values`` holds."""
    unknown = [name for name in values if name not in (*net.inputs, *net.outputs)]
    if unknown:
        raise NetError(f"the net '{net.name}' has no input or output {', '.join(unknown)}")
    inputs = {name: values[name] for name in values if name in net.inputs}
    tops = {name: values[name] for name in values if name not in net.inputs}
    data: dict[str, list[Any]] = {}
    gradients: dict[str, list[Any]] = {}
    top_batches = _batches(net, tops) if tops else None
    for batch in _batches(net, inputs):
        _collect(data, net.forward(blobs, None, None, **batch))
        _collect(gradients, net.backward(diffs, None, None, **(next(top_batches) if top_batches else {})))
    total, size = _length(inputs), _batch_size(net, inputs)
    return _joined(data, total, size), _joined(gradients, total, size)


def set_input_arrays(net: TorchNet, data: NDArray[Any], labels: NDArray[Any]) -> None:
    """Give the arrays to the net's first layer, which must be a MemoryData layer. Raises :class:`NetError`."""
    first = net.layers[0] if net.layers else None
    if first is None or not hasattr(first, "set_arrays"):
        kind = first.type_name if first is not None else "none"
        raise NetError(f"set_input_arrays needs a MemoryData layer as the first of the net, not {kind}")
    first.set_arrays(data, labels)  # type: ignore[operator]


def _batches(net: Net, inputs: Mapping[str, Any]) -> Iterator[Arrays]:
    """``inputs`` cut into the net's batches, the last one filled up with zeros."""
    if not inputs:
        raise NetError(f"the net '{net.name}' is given no values to run")
    size = _batch_size(net, inputs)
    for start in range(0, _length(inputs), size):
        batch = {}
        for name, values in inputs.items():
            part = np.asarray(values[start : start + size])
            missing = size - len(part)
            batch[name] = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) if missing else part
        yield batch


def _length(inputs: Mapping[str, Any]) -> int:
    lengths = {len(values) for values in inputs.values()}
    if len(lengths) != 1:
        raise NetError(f"inputs must have one length, not {', '.join(f'{len(v)} ({name})' for name, v in inputs.items()) or 'none'}")
    return lengths.pop()


def _collect(into: dict[str, list[Any]], arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        into.setdefault(name, []).extend(np.atleast_1d(array).copy())


def _joined(collected: dict[str, list[Any]], total: int, size: int) -> Arrays:
    batches = -(-total // size)
    joined: Arrays = {}
    for name, items in collected.items():
        # Some blobs have several rows an item; one without a batch axis (a loss) has one value a batch, and none is of padding only.
        rows = len(items) // batches
        padding = (batches * size - total) * (rows // size) if rows % size == 0 else 0
        joined[name] = np.asarray(items[: len(items) - padding])
    return joined


def _batch_size(net: Net, inputs: Mapping[str, Any]) -> int:
    return net.blobs[next(iter(inputs))].shape[0]
