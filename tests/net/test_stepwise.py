"""The run as Caffe: against Caffe's golden values, against the run as a module, and in what only it can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caffetools.errors import NetError
from caffetools.net.net import Net
from caffetools.net.stepwise import Stepwise
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import parse
from tests.layers.test_golden import CASES, FOLDER, set_parameters

WITH_GRADIENTS = [case for case in CASES if case["backward"]]


@pytest.mark.parametrize("looking", [False, True], ids=["unseen", "looked-at"])
@pytest.mark.parametrize("case", WITH_GRADIENTS, ids=lambda c: f"{c['group']}-{c['id']}")
def test_a_stepwise_run_gives_the_numbers_of_caffe(case: dict[str, Any], looking: bool) -> None:
    with np.load(FOLDER / case["npz"]) as file:
        arrays = dict(file)
    phase = TRAIN if case["phase"] == "TRAIN" else TEST
    net = Net.from_file(FOLDER / case["prototxt"], phase, level=case.get("level", 0), stages=case.get("stages", ()))
    set_parameters(net, arrays)
    run = Stepwise(net)
    # Arrays that are alive make the engine write into their memory.
    alive = [m.array() for slot in run.blobs.values() for m in (slot.data, slot.diff)] if looking else []
    for step in range(case["forwards"]):
        prefix = "in:" if step == case["forwards"] - 1 else f"in{step}:"
        run.feed({k.removeprefix(prefix): torch.from_numpy(a) for k, a in arrays.items() if k.startswith(prefix)})
        loss = run.forward()
    forward = {name: slot.data.array().copy() for name, slot in run.blobs.items()}
    for name in case["top_diffs"]:
        run.blobs[name].diff.write(torch.from_numpy(arrays[f"topdiff:{name}"]).reshape(run.blobs[name].shape))
    run.backward()
    check(run, case, arrays, forward, loss)
    assert len(alive) == (2 * len(run.blobs) if looking else 0)


def check(run: Stepwise, case: dict[str, Any], arrays: dict[str, NDArray[Any]], forward: dict[str, NDArray[Any]], loss: float) -> None:
    for key, expected in arrays.items():
        kind, _, name = key.partition(":")
        tolerance = case["tolerance"]
        if kind == "out":
            got: Any = forward[name]
            tolerance = case.get("forward_tolerance", tolerance)
        elif kind == "total_loss":
            got = loss
        elif kind == "indiff":
            got = run.blobs[name].diff.array()
        elif kind == "paramdiff":
            layer, index = name.split(":")
            gradient = run.net.layer(layer).blobs[int(index)].grad
            got = np.zeros_like(expected) if gradient is None else gradient.numpy()
        elif kind == "paramafter":
            layer, index = name.split(":")
            got = run.net.layer(layer).blobs[int(index)].detach().numpy()
        else:
            continue
        np.testing.assert_allclose(got, expected, **tolerance, err_msg=key)


DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 6 } } }\n'


def conv(name: str, bottom: str, more: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" {more} '
        'convolution_param { num_output: 3 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }\n'
    )


def layer(name: str, kind: str, bottoms: list[str], top: str, more: str = "") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" {" ".join(f"bottom: {b!r}" for b in bottoms)} top: "{top}" {more} }}\n'


def run_of(text: str, phase: int = TRAIN) -> Stepwise:
    torch.manual_seed(3)
    return Stepwise(Net(parse(DATA + text, NetParameter), phase))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# A net with a blob that three layers read, a layer in place, a loss weight on a blob that is read, and a shared parameter.
FORKED = (
    conv("a", "data", 'param { name: "w" }')
    + layer("relu", "ReLU", ["a"], "a")
    + conv("b", "a", 'param { name: "w" }')
    + conv("c", "a")
    + layer("sum", "Eltwise", ["b", "c", "a"], "sum")
    + layer("squash", "Sigmoid", ["sum"], "squash", "loss_weight: 0.5")
    + layer("size", "Reduction", ["squash"], "size", "reduction_param { operation: SUMSQ } loss_weight: 2")
)


def test_stepwise_and_module_runs_give_the_same_loss_and_gradients() -> None:
    run = run_of(FORKED)
    x = noise(2, 3, 6, 6)
    run.feed({"data": x})
    loss = run.forward()
    run.backward()
    stepwise = [p.grad.clone() for p in run.net.parameters() if p.grad is not None]
    run.net.zero_grad()
    objective = run.net.total_loss(run.net({"data": x}))
    objective.backward()
    assert loss == pytest.approx(objective.item(), rel=1e-6)
    assert len(stepwise) == 5
    for mine, parameter in zip(stepwise, run.net.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-5, atol=1e-5)


def test_every_blob_has_its_own_diff_and_readers_are_summed() -> None:
    run = run_of(FORKED)
    run.feed({"data": noise(2, 3, 6, 6)})
    run.forward()
    run.backward()
    s = run.blobs["squash"].data.value()
    torch.testing.assert_close(run.blobs["squash"].diff.value(), 0.5 + 4 * s)
    through = run.blobs["sum"].diff.value()
    torch.testing.assert_close(through, (0.5 + 4 * s) * s * (1 - s))
    assert torch.equal(run.blobs["b"].diff.value(), through)
    assert not torch.equal(run.blobs["a"].diff.value(), through)
    assert run.blobs["size"].diff.value().item() == 2


def test_going_back_in_two_ranges_is_going_back_once() -> None:
    whole, parts = run_of(FORKED), run_of(FORKED)
    for run in (whole, parts):
        run.feed({"data": noise(2, 3, 6, 6)})
        run.forward()
    whole.backward()
    # Between the two readers of the blob "a".
    parts.backward(end=4)
    parts.backward(start=3)
    for name in whole.blobs:
        assert torch.equal(whole.blobs[name].diff.value(), parts.blobs[name].diff.value()), name
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(whole.net.parameters(), parts.net.parameters(), strict=True))


def test_forward_in_ranges_continues_from_the_blobs_as_they_are() -> None:
    run = run_of(FORKED)
    run.feed({"data": noise(2, 3, 6, 6)})
    whole = run.forward()
    run.forward(end=3)
    assert run.forward(start=4) == pytest.approx(whole)
    run.blobs["sum"].data.array()[...] = 0
    assert run.forward(start=6) == pytest.approx(0.5 * 0.5 * 216 + 2 * 0.25 * 216)


def test_parameter_diffs_add_up_until_they_are_cleared_and_bottom_diffs_do_not() -> None:
    run = run_of(FORKED)
    run.feed({"data": noise(2, 3, 6, 6)})
    seen = []
    for _ in range(2):
        run.forward()
        run.backward()
        seen.append((run.net.layer("c").blobs[0].grad.clone(), run.blobs["a"].diff.value().clone()))
    torch.testing.assert_close(seen[1][0], 2 * seen[0][0])
    torch.testing.assert_close(seen[1][1], seen[0][1])
    run.clear_param_diffs()
    assert not run.net.layer("c").blobs[0].grad.any()


def test_diffs_set_by_hand_go_back_from_any_layer() -> None:
    run = run_of("force_backward: true\n" + conv("a", "data") + layer("relu", "ReLU", ["a"], "r") + conv("b", "r"), TEST)
    x = noise(2, 3, 6, 6)
    run.feed({"data": x})
    run.forward()
    wanted = noise(2, 3, 6, 6, seed=1)
    run.blobs["r"].diff.array()[...] = wanted.numpy()
    run.backward(start=2)
    x.requires_grad_()
    blobs = run.net({"data": x}, keep=["r"])
    torch.testing.assert_close(run.blobs["data"].diff.value(), torch.autograd.grad(blobs["r"], x, wanted)[0])
    assert run.net.layer("b").blobs[0].grad is None


def test_without_a_loss_or_force_backward_no_gradients_are_computed(caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(conv("a", "data"), TEST)
    run.forward()
    run.blobs["a"].diff.array()[...] = 1
    run.backward()
    assert run.net.layer("a").blobs[0].grad is None
    assert "neither a loss nor force_backward" in caplog.text


def test_where_lr_mult_is_zero_no_gradient_is_computed_unless_forced() -> None:
    text = conv("a", "data") + conv("b", "a", "param { lr_mult: 0 }") + layer("l", "Reduction", ["b"], "l", "loss_weight: 1")
    for force in (False, True):
        run = run_of(("force_backward: true\n" if force else "") + text)
        run.feed({"data": noise(2, 3, 6, 6)})
        run.forward()
        run.backward()
        frozen = run.net.layer("b").blobs[0]
        assert (frozen.grad is not None) == force
        assert not frozen.requires_grad
        assert run.net.layer("a").blobs[0].grad is not None
        assert run.blobs["data"].diff.is_set == force


def test_propagate_down_stops_a_gradient() -> None:
    run = run_of(
        conv("a", "data") + conv("b", "a") + layer("l", "EuclideanLoss", ["b", "data"], "l").replace("}", "") + "propagate_down: false "
        "propagate_down: false }\n"
    )
    run.forward()
    run.backward()
    assert all(p.grad is None for p in run.net.parameters())


def test_propagate_down_counts_below_its_layer_and_asks_for_nothing_where_nothing_learns() -> None:
    # As in Caffe: the top of "b" has a diff, its bottom none; "d" has nothing to learn below and no diff in spite of propagate_down.
    down = lambda text, value: text.rstrip().removesuffix("}") + f" propagate_down: {value} }}\n"  # noqa: E731
    run = run_of(
        conv("a", "data")
        + down(layer("b", "AbsVal", ["a"], "b"), "false")
        + down(layer("d", "AbsVal", ["data"], "d"), "true")
        + layer("l", "Reduction", ["b"], "l").rstrip().removesuffix("}")
        + " loss_weight: 1 }\n"
        + layer("m", "Reduction", ["d"], "m").rstrip().removesuffix("}")
        + " loss_weight: 1 }\n"
    )
    run.forward()
    run.backward()
    assert {name for name in ("data", "a", "b", "d") if run.blobs[name].diff.is_set} == {"b"}


def test_going_back_again_after_an_update_reads_the_new_parameters() -> None:
    param = parse(
        'input: "x" input_shape { dim: 1 dim: 2 } force_backward: true layer { name: "i" type: "InnerProduct" bottom: "x" top: "i" '
        "inner_product_param { num_output: 1 bias_term: false } }",
        NetParameter,
    )
    run = Stepwise(Net(param, TEST))
    weight = run.net.layers[-1].blobs[0]
    run.blobs["i"].diff.store(torch.ones(1, 1))
    for value in (2.0, 5.0, 7.0):
        with torch.no_grad():
            weight.fill_(value)
        if value == 2.0:
            run.forward()
        run.backward(keep=True)
        assert run.blobs["x"].diff.value().tolist() == [[value, value]]


def test_a_partial_backward_pass_before_a_reshape_leaves_nothing_behind() -> None:
    param = parse(
        'input: "x" input_shape { dim: 3 dim: 2 } force_backward: true layer { name: "p" type: "Power" bottom: "x" top: "p" } '
        'layer { name: "t" type: "Tile" bottom: "x" top: "t" tile_param { tiles: 2 } }',
        NetParameter,
    )
    run = Stepwise(Net(param, TEST))
    run.forward()
    run.backward(end=len(run.steps) - 1)
    run.blobs["x"].reshape((1, 2))
    run.reshape()
    for name in ("p", "t"):
        run.blobs[name].diff.store(torch.ones(run.blobs[name].shape))
    run.backward()
    assert run.blobs["x"].diff.value().tolist() == [[3.0, 3.0]]


def test_an_array_that_is_alive_remains_the_blobs_memory_and_others_cost_nothing() -> None:
    run = run_of(FORKED)
    run.feed({"data": noise(2, 3, 6, 6)})
    run.forward()
    held = run.blobs["b"].data.array()
    before = held.copy()
    run.feed({"data": noise(2, 3, 6, 6, seed=5)})
    run.forward()
    assert not np.array_equal(held, before)
    assert run.blobs["b"].data.array() is held
    view = held[1]
    del held
    assert run.blobs["b"].data.has_live_view  # through the view
    del view
    assert not run.blobs["b"].data.has_live_view
    assert not run.blobs["c"].data.has_live_view


def test_editing_one_blob_leaves_blobs_alone_that_only_the_engine_made_as_views_of_it() -> None:
    run = run_of(conv("a", "data") + layer("drop", "Dropout", ["a"], "drop") + layer("flat", "Flatten", ["a"], "flat"), TEST)
    run.feed({"data": noise(2, 3, 6, 6)})
    run.forward()
    value = run.blobs["a"].data.array().copy()
    for _ in range(2):
        run.blobs["a"].data.array()[...] = -7
        # The plan's kernel and the layer's own round differently.
        np.testing.assert_allclose(run.blobs["drop"].data.array(), value, rtol=1e-5, atol=1e-6)
        assert (run.blobs["flat"].data.array() == -7).all()  # in Caffe it has the memory of 'a'
        run.forward()
        run.forward(start=2)


def test_activations_are_let_go_of_unless_they_are_kept() -> None:
    run = run_of(FORKED)
    run.forward()
    run.backward(keep=True)
    run.backward()
    assert all(step.inputs is None and not step.tops for step in run.steps)


def test_other_input_shapes_are_followed_layer_by_layer() -> None:
    run = run_of(FORKED)
    run.feed({"data": noise(1, 3, 4, 5)})
    run.forward()
    run.backward()
    assert run.blobs["sum"].shape == run.blobs["sum"].diff.value().shape == (1, 3, 4, 5)
    assert run.net({"data": noise(3, 3, 4, 4)}, keep=["sum"])["sum"].shape == (3, 3, 4, 4)
    run.feed({"data": noise(2, 2, 6, 6)})
    with pytest.raises(NetError, match="layer 'a'.*parameter blob 0"):
        run.forward()


def test_a_range_outside_of_the_net_is_an_error() -> None:
    with pytest.raises(NetError, match="layer 99 is outside of the net '', which has 8 layers"):
        run_of(FORKED).forward(end=99)


def square_of(text: str = "") -> Stepwise:
    """x → ip → ReLU in place → square, all of weight 1."""
    net = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }\n'
    net += 'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 3 '
    net += 'weight_filler { type: "constant" value: 1 } } }\n' + layer("relu", "ReLU", ["ip"], "ip")
    net += layer("square", "Power", ["ip"], "square", "power_param { power: 2 }") + text
    return Stepwise(Net(parse("force_backward: true\n" + net, NetParameter), TRAIN))


@pytest.mark.parametrize("held", [False, True])
def test_going_back_uses_what_blobs_hold_now(held: bool) -> None:
    run = square_of()
    run.blobs["x"].data.array()[...] = [0.5, 0.5, 1]
    alive = run.blobs["ip"].data.array() if held else None
    run.forward()
    run.blobs["ip"].data.array()[...] = [[0, -1, 5]]
    run.blobs["square"].diff.array()[...] = 1
    run.backward(keep=True)
    # 2 * 5, through the ReLU's third value only: as BVLC Caffe gives it.
    np.testing.assert_array_equal(run.blobs["x"].diff.array(), [[10, 10, 10]])
    run.forward()
    run.backward()
    np.testing.assert_array_equal(run.blobs["x"].diff.array(), [[12, 12, 12]])
    assert (alive is not None) == held


def test_going_back_needs_no_forward_pass_and_draws_no_random_numbers() -> None:
    run = square_of(layer("drop", "Dropout", ["square"], "drop"))
    run.blobs["x"].data.array()[...] = 1
    run.blobs["ip"].data.array()[...] = 2
    run.blobs["square"].diff.array()[...] = 1
    state = torch.get_rng_state()
    run.backward(start=3)
    np.testing.assert_array_equal(run.blobs["x"].diff.array(), [[12, 12, 12]])
    assert torch.equal(torch.get_rng_state(), state)
    assert run.blobs["square"].data.array().max() == 0  # nothing was computed forward


def test_a_range_follows_shapes_only_as_far_as_it_runs() -> None:
    run = run_of(conv("a", "data") + layer("fc", "InnerProduct", ["a"], "fc", "inner_product_param { num_output: 2 }"))
    run.feed({"data": noise(1, 3, 9, 5)})
    run.forward(end=1)
    assert (run.blobs["a"].shape, run.blobs["fc"].shape) == ((1, 3, 9, 5), (2, 2))
    with pytest.raises(NetError, match="layer 'fc'"):
        run.forward(start=2)


def test_constants_of_dummy_data_are_there_before_any_pass() -> None:
    text = 'layer { name: "d" type: "DummyData" top: "c" top: "g" dummy_data_param { shape { dim: 4 } shape { dim: 4 } '
    text += 'data_filler { type: "constant" value: 3 } data_filler { type: "gaussian" } } }\n'
    state = torch.get_rng_state()
    run = Stepwise(Net(parse(text, NetParameter), TRAIN))
    assert (run.blobs["c"].data.array() == 3).all()
    assert not run.blobs["g"].data.is_set
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_shared_in_another_shape_are_one_memory_and_add_up_their_gradients() -> None:
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }\n'
    spec = 'param { name: "w" share_mode: PERMISSIVE } inner_product_param { bias_term: false num_output: %d weight_filler { type: "xavier" } }'
    text += layer("a", "InnerProduct", ["x"], "a", spec % 2) + layer("b", "InnerProduct", ["a"], "b", spec % 4)
    text += layer("loss", "Reduction", ["b"], "loss", "loss_weight: 1")
    torch.manual_seed(0)
    net = Net(parse(text, NetParameter), TRAIN)
    a, b = net.layer("a").blobs[0], net.layer("b").blobs[0]
    assert (tuple(a.shape), tuple(b.shape), a.data_ptr() == b.data_ptr()) == ((2, 4), (4, 2), True)
    assert [entry.parameter is a for entry in net.learnable] == [True]
    x = torch.randn(1, 4)
    w = a.detach().clone().requires_grad_()
    (x @ w.T @ w.view(4, 2).T).sum().backward()
    net.total_loss(net({"x": x})).backward()
    torch.testing.assert_close(a.grad, w.grad)
    assert b.grad is None
    net.zero_grad()
    run = Stepwise(net)
    run.feed({"x": x})
    run.forward()
    run.backward()
    torch.testing.assert_close(a.grad, w.grad)


# The first six values of the bottom's diff as BVLC Caffe 1.0 gives them: with no forward pass before; after one, with the bottom, the
# labels or the top overwritten by evenly spaced values (labels: 1, 1, 0, 2).
OVERWRITTEN: dict[tuple[str, str], list[float]] = {
    ("Sigmoid", ""): [0, 0, 0, 0, 0, 0],
    ("Sigmoid", "x"): [0.2461, 0.4797, 0.75, 0.989, 1.1463, 1.3742],
    ("Sigmoid", "o"): [-2, -2.9752, -3.124, -2.6446, -1.7355, -0.595],
    ("TanH", ""): [1, 2, 3, 4, 5, 6],
    ("TanH", "x"): [0.9396, 1.7006, 2.9998, 3.8273, 3.5848, 4.2865],
    ("TanH", "o"): [0, 0.6612, 1.7851, 3.1736, 4.6281, 5.9504],
    ("ELU", "x"): [1.2508, 2.8163, 2.9728, 4.8433, 7.9647, 9.5778],
    ("ELU", "o"): [1, 2, 1.0909, 4, 5, 6],
    ("Softmax", ""): [0, 0, 0, 0, 0, 0],
    ("Softmax", "x"): [-0.3135, 0.031, 0.2826, -0.2844, -0.0445, 0.3289],
    ("Softmax", "o"): [-5.5455, -5.3554, -4.8017, -3.5124, -2.3802, -0.8843],
    ("Exp", "x"): [1.2851, 3.0081, 2.9728, 4.9388, 9.0466, 10.8923],
    ("Exp", "o"): [-1, -1.6364, -1.9091, -1.8182, -1.3636, -0.5455],
    ("Swish", "x"): [0.6241, 1.3971, 1.4864, 2.4186, 3.8999, 4.6883],
    ("SoftmaxWithLoss", "x"): [-0.165, 0.0995, 0.0655, 0.0635, 0.0931, -0.1566],
    ("SoftmaxWithLoss", "y"): [0.085, -0.1505, 0.0655, 0.0635, -0.1569, 0.0934],
    ("SigmoidCrossEntropyLoss", "x"): [-0.0217, 0.0805, -0.0446, -0.0096, 0.155, 0.0215],
    ("SigmoidCrossEntropyLoss", "y"): [0.3906, 0.3547, 0.2835, 0.2518, 0.2292, 0.1839],
    ("HingeLoss", "y"): [0.25, -0.25, 0.25, 0.25, -0.25, 0.25],
}


@pytest.mark.parametrize(("type_name", "edited"), OVERWRITTEN, ids=lambda value: value or "no forward pass")
def test_a_backward_pass_reads_again_what_caffes_does_and_nothing_else(type_name: str, edited: str) -> None:
    loss, labels = type_name.endswith("Loss"), type_name in ("SoftmaxWithLoss", "HingeLoss")
    shape = "dim: 4" if labels else "dim: 4 dim: 3"
    net = 'layer { name: "d" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { ' + shape + " } } }\n"
    net += layer("l", type_name, ["x", "y"] if loss else ["x"], "o")
    run = Stepwise(Net(parse("force_backward: true\n" + net, NetParameter), TEST))
    rng = np.random.RandomState(3)
    run.blobs["x"].data.array()[...] = rng.rand(4, 3) - 0.3
    run.blobs["y"].data.array()[...] = [0, 2, 1, 1] if labels else rng.rand(4, 3)
    if edited:
        run.forward()
    if not loss:
        run.blobs["o"].diff.array()[...] = np.arange(1, 13).reshape(4, 3)
    if edited:
        run.blobs[edited].data.array()[...] = [1, 1, 0, 2] if labels and edited == "y" else np.linspace(-1, 1, 12).reshape(4, 3)
    run.backward()
    np.testing.assert_allclose(run.blobs["x"].diff.array().ravel()[:6], OVERWRITTEN[type_name, edited], atol=6e-5)


def test_going_back_after_a_reshape_has_the_new_shapes_in_every_layer() -> None:
    # Tile's gradient reads no bottom, Exp's does: both reach the blob that they share.
    param = parse(
        'input: "x" input_shape { dim: 1 dim: 2 } force_backward: true '
        'layer { name: "t" type: "Tile" bottom: "x" top: "t" tile_param { tiles: 2 } } layer { name: "e" type: "Exp" bottom: "x" top: "e" }',
        NetParameter,
    )
    run = Stepwise(Net(param, TEST))
    run.feed({"x": torch.zeros(3, 2)})
    run.forward()
    run.blobs["x"].reshape((1, 2))
    run.reshape()
    for name in ("t", "e"):
        run.blobs[name].diff.store(torch.ones(run.blobs[name].shape))
    run.backward()
    assert run.blobs["x"].diff.value().tolist() == [[3.0, 3.0]]


def test_blobs_above_statistics_have_diffs_as_in_caffe() -> None:
    # BatchNorm sets lr_mult to 0 after Caffe's net has read it, so a gradient is computed down to its top.
    param = parse(
        'input: "x" input_shape { dim: 1 dim: 2 } '
        'layer { name: "b" type: "BatchNorm" bottom: "x" top: "b" batch_norm_param { use_global_stats: true } } '
        'layer { name: "p" type: "Power" bottom: "b" top: "p" power_param { scale: 3 } } '
        'layer { name: "l" type: "Reduction" bottom: "p" top: "l" loss_weight: 1 }',
        NetParameter,
    )
    run = Stepwise(Net(param, TEST))
    run.forward()
    run.backward()
    assert run.blobs["b"].diff.value().tolist() == [[3.0, 3.0]]
    # Its own backward pass does not ask whether anything needs the gradient.
    assert run.blobs["x"].diff.value().flatten().tolist() == pytest.approx([948.68335, 948.68335])
