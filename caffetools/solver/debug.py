"""The solver fields debug_info and snapshot_diff: log and store what every layer and parameter does, as Caffe does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from caffetools.net.net import Learnable, Net
from caffetools.net.stepwise import Stepwise
from caffetools.solver.callbacks import Callback
from caffetools.solver.control import Log, RunControl
from caffetools.solver.logs.caffe_log import number
from caffetools.solver.update import UpdateRule


class DebugInfoRunner:
    """Run a solver's nets layer by layer and log the mean absolute value of every blob, as Caffe's debug_info does.

    Caffe logs the training net at displayed iterations only. The Split layers that Caffe inserts do not exist here, nor their lines.

    Attributes:
        active: Whether passes of the training net are logged; the solver sets it at each iteration.
    """

    def __init__(self, log: Log, train: Net, tests: list[Net]):
        self.active = False
        self._train = train
        self._runs = {id(net): Stepwise(net) for net in (train, *tests)}
        for run in self._runs.values():
            log_values(run, log)
        self._log = log

    def logs(self, net: Net) -> bool:
        """Return whether a pass of ``net`` is to be logged now."""
        return self.active or net is not self._train

    def forward(self, net: Net, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run ``net`` forward once; return its outputs and losses by name, float32 of the blobs' shapes, detached."""
        run = self._runs[id(net)]
        run.feed({name: values for name, values in inputs.items() if name in net.inputs})
        run.forward(record=net is self._train and torch.is_grad_enabled())
        return {name: run.blobs[name].data.value() for name in {*net.outputs, *net.loss_weights}}

    def backward(self) -> None:
        """Run the training net backward; gradients accumulate in its parameters."""
        self._runs[id(self._train)].backward()
        self._log("net.cpp:721", _norms(self._train.learnable), "E")


class UpdateDiffs(Callback):
    """Keep what the last update subtracted from each parameter: what Caffe has in their diffs after an update.

    Attributes:
        last: Difference of each parameter, by the id of the parameter.
    """

    def __init__(self, net: Net, rule: UpdateRule) -> None:
        self._net, self._rule = net, rule
        self.last: dict[int, Tensor] = {}

    def on_before_update(self, run: RunControl) -> None:
        """Copy the parameters."""
        self.last = {id(entry.parameter): entry.parameter.detach().clone() for entry in self._net.learnable}

    def on_iteration_end(self, run: RunControl) -> None:
        """Take the difference; for SGD the history is exactly that difference."""
        momentum = dict(zip((id(e.parameter) for e in self._net.learnable), self._rule.history, strict=False))
        exact = type(self._rule).__name__ == "SGD"
        for entry in self._net.learnable:
            key = id(entry.parameter)
            self.last[key] = momentum[key].clone() if exact else self.last[key] - entry.parameter.detach()


def log_values(run: Stepwise, log: Log) -> None:
    """Make ``run`` log every layer's tops and parameters in a forward pass, and their diffs in a backward pass."""
    layers = run.net.layers
    names = _names(run.net)

    def forward(index: int) -> None:
        layer = layers[index]
        for top in layer.tops:
            log("net.cpp:593", f"    [Forward] Layer {layer.name}, top blob {top} data: {_mean(run.blobs[top].data.value())}")
        for number_, blob in enumerate(layer.blobs):
            name = names[index][number_]
            log("net.cpp:605", f"    [Forward] Layer {layer.name}, param blob {name} data: {_mean(blob.detach())}")

    def backward(index: int) -> None:
        step = run.steps[index]
        layer = step.layer
        if not step.needs_backward:
            return
        for bottom, needed in zip(layer.bottoms, step.needs, strict=True):
            if needed:
                log("net.cpp:621", f"    [Backward] Layer {layer.name}, bottom blob {bottom} diff: {_mean(run.blobs[bottom].diff.value())}")
        for number_, blob in enumerate(layer.blobs):
            if blob.grad is not None:
                log("net.cpp:632", f"    [Backward] Layer {layer.name}, param blob {number_} diff: {_mean(blob.grad)}")

    run.after_forward.append(forward)
    run.after_backward.append(backward)


def _names(net: Net) -> list[list[str]]:
    """Return Caffe's names of each layer's parameters: the name in ``param``, else the index."""
    named: list[list[str]] = []
    for layer in net.layers:
        given = [str(spec.name) for spec in layer.param.param]
        named.append([(given[i] if i < len(given) else "") or str(i) for i in range(len(layer.blobs))])
    return named


def _norms(learnable: list[Learnable]) -> str:
    data = [entry.parameter.detach() for entry in learnable]
    diffs = [torch.zeros_like(p) if p.grad is None else p.grad for p in (entry.parameter for entry in learnable)]
    sums, squares = ([_total(values, order) for values in (data, diffs)] for order in (1, 2))
    one, two = (", ".join(number(value) for value in pair) for pair in (sums, squares))
    return f"    [Backward] All net params (data, diff): L1 norm = ({one}); L2 norm = ({two})"


def _total(tensors: list[Tensor], order: int) -> float:
    if not tensors:
        return 0.0
    norms = torch.stack([torch.linalg.vector_norm(t, ord=order) for t in tensors])
    return float(norms.sum() if order == 1 else torch.linalg.vector_norm(norms))


def _mean(values: Tensor) -> str:
    return number(float(values.abs().mean()) if values.numel() else 0.0)
