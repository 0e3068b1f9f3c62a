"""One net in several threads: every pass has the shapes of its own batch, and the answers that it gives alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from caffetools.net.net import Net
from caffetools.net.stepwise import Stepwise
from caffetools.proto.schema import TEST, TRAIN, NetParameter, SolverParameter
from caffetools.proto.text import parse
from caffetools.pycaffe.net import Net as PycaffeNet
from caffetools.solver.solver import Solver

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "mean" type: "Pooling" bottom: "pool" top: "mean" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "mean" top: "fc" inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
SIZES = [(1, 3, 9, 9), (2, 3, 12, 7), (3, 3, 6, 15), (1, 3, 20, 20)]


def make_net(phase: int = TEST) -> Net:
    torch.manual_seed(4)
    return Net(parse(NET, NetParameter), phase)


def batch(index: int) -> torch.Tensor:
    return torch.randn(*SIZES[index % len(SIZES)], generator=torch.Generator().manual_seed(index))


def in_threads(call: Callable[[int], bool], number: int = 200, threads: int = 8) -> int:
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(call, range(number)))


def test_threads_with_other_sizes_get_the_answers_of_one_thread() -> None:
    net = make_net()
    with torch.no_grad():
        expected = [net({"data": batch(i)})["prob"].clone() for i in range(len(SIZES) * 2)]

        def same(index: int) -> bool:
            with torch.no_grad():
                return torch.equal(net({"data": batch(index % 8)})["prob"], expected[index % 8])

        assert in_threads(same) == 200
    assert net.blob_shapes["data"] == SIZES[0]


def test_threads_may_reshape_the_net_meanwhile_and_step_through_it() -> None:
    net = make_net()
    expected = [net({"data": batch(i)})["prob"].detach() for i in range(4)]

    def same(index: int) -> bool:
        if index % 3 == 0:
            net.reshape({"data": SIZES[index % 4]})
        if index % 3 == 1:
            run = Stepwise(net)
            run.feed({"data": batch(index % 4)})
            run.forward(record=False)
            return torch.allclose(run.blobs["prob"].data.value(), expected[index % 4], atol=1e-6)
        return torch.allclose(net({"data": batch(index % 4)})["prob"], expected[index % 4], atol=1e-6)

    assert in_threads(same) == 200


def test_threads_that_share_a_pycaffe_net_get_their_own_answers(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    net = PycaffeNet(str(tmp_path / "net.prototxt"), TEST)
    values = [torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(i)).numpy() for i in range(8)]
    expected = [net.forward(data=x)["prob"].copy() for x in values]

    def same(index: int) -> bool:
        answer = net.forward(data=values[index % 8])["prob"]
        first = answer.copy()
        # Another thread's run does not write into the arrays of this one.
        return np.array_equal(first, expected[index % 8]) and np.array_equal(answer, expected[index % 8])

    assert in_threads(same, 400) == 400


def test_a_layer_that_is_switched_by_itself_is_followed_in_all_shapes() -> None:
    text = NET.replace('type: "ReLU" bottom: "conv" top: "conv"', 'type: "Dropout" bottom: "conv" top: "conv"')
    net = Net(parse(text, NetParameter), TRAIN)
    x = torch.ones(*SIZES[1])
    net({"data": x})
    net.layer("relu").eval()
    assert torch.equal(net({"data": x})["prob"], net({"data": x})["prob"])
    net.train()
    assert net.layer("relu").training


def test_a_copy_of_a_net_is_a_net_of_its_own() -> None:
    net = make_net()
    before = net({"data": batch(1)})["prob"].detach()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.layer("fc").blobs[0].zero_()
    assert torch.equal(net({"data": batch(1)})["prob"], before)
    torch.testing.assert_close(other({"data": batch(1)})["prob"], torch.full((2, 5), 0.2))


SOLVER = """
base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 display: 0 snapshot_prefix: "none"
net_param { %s layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 } } }
  layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" } }
"""


def trained(seed: int, steps: int = 30) -> list[torch.Tensor]:
    param = parse(SOLVER % NET, SolverParameter)
    solver = Solver(param)
    with torch.no_grad():
        for index, parameter in enumerate(solver.net.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + index)) / 4)
    solver.train_inputs = {"data": batch(0), "label": torch.tensor([float(seed % 5)])}
    solver.step(steps)
    return [parameter.detach().clone() for parameter in solver.net.parameters()]


def test_trainings_and_ten_classifying_threads_give_the_numbers_that_each_gives_alone() -> None:
    alone = [trained(1), trained(2)]
    net = make_net()
    with torch.no_grad():
        expected = [net({"data": batch(i)})["prob"] for i in range(4)]

    def classify(index: int) -> bool:
        with torch.no_grad():
            return torch.equal(net({"data": batch(index % 4)})["prob"], expected[index % 4])

    with ThreadPoolExecutor(2) as trainings:
        running = [trainings.submit(trained, seed) for seed in (1, 2)]
        assert in_threads(classify, 300, threads=10) == 300
        together = [training.result() for training in running]
    for one, other in zip(alone, together, strict=True):
        assert all(map(torch.equal, one, other))
