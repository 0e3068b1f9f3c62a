"""SphereFace's angular margin, against its definition written with angles, and its gradient against its own rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse

MARGINS = {"SINGLE": 1, "DOUBLE": 2, "TRIPLE": 3, "QUADRUPLE": 4}


def net_with(settings: str, tops: int = 2) -> Net:
    text = f"""
    force_backward: true
    layer {{ name: "in" type: "Input" top: "x" top: "label" input_param {{ shape {{ dim: 6 dim: 5 }} shape {{ dim: 6 }} }} }}
    layer {{ name: "fc" type: "MarginInnerProduct" bottom: "x" bottom: "label" top: "y" {'top: "lambda"' if tops == 2 else ""}
      margin_inner_product_param {{ num_output: 4 weight_filler {{ type: "xavier" }} {settings} }} }}
    """
    torch.manual_seed(3)
    return Net(parse(text, NetParameter), TRAIN)


def psi(angle: float, margin: int) -> float:
    k = min(int(angle * margin / math.pi), margin - 1)
    return float((-1) ** k * math.cos(margin * angle) - 2 * k)


def expected_scores(
    x: NDArray[np.float64], w: NDArray[np.float64], labels: NDArray[np.int64], margin: int, share: float
) -> NDArray[np.float64]:
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    scores = x @ unit.T
    for row, label in enumerate(labels):
        length = float(np.linalg.norm(x[row]))
        angle = math.acos(scores[row, label] / length)
        scores[row, label] = length * (psi(angle, margin) + share * math.cos(angle)) / (1 + share)
    return scores


@pytest.mark.parametrize("kind", MARGINS)
def test_the_labels_angle_is_multiplied_and_the_other_scores_are_plain_products(kind: str) -> None:
    net = net_with(f"type: {kind} base: 3 gamma: 0.5 power: 2 lambda_min: 0.1")
    rng = np.random.default_rng(5)
    x, labels = rng.normal(size=(6, 5)), rng.integers(0, 4, 6)
    weights = net.layer("fc").blobs[0].detach().numpy().astype(np.float64)
    for step in (1, 2, 3):
        blobs = net({"x": torch.from_numpy(x).float(), "label": torch.from_numpy(labels).float()})
        share = max(3 * (1 + 0.5 * step) ** -2.0, 0.1)
        assert blobs["lambda"].tolist() == pytest.approx([share])
        np.testing.assert_allclose(blobs["y"].detach(), expected_scores(x, weights, labels, MARGINS[kind], share), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(net.layer("fc").blobs[0].detach().norm(dim=1), np.ones(4), rtol=1e-6)


@pytest.mark.parametrize("kind", MARGINS)
def test_the_gradient_of_the_features_is_that_of_the_scores_with_the_margins_part_scaled(kind: str) -> None:
    """With lambda large the layer is a plain product; with lambda 0 the label's gradient is parallel to that of its score."""
    net = net_with(f"type: {kind} base: 0", tops=1)
    rng = np.random.default_rng(7)
    x, labels = rng.normal(size=(6, 5)), rng.integers(0, 4, 6)
    given = torch.from_numpy(x).float().requires_grad_()
    scores = net({"x": given, "label": torch.from_numpy(labels).float()})["y"]
    chosen = scores.gather(1, torch.from_numpy(labels)[:, None]).sum()
    chosen.backward()
    weights = net.layer("fc").blobs[0].detach().numpy().astype(np.float64)
    unit = weights[labels]
    for row in range(6):
        numeric = np.zeros(5)
        for i in range(5):
            up, down = x.copy(), x.copy()
            up[row, i] += 1e-6
            down[row, i] -= 1e-6
            change = expected_scores(up, weights, labels, MARGINS[kind], 0) - expected_scores(down, weights, labels, MARGINS[kind], 0)
            numeric[i] = change[row, labels[row]] / 2e-6
        # Coefficients of the weights' row and of x, from the true gradient; SphereFace scales them to length 1.
        coefficients, *_ = np.linalg.lstsq(np.stack([unit[row], x[row]], 1), numeric, rcond=None)
        scale = 1.0 if kind == "SINGLE" else float(np.linalg.norm(coefficients))
        assert given.grad is not None
        np.testing.assert_allclose(given.grad[row], numeric / scale, rtol=1e-3, atol=1e-4)
    one_hot = np.eye(4)[labels]
    gradient = net.layer("fc").blobs[0].grad
    assert gradient is not None
    np.testing.assert_allclose(gradient, one_hot.T @ x, rtol=1e-4, atol=1e-5)


def test_the_number_of_passes_is_part_of_a_runs_state() -> None:
    first, second = net_with("base: 5 gamma: 1"), net_with("base: 5 gamma: 1 iteration: 0")
    batch = {"x": torch.ones(6, 5), "label": torch.zeros(6)}
    for _ in range(3):
        first(batch)
    layer = second.layer("fc")
    layer.set_state(first.layer("fc").get_state())
    assert second(batch)["lambda"].item() == pytest.approx(5 / 5)
