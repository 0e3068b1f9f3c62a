"""The layers that read data: Data, ImageData and their like; registered beside the computing ones."""

from __future__ import annotations

from caffetools.data.data_layer import Data
from caffetools.data.hdf5_data import HDF5Data
from caffetools.data.image_data import ImageData
from caffetools.data.memory_data import MemoryData
from caffetools.data.window_data import WindowData

__all__ = ["Data", "HDF5Data", "ImageData", "MemoryData", "WindowData"]
