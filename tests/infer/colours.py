"""A net that tells blue, green and red pictures apart: its weights are set by hand, so its answers are known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from caffetools.net.net import Net
from caffetools.net.weights import save_weights

DEPLOY = """
name: "colours"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 8 } } }
layer { name: "mean" type: "Pooling" bottom: "data" top: "mean" pooling_param { pool: AVE global_pooling: true } }
layer { name: "score" type: "InnerProduct" bottom: "mean" top: "score" inner_product_param { num_output: 3 } }
layer { name: "relu" type: "ReLU" bottom: "score" top: "score" }
layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }
"""
LABELS = ("blue", "green", "red")


def write_net(folder: Path, text: str = DEPLOY) -> tuple[Path, Path]:
    """The deploy prototxt and the caffemodel of the net."""
    deploy, weights = folder / "deploy.prototxt", folder / "colours.caffemodel"
    deploy.write_text(text)
    net = Net.from_file(deploy)
    with torch.no_grad():
        net.layer("score").blobs[0].copy_(torch.eye(3) * 0.01)
        net.layer("score").blobs[1].zero_()
    save_weights(net, weights)
    return deploy, weights


def write_pictures(folder: Path) -> list[str]:
    """One picture of each colour, of another size than the net's input."""
    names = []
    for channel, label in enumerate(LABELS):
        image = np.full((12, 20, 3), 20, np.uint8)
        image[:, :, channel] = 250
        names.append(str(folder / f"{label}.png"))
        cv2.imwrite(names[-1], image)
    return names


def write_labels(folder: Path) -> Path:
    path = folder / "labels.txt"
    path.write_text("".join(f"{label}\n" for label in LABELS))
    return path
