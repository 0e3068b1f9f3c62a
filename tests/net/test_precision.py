"""Passes of a net in half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import caffetools as ct
from caffetools.engines.base import EngineError
from caffetools.engines.torch import TorchEngine
from caffetools.errors import CaffeToolsError
from caffetools.net.net import Net
from caffetools.net.precision import set_precision
from caffetools.net.weights import save_weights
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse
from tests.cli.inprocess import run

DEPLOY = """\
name: "half"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "norm" type: "LRN" bottom: "conv" top: "norm" lrn_param { local_size: 3 alpha: 0.01 } }
layer { name: "pool" type: "Pooling" bottom: "norm" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    path = tmp_path / "deploy.prototxt"
    path.write_text(DEPLOY)
    torch.manual_seed(0)
    save_weights(Net.from_file(path), tmp_path / "w.caffemodel")
    return path


@pytest.mark.parametrize(("mode", "bits"), [("bf16", 8), ("fp16", 11)])
def test_half_precision_differs_by_its_rounding_and_gives_float32(deploy: Path, mode: str, bits: int) -> None:
    full = TorchEngine.load(deploy, deploy.with_name("w.caffemodel"))
    half = TorchEngine.load(deploy, deploy.with_name("w.caffemodel"), precision=mode)
    batch = {"data": np.random.default_rng(0).normal(0, 2, (3, 3, 12, 12)).astype(np.float32)}
    expected, got = full.predict(batch)["prob"], half.predict(batch)["prob"]
    assert got.dtype == np.float32
    difference = float(np.abs(got - expected).max())
    assert 0 < difference < 4 * 2.0**-bits
    inner = half.net({"data": torch.from_numpy(batch["data"])}, keep=["conv", "norm"])
    # What autocast rounds: values of 8 or 11 bits; LRN is computed in float32.
    for name, rounded in (("conv", True), ("norm", False)):
        values = inner[name]
        assert values.dtype == torch.float32
        assert bool((values.to(half.net.half_type).float() == values).all()) is rounded
    weights = [layer.blobs[0].dtype for layer in half.net.layers if len(layer.blobs)]
    assert weights == [half.net.half_type] * 2


def test_float32_comes_back_to_the_inference_plan(deploy: Path) -> None:
    net = Net.from_file(deploy)
    batch = {"data": torch.ones(1, 3, 12, 12)}
    assert torch.equal(set_precision(net, "fp32")(batch)["prob"], net(batch)["prob"]) and net.half_type is None
    with pytest.raises(CaffeToolsError, match="unknown precision 'int4'; it is one of fp32, tf32, bf16, fp16"):
        set_precision(net, "int4")


def test_the_precision_may_change_after_a_pass(deploy: Path) -> None:
    batch = {"data": torch.ones(2, 3, 12, 12)}
    used = Net.from_file(deploy)
    used(batch)  # plans for these shapes are kept
    with torch.autocast("cpu", torch.bfloat16):
        layers = set_precision(used, "bf16").compute(batch, ["norm", "conv"], used.plan({"data": (2, 3, 12, 12)}))
    assert (layers["norm"].dtype, layers["conv"].dtype) == (torch.float32, torch.bfloat16)


def test_layers_with_parameters_of_their_own_stay_in_float32() -> None:
    text = DEPLOY + 'layer { name: "scale" type: "Scale" bottom: "conv" top: "scaled" scale_param { bias_term: true } }\n'
    text += 'layer { name: "slope" type: "PReLU" bottom: "scaled" top: "slope" }\n'
    net = set_precision(Net(parse(text, NetParameter)), "bf16")
    types = {layer.name: {blob.dtype for blob in layer.blobs} for layer in net.layers if len(layer.blobs)}
    assert types == {"conv": {torch.bfloat16}, "ip": {torch.bfloat16}, "scale": {torch.float32}, "slope": {torch.float32}}
    assert set(net({"data": torch.ones(1, 3, 12, 12)})) == {"prob", "slope"}


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
def test_a_mask_holds_places_of_large_maps(mode: str) -> None:
    """4096 places, which half precision cannot count: the mask stays in float32, and Upsample puts every maximum where it was."""
    text = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 64 dim: 64 } } }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
      convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
    layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" top: "mask" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
    layer { name: "up" type: "Upsample" bottom: "pool" bottom: "mask" top: "up" upsample_param { scale: 2 } }
    """
    torch.manual_seed(0)
    net = set_precision(Net(parse(text, NetParameter)), mode)
    blobs = net({"data": torch.rand(1, 3, 64, 64)}, keep=["conv", "pool", "mask"])
    conv, pool, mask, up = (blobs[name].reshape(4, -1) for name in ("conv", "pool", "mask", "up"))
    assert mask.max() > 2048
    assert torch.equal(conv.gather(1, mask.long()), pool)
    assert torch.equal(up.gather(1, mask.long()), pool) and torch.equal(up.count_nonzero(1), pool.count_nonzero(1))


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("settings", "tops"),
    [
        ("pool: MAX kernel_size: 3 stride: 2 pad: 1", 2),
        ("pool: MAX kernel_size: 5 stride: 4 pad: 2 round_mode: FLOOR", 1),
        ("pool: MAX kernel_size: 4 stride: 3 pad: 2", 1),
        ("pool: AVE kernel_size: 5 stride: 4 pad: 2", 1),
        ("pool: STOCHASTIC kernel_size: 2 stride: 2", 1),
    ],
)
def test_every_pooling_runs_in_half_precision(settings: str, tops: int, mode: str) -> None:
    """Padding of -FLT_MAX overflowed, and STOCHASTIC divided zeros by a float32 that half precision takes as zero."""
    text = DEPLOY.split('layer { name: "norm"', maxsplit=1)[0] + 'layer { name: "pool" type: "Pooling" bottom: "conv" '
    text += " ".join(f'top: "{name}"' for name in ("pool", "mask")[:tops]) + f" pooling_param {{ {settings} }} }}"
    torch.manual_seed(0)
    net = Net(parse(text, NetParameter))
    batch = {"data": torch.rand(1, 3, 12, 12)}
    expected = net(batch)["pool"]
    torch.testing.assert_close(set_precision(net, mode)(batch)["pool"], expected, rtol=0.02, atol=0.02)


def test_commands_and_functions_take_it(deploy: Path, tmp_path: Path) -> None:
    weights = deploy.with_name("w.caffemodel")
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(0, 2, (3, 12, 12)).astype(np.float32))
    for mode in ("fp32", "bf16"):
        assert run("infer", deploy, weights, tmp_path / "x.npy", "-o", tmp_path / mode, "--precision", mode)[0] == 0
    full, half = (np.load(tmp_path / mode / "x.prob.npy") for mode in ("fp32", "bf16"))
    assert 0 < np.abs(full - half).max() < 0.02
    image = np.random.default_rng(2).integers(0, 256, (12, 12, 3), np.uint8)
    one, other = (ct.classify(image, deploy, weights, mean=[128], scale=0.01, precision=mode)[0] for mode in ("fp32", "bf16"))
    assert one.guesses[0].index == other.guesses[0].index and one.guesses[0].probability != other.guesses[0].probability
    done = run("infer", deploy, weights, tmp_path / "x.npy", "-o", tmp_path / "wrong", "--precision", "half")
    assert done[0] == 2 and "unknown precision 'half'" in done[2]
    with pytest.raises(EngineError, match="--precision fp16 is for the engine torch, not for onnxruntime"):
        ct.classify(image, deploy, weights, mean=[128], engine="onnxruntime", precision="fp16")


BODY = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 203 dim: 301 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 24 kernel_size: 7 stride: 8 pad: 3 weight_filler { type: "msra" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
"""
HEAD = """
layer {{ name: "{name}" type: "Convolution" bottom: "conv" top: "{name}"
  convolution_param {{ num_output: {outputs} kernel_size: 1 weight_filler {{ type: "gaussian" std: {std} }} }} }}
"""
SSD = (
    BODY
    + HEAD.format(name="loc", outputs=12, std=0.1)
    + HEAD.format(name="conf", outputs=12, std=0.3)
    + """
layer { name: "loc_perm" type: "Permute" bottom: "loc" top: "loc_perm" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "loc_flat" type: "Flatten" bottom: "loc_perm" top: "boxes" }
layer { name: "conf_perm" type: "Permute" bottom: "conf" top: "conf_perm" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "rows" type: "Reshape" bottom: "conf_perm" top: "rows" reshape_param { shape { dim: 0 dim: -1 dim: 4 } } }
layer { name: "softmax" type: "Softmax" bottom: "rows" top: "softmax" softmax_param { axis: 2 } }
layer { name: "conf_flat" type: "Flatten" bottom: "softmax" top: "conf_flat" }
layer { name: "priors" type: "PriorBox" bottom: "conv" bottom: "data" top: "priors"
  prior_box_param { min_size: 21 aspect_ratio: 2 flip: true variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 } }
layer { name: "found" type: "DetectionOutput" bottom: "boxes" bottom: "conf_flat" bottom: "priors" top: "found"
  detection_output_param { num_classes: 4 share_location: true nms_param { nms_threshold: 0.9 } code_type: CENTER_SIZE
    keep_top_k: 4000 confidence_threshold: 0.4 } }
"""
)
YOLO = (
    BODY.replace("dim: 203 dim: 301", "dim: 208 dim: 208")
    + HEAD.format(name="maps", outputs=16, std=0.2)
    + """
layer { name: "found" type: "YoloDetectionOutput" bottom: "maps" top: "found" yolo_detection_output_param {
  num_classes: 3 num_box: 2 confidence_threshold: 0.3 nms_threshold: 0.9 biases: 1 biases: 1.5 biases: 2.5 biases: 2 } }
"""
)
PROPOSALS = (
    BODY
    + """
layer { name: "info" type: "Input" top: "info" input_param { shape { dim: 1 dim: 3 } } }
"""
    + HEAD.format(name="scores", outputs=6, std=0.2)
    + HEAD.format(name="offsets", outputs=12, std=0.05)
    + """
layer { name: "pairs" type: "Reshape" bottom: "scores" top: "pairs" reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } } }
layer { name: "softmax" type: "Softmax" bottom: "pairs" top: "softmax" }
layer { name: "chances" type: "Reshape" bottom: "softmax" top: "chances" reshape_param { shape { dim: 0 dim: 6 dim: -1 dim: 0 } } }
layer { name: "rois" type: "Proposal" bottom: "chances" bottom: "offsets" bottom: "info" top: "rois" proposal_param {
  feat_stride: 8 base_size: 8 min_size: 8 ratio: 0.5 ratio: 1 ratio: 2 scale: 4 pre_nms_topn: 3000 post_nms_topn: 300 nms_thresh: 0.9 } }
"""
)


