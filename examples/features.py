"""Find the picture in photos/ that is most similar to photo.jpg, by blob ip1 of deploy.prototxt with weights.caffemodel."""

from pathlib import Path

import numpy as np
import torch

import caffetools as ct
from caffetools.infer.preprocess import Preprocessor
from caffetools.infer.sidecar import read_preprocessing

net = ct.load_net("deploy.prototxt", "weights.caffemodel")
prepare = Preprocessor(net.blob_shapes["data"], read_preprocessing("deploy.prototxt"))
paths = [Path("photo.jpg"), *sorted(Path("photos").iterdir())]
batch = np.concatenate([prepare.centre(prepare.read(path)) for path in paths])
with torch.inference_mode():
    features = torch.nn.functional.normalize(net({"data": torch.from_numpy(batch)}, keep=["ip1"])["ip1"])
best = int((features[1:] @ features[0]).argmax())
print(f"{paths[1 + best]} is most similar: cosine {float(features[1 + best] @ features[0]):.3f}")
