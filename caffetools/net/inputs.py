"""What a net's forward pass is given: arrays by blob name, or one array for a net with one input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from caffetools.errors import NetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "Tensor | NDArray[np.generic]"
Batch: TypeAlias = "Mapping[str, Array] | Array | None"


def named_tensors(batch: Batch, inputs: Sequence[str], net: str) -> dict[str, Tensor]:
    """Return the arrays of a batch as tensors by blob name.

    Args:
        batch: Input blobs by name; or one array for a net with one input. NumPy arrays become float32, tensors are taken as they are.
        inputs: Names of the net's inputs.
        net: Name of the net, for messages.

    Raises:
        NetError: An input is unknown, something is not an array, or one array is given for several inputs.
    """
    if batch is None:
        return {}
    if isinstance(batch, Tensor | np.ndarray):
        if len(inputs) != 1:
            raise NetError(f"the net '{net}' has the inputs {_listed(inputs)}; give a mapping of arrays by name, not one array")
        batch = {inputs[0]: batch}
    if not isinstance(batch, Mapping):
        raise NetError(f"a net takes a mapping of arrays by input name, or one array, not {type(batch).__name__}")
    if unknown := set(batch) - set(inputs):
        raise NetError(f"the net '{net}' has no input {_listed(sorted(map(str, unknown)))}; its inputs are {_listed(inputs)}")
    return {name: _tensor(name, values) for name, values in batch.items()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def _tensor(name: str, values: object) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    kind = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
    raise NetError(f"a tensor or an array of numbers is expected, not {kind}", blob=name)
