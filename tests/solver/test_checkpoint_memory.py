"""``--checkpoint-memory``: activations computed a second time in backward passes, with the same bits of weights and of the net's state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caffetools.errors import CaffeToolsError
from caffetools.layers.base import Layer
from caffetools.net.checkpointing import checkpoint_memory, plan_segments
from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.distributed import DistributedSolver
from caffetools.solver.solver import Solver
from tests.solver.tiny import solver_param, weights

DATA = (
    'layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 6 dim: 3 dim: 12 dim: 12 } shape { dim: 6 } } }'
)
LOSS = """
layer { name: "pool" type: "Pooling" bottom: "LAST" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def conv(name: str, bottom: str, outputs: int = 8, param: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" {param} convolution_param {{ num_output: {outputs} '
        'kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }'
    )


def one(kind: str, blob: str, top: str = "", more: str = "") -> str:
    """A layer over one blob, in place if no top is given."""
    return f'layer {{ name: "{kind}_{top or blob}" type: "{kind}" bottom: "{blob}" top: "{top or blob}" {more} }}'


def net_text(*layers: str, last: str) -> str:
    return "\n".join((DATA, *layers, LOSS.replace("LAST", last)))


def block(index: int, bottom: str, middle: str = "") -> str:
    name = f"c{index}"
    return "\n".join((conv(name, bottom), middle.replace("NAME", name), one("ReLU", name)))


def deep(count: int = 8, middle: str = "") -> str:
    blocks = [block(i, f"c{i - 1}" if i else "data", middle) for i in range(count)]
    return net_text(*blocks, last=f"c{count - 1}")


DROPOUT = 'layer { name: "drop_NAME" type: "Dropout" bottom: "NAME" top: "NAME" dropout_param { dropout_ratio: 0.4 } }'
NORM = (
    'layer { name: "bn_NAME" type: "BatchNorm" bottom: "NAME" top: "NAME" }\n'
    'layer { name: "scale_NAME" type: "Scale" bottom: "NAME" top: "NAME" scale_param { bias_term: true } }'
)
NVCAFFE = 'layer { name: "bn_NAME" type: "BatchNorm" bottom: "NAME" top: "NAME" batch_norm_param { scale_bias: true } }'
LIU = 'layer { name: "bn_NAME" type: "BN" bottom: "NAME" top: "NAME" bn_param { slope_filler { value: 1 } } }'


def side_by_side(index: int, bottom: str) -> str:
    """Two branches whose layers alternate."""
    pair = (f"a{index}", f"b{index}")
    layers = [conv(name, bottom) for name in pair] + [line.replace("NAME", name) for line in NORM.split("\n") for name in pair]
    layers += [one("ReLU", name) for name in pair]
    return "\n".join((*layers, f'layer {{ name: "s{index}" type: "Eltwise" bottom: "{pair[0]}" bottom: "{pair[1]}" top: "s{index}" }}'))


RANDOM_POOLING = "\n".join(
    (
        conv("a", "data"),
        one("ReLU", "a"),
        one("Pooling", "a", "p", "pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }"),
        conv("b", "p"),
        one("Sigmoid", "b"),
        conv("c", "b"),
        one("ELU", "c", "d"),
        conv("e", "d"),
    )
)
SHARED = "\n".join(
    block(i, f"c{i - 1}" if i else "first").replace(
        "convolution_param {", 'param { name: "w" lr_mult: 2 } param { name: "b" } convolution_param {'
    )
    for i in range(6)
)
BRANCHES = "\n".join(
    (
        conv("a", "data"),
        one("ReLU", "a"),
        *(
            "\n".join(
                (
                    conv(f"l{i}", bottom),
                    one("ReLU", f"l{i}"),
                    one("LRN", f"l{i}", f"n{i}"),
                    conv(f"r{i}", bottom, 4),
                    DROPOUT.replace("NAME", f"r{i}"),
                    f'layer {{ name: "cat{i}" type: "Concat" bottom: "n{i}" bottom: "r{i}" top: "cat{i}" }}',
                    conv(f"back{i}", f"cat{i}"),
                    f'layer {{ name: "sum{i}" type: "Eltwise" bottom: "{bottom}" bottom: "back{i}" top: "sum{i}" }}',
                )
            )
            for i, bottom in enumerate(("a", "sum0", "sum1"))
        ),
    )
)
NETS = {
    "plain": deep(),
    "dropout": deep(middle=DROPOUT),
    "batch norm": deep(middle=NORM),
    "batch norms side by side": net_text(*(side_by_side(i, f"s{i - 1}" if i else "data") for i in range(4)), last="s3"),
    "batch norm and dropout": deep(middle=NORM + DROPOUT),
    "NVCaffe's batch norm": deep(5, NVCAFFE),
    "BN": deep(5, LIU),
    "stochastic pooling": net_text(RANDOM_POOLING, last="e"),
    "shared weights": net_text(conv("first", "data"), SHARED, last="c5"),
    "branches": net_text(BRANCHES, last="sum2"),
}


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"data": torch.randn(6, 3, 12, 12, generator=generator), "label": (torch.arange(6) % 4).float()}


