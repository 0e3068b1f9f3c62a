"""On a GPU: trainings, snapshots, precision, transforming on the device, pycaffe, and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffetools import pycaffe
from caffetools.infer.classifier import Classifier, PreprocessOptions
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.distributed import DistributedSolver
from caffetools.solver.solver import Solver
from caffetools.visualize import grad_cam, saliency
from caffetools.zoo.networks import prototxt_path
from tests.cli.inprocess import run
from tests.gpu.conftest import random_net
from tests.infer.colours import write_labels, write_net, write_pictures
from tests.solver.test_precision import CONV, pictures
from tests.solver.tiny import solver_param, weights
from tests.solver.together import PLAIN, RANDOM, project


def largest_difference(one: Solver, other: Solver) -> float:
    return max(float((a.cpu() - b.cpu()).abs().max()) for a, b in zip(weights(one), weights(other), strict=True))


def test_convolutions_are_not_rounded_to_tf32(device: torch.device) -> None:
    net = random_net("bvlc_alexnet")
    data = torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(1)) * 50
    with torch.no_grad():
        wanted = net({"data": data}, keep=["conv5"])["conv5"].double()
        got = net.to(device)({"data": data.to(device)}, keep=["conv5"])["conv5"].cpu().double()
        net.allow_tf32 = True
        rounded = net({"data": data.to(device)}, keep=["conv5"])["conv5"].cpu().double()
    scale = float(wanted.abs().max())
    assert float((got - wanted).abs().max()) < 1e-5 * scale
    assert float((rounded - wanted).abs().max()) > 2e-5 * scale
    # torch's settings are as they were.
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("transform", [PLAIN, RANDOM])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_training_from_a_database_follows_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device, transform: str, on_device: bool
) -> None:
    monkeypatch.chdir(project(tmp_path / "run", batch=4, transform=transform))
    cpu = DistributedSolver.from_file("solver.prototxt")
    cpu.solve()
    gpu = DistributedSolver.from_file("solver.prototxt", device=device, compute=ComputeOptions(device_transform=on_device))
    with torch.no_grad():
        for ours, theirs in zip(gpu.net.parameters(), DistributedSolver.from_file("solver.prototxt").net.parameters(), strict=True):
            torch.testing.assert_close(ours.cpu(), theirs)
    gpu.solve()
    assert largest_difference(cpu, gpu) < 1e-4


def test_a_resumed_run_goes_on_as_the_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    extra = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.3 } }'
    monkeypatch.chdir(project(tmp_path / "run", batch=4, transform=RANDOM, extra=extra))
    whole = DistributedSolver.from_file("solver.prototxt", device=device)
    whole.solve()
    resumed = DistributedSolver.from_file("solver.prototxt", device=device)
    resumed.restore("run_iter_5.solverstate")
    resumed.solve()
    # The random numbers are the same; sums on a GPU may be in another order.
    assert largest_difference(whole, resumed) < 1e-5
    # A snapshot of a GPU is one of the CPU.
    moved = DistributedSolver.from_file("solver.prototxt")
    moved.restore("run_iter_5.solverstate")
    assert moved.iteration == 5


@pytest.mark.parametrize("mode", ["tf32", "bf16", "fp16"])
def test_lower_precision_comes_near(mode: str, device: torch.device) -> None:
    def train(precision: str) -> DistributedSolver:
        solver = DistributedSolver(solver_param("display: 0", CONV), compute=ComputeOptions(precision), device=device)
        solver.train_inputs = {name: blob.to(device) for name, blob in pictures().items()}
        solver.step(8)
        return solver

    exact, near = train("fp32"), train(mode)
    assert 0 < largest_difference(exact, near) < 0.1


def test_recomputing_activations_gives_the_same_weights(device: torch.device) -> None:
    def train(**compute: bool) -> DistributedSolver:
        solver = DistributedSolver(solver_param("display: 0", CONV), compute=ComputeOptions(**compute), device=device)
        solver.train_inputs = {name: blob.to(device) for name, blob in pictures().items()}
        solver.step(8)
        return solver

    assert largest_difference(train(), train(checkpoint_memory=True)) < 1e-5


def with_weights(net: pycaffe.Net, weights: dict[str, list[np.ndarray[Any, Any]]]) -> pycaffe.Net:
    for name, blobs in net.params.items():
        for blob, array in zip(blobs, weights[name], strict=True):
            blob.data[...] = array
    return net


def test_pycaffe_computes_on_the_gpu(device: torch.device) -> None:
    deploy = str(prototxt_path("squeezenet_v1.1", "deploy"))
    data = np.random.default_rng(1).normal(0, 50, (2, 3, 227, 227)).astype(np.float32)
    try:
        pycaffe.set_mode_cpu()
        weights = {layer.name: [blob.detach().numpy() for blob in layer.blobs] for layer in random_net("squeezenet_v1.1").layers}
        net = with_weights(pycaffe.Net(deploy, pycaffe.TEST), weights)
        net.blobs["data"].reshape(*data.shape)
        net.blobs["data"].data[...] = data
        wanted = net.forward()["prob"].copy()
        pycaffe.set_device(0)
        pycaffe.set_mode_gpu()
        net = with_weights(pycaffe.Net(deploy, pycaffe.TEST), weights)
        net.blobs["data"].reshape(*data.shape)
        for _ in range(4):
            net.blobs["data"].data[...] = data
            np.testing.assert_allclose(net.forward()["prob"], wanted, rtol=1e-3, atol=1e-7)
            net.blobs["data"].data[...] = 0
            assert not np.allclose(net.forward()["prob"], wanted, rtol=1e-3, atol=1e-7)
    finally:
        pycaffe.set_mode_cpu()


def test_a_classifier_and_attributions_agree_with_the_cpus(tmp_path: Path, device: torch.device) -> None:
    deploy, caffemodel = write_net(tmp_path)
    options = PreprocessOptions(mean="0", labels=write_labels(tmp_path))
    names = write_pictures(tmp_path)
    both = [Classifier(deploy, caffemodel, options, device=place).classify(names, top=2) for place in ("cpu", "cuda")]
    for one, other in zip(*both, strict=True):
        assert [p.label for p in one.guesses] == [p.label for p in other.guesses]
        np.testing.assert_allclose([p.probability for p in one.guesses], [p.probability for p in other.guesses], rtol=1e-4, atol=1e-6)
    net = random_net("squeezenet_v1.1")
    image = np.random.default_rng(1).normal(0, 50, (3, 227, 227)).astype(np.float32)
    ours = saliency(net, image, blob="pool10", unit=3), grad_cam(net, image, layer="fire9/concat", blob="pool10", unit=3)
    net.to(device)
    theirs = saliency(net, image, blob="pool10", unit=3), grad_cam(net, image, layer="fire9/concat", blob="pool10", unit=3)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-3 * float(np.abs(a).max()))


def test_the_commands_run_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.chdir(project(tmp_path / "run", batch=4, transform=RANDOM))
    for options in ([], ["--cuda-graphs"], ["--precision", "bf16"]):
        done = run("train", "solver.prototxt", "--device", "cuda", *options)
        assert done.returncode == 0, done.stderr
    done = run("test", "net.prototxt", "--weights", "run_iter_10.caffemodel", "--device", "cuda", "--iterations", "3")
    assert done.returncode == 0, done.stderr
    done = run("time", "--model", "net.prototxt", "--gpu", "0", "--iterations", "5")
    assert done.returncode == 0, done.stderr
    done = run("device_query")
    assert torch.cuda.get_device_name(device) in done.stdout
