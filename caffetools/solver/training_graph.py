"""Training passes recorded as a CUDA graph: forward and backward of an iteration in one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from caffetools.net.cuda_graphs import RecordedPass, can_record, record
from caffetools.net.net import Net
from caffetools.solver.control import Log

# Iterations without a recording: cuDNN chooses its algorithms, and layers show whether they change between passes.
_WARM_UP = 3


class TrainingGraph:
    """The forward and backward pass of a training net, recorded once its batches have one shape and replayed from then on.

    The numbers are those of the same kernels launched one by one. A net that cannot be recorded runs without, with one line in the log.

    Args:
        net: The training net, on a CUDA device.
        running: Returns the context of a forward pass.
        backward: Adds the gradients of a scalar loss to the parameters.
        log: Receives the reason where there is no recording.
    """

    def __init__(self, net: Net, running: Callable[[], AbstractContextManager[object]], backward: Callable[[Tensor], None], log: Log):
        self.net, self._running, self._backward, self._log = net, running, backward, log
        self._parameters: list[nn.Parameter] = [entry.parameter for entry in net.learnable]
        self._passes = 0
        self._recorded_for: tuple[object, ...] = ()
        self._recorded: RecordedPass | None = None
        self._gradients: list[Tensor | None] = []
        self._loss = torch.zeros((), device=net.device)
        self._why = "" if can_record(net.layers, net.shape_plans) else "a layer keeps a state or its shapes depend on values"
        self._logged = False

    def run(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Compute the loss of a batch and add its gradients to the parameters.

        Args:
            batch: Blobs of the data layers by name, on the device.

        Returns:
            The loss (a scalar) and the net's outputs, in tensors of their own; None where the pass has to run layer by layer.
        """
        if not self._why and any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.net.layers if not layer.IS_DATA):
            self._why = "a layer has hooks"
        if self._why:
            self._report()
            return None
        key = self._key(batch)
        if key != self._recorded_for:
            self._recorded_for, self._passes, self._recorded = key, 0, None
        self._passes += 1
        if self._passes <= _WARM_UP:
            return None
        recorded = self._recorded = self._recorded or self._record(batch)
        if recorded is None:
            self._report()
            return None
        return self._replay(recorded, batch)

    def _key(self, batch: dict[str, Tensor]) -> tuple[object, ...]:
        """Return what a recording depends on besides values."""
        inputs = tuple((name, tuple(blob.shape), blob.stride(), blob.dtype) for name, blob in batch.items())
        parameters = tuple((blob.data_ptr(), blob.requires_grad) for layer in self.net.layers for blob in layer.blobs)
        return inputs, parameters, tuple(layer.training for layer in self.net.layers), torch.backends.cudnn.allow_tf32

    def _replay(self, recorded: RecordedPass, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        earlier = [parameter.grad for parameter in self._parameters]
        # The gradients of an earlier pass of this update are in the memory that the replay writes to.
        kept = [old.clone() if old is not None and old is mine else old for old, mine in zip(earlier, self._gradients, strict=True)]
        recorded.replay(batch)
        for parameter, old, mine in zip(self._parameters, kept, self._gradients, strict=True):
            parameter.grad = mine if old is None or mine is None else old.add_(mine)
        return self._loss.clone(), {name: blob.clone() for name, blob in recorded.results.items()}

    def _record(self, batch: dict[str, Tensor]) -> RecordedPass | None:
        earlier = [parameter.grad for parameter in self._parameters]
        saved = [blob.detach().clone() for layer in self.net.layers for blob in layer.blobs]
        states = torch.cuda.get_rng_state(self.net.device)

        def compute(blobs: dict[str, Tensor]) -> dict[str, Tensor]:
            _set_gradients(self._parameters, None)
            with self._running():
                tops = self.net.compute(blobs)
            loss: Tensor = self.net.total_loss(tops)
            if loss.requires_grad:
                self._backward(loss)
            self._loss = loss.detach()
            return {name: tops[name].detach() for name in self.net.outputs}

        recorded = record(self.net.layers, batch, compute)
        self._gradients = [parameter.grad for parameter in self._parameters]
        # The pass before the recording changed what a pass changes: statistics and random states.
        with torch.no_grad():
            for blob, before in zip((b for layer in self.net.layers for b in layer.blobs), saved, strict=True):
                blob.copy_(before)
        torch.cuda.set_rng_state(states, self.net.device)
        _set_gradients(self._parameters, earlier)
        if recorded is None:
            self._why = "a layer reads values or draws random numbers on the CPU"
        return recorded

    def _report(self) -> None:
        if not self._logged:
            self._logged = True
            self._log(
                "caffe.cpp:197", f"The passes cannot be recorded as a CUDA graph, so kernels are launched one by one: {self._why}", "W"
            )


def _set_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None] | None) -> None:
    for index, parameter in enumerate(parameters):
        parameter.grad = gradients[index] if gradients is not None else None
