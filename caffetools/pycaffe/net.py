"""``Net``: a network as pycaffe presents it, run layer by layer."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caffetools.errors import NetError, did_you_mean
from caffetools.layers.base import format_shape
from caffetools.layers.blob_view import Array, Blob, BlobVec, IntVec
from caffetools.layers.python import Layer
from caffetools.net.net import Net as TorchNet
from caffetools.net.stepwise import Stepwise
from caffetools.net.weights import load_weights
from caffetools.proto.schema import TEST
from caffetools.pycaffe import batches, files, mode
from caffetools.pycaffe.errors import also, expect_names, raised_also_as
from caffetools.pycaffe.files import AnyPath, path_of
from caffetools.pycaffe.vectors import DtypeVec, LayerVec, StringVec

Callback = Callable[[int], None]

# Members of the nets of 2013 and 2014, and what took their places.
_FORMER = {
    **dict.fromkeys(("set_phase_test", "set_phase_train"), "give the phase to caffe.Net"),
    **{name: f"use caffe.{name}" for name in ("set_mode_cpu", "set_mode_gpu", "set_device")},
    **{
        name: f"use {name} of a caffe.io.Transformer"
        for name in ("preprocess", "deprocess", "set_mean", "set_input_scale", "set_raw_scale", "set_channel_swap")
    },
}
# Of the Deep Visualization Toolbox's fork.
_TOOLBOX = {
    "backward_from_layer": "set the diff of the layer's top and run net.backward(start=layer)",
    "deconv_from_layer": "caffetools.visualize.deconvnet computes it",
    "deconv": "caffetools.visualize.deconvnet computes it",
}
_ABSENT = {"it was removed from Caffe's nets": _FORMER, "it belongs to a fork": _TOOLBOX}


class Net:
    """A network over named blobs, as ``caffe.Net``.

    ``Net(network_file, phase, level=0, stages=None, weights=None)``, or the older ``Net(network_file, weights_file, phase)``.

    Unlike in Caffe there are no Split layers and no ``…_split_0`` blobs: a blob that several layers read gets the sum of their
    gradients. Errors are also of the type that pycaffe raises (RuntimeError, ValueError, KeyError).

    Several threads may call ``forward(data=...)`` of one net: each gets the answers to its own inputs, and its arrays keep their
    values until it runs the net again. Writing to ``blobs`` and running the net without arguments is for one thread at a time.

    Args:
        network_file: The prototxt.
        phase: TRAIN or TEST; or the weights, in the older form.
        level: Caffe's ``NetState.level``; or the phase, in the older form.
        stages: Caffe's ``NetState.stage``.
        weights: A .caffemodel or .caffemodel.h5.

    Raises:
        PrototxtError, ModelFileError: A file is missing or wrong; names file and line.
        NetError: The net cannot be built, or the weights do not fit it; names layer, blob and shapes.
    """

    def __init__(
        self,
        network_file: AnyPath,
        phase: int | AnyPath = TEST,
        level: int = 0,
        stages: Iterable[str] | None = None,
        weights: AnyPath | None = None,
    ):
        if isinstance(phase, (str, bytes, os.PathLike)):
            # Net(network_file, weights_file, phase): the phase is the third argument.
            network_file, weights, phase, level = network_file, phase, level, 0
        with raised_also_as(RuntimeError):
            net = TorchNet.from_file(path_of(network_file), int(phase), level=level, stages=list(stages or ()), fill=True)
            if weights is not None:
                load_weights(net, path_of(weights), warn=mode.warn)
        self._attach(net, Stepwise(net))

    @classmethod
    def _around(cls, net: TorchNet, run: Stepwise | None = None) -> Net:
        """Return a view of an existing net: a solver's."""
        view = cls.__new__(cls)
        view._attach(net, run or Stepwise(net))
        return view

    def _attach(self, net: TorchNet, run: Stepwise) -> None:
        self._net, self._run = net, run
        self._lock = threading.RLock()
        self._last_thread: int | None = None
        self._blob_list = BlobVec(Blob(storage) for storage in run.blobs.values())
        self._blobs_dict = OrderedDict(zip(run.blobs, self._blobs, strict=True))
        self._name_list = StringVec(layer.name for layer in net.layers)
        vectors = [BlobVec(layer=layer) for layer in net.layers]
        self._layer_list = LayerVec(
            getattr(layer, "user_layer", None) or _layer_view(layer.type_name, vector)
            for layer, vector in zip(net.layers, vectors, strict=True)
        )
        # Of several layers of one name these hold the last, as in pycaffe; `layers` holds them all.
        self._params_dict = OrderedDict((layer.name, vector) for layer, vector in zip(net.layers, vectors, strict=True) if len(layer.blobs))
        self._vectors = vectors
        self._layer_dict = OrderedDict(zip(self._layer_names, self.layers, strict=True))
        self._input_list = [top for layer in net.layers if layer.TRAITS.role == "input" for top in layer.tops]

    def __getattr__(self, name: str) -> Any:
        """Say for members that Caffe's nets had once what took their places."""
        reason = next((f"; {why}: {names[name]}" for why, names in _ABSENT.items() if name in names), "")
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'{reason}")

    # ---- what it consists of ----

    @property
    def name(self) -> str:
        """The net's name."""
        return self._net.name

    @property
    def blobs(self) -> OrderedDict[str, Blob]:
        """The blobs by name, in the order of the layers; ``data`` and ``diff`` are live float32 arrays (N, C, H, W)."""
        return self._blobs_dict

    @property
    def layers(self) -> LayerVec:
        """The layers in order."""
        return self._layer_list

    @property
    def params(self) -> OrderedDict[str, BlobVec]:
        """The parameter blobs of the layers that have some, by the layer's name."""
        return self._params_dict

    @property
    def layer_dict(self) -> OrderedDict[str, Any]:
        """The layers by name."""
        return self._layer_dict

    @property
    def inputs(self) -> list[str]:
        """The names of the tops of Input layers."""
        return self._input_list

    @property
    def outputs(self) -> list[str]:
        """The names of the blobs that no layer reads, in alphabetical order."""
        return list(self._net.outputs)

    @property
    def _blobs(self) -> BlobVec:
        return self._blob_list

    @property
    def _layer_names(self) -> StringVec:
        return self._name_list

    @property
    def _blob_names(self) -> StringVec:
        return StringVec(self._blobs_dict)

    @property
    def _inputs(self) -> IntVec:
        return self._ids(self.inputs)

    @property
    def _outputs(self) -> IntVec:
        return self._ids(self.outputs)

    @property
    def _blob_loss_weights(self) -> DtypeVec:
        return DtypeVec(self._net.loss_weights.get(name, 0.0) for name in self._blobs_dict)

    @property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """The loss weight of every blob; 0 of most."""
        return OrderedDict(zip(self._blobs_dict, self._blob_loss_weights, strict=True))

    @property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """The blobs that each layer reads."""
        return OrderedDict((layer.name, list(layer.bottoms)) for layer in self._net.layers)

    @property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """The blobs that each layer produces."""
        return OrderedDict((layer.name, list(layer.tops)) for layer in self._net.layers)

    def _bottom_ids(self, layer: int) -> IntVec:
        return self._ids(self._net.layers[layer].bottoms)

    def _top_ids(self, layer: int) -> IntVec:
        return self._ids(self._net.layers[layer].tops)

    def _ids(self, names: Iterable[str]) -> IntVec:
        index = {name: i for i, name in enumerate(self._blobs_dict)}
        return IntVec(index[name] for name in names)

    # ---- running ----

    def forward(
        self, blobs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **inputs: NDArray[Any]
    ) -> dict[str, Array]:
        """Run the layers from ``start`` to ``end``.

        Args:
            blobs: Names of further blobs to return.
            start: Name of the first layer; None: the first of the net.
            end: Name of the last layer, included; None: the last of the net.
            inputs: Values for all of the net's inputs, each as long as the input's batch.

        Returns:
            The arrays of the net's outputs (or of ``end``'s tops) and of ``blobs``. They are live: the next run writes into them.

        Raises:
            NetError: A layer (then also a ValueError) or a blob (also a KeyError) is unknown, or shapes do not fit.
        """
        names = _names(blobs)
        first, last = self._index(start, 0), self._index(end, len(self.layers) - 1)
        # By name, as Caffe: of several layers of one name, the tops of the last.
        wanted = self.outputs if end is None else self.top_names[self._net.layers[last].name]
        self._check_blobs(names)
        with self._lock:
            if inputs:
                self._keep_results_of_other_threads()
                expect_names(inputs, self.inputs, "inputs", self.name)
                for name, values in inputs.items():
                    self._fill(name, self.blobs[name].data, values)
            self._forward(first, last, reads=names)
            return {name: self.blobs[name].data for name in dict.fromkeys([*wanted, *names])}

    def backward(
        self, diffs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **tops: NDArray[Any]
    ) -> dict[str, Array]:
        """Run the backward passes from layer ``start`` to ``end``, over the blobs' values; diffs have the shapes of their blobs.

        Args:
            diffs: Names of further blobs whose diffs to return.
            start: Name of the first layer, the highest; None: the last of the net.
            end: Name of the last layer, included; None: the first of the net.
            tops: Diffs for all of the net's outputs.

        Returns:
            The diffs of the net's inputs (or of ``end``'s bottoms) and of ``diffs``; live arrays.

        Raises:
            NetError: As :meth:`forward`.
        """
        names = _names(diffs)
        first, last = self._index(start, len(self.layers) - 1), self._index(end, 0)
        wanted = self.inputs if end is None else self.bottom_names[self._net.layers[last].name]
        self._check_blobs(names)
        with self._lock:
            if tops:
                expect_names(tops, self.outputs, "outputs", self.name)
                for name, values in tops.items():
                    self._fill(name, self.blobs[name].diff, values)
            self._backward(first, last)
            return {name: self.blobs[name].diff for name in dict.fromkeys([*wanted, *names])}

    def forward_all(self, blobs: Iterable[str] | None = None, **inputs: NDArray[Any]) -> dict[str, Array]:
        """Run any number of items through the net in its batches; the last batch is padded with zeros, which are dropped again.

        Args:
            blobs: Names of further blobs to return.
            inputs: Values for all of the net's inputs, (items, C, H, W).

        Returns:
            Copies of the outputs and of ``blobs``, by name: float32, (items, …).

        Raises:
            NetError: An input or a blob is unknown, no values are given, or their lengths or shapes do not fit.
        """
        return batches.forward_all(self, list(blobs or ()), inputs)

    def forward_backward_all(
        self, blobs: Iterable[str] | None = None, diffs: Iterable[str] | None = None, **values: NDArray[Any]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run any number of items, arrays (items, …), through the net and back in its batches.

        Args:
            blobs: Names of further blobs whose data to return.
            diffs: Names of further blobs whose diffs to return.
            values: Values of the inputs, and diffs of outputs that get some.

        Returns:
            Copies of data and of diffs, by name: float32, (items, …).

        Raises:
            NetError: As :meth:`forward_all`.
        """
        return batches.forward_backward_all(self, list(blobs or ()), list(diffs or ()), values)

    def _batch(self, blobs: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        return batches.batches_of(self, blobs)

    def _forward(self, start: int, end: int, reads: Sequence[str] = ()) -> float:
        with self._lock:
            self._prepare()
            return self._run.forward(start, end, reads=reads)

    def _backward(self, start: int, end: int) -> None:
        with self._lock:
            self._prepare()
            self._run.backward(start, end, keep=True)

    def forward_simple(self) -> None:
        """Run the whole net on its blobs, and return nothing, as Intel Caffe's nets do."""
        self._forward(0, len(self.layers) - 1)

    def backward_simple(self) -> None:
        """Run the whole backward pass, and return nothing, as Intel Caffe's nets do."""
        self._backward(len(self.layers) - 1, 0)

    def reshape(self) -> None:
        """Give all blobs the shapes that follow from those of the inputs. Raises :class:`NetError` where they do not fit."""
        with self._lock:
            self._run.reshape()

    def clear_param_diffs(self) -> None:
        """Set the diffs of all parameters to zero."""
        self._prepare()
        self._run.clear_param_diffs()

    def set_input_arrays(self, data: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
        """Give the net's first layer, a MemoryData layer, its arrays, which it reads where they are: later edits reach the net.

        Args:
            data: The items (M, C, H, W), float32 in C order; M is a multiple of the layer's batch size.
            labels: Their labels (M, 1, 1, 1) or (M), float32.

        Raises:
            NetError: The first layer is of another type, or the arrays do not fit it; also a RuntimeError, in Caffe's words where it has some.
        """
        with raised_also_as(RuntimeError):
            self._set_input_arrays(data, labels)

    def _set_input_arrays(self, data: NDArray[Any], labels: NDArray[Any]) -> None:
        first = self._net.layers[0] if self._net.layers else None
        if first is None or not hasattr(first, "set_arrays"):
            kind = first.type_name if first is not None else "none"
            raise also(NetError(f"set_input_arrays needs a MemoryData layer as the first of the net, not {kind}"), RuntimeError)
        if labels.ndim == 1:
            labels = np.ascontiguousarray(labels[:, None, None, None])
        if labels.ndim == 4 and labels.shape[1:] != (1, 1, 1):
            raise also(NetError(f"labels array must be M x 1 x 1 x 1, not {format_shape(labels.shape)}", layer=first.name), RuntimeError)
        for array, what in ((data, "data"), (labels, "labels")):
            if fault := _fault_of_array(array):
                hint = f"np.ascontiguousarray({what}, np.float32) has that type and order"
                raise also(NetError(f"{what} array must be {fault}", layer=first.name, hint=hint), RuntimeError)
        first.set_arrays(data, labels)  # type: ignore[operator]

    # ---- weights ----

    def copy_from(self, weights: AnyPath) -> None:
        """Load the weights of layers by name. Raises :class:`ModelFileError`, or :class:`NetError` where a shape differs.

        Args:
            weights: A .caffemodel or a .caffemodel.h5.
        """
        self._prepare()
        self._run.settle()
        with raised_also_as(RuntimeError):
            load_weights(self._net, path_of(weights), warn=mode.warn)

    def save(self, path: AnyPath) -> None:
        """Write a .caffemodel. Raises :class:`RunFailed` where that is not possible."""
        self._prepare()
        files.save(self._net, path)

    def load_hdf5(self, path: AnyPath) -> None:
        """Load the weights of a .caffemodel.h5.

        Raises:
            ModelFileError: The file is missing or damaged; also a RuntimeError.
            NetError: A shape differs from the net's; also a RuntimeError.
        """
        self._prepare()
        self._run.settle()
        with raised_also_as(RuntimeError):
            files.load_hdf5(self._net, path)

    def save_hdf5(self, path: AnyPath, write_diff: bool = False) -> None:
        """Write a .caffemodel.h5.

        Args:
            path: Where to.
            write_diff: Write the parameters' diffs too.

        Raises:
            NetError: Two layers have one name, which HDF5 cannot hold.
            RunFailed: The file cannot be written.
        """
        self._prepare()
        files.save_hdf5(self._net, path, write_diff=write_diff)

    def share_with(self, other: Net) -> None:
        """Use the parameters of ``other``'s layers of the same names from now on; each net keeps its own diffs.

        Raises:
            NetError: A layer's parameters differ in shape.
        """
        self._run.settle()
        files.share(self._net, other._net)

    # ---- callbacks ----

    def before_forward(self, call: Callback) -> None:
        """Call ``call(index)`` before each layer runs."""
        self._run.before_forward.append(call)

    def after_forward(self, call: Callback) -> None:
        """Call ``call(index)`` after each layer has run."""
        self._run.after_forward.append(call)

    def before_backward(self, call: Callback) -> None:
        """Call ``call(index)`` before the backward pass of each layer."""
        self._run.before_backward.append(call)

    def after_backward(self, call: Callback) -> None:
        """Call ``call(index)`` after the backward pass of each layer."""
        self._run.after_backward.append(call)

    # ---- inside ----

    def _prepare(self) -> None:
        """Move the net to the device that the mode asks for, with what was written on the host."""
        if self._run.device.type != "cpu":
            for vector in self._vectors:
                vector.sync()
        self._run.to(mode.device())

    def _keep_results_of_other_threads(self) -> None:
        """Let the arrays that another thread got from its last run keep their values."""
        thread = threading.get_ident()
        if self._last_thread not in (None, thread):
            self._run.drop_views()
        self._last_thread = thread

    def _index(self, name: str | None, default: int) -> int:
        if name is None:
            return default
        if name not in self._layer_names:
            message = f"the net '{self.name}' has no layer '{name}'{did_you_mean(str(name), self._layer_names)}"
            raise also(NetError(message), ValueError)
        return self._layer_names.index(name)

    def _check_blobs(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.blobs:
                raise also(NetError(f"the net '{self.name}' has no blob '{name}'{did_you_mean(str(name), self.blobs)}"), KeyError)

    def _fill(self, name: str, into: Array, values: ArrayLike) -> None:
        values = np.asarray(values)
        if not values.ndim or values.shape[0] != into.shape[0]:
            raise NetError(
                f"blob '{name}' has a batch of {into.shape[0]}, but is given {format_shape(values.shape)}; reshape the blob first"
            )
        try:
            into[...] = values
        except ValueError:
            error = NetError(f"blob '{name}' is {format_shape(into.shape)}, but is given {format_shape(values.shape)}")
            raise also(error, ValueError) from None


def _names(given: Iterable[str] | None) -> list[str]:
    if isinstance(given, str):
        raise also(NetError(f"give the names of blobs as a list: ['{given}'], not '{given}'"), TypeError)
    return list(given or ())


def _fault_of_array(array: NDArray[Any]) -> str:
    """Return what an array for a MemoryData layer is not, in the order in which Caffe looks; empty where it is all of that."""
    if not array.flags.c_contiguous:
        return "C contiguous"
    if array.ndim != 4:
        return f"4-d, not {format_shape(array.shape)}"
    return "" if array.dtype == np.float32 else f"float32, not {array.dtype}"


def _layer_view(type_name: str, blobs: BlobVec) -> Layer:
    layer = Layer()
    layer.type, layer.blobs = type_name, blobs  # type: ignore[assignment]
    return layer


def torch_net(net: Net) -> TorchNet:
    """Return the ``torch.nn.Module`` behind a pycaffe net: same parameters, for scripts that need autograd, DDP or export."""
    return net._net
