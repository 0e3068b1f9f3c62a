"""HDF5Output (hdf5_output_layer.cpp): blobs that go to a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from caffetools.errors import WriteFailed
from caffetools.layers.base import Layer, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.proto.schema import TEST, LayerParameter


@register("HDF5Output")
class HDF5Output(Layer):
    """Writes its two bottoms, of N items each, to the datasets ``data`` and ``label`` of ``file_name`` (float32, always four axes).

    The first pass replaces the file, later ones append their items (Caffe stops there); after each the file is complete. No tops.
    A run that is resumed appends to the items that it had written when the snapshot was taken.
    """

    BOTTOMS = (2, 2)
    TOPS = (0, 0)
    NO_GRADIENT = frozenset({0, 1})

    def __init__(self, param: LayerParameter, phase: int = TEST):
        super().__init__(param, phase)
        self._items = 0

    def setup(self, bottoms: Shapes) -> Shapes:
        if not self.param.hdf5_output_param.HasField("file_name"):
            raise self.error("needs hdf5_output_param.file_name")
        if bottoms[0][:1] != bottoms[1][:1] or not bottoms[0]:
            shapes = ", ".join(f"'{name}' {format_shape(shape)}" for name, shape in zip(self.bottoms, bottoms, strict=True))
            raise self.error(f"bottoms must have the same first dimension, but are {shapes}")
        for name, shape in zip(self.bottoms, bottoms, strict=True):
            if len(shape) > 4:
                raise self.error(f"bottom '{name}' must have at most 4 axes, not {format_shape(shape)}")
        self.path = Path(self.param.hdf5_output_param.file_name)
        return []

    NO_ONNX = "it writes a file"

    def forward(self, data: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        rows = {"data": _four_axes(data), "label": _four_axes(label)}
        try:
            (self._append if self._items else self._create)(rows)
            self._items += len(rows["data"])
        except OSError as error:
            raise WriteFailed(self.path, error, hint=None) from error
        return ()

    def get_state(self) -> dict[str, int]:
        """Return how many items are in the file."""
        return {"items": self._items}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue behind that many items of the file; those that follow are taken out. Raises ``ValueError`` where it has fewer."""
        import h5py

        items = int(state["items"])
        self._items = 0
        if not items:
            return
        try:
            with h5py.File(self.path, "r+") as file:
                for name in ("data", "label"):
                    if len(file[name]) < items:
                        raise ValueError(f"{self.path} holds fewer than {items} items")
                    file[name].resize(items, axis=0)
        except OSError as error:
            raise ValueError(f"{self.path}: {error}") from None
        self._items = items

    def _create(self, rows: dict[str, NDArray[np.float32]]) -> None:
        import h5py

        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            with h5py.File(part, "w") as file:
                for name, array in rows.items():
                    file.create_dataset(name, data=array, maxshape=(None, *array.shape[1:]))
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)

    def _append(self, rows: dict[str, NDArray[np.float32]]) -> None:
        import h5py

        with h5py.File(self.path, "r+") as file:
            for name, array in rows.items():
                dataset = file[name]
                if dataset.shape[1:] != array.shape[1:]:
                    raise self.error(
                        f"{self.path} holds items of {format_shape(dataset.shape[1:])} in '{name}', not {format_shape(array.shape[1:])}"
                    )
                before = dataset.shape[0]
                dataset.resize(before + array.shape[0], axis=0)
                dataset[before:] = array


def _four_axes(x: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = np.asarray(x.detach().cpu().numpy(), np.float32, order="C")
    return array.reshape((*array.shape, 1, 1, 1)[:4])