def overlaps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes (M, 4) and (N, 4): (M, N)."""
    inside = (torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    return inside / (areas[0][:, None] + areas[1][None] - inside)


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
@pytest.mark.parametrize(("text", "blob", "corner"), [(SSD, "found", 3), (YOLO, "found", 3), (PROPOSALS, "rois", 1)])
def test_a_detector_finds_the_boxes_of_float32(text: str, blob: str, corner: int, mode: str) -> None:
    torch.manual_seed(2)
    full, half = (Net(parse(text, NetParameter)) for _ in range(2))
    half.load_state_dict(full.state_dict())
    batch = {name: torch.randn(shape) for name, shape in full.blob_shapes.items() if name in full.inputs}
    if "info" in batch:
        batch["info"] = torch.tensor([[203.0, 301.0, 1.003]])
    with torch.no_grad():
        wanted = full(dict(batch))[blob].reshape(-1, corner + 4)
        found = set_precision(half, mode)(dict(batch))[blob].reshape(-1, corner + 4)
    best, at = overlaps(wanted[:, corner : corner + 4], found[:, corner : corner + 4]).max(1)
    # Scores next to a threshold, and boxes next to that of suppression, may fall to either side.
    bits = 8 if mode == "bf16" else 11
    assert len(wanted) > 50 and float((best > 1 - 2.0 ** (4 - bits)).float().mean()) > 0.9
    if corner == 3:
        certain = (best > 1 - 2.0 ** (4 - bits)) & (wanted[:, 1] == found[at, 1])
        assert float(certain.float().mean()) > 0.85
        assert float((wanted[certain, 2] - found[at[certain], 2]).abs().max()) < 2.0 ** (2 - bits)
    # Corners have more bits than the numbers that convolutions give.
    assert bool((found[:, corner:].to(half.half_type).float() != found[:, corner:]).any())
