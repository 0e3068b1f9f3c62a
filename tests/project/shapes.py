"""A small set of pictures that a small net learns quickly: coloured shapes on a noisy ground, and a net for it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

CLASSES = ("blue triangles", "green squares", "rote Kreise")

TRAIN_VAL = """\
name: "shapes"
layer { name: "pictures" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 0.0078125 mirror: true crop_size: 32 } data_param { source: "none" batch_size: 8 backend: LMDB } }
layer { name: "pictures" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { scale: 0.0078125 crop_size: 32 } data_param { source: "none" batch_size: 8 backend: LMDB } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 5 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1"
  inner_product_param { num_output: 16 weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""


def draw_shapes(folder: Path, *, each: int = 20, size: int = 40, seed: int = 1) -> Path:
    """Write ``each`` pictures of every class into ``folder``, of ``size`` x ``size`` pixels, the same ones for a seed."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            image = rng.integers(0, 60, (size, size, 3), np.uint8)
            colour = [0, 0, 0]
            colour[label] = 220
            x, y = (int(v) for v in rng.integers(12, size - 12, 2))
            if label == 0:
                cv2.fillPoly(image, [np.array([(x, y - 9), (x - 9, y + 8), (x + 9, y + 8)])], colour)
            elif label == 1:
                cv2.rectangle(image, (x - 8, y - 8), (x + 8, y + 8), colour, -1)
            else:
                cv2.circle(image, (x, y), 9, colour, -1)
            # cv2.imwrite takes no path outside of ASCII on every system.
            (folder / name / f"{number:02d}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return folder
