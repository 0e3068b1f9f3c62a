"""Our own engine: a Net of the deploy prototxt, computed by torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.engines.base import Engine, EngineError, PathLike
from caffetools.errors import NetError
from caffetools.net.device import find_device
from caffetools.net.net import Net, error_context
from caffetools.net.precision import set_precision
from caffetools.net.weights import load_weights
from caffetools.proto.schema import TEST

log = logging.getLogger(__name__)


class TorchEngine(Engine):
    """A :class:`Net` in the TEST phase; takes any batch size that the net's layers take."""

    name = "torch"

    def __init__(self, net: Net):
        self.net = net
        self.inputs = {blob: net.blob_shapes[blob] for blob in net.inputs}
        self.outputs = list(net.outputs)
        self.batch = None

    @classmethod
    def load(cls, deploy: PathLike, weights: PathLike | None = None, *, device: str = "cpu", precision: str = "fp32") -> TorchEngine:
        """Load a prototxt and its .caffemodel.

        Args:
            deploy: The prototxt.
            weights: Its .caffemodel; None for a net without parameters.
            device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
            precision: See :func:`~caffetools.net.precision.set_precision`.

        Raises:
            PrototxtError, ModelFileError, NetError: a file cannot be read, or the weights are not this net's.
            EngineError: ``deploy`` is an ONNX file, or no weights are given.
            CaffeToolsError: the device is not there, or the precision is unknown.
        """
        if Path(deploy).suffix == ".onnx":
            raise EngineError(f"{deploy}: the torch engine runs a prototxt with its caffemodel; use --engine onnxruntime for ONNX files")
        net = Net.from_file(deploy, TEST, fill=weights is None)
        load_all_weights(net, deploy, weights)
        return cls(set_precision(net.to(find_device(device)), precision))

    def predict(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on arrays (N, …) of float32, as :meth:`Engine.predict` does."""
        given = {blob: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for blob, value in batch.items()}
        with torch.inference_mode():
            blobs = self.net(given)
        return {blob: np.ascontiguousarray(blobs[blob].cpu().numpy()) for blob in self.outputs}


def load_all_weights(net: Net, deploy: PathLike, weights: PathLike | None) -> None:
    """Load ``weights`` into ``net``. A layer without weights is an error, since its outputs would be arbitrary.

    Raises:
        ModelFileError: the file cannot be read.
        NetError: the weights are another net's.
        EngineError: there are none, but the net needs some.
    """
    if weights is None:
        if any(len(layer.blobs) for layer in net.layers):
            raise EngineError(f"{deploy}: the net has parameters; its weights (a .caffemodel) are needed too")
        return
    ambiguous: list[str] = []
    with error_context(deploy):
        report = load_weights(net, weights, warn=ambiguous.append)
    if report.fresh and set(report.fresh) <= set(report.ambiguous):
        raise NetError(f"{deploy}: {ambiguous[0]}")
    for line in ambiguous:
        log.warning("%s", line)
    if report.fresh:
        names = ", ".join(f"'{name}'" for name in report.fresh[:3]) + (", …" if len(report.fresh) > 3 else "")
        raise NetError(f"{weights} holds no weights for {len(report.fresh)} layer(s) of {deploy}: {names}; are they another net's?")
