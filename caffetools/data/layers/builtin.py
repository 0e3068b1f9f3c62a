"""The layers that read data: Data, ImageData and their like; registered beside the computing ones."""

from __future__ import annotations

from caffetools.data.layers.data import Data
from caffetools.data.layers.hdf5_data import HDF5Data
from caffetools.data.layers.image_data import ImageData
from caffetools.data.layers.memory_data import MemoryData
from caffetools.data.layers.window_data import WindowData

__all__ = ["Data", "HDF5Data", "ImageData", "MemoryData", "WindowData"]
