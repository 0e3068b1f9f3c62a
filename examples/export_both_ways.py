"""Export deploy.prototxt with weights.caffemodel to ONNX, import that again, and compare the two nets."""

import caffetools as ct
from caffetools.infer.compare import Candidate, compare_engines

print(ct.export_onnx("deploy.prototxt", "weights.caffemodel", "exported.onnx").describe())
ct.import_onnx("exported.onnx", "imported")
back = Candidate("imported/deploy.prototxt", "imported/weights.caffemodel")
for row in compare_engines(Candidate("deploy.prototxt", "weights.caffemodel"), [back]):
    print(f"{row.output}: largest difference {row.largest:.1e}")
