"""The solver's debug_info and snapshot_diff: what every layer and parameter does, as Caffe logs and stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from caffetools.net.net import Learnable, Net
from caffetools.net.stepwise import Stepwise
from caffetools.solver.callbacks import Observer
from caffetools.solver.logs.caffe_log import Log, number

if TYPE_CHECKING:
    from caffetools.solver.solver import Solver


class Verbose:
    """Runs a solver's nets layer by layer and logs the mean absolute value of every blob on the way, as Caffe's debug_info does.

    The Split layers that Caffe inserts are not there, so neither are their lines.
    """

    def __init__(self, log: Log, train: Net, tests: list[Net]):
        self._train = train
        self._runs = {id(net): Stepwise(net) for net in (train, *tests)}
        for run in self._runs.values():
            log_values(run, log)
        self._log = log

    def forward(self, net: Net, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One pass of ``net``: its outputs and losses by name, detached."""
        run = self._runs[id(net)]
        run.feed({name: values for name, values in inputs.items() if name in net.inputs})
        run.forward(record=net is self._train and torch.is_grad_enabled())
        return {name: run.blobs[name].data.value() for name in {*net.outputs, *net.loss_weights}}

    def backward(self) -> None:
        """Go back through the training net; gradients add up in its parameters."""
        self._runs[id(self._train)].backward()
        self._log("net.cpp:721", _norms(self._train.learnable), "E")


class UpdateLogger(Observer):
    """Logs each parameter and the step that an update takes it."""

    def __init__(self, steps: Steps, log: Log):
        self._steps, self._log = steps, log

    def after_update(self, solver: Solver) -> None:
        """Log the update just made."""
        named = _display_names(solver.net)
        for entry in solver.net.learnable:
            layer, name = named[id(entry.parameter)]
            step = self._steps.last[id(entry.parameter)]
            # What the parameter was before is what Caffe shows.
            before = _mean(entry.parameter.detach() + step)
            self._log("net.cpp:649", f"    [Update] Layer {layer}, param {name} data: {before}; diff: {_mean(step)}")


class Steps(Observer):
    """Keeps what the last update took off each parameter, by the parameter's id: what Caffe has in their diffs after an update."""

    def __init__(self) -> None:
        self.last: dict[int, Tensor] = {}

    def before_update(self, solver: Solver) -> None:
        """Keep the parameters as they are."""
        self.last = {id(entry.parameter): entry.parameter.detach().clone() for entry in solver.net.learnable}

    def after_update(self, solver: Solver) -> None:
        """Take the difference; the history of momentum is the step to the last bit."""
        momentum = dict(zip((id(e.parameter) for e in solver.net.learnable), solver.rule.history, strict=False))
        exact = type(solver.rule).__name__ == "SGD"
        for entry in solver.net.learnable:
            key = id(entry.parameter)
            self.last[key] = momentum[key].clone() if exact else self.last[key] - entry.parameter.detach()


def watch_updates(param: Any, log: Log) -> tuple[Steps | None, list[Observer]]:
    """What a ``SolverParameter`` asks to be kept of updates (None: nothing), and the observers that do it."""
    if not (param.debug_info or param.snapshot_diff):
        return None, []
    steps = Steps()
    return steps, [steps, UpdateLogger(steps, log)] if param.debug_info else [steps]


def log_values(run: Stepwise, log: Log) -> None:
    """Let ``run`` log every layer's tops and parameters as it goes forward, and their diffs as it goes back."""
    layers = run.net.layers
    names = _names(run.net)

    def forward(index: int) -> None:
        layer = layers[index]
        for top in layer.tops:
            log("net.cpp:593", f"    [Forward] Layer {layer.name}, top blob {top} data: {_mean(run.blobs[top].data.value())}")
        for number_, blob in enumerate(layer.blobs):
            name = names[layer.name][number_]
            log("net.cpp:605", f"    [Forward] Layer {layer.name}, param blob {name} data: {_mean(blob.detach())}")

    def backward(index: int) -> None:
        step = run.steps[index]
        layer = step.layer
        if not step.goes_back:
            return
        for bottom, needed in zip(layer.bottoms, step.needs, strict=True):
            if needed:
                log("net.cpp:621", f"    [Backward] Layer {layer.name}, bottom blob {bottom} diff: {_mean(run.blobs[bottom].diff.value())}")
        for number_, blob in enumerate(layer.blobs):
            if blob.grad is not None:
                log("net.cpp:632", f"    [Backward] Layer {layer.name}, param blob {number_} diff: {_mean(blob.grad)}")

    run.after_forward.append(forward)
    run.after_backward.append(backward)


def _names(net: Net) -> dict[str, list[str]]:
    """What Caffe calls a layer's parameters: by the name that param gives, else by number."""
    named: dict[str, list[str]] = {}
    for layer in net.layers:
        given = [str(spec.name) for spec in layer.param.param]
        named[layer.name] = [(given[i] if i < len(given) else "") or str(i) for i in range(len(layer.blobs))]
    return named


def _display_names(net: Net) -> dict[int, tuple[str, str]]:
    names = _names(net)
    found: dict[int, tuple[str, str]] = {}
    for layer in net.layers:
        for blob, name in zip(layer.blobs, names[layer.name], strict=True):
            found.setdefault(id(blob), (layer.name, name))
    return found


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
