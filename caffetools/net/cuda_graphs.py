"""Forward passes recorded as CUDA graphs: one launch in place of one for every kernel, which is most of the time of a small batch."""

from __future__ import annotations

import copy
import os
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffetools.layers.base import Layer
from caffetools.net.shape_plans import ShapePlan, ShapePlans, is_exclusive, runs_unobserved

Blobs = dict[str, Tensor]
Compute = Callable[[Blobs, Collection[str], ShapePlan], Blobs]

# Graphs that are kept, each with memory for all blobs of its shapes.
_MAX_GRAPHS = 4
# Passes by the layers themselves before one is recorded: cuDNN chooses its algorithms in the first, and a shape that comes once is not worth it.
_WARM_UP = 2


def host_state(layers: Sequence[Layer]) -> tuple[object, ...]:
    """Return what a pass may change outside of the device, to be compared before and after one.

    A replay repeats kernels, not Python: random numbers drawn on the CPU and counters in a layer would stand still. They are the layers'
    generators, torch's, NumPy's and Python's random states, and the plain attributes of each layer.
    """
    plain = [{k: v for k, v in vars(layer).items() if isinstance(v, (bool, int, float, str))} for layer in layers if not layer.IS_DATA]
    kind, keys, position, *rest = np.random.get_state()
    drawn = [bytes(g.get_state().numpy()) for g in {id(layer.generator): layer.generator for layer in layers}.values() if g is not None]
    return drawn, bytes(torch.get_rng_state().numpy()), (kind, bytes(np.asarray(keys)), position, *rest), random.getstate(), plain


def can_record(layers: Sequence[Layer], shape_plans: ShapePlans) -> bool:
    """Return whether nothing in the layers rules a recording out: shapes that depend on values, and layers that keep a state."""
    return not shape_plans.dynamic and not any(is_exclusive(layer) for layer in layers if not layer.IS_DATA)


@dataclass(frozen=True)
class RecordedPass:
    """A recorded pass: the blobs that it reads, and those that it returns.

    Attributes:
        graph: The recording.
        inputs: Blobs by name; a replay reads them.
        results: Blobs by name; a replay overwrites them.
    """

    graph: torch.cuda.CUDAGraph
    inputs: Blobs
    results: Blobs

    def replay(self, blobs: Mapping[str, Tensor]) -> None:
        """Run the recorded kernels over the values of ``blobs``; the results are in :attr:`results` until the next replay."""
        for name, static in self.inputs.items():
            static.copy_(blobs[name], non_blocking=True)
        self.graph.replay()


def record(layers: Sequence[Layer], blobs: Mapping[str, Tensor], compute: Callable[[Blobs], Blobs]) -> RecordedPass | None:
    """Record ``compute`` over copies of ``blobs``.

    Args:
        layers: What ``compute`` runs.
        blobs: Blobs by name, on a CUDA device.
        compute: Runs the layers; called twice, the first time without a recording.

    Returns:
        The recording; None where CUDA cannot record it (a value is read on the CPU) or a replay would not repeat it (:func:`host_state`).
    """
    device = next(iter(blobs.values())).device
    inputs = {name: blob.detach().clone(memory_format=torch.preserve_format) for name, blob in blobs.items()}
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    before = host_state(layers)
    with torch.cuda.stream(stream):
        compute(dict(inputs))
    torch.cuda.current_stream(device).wait_stream(stream)
    if host_state(layers) != before:
        return None
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            results = compute(dict(inputs))
    except RuntimeError:
        torch.cuda.synchronize(device)
        return None
    return RecordedPass(graph, inputs, results)


class InferenceGraphs:
    """The recorded TEST passes of a net by input shapes and wanted blobs, on a CUDA device.

    Weights are read where they are, so a replay sees changes in place; for weights that move a pass is recorded again.

    Args:
        layers: The net's layers in order.
        shape_plans: Of the same net.

    Attributes:
        enabled: False runs every pass layer by layer. Set from the environment variable ``CAFFETOOLS_FUSE`` (0: False).
    """

    def __init__(self, layers: Sequence[Layer], shape_plans: ShapePlans):
        self.enabled = os.environ.get("CAFFETOOLS_FUSE") != "0"
        self._layers, self._shape_plans = layers, shape_plans
        self._possible = can_record(layers, shape_plans)
        self._seen: OrderedDict[tuple[object, ...], int] = OrderedDict()
        self._graphs: OrderedDict[tuple[object, ...], RecordedPass | None] = OrderedDict()
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None

    def run(self, compute: Compute, plan: ShapePlan, blobs: Mapping[str, Tensor], wanted: Iterable[str]) -> Blobs | None:
        """Run by a recording.

        Args:
            compute: Runs the layers of a plan.
            plan: The layers configured for the shapes of ``blobs``.
            blobs: Tops of the data layers, by name, in the layout that the layers take.
            wanted: Names of the blobs to return.

        Returns:
            The wanted blobs, in tensors of their own; None where the pass has to run layer by layer.
        """
        if not self._may_run(blobs):
            return None
        names = tuple(wanted)
        with self._lock:
            key = self._key(blobs, names)
            if key not in self._graphs and not self._worth_recording(key):
                return None
            if key not in self._graphs:
                self._graphs[key] = record(self._layers, blobs, lambda inputs: compute(inputs, names, plan))
                if len(self._graphs) > _MAX_GRAPHS:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            recorded = self._graphs[key]
            if recorded is None:
                return None
            # That of the net's device, which need not be the current one.
            stream = torch.cuda.current_stream(next(iter(blobs.values())).device)
            if self._done is not None:
                stream.wait_event(self._done)
            recorded.replay(blobs)
            results = {name: blob.clone(memory_format=torch.preserve_format) for name, blob in recorded.results.items()}
            self._done = stream.record_event()
            return results

    def clear(self) -> None:
        """Drop all recordings: the layers or where their weights are were changed."""
        with self._lock:
            self._graphs.clear()
            self._seen.clear()

    def _may_run(self, blobs: Mapping[str, Tensor]) -> bool:
        if not self.enabled or not self._possible or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if not blobs or not all(t.device.type == "cuda" and t.numel() for t in blobs.values()):
            return False
        return runs_unobserved(self._layers)

    def _worth_recording(self, key: tuple[object, ...]) -> bool:
        count = self._seen[key] = self._seen.pop(key, 0) + 1
        if len(self._seen) > 4 * _MAX_GRAPHS:
            self._seen.popitem(last=False)
        return count > _WARM_UP

    def _key(self, blobs: Mapping[str, Tensor], wanted: tuple[str, ...]) -> tuple[object, ...]:
        inputs = tuple((name, tuple(t.shape), t.stride(), t.dtype, t.device) for name, t in blobs.items())
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        precision = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, half
        addresses = tuple(p.data_ptr() for layer in self._layers for p in layer.blobs)
        return inputs, wanted, precision, addresses

    def __deepcopy__(self, memo: dict[int, object]) -> InferenceGraphs:
        return InferenceGraphs(copy.deepcopy(self._layers, memo), copy.deepcopy(self._shape_plans, memo))

    def __reduce__(self) -> tuple[type[InferenceGraphs], tuple[Sequence[Layer], ShapePlans]]:
        return InferenceGraphs, (self._layers, self._shape_plans)
