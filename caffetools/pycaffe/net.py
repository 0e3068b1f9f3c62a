"""``Net``: a network as pycaffe shows it, run layer by layer."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import NetError, did_you_mean
from caffetools.layers.base import format_shape
from caffetools.net.net import Net as TorchNet
from caffetools.net.stepwise import Stepwise
from caffetools.net.weights import load_weights
from caffetools.proto.schema import TEST
from caffetools.pycaffe import batches, files, mode
from caffetools.pycaffe.blob import Array, Blob, BlobVec, NetBlob
from caffetools.pycaffe.errors import expect_names

PathLike = str | os.PathLike[str]
Callback = Callable[[int], None]


class Net:
    """A network over named blobs, as ``caffe.Net``.

    ``Net(network_file, phase, level=0, stages=None, weights=None)``, or the older ``Net(network_file, weights_file, phase)``.

    ``blobs`` are ordered by layer and hold live arrays (N, C, H, W), float32. Unlike in Caffe there are no Split layers and no
    ``…_split_0`` blobs among them: a blob that several layers read gets the sum of their gradients.

    Raises:
        PrototxtError, ModelFileError: a file is missing or wrong; names file and line.
        NetError: the net cannot be built, or the weights do not fit it; names layer, blob and shapes.
    """

    def __init__(
        self,
        network_file: PathLike,
        phase: int | PathLike = TEST,
        level: int = 0,
        stages: Iterable[str] | None = None,
        weights: PathLike | None = None,
    ):
        if isinstance(phase, (str, os.PathLike)):
            # Net(network_file, weights_file, phase): the phase stands third.
            network_file, weights, phase, level = network_file, phase, level, 0
        net = TorchNet.from_file(network_file, int(phase), level=level, stages=list(stages or ()), fill=True)
        if weights is not None:
            load_weights(net, weights)
        self._attach(net, Stepwise(net))

    @classmethod
    def _around(cls, net: TorchNet, run: Stepwise | None = None) -> Net:
        """A view of a net that there is already: a solver's."""
        view = cls.__new__(cls)
        view._attach(net, run or Stepwise(net))
        return view

    def _attach(self, net: TorchNet, run: Stepwise) -> None:
        self._net, self._run = net, run
        self.blobs: OrderedDict[str, Blob] = OrderedDict((name, NetBlob(slot)) for name, slot in run.blobs.items())
        vectors = [BlobVec(layer) for layer in net.layers]
        self.params: OrderedDict[str, BlobVec] = OrderedDict(
            (layer.name, vector) for layer, vector in zip(net.layers, vectors, strict=True) if len(layer.blobs)
        )
        self.layers: list[Any] = [
            getattr(layer, "user_layer", None) or LayerView(layer.type_name, vector)
            for layer, vector in zip(net.layers, vectors, strict=True)
        ]
        self.layer_dict: OrderedDict[str, Any] = OrderedDict(zip(self._layer_names, self.layers, strict=True))
        self.inputs: list[str] = [top for layer in net.layers if layer.TRAITS.role == "input" for top in layer.tops]
        self.outputs: list[str] = list(net.outputs)

    # ---- what it is made of ----

    @property
    def name(self) -> str:
        """The net's name."""
        return self._net.name

    @property
    def _layer_names(self) -> list[str]:
        return [layer.name for layer in self._net.layers]

    @property
    def _blob_names(self) -> list[str]:
        return list(self.blobs)

    @property
    def _inputs(self) -> list[int]:
        return [self._blob_names.index(name) for name in self.inputs]

    @property
    def _outputs(self) -> list[int]:
        return [self._blob_names.index(name) for name in self.outputs]

    @property
    def _blob_loss_weights(self) -> list[float]:
        return [self._net.loss_weights.get(name, 0.0) for name in self.blobs]

    @property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """The loss weight of every blob; 0 of most."""
        return OrderedDict(zip(self.blobs, self._blob_loss_weights, strict=True))

    @property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """The blobs that each layer reads."""
        return OrderedDict((layer.name, list(layer.bottoms)) for layer in self._net.layers)

    @property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """The blobs that each layer makes."""
        return OrderedDict((layer.name, list(layer.tops)) for layer in self._net.layers)

    def _bottom_ids(self, layer: int) -> list[int]:
        return [self._blob_names.index(name) for name in self._net.layers[layer].bottoms]

    def _top_ids(self, layer: int) -> list[int]:
        return [self._blob_names.index(name) for name in self._net.layers[layer].tops]

    # ---- running ----

    def forward(
        self, blobs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **inputs: NDArray[Any]
    ) -> dict[str, Array]:
        """Run the layers from ``start`` to ``end`` (names; both included).

        Args:
            blobs: Names of further blobs to give back.
            inputs: Values for all of the net's inputs, each as long as the input's batch.

        Returns:
            The arrays of the net's outputs (or of ``end``'s tops) and of ``blobs``. They are live: the next run writes into them.
        """
        names = list(blobs or ())
        first, last = self._index(start, 0), self._index(end, len(self.layers) - 1)
        wanted = self.outputs if end is None else self._net.layers[last].tops
        self._check_blobs(names)
        if inputs:
            expect_names(inputs, self.inputs, "inputs", self.name)
            for name, values in inputs.items():
                self._fill(name, self.blobs[name].data, values)
        self._forward(first, last)
        return {name: self.blobs[name].data for name in dict.fromkeys([*wanted, *names])}

    def backward(
        self, diffs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **tops: NDArray[Any]
    ) -> dict[str, Array]:
        """Go back from layer ``start`` to ``end`` (names; both included).

        Args:
            diffs: Names of further blobs whose diffs to give back.
            tops: Diffs for all of the net's outputs.

        Returns:
            The diffs of the net's inputs (or of ``end``'s bottoms) and of ``diffs``; live arrays.
        """
        names = list(diffs or ())
        first, last = self._index(start, len(self.layers) - 1), self._index(end, 0)
        wanted = self.inputs if end is None else self._net.layers[last].bottoms
        self._check_blobs(names)
        if tops:
            expect_names(tops, self.outputs, "outputs", self.name)
            for name, values in tops.items():
                self._fill(name, self.blobs[name].diff, values)
        self._backward(first, last)
        return {name: self.blobs[name].diff for name in dict.fromkeys([*wanted, *names])}

    def forward_all(self, blobs: Iterable[str] | None = None, **inputs: NDArray[Any]) -> dict[str, Array]:
        """Run any number of items through the net in its batches; the last batch is padded with zeros, which are dropped again."""
        return batches.forward_all(self, list(blobs or ()), inputs)

    def forward_backward_all(
        self, blobs: Iterable[str] | None = None, diffs: Iterable[str] | None = None, **values: NDArray[Any]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """As :meth:`forward_all`, and back; ``values`` holds inputs, and diffs for outputs that get some. Returns data and diffs."""
        return batches.forward_backward_all(self, list(blobs or ()), list(diffs or ()), values)

    def _forward(self, start: int, end: int) -> float:
        self._prepare()
        return self._run.forward(start, end)

    def _backward(self, start: int, end: int) -> None:
        self._prepare()
        self._run.backward(start, end, keep=True)

    def reshape(self) -> None:
        """Make all blobs follow the shapes that inputs were given. Raises :class:`NetError` where they do not fit."""
        self._run.reshape()

    def clear_param_diffs(self) -> None:
        """Set the diffs of all parameters to zero."""
        self._prepare()
        self._run.clear_param_diffs()

    def set_input_arrays(self, data: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
        """Give the net's first layer, a MemoryData layer, its data (N, C, H, W) and labels (N, 1, 1, 1), float32.

        Raises:
            NetError: the first layer is of another type, or the arrays do not suit it.
        """
        batches.set_input_arrays(self._net, data, labels)

    # ---- weights ----

    def copy_from(self, weights: PathLike) -> None:
        """Load the weights of layers whose names fit, from a .caffemodel or a .caffemodel.h5."""
        self._prepare()
        load_weights(self._net, weights)

    def save(self, path: PathLike) -> None:
        """Write a .caffemodel."""
        self._prepare()
        files.save(self._net, path)

    def load_hdf5(self, path: PathLike) -> None:
        """Load the weights of a .caffemodel.h5."""
        self._prepare()
        files.load_hdf5(self._net, path)

    def save_hdf5(self, path: PathLike, write_diff: bool = False) -> None:
        """Write a .caffemodel.h5; with ``write_diff`` the parameters' diffs, too."""
        self._prepare()
        files.save_hdf5(self._net, path, write_diff=write_diff)

    def share_with(self, other: Net) -> None:
        """Use the parameters of ``other``'s layers of the same names from now on; each net keeps its own diffs.

        Raises:
            NetError: a layer's parameters differ in shape.
        """
        files.share(self._net, other._net)

    # ---- callbacks ----

    def before_forward(self, call: Callback) -> None:
        """Call ``call(index)`` before each layer runs."""
        self._run.before_forward.append(call)

    def after_forward(self, call: Callback) -> None:
        """Call ``call(index)`` after each layer has run."""
        self._run.after_forward.append(call)

    def before_backward(self, call: Callback) -> None:
        """Call ``call(index)`` before each layer is gone back through."""
        self._run.before_backward.append(call)

    def after_backward(self, call: Callback) -> None:
        """Call ``call(index)`` after each layer was gone back through."""
        self._run.after_backward.append(call)

    # ---- inside ----

    def _prepare(self) -> None:
        """Bring the net where mode and device say, and what was written on the host with it."""
        if self._run.device.type != "cpu":
            for vector in self.params.values():
                for blob in vector:
                    blob.sync()
        self._run.to(mode.device())

    def _index(self, name: str | None, default: int) -> int:
        if name is None:
            return default
        if name not in self._layer_names:
            raise NetError(f"the net '{self.name}' has no layer '{name}'{did_you_mean(name, self._layer_names)}")
        return self._layer_names.index(name)

    def _check_blobs(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.blobs:
                raise NetError(f"the net '{self.name}' has no blob '{name}'{did_you_mean(name, self.blobs)}")

    def _fill(self, name: str, into: Array, values: Any) -> None:
        values = np.asarray(values)
        if not values.ndim or values.shape[0] != into.shape[0]:
            raise NetError(
                f"blob '{name}' has a batch of {into.shape[0]}, but is given {format_shape(values.shape)}; reshape the blob first"
            )
        try:
            into[...] = values
        except ValueError:
            raise NetError(f"blob '{name}' is {format_shape(into.shape)}, but is given {format_shape(values.shape)}") from None


class LayerView:
    """A layer as ``net.layers`` shows it: its ``type`` and its parameter ``blobs``."""

    def __init__(self, type_name: str, blobs: BlobVec):
        self.type, self.blobs = type_name, blobs


def torch_net(net: Net) -> TorchNet:
    """The ``torch.nn.Module`` behind a pycaffe net: same parameters, for scripts that want autograd, DDP or export."""
    return net._net
