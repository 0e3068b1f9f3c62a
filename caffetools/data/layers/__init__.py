"""The layers that read data: Data, ImageData, HDF5Data, MemoryData, WindowData."""
