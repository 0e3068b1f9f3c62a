"""A folder of good and bad nets, weights, pictures and data sets for the tests of bad input."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.cli.inprocess import run_well

DEPLOY = """\
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""

TRAIN = """\
name: "small"
layer { name: "pictures" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "data/train_lmdb" batch_size: 4 backend: LMDB } }
layer { name: "pictures" type: "Data" top: "data" top: "label" include { phase: TEST }
  data_param { source: "data/val_lmdb" batch_size: 2 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""

SOLVER = """\
net: "train.prototxt"
test_iter: 1
test_interval: 2
base_lr: 0.001
lr_policy: "fixed"
max_iter: 2
random_seed: 1
snapshot_prefix: "run/small"
"""

# What is wrong with a net, by the name of its file: (what to replace, by what).
BAD_NETS = {
    "typo": ("num_output: 4", "num_ouput: 4"),
    "unknown": ('"Convolution"', '"Convolusion"'),
    "missing": ('bottom: "conv"', 'bottom: "cnov"'),
    "cycle": ('bottom: "data" top: "conv"', 'bottom: "ip" top: "conv"'),
    "unfit": ("kernel_size: 3", "kernel_size: 30"),
    "word": ("num_output: 4", "num_output: four"),
    "filler": ('"xavier"', '"xaver"'),
}


def make_materials(folder: Path) -> None:
    """Fill ``folder``, which is the working directory."""
    _write_nets(folder)
    for name, count in (("a b", 4), ("große Hunde", 4)):
        for number in range(count):
            _picture(folder / "pictures" / name / f"{number}.png", seed=number)
    run_well("dataset", "build", "pictures", "data", "--size", "8")
    run_well("train", "solver.prototxt", "--quiet", "--device", "cpu")
    for name, file in (("good.caffemodel", "small_iter_2.caffemodel"), ("good.solverstate", "small_iter_2.solverstate")):
        (folder / "run" / file).rename(folder / name)
    run_well("export", "good.prototxt", "good.caffemodel", "-o", "good.onnx")
    _write_models(folder)
    _write_pictures(folder)
    _write_folders(folder)
    for count in range(4):
        (folder / f"labels{count}.txt").write_text("".join(f"class {n}\n" for n in range(count)))
    (folder / "folder").mkdir()


def _write_nets(folder: Path) -> None:
    (folder / "good.prototxt").write_text(DEPLOY)
    (folder / "train.prototxt").write_text(TRAIN)
    (folder / "solver.prototxt").write_text(SOLVER)
    for name, (before, after) in BAD_NETS.items():
        for kind, text in (("", DEPLOY), ("_train", TRAIN)):
            (folder / f"{name}{kind}.prototxt").write_text(text.replace(before, after))
        (folder / f"{name}_solver.prototxt").write_text(SOLVER.replace("train.prototxt", f"{name}_train.prototxt"))
    for kind, text in (("", DEPLOY), ("_train", TRAIN)):
        (folder / f"brace{kind}.prototxt").write_text(text.rstrip().removesuffix("}"))
        (folder / f"wide{kind}.prototxt").write_text(text.replace("num_output: 4", "num_output: 5"))
    (folder / "wide_solver.prototxt").write_text(SOLVER.replace("train.prototxt", "wide_train.prototxt"))
    (folder / "brace_solver.prototxt").write_text(SOLVER.replace("train.prototxt", "brace_train.prototxt"))
    (folder / "empty.prototxt").write_text("")


def _write_models(folder: Path) -> None:
    model, state = (folder / "good.caffemodel").read_bytes(), (folder / "good.solverstate").read_bytes()
    (folder / "cut.caffemodel").write_bytes(model[: len(model) // 2])
    (folder / "cut.solverstate").write_bytes(state[: len(state) // 2])
    (folder / "empty.caffemodel").write_bytes(b"")
    (folder / "page.caffemodel").write_text("<!DOCTYPE html><html>404</html>")
    (folder / "zeros.caffemodel").write_bytes(bytes(300))
    (folder / "noise.caffemodel").write_bytes(np.random.default_rng(0).bytes(3000))
    (folder / "cut.onnx").write_bytes((folder / "good.onnx").read_bytes()[:300])
    (folder / "text.onnx").write_text("no model")


def _write_pictures(folder: Path) -> None:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    rgb.save(folder / "good.png")
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[:-40])
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:-60])
    (folder / "zero.png").write_bytes(b"")
    (folder / "words.png").write_text("these are words")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("RGBA").save(folder / "alpha.png")
    cv2.imwrite(str(folder / "deep.png"), np.random.default_rng(0).integers(0, 65535, (20, 30, 3), np.uint16))


def _write_folders(folder: Path) -> None:
    (folder / "none").mkdir()
    _picture(folder / "one" / "only" / "0.png", seed=1)
    for name in ("a", "b"):
        _picture(folder / "hollow" / name / "0.png", seed=1)
        for kind in ("zero", "words", "cut"):
            target = folder / f"all_{kind}" / name / "0.png"
            _picture(target, seed=1)
            if name == "b":
                target.write_bytes((folder / f"{kind}.png").read_bytes())
    (folder / "hollow" / "c").mkdir()


def _picture(path: Path, *, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (12, 12, 3), np.uint8))
