"""To ONNX, and verifying what came out."""
