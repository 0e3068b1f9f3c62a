"""On whose threads a training pass runs: the library's own, torch's on one, for the nets that leave little to torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.layers import native, native_conv
from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, NetParameter, SolverParameter
from caffetools.proto.text import parse, read_net
from caffetools.solver.solver import Solver
from caffetools.solver.training_threads import prefers_own_threads
from caffetools.zoo.networks import prototxt_path

pytestmark = pytest.mark.skipif(
    not native_conv.available() or not native_conv.has_wide_vectors(),
    reason="training's native operators need the library and wide vectors",
)

NET = """
layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 4 dim: 3 dim: 40 dim: 40 } shape { dim: 4 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 64 kernel_size: 5 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
        convolution_param { num_output: 256 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "fc" type: "InnerProduct" bottom: "conv2" top: "fc" inner_product_param { num_output: 100 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def zoo_net(name: str, batch: int = 16) -> Net:
    return Net(data_layers_to_inputs(read_net(prototxt_path(name, "train_val")), batch=batch), TRAIN, fill=False)


@pytest.mark.parametrize("name", ["bvlc_alexnet", "bvlc_googlenet", "squeezenet_v1.1", "vgg16"])
def test_classic_nets_run_on_the_librarys_threads(name: str) -> None:
    net = zoo_net(name)
    assert prefers_own_threads(net, 2)
    assert not prefers_own_threads(net, 1)


def test_a_net_of_deconvolutions_leaves_its_work_to_torch() -> None:
    text = NET.replace('type: "Convolution" bottom: "pool1"', 'type: "Deconvolution" bottom: "pool1"')
    assert not prefers_own_threads(Net(parse(text, NetParameter), TRAIN, fill=False), 2)


def test_torch_has_one_thread_within_and_its_own_number_after(two_threads: None) -> None:
    library = native.kernels()
    if library is None or not library.caffetools_limit_openmp(2):
        pytest.skip("the OpenMP that this torch brings cannot put its threads away, so everything runs on them")
    inside, elsewhere = [], []
    with native.own_threads():
        inside.append((torch.get_num_threads(), native.thread_count()))
        other = threading.Thread(target=lambda: elsewhere.append((torch.get_num_threads(), native.thread_count())))
        other.start()
        other.join()
        with native.own_threads():
            inside.append((torch.get_num_threads(), native.thread_count()))
        inside.append((torch.get_num_threads(), native.thread_count()))
    assert inside == [(1, 2)] * 3
    assert elsewhere == [(2, 2)]
    assert (torch.get_num_threads(), native.thread_count()) == (2, 2)
    with pytest.raises(KeyError), native.own_threads():
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("own", [False, True])
def test_the_number_and_kind_of_threads_change_no_bit_of_the_weights(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffetools.solver.training_threads.prefers_own_threads", lambda net, threads: own)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            param = SolverParameter(base_lr=0.01, lr_policy="fixed", momentum=0.9, weight_decay=1e-3, max_iter=9, random_seed=1)
            param.train_net_param.CopyFrom(parse(NET, NetParameter))
            solver = Solver(param)
            generator = torch.Generator().manual_seed(2)
            solver.train_inputs = {"data": torch.randn(4, 3, 40, 40, generator=generator), "label": torch.tensor([0.0, 1, 2, 3])}
            solver.step(4)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        found.append([p.detach().clone() for p in solver.net.parameters()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
