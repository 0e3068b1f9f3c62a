"""Net as a torch module: phases, wiring, in-place layers, shapes, sharing, gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caffetools.errors import NetError
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import parse


def net_of(text: str, phase: int = TEST, **options: object) -> Net:
    return Net(parse(text, NetParameter), phase, **options)


def data(shape: str = "dim: 2 dim: 3 dim: 8 dim: 8", name: str = "data") -> str:
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {shape} }} }} }}\n'


def conv(name: str, bottom: str, *, top: str | None = None, outputs: int = 4, more: str = "", outer: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{top or name}" {outer} '
        f'convolution_param {{ num_output: {outputs} kernel_size: 3 pad: 1 weight_filler {{ type: "xavier" }} {more} }} }}\n'
    )


def relu(name: str, bottom: str, top: str | None = None) -> str:
    return f'layer {{ name: "{name}" type: "ReLU" bottom: "{bottom}" top: "{top or bottom}" }}\n'


def test_layers_follow_the_phase_stage_and_level() -> None:
    text = (
        data()
        + relu("train", "data", "a").replace("top:", "include { phase: TRAIN } top:")
        + relu("not_deploy", "data", "b").replace("top:", 'exclude { stage: "deploy" } top:')
        + relu("high", "data", "c").replace("top:", "include { min_level: 2 } top:")
    )
    names = lambda **o: [layer.name for layer in net_of(text, **o).layers]  # noqa: E731
    assert names() == ["data", "not_deploy"]
    assert names(phase=TRAIN) == ["data", "train", "not_deploy"]
    assert names(stages=["deploy"]) == ["data"]
    assert names(level=2) == ["data", "not_deploy", "high"]


def test_both_include_and_exclude_is_an_error() -> None:
    with pytest.raises(NetError, match="layer 'r'.*both include and exclude"):
        net_of(data() + relu("r", "data").replace("top:", "include { phase: TEST } exclude { phase: TRAIN } top:"))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (relu("r", "dta", "y"), r"layer 'r': its bottom 'dta' is made by no layer before it; did you mean 'data'\?"),
        (relu("r", "r", "r"), "layer 'r': its bottom 'r' is made by no layer before it"),
        (relu("a", "b", "a") + relu("b", "a", "b"), "layer 'a': its bottom 'b' is produced only later, by layer 'b'"),
        (relu("a", "data", "y") + relu("b", "data", "y"), "layer 'b': its top 'y' is already made by layer 'a'"),
        (relu("a", "data", "y").replace("ReLU", "RelU"), r"layer 'a': unknown layer type 'RelU'; did you mean .*ReLU"),
        (relu("a", "data", "y").replace('"y"', '"y" top: "z"'), r"layer 'a': \(ReLU\) takes 1 top blob\(s\), but the prototxt gives 2"),
        (conv("c", "data", more="group: 2"), "layer 'c': .*group 2 must divide both the 3 input channels"),
        (conv("c", "data").replace("kernel_size: 3 pad: 1", "kernel_size: 9"), "kernel 9 x 9 does not fit its input 2 x 3 x 8 x 8"),
        (conv("c", "data").replace("xavier", "xavir"), "unknown filler type 'xavir'"),
        (conv("c", "data", outer="param {} param {} param {}"), "has 3 param blocks but only 2 parameter"),
    ],
)
def test_a_net_that_cannot_be_built_names_the_layer_and_the_reason(layers: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        net_of(data() + layers)


def test_an_error_in_a_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text("# a comment { with a brace\n" + data() + relu("ok", "data", "y") + "\n" + relu("bad", "x", "z"))
    with pytest.raises(NetError, match=rf"^{path}:5: layer 'bad': its bottom 'x'"):
        Net.from_file(path)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            relu("first", "c", "y") + relu("r", "c"),
            "layer 'r': it writes its top 'c' in place, which layer 'first' reads before; Caffe refuses",
        ),
        (
            relu("r", "c") + relu("first", "c", "y") + relu("q", "c"),
            "layer 'q': it writes its top 'c' in place, which layer 'first' reads before",
        ),
        (
            relu("a", "c", "y").replace("top:", "loss_weight: 1 top:") + relu("r", "y"),
            "layer 'r': .*'y' in place, which the loss weight of layer 'a'",
        ),
        (
            relu("r", "c").replace("ReLU", "Eltwise").replace("bottom:", 'bottom: "data" bottom:'),
            "its top 'c' is its bottom too, in another place",
        ),
        (
            relu("r", "c").replace("ReLU", "Split").replace("top:", 'top: "y" top: "y" top:'),
            "layer 'r': its top 'y' is already made by layer 'r'",
        ),
    ],
)
def test_a_layer_in_place_that_caffe_calls_a_second_source_is_refused(layers: str, message: str) -> None:
    """net.cpp and insert_splits.cpp: the readers of a blob get copies, so that the layer in place reads another name than it writes."""
    with pytest.raises(NetError, match=message):
        net_of(data() + conv("c", "data") + layers)


def test_layers_after_one_in_place_read_what_it_left() -> None:
    net = net_of(
        data()
        + conv("c", "data")
        + relu("r", "c").replace("top:", "loss_weight: 1 top:")
        + relu("copy", "c", "after")
        + relu("s", "c", "z")
    )
    blobs = net({"data": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))})
    assert torch.equal(blobs["after"], blobs["z"])


def test_overwriting_in_place_gives_the_gradient_of_not_overwriting() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    text = data() + conv("c", "data") + relu("r", "c") + conv("d", "c")
    gradients = []
    for overwrite in (True, False):
        torch.manual_seed(2)
        net = net_of(text, TRAIN)
        assert net.layer("r").inplace_ok
        net.layer("r").inplace_ok = overwrite
        net({"data": x})["d"].square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(gradients[0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_shapes_are_known_before_anything_runs_and_follow_the_input() -> None:
    net = net_of(data() + conv("c", "data"), fill=False)
    assert net.blob_shapes == {"data": (2, 3, 8, 8), "c": (2, 4, 8, 8)}
    assert net({"data": torch.zeros(5, 3, 6, 7)})["c"].shape == (5, 4, 6, 7)
    assert net.plan({"data": (5, 3, 6, 7)}).blob_shapes["c"] == (5, 4, 6, 7)
    assert net.blob_shapes["c"] == (2, 4, 8, 8)
    net.reshape({"data": (5, 3, 6, 7)})
    assert net.blob_shapes["c"] == (5, 4, 6, 7)
    with pytest.raises(NetError, match="layer 'c'.*parameter blob 0 of 4 x 2 x 3 x 3, but it has 4 x 3 x 3 x 3"):
        net({"data": torch.zeros(5, 2, 6, 7)})
    assert net.blob_shapes["c"] == (5, 4, 6, 7)


def test_an_unknown_input_is_an_error() -> None:
    with pytest.raises(NetError, match="no input 'dta'; its inputs are 'data'"):
        net_of(data())({"dta": torch.zeros(1)})


def test_equally_named_parameters_are_one_tensor_and_learned_once() -> None:
    first, second = 'param { name: "w" lr_mult: 2 } param { name: "b" }', 'param { name: "w" } param { name: "b" }'
    net = net_of(data() + conv("c", "data", outputs=3, outer=first) + conv("d", "c", outputs=3, outer=second))
    assert net.layer("c").blobs[0] is net.layer("d").blobs[0]
    assert [(e.layer, e.index, e.lr_mult) for e in net.learnable] == [("c", 0, 2.0), ("c", 1, 1.0)]
    assert len(list(net.parameters())) == 2


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('param { name: "w" lr_mult: 3 }', r"shared parameter 'w' has lr_mult 3.0 here and 2.0 in 'c'"),
        ('param {} param { name: "w" }', r"shares parameter 'w' with layer 'c', but its blob 1 is 3 and theirs 3 x 3 x 3 x 3"),
    ],
)
def test_sharing_that_does_not_fit_is_an_error(second: str, message: str) -> None:
    with pytest.raises(NetError, match="layer 'd'.*" + message):
        net_of(data() + conv("c", "data", outputs=3, outer='param { name: "w" lr_mult: 2 }') + conv("d", "c", outputs=3, outer=second))


def test_lr_mult_zero_and_propagate_down_stop_the_gradient() -> None:
    text = data() + conv("c", "data") + conv("d", "c", outer="param { lr_mult: 0 }") + conv("e", "d")
    net = net_of(text, TRAIN)
    net({"data": torch.ones(2, 3, 8, 8)})["e"].sum().backward()
    assert net.layer("d").blobs[0].grad is None
    assert net.layer("c").blobs[0].grad is not None
    stopped = net_of(text.replace('bottom: "d"', 'bottom: "d" propagate_down: false'), TRAIN)
    stopped({"data": torch.ones(2, 3, 8, 8)})["e"].sum().backward()
    assert stopped.layer("c").blobs[0].grad is None
    assert stopped.layer("e").blobs[0].grad is not None


@pytest.mark.parametrize("phase", [TEST, TRAIN])
def test_an_input_given_with_requires_grad_gets_its_gradient(phase: int) -> None:
    text = data() + conv("c", "data") + relu("r", "c") + conv("d", "c")
    net, stopped = net_of(text, phase), net_of(text.replace('bottom: "c" top: "d"', 'bottom: "c" propagate_down: false top: "d"'), phase)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    c, d = net.layer("c").blobs, net.layer("d").blobs
    twin = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, c[0], c[1], padding=1).relu(), d[0], d[1], padding=1)
    (expected,) = torch.autograd.grad(twin[0, 2].sum(), x)
    (got,) = torch.autograd.grad(net({"data": x})["d"][0, 2].sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(stopped({"data": x})["d"].sum(), x, allow_unused=True) == (None,), "propagate_down still stops it"


def test_a_layer_may_have_any_name_in_the_state_dict() -> None:
    net = net_of(data() + conv("type", "data") + conv("conv1/3x3.a", "type"))
    assert list(net.state_dict()) == [
        "by_name.type.blobs.0",
        "by_name.type.blobs.1",
        "by_name.conv1/3x3_a.blobs.0",
        "by_name.conv1/3x3_a.blobs.1",
    ]
    other = net_of(data() + conv("type", "data") + conv("conv1/3x3.a", "type"))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.layer("type").blobs[0], net.layer("type").blobs[0])


def test_blobs_that_nothing_reads_are_outputs_and_others_can_be_kept() -> None:
    net = net_of(data() + conv("c", "data") + relu("r", "c", "y") + relu("s", "c", "z"))
    assert net.outputs == ["y", "z"]
    assert set(net({}, keep=["c"])) == {"y", "z", "c"}
