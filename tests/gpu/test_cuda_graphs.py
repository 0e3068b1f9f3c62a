"""Recorded passes: the numbers of the passes that they stand for, fresh weights, and a way back where nothing can be recorded."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from caffetools.net.net import Net
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.distributed import DistributedSolver
from tests.gpu.conftest import random_net
from tests.layers.helpers import input_layer, net_of
from tests.solver.test_precision import CONV, pictures
from tests.solver.tiny import solver_param, weights

DROPOUT = CONV.replace(
    'layer { name: "loss"',
    'layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" dropout_param { dropout_ratio: 0.4 } }\nlayer { name: "loss"',
)


def squeezenet(device: torch.device) -> Net:
    """SqueezeNet with random weights."""
    return random_net("squeezenet_v1.1").to(device)


def test_a_replayed_pass_has_the_bits_of_the_pass_it_recorded(device: torch.device) -> None:
    net = squeezenet(device)
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(3, 3, 227, 227, generator=generator).to(device) * 50 for _ in range(6)]
    net.graphs.enabled = False
    with torch.no_grad():
        wanted = [net({"data": batch})["prob"].clone() for batch in batches]
        net.graphs.enabled = True
        got = [net({"data": batch})["prob"] for batch in batches]
    assert any(recorded is not None for recorded in net.graphs._graphs.values())
    # Each result is a tensor of its own: a later pass does not overwrite it.
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_weights_that_change_in_place_and_weights_that_move_are_seen(device: torch.device) -> None:
    net = net_of(
        input_layer("data", 2, 3, 8, 8)
        + 'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" '
        + 'convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }'
    ).to(device)
    data = torch.ones(2, 3, 8, 8, device=device)
    with torch.no_grad():
        before = [net({"data": data})["conv"] for _ in range(5)][-1]
        net.layer("conv").blobs[0].mul_(2)
        torch.testing.assert_close(net({"data": data})["conv"], before * 2)
        net.cpu().to(device)
        torch.testing.assert_close(net({"data": data})["conv"], before * 2)
        net.layer("conv").blobs[0].data = net.layer("conv").blobs[0].data * 2
        torch.testing.assert_close(net({"data": data})["conv"], before * 4)


def test_threads_share_the_recordings_of_a_net(device: torch.device) -> None:
    net = squeezenet(device)
    batches = [torch.full((1, 3, 227, 227), float(value), device=device) for value in range(8)]
    with torch.no_grad():
        wanted = [net({"data": batch})["prob"].cpu() for batch in batches]
    wrong: list[int] = []

    def classify(number: int) -> None:
        with torch.no_grad():
            for turn in range(40):
                at = (number + turn) % len(batches)
                if not torch.allclose(net({"data": batches[at]})["prob"].cpu(), wanted[at], rtol=1e-4, atol=1e-7):
                    wrong.append(at)

    threads = [threading.Thread(target=classify, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_pass_that_cannot_be_recorded_runs_layer_by_layer(device: torch.device) -> None:
    # ROIPooling reads its boxes on the CPU.
    net = net_of(
        input_layer("data", 1, 2, 8, 8)
        + input_layer("rois", 2, 5)
        + 'layer { name: "pool" type: "ROIPooling" bottom: "data" bottom: "rois" top: "pool" '
        + "roi_pooling_param { pooled_w: 2 pooled_h: 2 spatial_scale: 1 } }"
    )
    data = torch.arange(128.0).reshape(1, 2, 8, 8)
    rois = torch.tensor([[0, 0, 0, 3, 3], [0, 2, 2, 7, 7]], dtype=torch.float32)
    with torch.no_grad():
        wanted = net({"data": data, "rois": rois})["pool"]
        net.to(device)
        for _ in range(5):
            torch.testing.assert_close(net({"data": data.to(device), "rois": rois.to(device)})["pool"].cpu(), wanted)


def trained(
    device: torch.device, *, net: str, fields: str = "display: 0", lines: list[str] | None = None, **compute: Any
) -> DistributedSolver:
    log = (lambda source, text, severity="I": lines.append(text)) if lines is not None else (lambda *given: None)
    options = ComputeOptions(**{"cuda_graphs": False, **compute})
    solver = DistributedSolver(solver_param(fields, net), compute=options, device=device, log=log)
    solver.train_inputs = {name: blob.to(device) for name, blob in pictures().items()}
    solver.step(12)
    return solver


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "fields", ["display: 0", "iter_size: 3 clip_gradients: 0.5", "display: 0 type: 'Adam' base_lr: 0.01 momentum: 0.9"]
)
def test_a_recorded_training_has_the_weights_of_the_plain_one(precision: str, fields: str, device: torch.device) -> None:
    plain = trained(device, net=CONV, fields=fields, precision=precision)
    recorded = trained(device, net=CONV, fields=fields, precision=precision, cuda_graphs=True)
    assert recorded._graph is not None
    assert recorded._graph._recorded is not None
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.02, "atol": 0.005}
    for ours, theirs in zip(weights(recorded), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)
    # BatchNorm's statistics move once an iteration, recorded or not.
    torch.testing.assert_close(recorded.net.layer("bn").blobs[2], plain.net.layer("bn").blobs[2])
    assert recorded.smoothed_loss() == pytest.approx(plain.smoothed_loss(), rel=1e-3 if precision == "fp32" else 0.05)


def test_dropout_draws_the_same_numbers_in_a_recorded_training(device: torch.device) -> None:
    plain, recorded = trained(device, net=DROPOUT), trained(device, net=DROPOUT, cuda_graphs=True)
    assert recorded._graph is not None
    assert recorded._graph._recorded is not None
    for ours, theirs in zip(weights(recorded), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_net_that_draws_on_the_cpu_is_trained_without_a_recording_and_reports_it(device: torch.device) -> None:
    lines: list[str] = []
    stochastic = CONV.replace("pool: AVE", "pool: STOCHASTIC")
    solver = trained(device, net=stochastic, lines=lines, cuda_graphs=True)
    assert solver._graph is not None
    recorded = solver._graph._recorded is not None
    assert recorded or any("cannot be recorded as a CUDA graph" in line for line in lines)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights(solver))
