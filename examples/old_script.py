"""A script as written for Caffe: caffetools run old_script.py (deploy.prototxt, weights.caffemodel, photo.jpg, labels.txt)."""

import caffe
import numpy as np

caffe.set_mode_cpu()
net = caffe.Net("deploy.prototxt", "weights.caffemodel", caffe.TEST)
transformer = caffe.io.Transformer({"data": net.blobs["data"].data.shape})
transformer.set_transpose("data", (2, 0, 1))
transformer.set_mean("data", np.array([104, 117, 123]))
transformer.set_raw_scale("data", 255)
transformer.set_channel_swap("data", (2, 1, 0))
net.blobs["data"].data[...] = transformer.preprocess("data", caffe.io.load_image("photo.jpg"))
prob = net.forward()["prob"][0]
labels = open("labels.txt").read().splitlines()  # noqa: PTH123, SIM115
for index in prob.argsort()[::-1][:3]:
    print(f"{prob[index]:.3f} {labels[index]}")
