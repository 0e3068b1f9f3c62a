"""``caffe.pycaffe``: the names that Caffe's Python half of ``Net`` has."""

from __future__ import annotations

import importlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import zip_longest as izip_longest
from types import ModuleType
from typing import Any

import numpy as np

from caffetools.pycaffe.net import Net
from caffetools.pycaffe.solvers import AdaDeltaSolver, AdaGradSolver, AdamSolver, NesterovSolver, RMSPropSolver, SGDSolver
from caffetools.pycaffe.timer import NCCL, Timer

__all__ = [
    "NCCL",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "NesterovSolver",
    "Net",
    "OrderedDict",
    "RMSPropSolver",
    "SGDSolver",
    "Timer",
    "izip_longest",
    "np",
]

# Scripts that extend Caffe's Net call these, or replace them.
_Net_forward = Net.forward
_Net_backward = Net.backward
_Net_forward_all = Net.forward_all
_Net_forward_backward_all = Net.forward_backward_all
_Net_set_input_arrays = Net.set_input_arrays
_Net_batch = Net._batch
_Net_blobs = Net.blobs
_Net_blob_loss_weights = Net.blob_loss_weights
_Net_layer_dict = Net.layer_dict
_Net_params = Net.params
_Net_inputs = Net.inputs
_Net_outputs = Net.outputs


def _Net_get_id_name(func: Callable[[Net, int], Iterable[int]], field: str) -> Any:
    """Return a property of nets: the names of the blobs whose numbers ``func(net, layer)`` gives, by the names of the layers, kept as ``field``."""

    def get_id_name(self: Net) -> OrderedDict[str, list[str]]:
        if field not in vars(self):
            names = list(self.blobs)
            vars(self)[field] = OrderedDict(
                (layer, [names[number] for number in func(self, index)]) for index, layer in enumerate(self._layer_names)
            )
        found: OrderedDict[str, list[str]] = vars(self)[field]
        return found

    return property(get_id_name)


def __getattr__(name: str) -> ModuleType:
    """Return the modules that Caffe's own file imports: ``six``, where it is installed, and ``caffe``."""
    if name == "caffe" and name in sys.modules:
        return sys.modules[name]
    if name == "six":
        try:
            return importlib.import_module(name)
        except ImportError:
            raise AttributeError("caffe.pycaffe has no 'six': it is not installed (pip install six)") from None
    raise AttributeError(f"module 'caffe.pycaffe' has no attribute '{name}'")
