"""Blobs of a deployed net for pictures and arrays: in memory or as .npy files, in one pass or tile by tile."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.images import Pixels, encode_image, read_image
from caffetools.engines.base import EngineError
from caffetools.engines.torch import load_all_weights
from caffetools.errors import CaffeToolsError, DataError, NetError, WriteFailed
from caffetools.events import EventSink, ignore
from caffetools.infer.classifier import PreprocessOptions, merge_preprocessing
from caffetools.infer.preprocess import Preprocessor
from caffetools.infer.sidecar import read_preprocessing
from caffetools.infer.tiling import MakeArray, Window, plan_tiles, run_tiles
from caffetools.layers.base import format_shape
from caffetools.net.device import find_device
from caffetools.net.net import Net
from caffetools.net.precision import set_precision
from caffetools.net.probe import needed_layers
from caffetools.proto.blobs import Array
from caffetools.proto.numpy_files import read_arrays
from caffetools.proto.schema import TEST, NetParameter
from caffetools.results import Preprocessing
from caffetools.util.files import allocate, atomic_write, make_folder, remove_empty

PathLike = str | os.PathLike[str]
# A picture or array file; a uint8 image (H, W, 3) or (H, W); or input arrays by blob name.
Item = PathLike | NDArray[Any] | Mapping[str, NDArray[Any]]

# Rows of a blob that are looked at together when a picture is made of it.
_ROWS = 256


@dataclass(frozen=True)
class BlobOptions:
    """What to compute, and how large the input is.

    Attributes:
        outputs: The blobs; () gives the net's outputs.
        own_size: Pictures keep their size (or get ``PreprocessOptions.resize``) in place of the net's; for fully convolutional nets.
        tile: Most pixels of a side that the net gets at once; pictures keep their size. None: one pass.
    """

    outputs: Sequence[str] = ()
    own_size: bool = False
    tile: int | None = None


class BlobReader:
    """Computes blobs of a deployed net. Layers that the wanted blobs do not depend on are left out.

    Args:
        deploy: A deploy prototxt.
        weights: Its .caffemodel; None for a net without parameters.
        options: Preprocessing, in place of what is stored with the prototxt.
        what: Which blobs, and the size of the input.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        precision: As for :func:`~caffetools.net.precision.set_precision`.

    Attributes:
        net: The net of the layers that are needed.
        outputs: The names of the blobs.

    Raises:
        CaffeToolsError: A file cannot be read, a blob does not exist, or the weights belong to another net.
    """

    def __init__(
        self,
        deploy: PathLike,
        weights: PathLike | None = None,
        options: PreprocessOptions | None = None,
        what: BlobOptions | None = None,
        *,
        device: str = "cpu",
        precision: str = "fp32",
    ):
        if Path(deploy).suffix.lower() == ".onnx":
            raise EngineError(f"{os.fspath(deploy)}: inner blobs are computed for a prototxt with its .caffemodel, not for ONNX files")
        self.what, self.options = what or BlobOptions(), options or PreprocessOptions()
        if self.what.tile is not None and self.what.tile < 1:
            raise CaffeToolsError(f"tiles must be at least 1 pixel wide, not {self.what.tile}")
        whole = Net.from_file(deploy, TEST, fill=weights is None)
        self.outputs = tuple(dict.fromkeys(self.what.outputs)) or tuple(whole.outputs)
        self.net = _cut(whole, self.outputs)
        load_all_weights(self.net, deploy, weights)
        set_precision(self.net.to(find_device(device)), precision)
        self._known = read_preprocessing(deploy) or Preprocessing()

    def run(
        self, item: Item, make: MakeArray | None = None, *, events: EventSink = ignore, cancel: CancelToken | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Compute the blobs for one input.

        Args:
            item: A picture file; a uint8 image (H, W, 3) RGB or (H, W); a .npy file of the net's input (C, H, W) or (N, C, H, W), which
                is not preprocessed; a .npz file or a mapping with an array for each input blob.
            make: Makes the arrays for the results; None: ordinary ones.
            events: Receives ``Progress`` events of tiles.
            cancel: Checked before every tile.

        Returns:
            float32 arrays by blob name.

        Raises:
            DataError: The picture or array cannot be read.
            NetError: The input does not fit the net.
            Cancelled: ``cancel`` was set.
        """
        make = make or _in_memory
        arrays = _arrays(item)
        if isinstance(arrays, Mapping):
            return self._pass(arrays, make)
        if arrays is None:
            image: Any = item
            shape, window = self._picture(image)
        else:
            shape, window = self._array(arrays)
        if self.what.tile is None:
            return self._pass({self._input: window((0, shape[2]), (0, shape[3]))}, make)
        tiling = plan_tiles(self.net, self._input, self.outputs, shape, self.what.tile)
        return run_tiles(self.net, self._input, tiling, window, make, events=events, cancel=cancel)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """How pictures are prepared."""
        return merge_preprocessing(self._known, self.options, channels=self.net.blob_shapes[self._input][1])

    def prepare(self, picture: PathLike | NDArray[Any], *, channel_order: str = "RGB") -> NDArray[np.float32]:
        """Return the net's input (1, C, H, W) for a picture, at the net's size.

        Args:
            picture: A file; or uint8 (H, W, 3), (H, W, 4) or (H, W).
            channel_order: ``"RGB"`` or ``"BGR"``, for arrays.

        Raises:
            DataError: The picture cannot be read.
        """
        return self.preprocessor.centre(_pixels(picture, self.preprocessor, channel_order))

    def compute(self, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the blobs, float32, for the net's input (N, C, H, W)."""
        with torch.inference_mode():
            blobs = self.net({self._input: torch.from_numpy(inputs)}, keep=self.outputs)
        return {name: np.ascontiguousarray(blobs[name].float().cpu().numpy()) for name in self.outputs}

    @cached_property
    def preprocessor(self) -> Preprocessor:
        """Prepares pictures at the net's size."""
        return Preprocessor((1, *self.net.blob_shapes[self._input][1:]), self.preprocessing)

    @cached_property
    def _input(self) -> str:
        inputs = [name for name in self.net.inputs if len(self.net.blob_shapes[name]) == 4]
        if len(self.net.inputs) != 1 or not inputs:
            named = ", ".join(self.net.inputs) or "none"
            raise NetError(f"the net needs one input for pictures; it has {named}. Give a .npz file with an array for each input")
        return inputs[0]

    def _pass(self, arrays: Mapping[str, NDArray[Any]], make: MakeArray) -> dict[str, NDArray[np.float32]]:
        if self.what.tile is not None:
            raise CaffeToolsError("tiles are cut of one picture or one array, not of several input blobs")
        batch = {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in arrays.items()}
        with torch.inference_mode():
            blobs = self.net(batch, keep=self.outputs)
        results = {}
        for name in self.outputs:
            results[name] = make(name, tuple(blobs[name].shape))
            results[name][...] = blobs[name].float().cpu().numpy()
        return results

    def _array(self, array: NDArray[Any]) -> tuple[tuple[int, ...], Window]:
        if array.ndim == 3:
            array = array[np.newaxis]
        expected = self.net.blob_shapes[self._input]
        if array.ndim != 4 or array.shape[1] != expected[1]:
            raise DataError(f"the array is {format_shape(array.shape)}; input '{self._input}' needs N x {format_shape(expected[1:])}")
        return array.shape, lambda rows, columns: array[:, :, slice(*rows), slice(*columns)].astype(np.float32)

    def _picture(self, item: PathLike | NDArray[Any]) -> tuple[tuple[int, ...], Window]:
        channels = self.net.blob_shapes[self._input][1]
        if not (self.what.own_size or self.what.tile):
            centre = self.prepare(item)
            return centre.shape, lambda rows, columns: centre[:, :, slice(*rows), slice(*columns)]
        size = self.options.resize or _own_size(item, color=channels == 3)
        preprocessor = Preprocessor((1, channels, size[1], size[0]), replace(self.preprocessing, resize=size))
        image = _pixels(item, preprocessor)
        return preprocessor.shape, lambda rows, columns: preprocessor.window(image, rows, columns)


def _pixels(item: PathLike | NDArray[Any], preprocessor: Preprocessor, channel_order: str = "RGB") -> Pixels:
    return preprocessor.from_array(item, channel_order=channel_order) if isinstance(item, np.ndarray) else preprocessor.read(item)


def _own_size(item: PathLike | NDArray[Any], *, color: bool) -> tuple[int, int]:
    height, width = (item if isinstance(item, np.ndarray) else read_image(item, color=color)).shape[:2]
    return width, height


def _cut(net: Net, outputs: Sequence[str]) -> Net:
    needed = needed_layers(net, outputs)
    if len(needed) == len(net.layers):
        return net
    param = NetParameter()
    param.CopyFrom(net.param)
    del param.layer[:]
    param.layer.extend(layer.param for layer in needed)
    return Net(param, TEST, fill=False)


def _arrays(item: Item) -> NDArray[Any] | Mapping[str, NDArray[Any]] | None:
    """Return the array or arrays that ``item`` is or whose file it names; None for a picture."""
    if isinstance(item, Mapping):
        return item
    if isinstance(item, np.ndarray):
        return item if item.dtype != np.uint8 else None
    if not isinstance(item, str | os.PathLike):
        raise DataError(f"a path, a uint8 image, an array or a mapping of arrays is expected, not {type(item).__name__}")
    path = Path(item)
    return read_arrays(path) if path.suffix.lower() in (".npy", ".npz") else None


def _in_memory(_: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.empty(shape, np.float32)


# ---- files ----


def result_paths(folder: PathLike, items: Sequence[PathLike], outputs: Sequence[str], *, suffix: str = ".npy") -> list[dict[str, Path]]:
    """Return for each input file the path of each blob: ``photo.conv5.npy`` in ``folder`` for ``photo.jpg``;
    ``photo.npy`` for a blob "".

    Raises:
        CaffeToolsError: Two inputs would get one name.
    """
    paths = [
        {blob: Path(folder) / (".".join(filter(None, (Path(item).stem, blob.replace("/", "_")))) + suffix) for blob in outputs}
        for item in items
    ]
    owner: dict[Path, str] = {}
    for item, blobs in zip(items, paths, strict=True):
        for blob, path in blobs.items():
            here = f"blob '{blob}' of {os.fspath(item)}"
            if path in owner:
                raise CaffeToolsError(f"{owner[path]} and {here} would both be {path}; rename one, or write them to two folders")
            owner[path] = here
    return paths


@contextlib.contextmanager
def new_arrays(paths: Mapping[str, Path]) -> Iterator[MakeArray]:
    """Yield a function that makes .npy files mapped to memory; they appear under their names when the block ends without an error.

    Args:
        paths: Blob name → file.

    Raises:
        WriteFailed: A file cannot be written.
    """
    made: dict[Path, Path] = {}

    def make(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        target = paths[name]
        temporary = target.parent / f".{target.name[:50]}.{secrets.token_hex(4)}.part"
        try:
            stack.callback(remove_empty, make_folder(target.parent))
            # Before the file is made: what could not be filled is removed too.
            stack.callback(lambda: temporary.unlink(missing_ok=True))
            array: NDArray[np.float32] = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            allocate(temporary)
        except OSError as error:
            raise WriteFailed(target, error.strerror or error) from error
        made[temporary] = target
        return array

    with ExitStack() as stack:
        yield make
        for temporary, target in made.items():
            try:
                with temporary.open("rb+") as stream:
                    os.fsync(stream.fileno())
                temporary.replace(target)
            except OSError as error:
                raise WriteFailed(target, error.strerror or error) from error


def write_npz(path: PathLike, blobs: Mapping[str, NDArray[np.float32]]) -> None:
    """Write blobs as one .npz file with an array under each name. Raises :class:`WriteFailed` where it cannot be written."""
    if reserved := {"file", "allow_pickle"} & blobs.keys():
        raise CaffeToolsError(f"a .npz file cannot hold a blob called {', '.join(sorted(reserved))}; write .npy files")
    with atomic_write(path) as stream:
        np.savez(stream, **blobs)  # type: ignore[arg-type]


def write_png(path: PathLike, blob: NDArray[np.float32], *, number: int = 0) -> str:
    """Write an item of a blob as a gray PNG, and return how its values became pixels.

    Several channels: the number of the largest one at each position. One channel of whole numbers from 0 to 65535 (labels): as they
    are, in 16 bits above 255. Other single channels: from the smallest (black) to the largest (white) value.

    Args:
        path: The file to write.
        blob: (N, C, H, W).
        number: Which item of it.

    Raises:
        CaffeToolsError: The blob is not (N, C, H, W).
    """
    if blob.ndim != 4 or not blob.size:
        raise CaffeToolsError(f"a blob of {format_shape(blob.shape)} is not a picture; a PNG needs N x C x H x W")
    maps = blob[number]
    if maps.shape[0] > 1:
        if maps.shape[0] > 65536:
            raise CaffeToolsError(f"a PNG holds at most 65536 classes, not {maps.shape[0]}")
        kind = np.uint8 if maps.shape[0] <= 256 else np.uint16
        pixels = _by_rows(maps, kind, lambda part: part.argmax(0))
        how = f"channel of the largest value, 0 to {maps.shape[0] - 1}"
    else:
        pixels, how = _one_channel(maps)
    data = encode_image(pixels, ".png")
    with atomic_write(path) as stream:
        stream.write(data)
    return how


def _one_channel(maps: Array) -> tuple[NDArray[Any], str]:
    parts = [maps[0, start : start + _ROWS] for start in range(0, maps.shape[1], _ROWS)]
    if not all(np.isfinite(part).all() for part in parts):
        raise CaffeToolsError("the blob has values that are not finite, so no PNG is made of it")
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    if low >= 0 and high <= 65535 and all((part == np.floor(part)).all() for part in parts):
        return _by_rows(maps, np.uint8 if high <= 255 else np.uint16, lambda part: part[0]), "values as they are"
    factor = 255 / (high - low) if high > low else 0.0
    return _by_rows(maps, np.uint8, lambda part: np.rint((part[0] - low) * factor)), f"{low:.6g} (black) to {high:.6g} (white)"


def _by_rows(maps: Array, kind: type[np.unsignedinteger[Any]], rule: Callable[[Array], NDArray[Any]]) -> NDArray[Any]:
    pixels = np.empty(maps.shape[1:], kind)
    for start in range(0, maps.shape[1], _ROWS):
        pixels[start : start + _ROWS] = rule(maps[:, start : start + _ROWS])
    return pixels
