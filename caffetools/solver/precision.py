"""In which numbers a net computes, whether it is compiled, and where its pictures are transformed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from caffetools.errors import CaffeToolsError
from caffetools.net.net import LayerPass, Net
from caffetools.net.precision import HALF, keep_float32
from caffetools.net.precision_modes import check_mode
from caffetools.net.shape_plans import ShapePlan
from caffetools.solver.control import Log


class Precision:
    """Runs passes and updates of a solver in ``mode``; parameters, their gradients and the history are float32 in all of them.

    fp32: as Caffe. tf32: products of 10 bits on GPUs that have them, sums in float32. bf16, fp16: convolutions and inner products in half
    precision (torch's autocast), losses and normalizations in float32 (of BatchNorm, Scale and ReLU as one operator the
    statistics); fp16 scales the loss so that small gradients do not vanish,
    and leaves out the updates whose gradients overflow, halving the scale (Micikevicius et al., 2018).

    Args:
        mode: One of :data:`~caffetools.net.precision_modes.MODES`.
        device: Where the net is.
        log: Called for every update that is skipped.

    Raises:
        CaffeToolsError: ``mode`` is unknown.
    """

    def __init__(self, mode: str, device: torch.device, log: Log):
        check_mode(mode)
        self.mode, self.device, self.log = mode, device, log
        self.half = HALF.get(mode)
        self._scaler = torch.amp.GradScaler(device.type) if mode == "fp16" else None
        self._step: _Step | None = None
        if mode == "tf32" and device.type != "cuda":
            log("caffe.cpp:197", "tf32 is a format of CUDA devices; on the CPU this run computes in float32", "W")

    def prepare(self, net: Net) -> None:
        """Make ``net`` ready: layers that need float32 see to it that they get it, and products on GPUs round to TF32 where it is the mode."""
        net.allow_tf32 = self.mode == "tf32"
        if self.half is not None:
            keep_float32(net)

    def running(self) -> AbstractContextManager[Any]:
        """Return the context for a forward pass."""
        return nullcontext() if self.half is None else torch.autocast(self.device.type, self.half)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scalar ``loss``, scaled where the mode asks for it."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def ready(self, parameters: Sequence[Tensor]) -> None:
        """Bring the gradients of ``parameters`` (any shape) back to their own scale, after the last backward pass of an update."""
        if self._scaler is not None and any(p.grad is not None for p in parameters):
            self._step = _Step(parameters)
            self._scaler.unscale_(self._step)

    def update(self, iteration: int, apply: Callable[[], None]) -> None:
        """Call ``apply``, which updates the parameters; skip it, with a line in the log, where a gradient is not finite."""
        if self._scaler is None or self._step is None:
            apply()
            return
        step, self._step = self._step, None
        step.apply = apply
        self._scaler.step(step)
        self._scaler.update()
        if not step.made:
            scale = self._scaler.get_scale()
            text = f"Iteration {iteration}: a gradient overflowed in fp16, so there is no update; the loss scale is {scale:g} now"
            self.log("solver.cpp:250", text, "W")

    def state(self) -> dict[str, float]:
        """Return what the following passes depend on; numbers only."""
        return {} if self._scaler is None else dict(self._scaler.state_dict())

    def set_state(self, state: dict[str, float]) -> None:
        """Restore :meth:`state`; one of another mode is ignored."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)


class Compiled:
    """A net's pass through torch.compile; where that is not possible, without it, with one line in the log."""

    def __init__(self, log: Log, plain: LayerPass):
        self._plain, self.log = plain, log
        self._fast: Callable[..., dict[str, Tensor]] | None = torch.compile(plain)

    def __call__(self, blobs: dict[str, Tensor], keep: Collection[str] = (), plan: ShapePlan | None = None) -> dict[str, Tensor]:
        if self._fast is not None:
            try:
                return self._fast(dict(blobs), keep, plan)
            except CaffeToolsError:
                raise
            except Exception as error:  # any failure of the compiler: the net runs without it
                self._fast = None
                why = (str(error).strip().splitlines() or [type(error).__name__])[0]
                self.log("caffe.cpp:197", f"The net cannot be compiled here, so it runs as it is: {why}", "W")
        return self._plain(blobs, keep, plan)


def compile_net(net: Net, log: Log) -> None:
    """Let ``net`` run compiled from now on."""
    net.wrap_compute(partial(Compiled, log))


class _Step(torch.optim.Optimizer):
    """What the scaler takes for an optimizer: it holds the gradients, and its step is the solver's."""

    def __init__(self, parameters: Sequence[Tensor]):
        super().__init__(list(parameters), {})
        self.apply: Callable[[], None] | None = None
        self.made = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.apply is not None:
            self.apply()
        self.made = True
