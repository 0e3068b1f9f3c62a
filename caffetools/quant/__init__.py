"""Lower precision: calibration, int8 and fp16 ONNX models, calibration tables of other runtimes, quantization-aware training."""
