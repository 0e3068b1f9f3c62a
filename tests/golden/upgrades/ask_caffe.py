"""Ask a real Caffe what it makes of the nets and weights in old layouts: run in a copy of tests/golden, whose databases they read.

    python upgrades/ask_caffe.py    (the databases are opened, so a copy)
"""

import os
from pathlib import Path

os.environ["GLOG_minloglevel"] = "2"

import caffe
import numpy as np
from caffe.proto import caffe_pb2
from google.protobuf import text_format

CASES = [("v0_digits", "TEST"), ("v0_learning", "TRAIN"), ("v1_learning", "TRAIN"), ("v1_learning", "TEST"), ("v1_pairs", "TRAIN"), ("v1_types", "TEST")]
WEIGHTS = [("v0_digits", "TEST"), ("v1_pairs", "TRAIN")]


def layers_of(path):
    net = caffe_pb2.NetParameter()
    net.ParseFromString(Path(path).read_bytes())
    return net


def old_weights(name, net):
    """The net's text as a message of its age, with blobs in the form of num, channels, height and width."""
    old = text_format.Parse(Path("upgrades", name + ".prototxt").read_text(), caffe_pb2.NetParameter())
    rng = np.random.RandomState(5)
    for layer in old.layers:
        inner = layer.layer if layer.HasField("layer") else layer
        for blob in net.params.get(inner.name, ()):
            values = rng.randn(*blob.data.shape).astype(np.float32)
            axes = (1,) * (4 - values.ndim) + values.shape
            inner.blobs.add(num=axes[0], channels=axes[1], height=axes[2], width=axes[3], data=values.ravel())
    return old


def main():
    for name, phase in CASES:
        net = caffe.Net(f"upgrades/{name}.prototxt", getattr(caffe, phase))
        net.save("upgrades/saved")
        message = layers_of("upgrades/saved")
        for layer in message.layer:
            layer.ClearField("blobs")
            layer.ClearField("phase")
            if list(layer.loss_weight) == [1]:
                # Set by a loss layer's set-up, not by the upgrade.
                layer.ClearField("loss_weight")
        Path(f"upgrades/{name}.{phase.lower()}.out.prototxt").write_text(text_format.MessageToString(message))
    for name, phase in WEIGHTS:
        net = caffe.Net(f"upgrades/{name}.prototxt", getattr(caffe, phase))
        Path(f"upgrades/{name}.old").write_bytes(old_weights(name, net).SerializeToString())
        net.copy_from(f"upgrades/{name}.old")
        net.save(f"upgrades/{name}.out.caffemodel")
    os.remove("upgrades/saved")


main()
