"""Other engines behind one small interface: onnxruntime, real Caffe."""
