"""Run a Caffe model in another Python: started by :mod:`caffetools.engines.external`, needs NumPy and cv2 or caffe, nothing of ours.

Python 3.7 and later. Reads requests as lines of JSON from stdin and answers each with one line of JSON on stdout; arrays travel in
.npz files. Requests: {"open": [prototxt, caffemodel], "backend": "opencv" or "caffe"} gives {"inputs", "outputs", "version"};
{"run": inputs.npz, "to": outputs.npz} gives {"seconds"}; an error gives {"error"}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

# This folder holds a caffe.py of ours.
sys.path.pop(0)

import numpy as np


class OpenCV:
    """The Caffe importer of OpenCV 3.3 to 4."""

    def __init__(self, prototxt: str, weights: str):
        import cv2

        if not hasattr(cv2.dnn, "readNetFromCaffe"):
            raise RuntimeError(f"OpenCV {cv2.__version__} has no Caffe importer; 3.3 to 4 have one")
        self.net: Any = cv2.dnn.readNetFromCaffe(prototxt, weights)
        self.inputs: Any = None
        self.outputs: list[str] = list(self.net.getUnconnectedOutLayersNames())
        self.version = f"OpenCV {cv2.__version__}"

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run once."""
        for name, value in inputs.items():
            self.net.setInput(value, name)
        values = self.net.forward(self.outputs)
        return {name: np.array(values[index], np.float32) for index, name in enumerate(self.outputs)}


class Caffe:
    """Pycaffe of any Caffe."""

    def __init__(self, prototxt: str, weights: str):
        os.environ.setdefault("GLOG_minloglevel", "3")
        import caffe

        caffe.set_mode_cpu()
        self.net: Any = caffe.Net(prototxt, weights, caffe.TEST)
        self.inputs: Any = {name: list(self.net.blobs[name].data.shape) for name in self.net.inputs}
        self.outputs: list[str] = list(self.net.outputs)
        self.version = f"Caffe {getattr(caffe, '__version__', '')}"

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run once."""
        for name, value in inputs.items():
            self.net.blobs[name].reshape(*value.shape)
            self.net.blobs[name].data[...] = value
        self.net.reshape()
        values = self.net.forward()
        return {name: np.array(value, np.float32) for name, value in values.items()}


def answer(request: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks."""
    if "open" in request:
        engine = state["engine"] = (OpenCV if request["backend"] == "opencv" else Caffe)(*request["open"])
        return {"inputs": engine.inputs, "outputs": engine.outputs, "version": engine.version}
    with np.load(request["run"], allow_pickle=False) as file:
        inputs = {name: file[name] for name in file.files}
    start = time.perf_counter()
    outputs = state["engine"].run(inputs)
    seconds = time.perf_counter() - start
    np.savez(request["to"], **outputs)
    return {"seconds": seconds}


def main() -> None:
    """Answer requests until stdin ends."""
    # What libraries print is not an answer, so it becomes stderr.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    state: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), state)
        except Exception as error:
            reply = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
