"""The content of the binary files in memory: weights and solver states."""

from __future__ import annotations

from dataclasses import dataclass, field

from caffetools.proto.blobs import Array
from caffetools.proto.schema import NetParameter


@dataclass
class Caffemodel:
    """The content of a .caffemodel.

    Attributes:
        net: ``NetParameter`` as in the file, without its layers' blobs.
        blobs: Layer name → its float32 arrays. Layers without any have no entry; of layers of one name the last counts, as in Caffe.
            An array that came with num, channels, height and width is a :class:`~caffetools.proto.blobs.LegacyArray` and is written so.
        diffs: Layer name → the diffs of its blobs, one each, to be written too; not filled by reading.
        dialect: The fork whose field numbers the file has (:mod:`caffetools.proto.forks.dialect`), ``""`` for BVLC Caffe's; None: not
            from a file, and written in the dialect that has the fields which are used.
        repeated: Layer index → its float32 arrays, of layers whose name another layer has too; written in place of those in ``blobs``.
        repeated_diffs: Their diffs, in the same way.
    """

    net: NetParameter
    blobs: dict[str, list[Array]] = field(default_factory=dict)
    diffs: dict[str, list[Array]] = field(default_factory=dict)
    dialect: str | None = None
    repeated: dict[int, list[Array]] = field(default_factory=dict)
    repeated_diffs: dict[int, list[Array]] = field(default_factory=dict)


@dataclass
class SolverState:
    """The content of a .solverstate.

    Attributes:
        iter: The iteration.
        learned_net: The path of the caffemodel, as Caffe writes it.
        history: The solver's float32 arrays in Caffe's order.
        current_step: The step of the learning-rate policy.
        minimum_loss: The smallest smoothed loss, for the policy ``plateau`` of forks; None for the others.
        iter_last_event: The iteration of that loss or of the last step, for ``plateau``.
    """

    iter: int
    learned_net: str
    history: list[Array]
    current_step: int = 0
    minimum_loss: float | None = None
    iter_last_event: int | None = None
