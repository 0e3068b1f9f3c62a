"""Bundles for a device: the ONNX model, labels, preprocessing, scripts, runners and sample pictures in one folder."""
