"""``caffe.pycaffe``: the names that Caffe's Python half of ``Net`` has."""

from __future__ import annotations

from collections import OrderedDict

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
