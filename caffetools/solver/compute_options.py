"""How a training computes: precision, compiling, what is kept for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from caffetools.net.precision_modes import check_mode


@dataclass(frozen=True)
class ComputeOptions:
    """How a training computes.

    Attributes:
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        compiled: Whether nets run through torch.compile.
        device_transform: Whether images go to the device as bytes and are transformed there; None does so on CUDA.
        checkpoint_memory: Whether most activations are computed a second time in the backward pass, not kept: less memory, the same
            weights.
        cuda_graphs: Whether the passes of a training on a GPU are recorded once and replayed: fewer launches, more memory, the same
            weights. None: where that is possible.

    Raises:
        CaffeToolsError: ``precision`` is none of these.
    """

    precision: str = "fp32"
    compiled: bool = False
    device_transform: bool | None = None
    checkpoint_memory: bool = False
    cuda_graphs: bool | None = None

    def __post_init__(self) -> None:
        check_mode(self.precision)

    @property
    def plain(self) -> bool:
        """Whether passes are those of a :class:`~caffetools.solver.solver.Solver`."""
        return self.precision in ("fp32", "tf32") and not (self.compiled or self.checkpoint_memory or self.cuda_graphs)