def trained(net: str, compute: ComputeOptions | None, fields: str = "", iterations: int = 4) -> Solver:
    param = solver_param(fields, net)
    solver = Solver(param) if compute is None else DistributedSolver(param, compute=compute)
    solver.train_inputs = batch()
    solver.step(iterations)
    return solver


def recomputed_layers(solver: Solver) -> int:
    segments = plan_segments(solver.net, solver.net.plan())
    return sum(segment.end - segment.start for segment in segments if segment.recomputed)


def check_equal(one: Solver, other: Solver) -> None:
    assert len(weights(one)) == len(weights(other))
    for mine, theirs in zip((*weights(one), *one.rule.history), (*weights(other), *other.rule.history), strict=True):
        assert torch.equal(mine, theirs)
    assert one.smoothed_loss() == other.smoothed_loss()


@pytest.mark.parametrize("fields", ["display: 0", "iter_size: 3"])
@pytest.mark.parametrize("name", NETS)
def test_weights_and_statistics_have_the_same_bits(name: str, fields: str) -> None:
    plain = trained(NETS[name], None, fields)
    saving = trained(NETS[name], ComputeOptions(checkpoint_memory=True), fields)
    assert recomputed_layers(saving) >= 3
    check_equal(plain, saving)


def test_the_random_stream_goes_on_as_without_it() -> None:
    drawn = []
    for compute in (None, ComputeOptions(checkpoint_memory=True)):
        solver = trained(NETS["dropout"], compute)
        drawn.append(torch.rand(3, generator=solver.random.generator))
    assert torch.equal(*drawn)


def test_weights_that_several_layers_share_as_statistics_are_not_recomputed() -> None:
    share = 'param { name: "m" lr_mult: 0 } param { name: "v" lr_mult: 0 } param { name: "f" lr_mult: 0 }'
    norms = [f'layer {{ name: "bn{i}" type: "BatchNorm" bottom: "c{i}" top: "c{i}" {share} }}' for i in range(5)]
    text = net_text(*(conv(f"c{i}", f"c{i - 1}" if i else "data") + norms[i] for i in range(5)), last="c4")
    net = Net(parse(text, NetParameter), TRAIN)
    segments = plan_segments(net, net.plan())
    norm_places = [index for index, layer in enumerate(net.layers) if layer.TRAITS.role == "normalization"]
    assert not any(segment.recomputed and segment.start <= place < segment.end for segment in segments for place in norm_places)
    check_equal(trained(text, None), trained(text, ComputeOptions(checkpoint_memory=True)))


def saved_bytes(net: Net) -> int:
    """Bytes of the distinct memory blocks that a forward pass keeps for the backward pass, parameters and inputs not counted."""
    known = {p.untyped_storage().data_ptr() for p in net.parameters()}
    blocks: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            blocks[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = batch()
    known |= {value.untyped_storage().data_ptr() for value in inputs.values()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net.total_loss(net(inputs))
    assert loss.requires_grad
    return sum(blocks.values())


def test_a_deep_net_keeps_a_fraction_of_its_activations() -> None:
    net = Net(parse(deep(60, NORM), NetParameter), TRAIN)
    before = saved_bytes(net)
    checkpoint_memory(net)
    after = saved_bytes(net)
    segments = plan_segments(net, net.plan())
    # What is kept at the end of the forward pass are the activations of the last segment; the boundaries add about as many of others.
    assert after < before / 4
    assert 4 <= len(segments) <= 40


def test_a_net_in_half_precision_has_the_same_bits() -> None:
    check_equal(
        trained(NETS["batch norm and dropout"], ComputeOptions("bf16")),
        trained(NETS["batch norm and dropout"], ComputeOptions("bf16", checkpoint_memory=True)),
    )


def test_layers_with_hooks_run_once_a_pass() -> None:
    calls: list[str] = []

    def note(layer: Layer, bottoms: Any, tops: Any) -> None:
        calls.append(layer.name)

    solver = DistributedSolver(solver_param("", NETS["plain"]), compute=ComputeOptions(checkpoint_memory=True))
    solver.train_inputs = batch()
    solver.net.layer("c2").register_forward_hook(note)
    solver.step(2)
    assert calls == ["c2", "c2"]
    check_equal(trained(NETS["plain"], None, iterations=2), solver)


def test_outputs_and_kept_blobs_are_returned() -> None:
    param = parse(NETS["branches"], NetParameter)
    torch.manual_seed(1)
    net = Net(param, TRAIN)
    torch.manual_seed(2)
    plain = net(batch(), keep=("sum0", "n2"))
    checkpoint_memory(net)
    torch.manual_seed(2)
    saving = net(batch(), keep=("sum0", "n2"))
    assert plain.keys() == saving.keys() >= {"loss", "sum0", "n2"}
    for name, value in plain.items():
        np.testing.assert_array_equal(value.detach().numpy(), saving[name].detach().numpy())


@pytest.mark.parametrize(
    ("compute", "fields"),
    [(ComputeOptions(compiled=True, checkpoint_memory=True), ""), (ComputeOptions(checkpoint_memory=True), "debug_info: true")],
)
def test_what_does_not_go_together_is_refused(compute: ComputeOptions, fields: str) -> None:
    with pytest.raises(CaffeToolsError, match="--checkpoint-memory"):
        DistributedSolver(solver_param(fields, NETS["plain"]), compute=compute)
