"""The layers that read data: Data, ImageData, DenseImageData, AnnotatedData, HDF5Data, MemoryData, WindowData."""
