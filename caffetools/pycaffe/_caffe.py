"""``caffe._caffe``: the classes and functions that Caffe's C++ module has, under their names there."""

from __future__ import annotations

from caffetools.layers.blob_view import Blob, BlobVec, IntVec
from caffetools.layers.python import Layer
from caffetools.proto import schema
from caffetools.proto.schema import LayerParameter
from caffetools.pycaffe.mode import (
    has_nccl,
    init_log,
    layer_type_list,
    log,
    set_device,
    set_devices,
    set_logging_disabled,
    set_mode_cpu,
    set_mode_gpu,
    set_multiprocess,
    set_random_seed,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from caffetools.pycaffe.net import Net
from caffetools.pycaffe.solvers import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    Solver,
    get_solver,
)
from caffetools.pycaffe.timer import NCCL, Timer
from caffetools.pycaffe.vectors import BoolVec, DtypeVec, LayerVec, NetVec, RawBlobVec, StringVec

__all__ = [
    "NCCL",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "Blob",
    "BlobVec",
    "BoolVec",
    "DtypeVec",
    "IntVec",
    "Layer",
    "LayerParameter",
    "LayerVec",
    "NesterovSolver",
    "Net",
    "NetVec",
    "RMSPropSolver",
    "RawBlobVec",
    "SGDSolver",
    "Solver",
    "SolverParameter",
    "StringVec",
    "Timer",
    "get_solver",
    "has_nccl",
    "init_log",
    "layer_type_list",
    "log",
    "set_device",
    "set_devices",
    "set_logging_disabled",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
]

# NVCaffe's name of the list of a net's layers, and of its version.
LayerBaseVec = LayerVec
CAFFE_VERSION = "1.0.0"


class _OfMessages(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, schema.SolverParameter)


class SolverParameter(metaclass=_OfMessages):
    """The type of ``solver.param``, which is a message with all fields of a solver; these four are what Caffe's class has."""

    @property
    def max_iter(self) -> int:
        """The number of iterations."""
        raise NotImplementedError

    @property
    def display(self) -> int:
        """The number of iterations between two displayed ones."""
        raise NotImplementedError

    @property
    def base_lr(self) -> float:
        """The learning rate before its policy."""
        raise NotImplementedError

    @property
    def layer_wise_reduce(self) -> bool:
        """Whether gradients are exchanged layer by layer."""
        raise NotImplementedError
