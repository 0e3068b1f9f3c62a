"""Blobs that Caffe gives one memory: what is written to one is in the others. Expected values: what Caffe itself gives for these nets."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from caffetools.errors import ExportError, NetError
from caffetools.layers import native, native_conv
from caffetools.layers.blob_storage import ParameterStorage
from caffetools.layers.tensor_storage import TensorStorage
from caffetools.net.net import Net
from caffetools.net.stepwise import Stepwise
from caffetools.onnx.export import build
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import parse

DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 1 dim: 2 } } }'
A = DATA + ' layer { name: "a" type: "Power" bottom: "data" top: "a" power_param { scale: 2 } }'
RESHAPE = ' layer { name: "b" type: "Reshape" bottom: "a" top: "b" reshape_param { shape { dim: 0 dim: -1 } } }'
FLATTEN = ' layer { name: "b" type: "Flatten" bottom: "a" top: "b" }'
C = ' layer { name: "c" type: "Power" bottom: "b" top: "c" power_param { scale: 3 } }'
FORCE = "force_backward: true "


def run_of(text: str) -> Stepwise:
    return Stepwise(Net(parse(text, NetParameter)))


def put(run: Stepwise, name: str, value: float, *, diff: bool = False) -> None:
    blob = run.blobs[name]
    (blob.diff_array() if diff else blob.data_array())[...] = value


def get(run: Stepwise, name: str, *, diff: bool = False) -> float:
    blob = run.blobs[name]
    values = blob.diff_array() if diff else blob.data_array()
    assert values.shape == blob.shape
    assert (values == values.flat[0]).all()
    return float(values.flat[0])


def data_and_diffs(run: Stepwise) -> list[float | tuple[float, ...]]:
    """Edit and run one of the nets A + RESHAPE + C, A + FLATTEN + C; return what is read in between."""
    seen: list[float | tuple[float, ...]] = []
    put(run, "a", 4)
    put(run, "a", 6, diff=True)
    seen += [get(run, "b"), get(run, "b", diff=True)]
    put(run, "data", 1)
    run.forward()
    seen.append((get(run, "a"), get(run, "b"), get(run, "c")))
    put(run, "b", 9)
    seen.append(get(run, "a"))
    put(run, "a", 8)
    seen.append((get(run, "b"), get(run, "c")))
    run.forward(start=3)
    seen.append(get(run, "c"))
    put(run, "c", 1, diff=True)
    run.backward()
    seen.append((get(run, "b", diff=True), get(run, "a", diff=True), get(run, "data", diff=True)))
    put(run, "b", 7, diff=True)
    seen.append(get(run, "a", diff=True))
    run.forward(end=1)
    seen.append(get(run, "b"))
    put(run, "data", 5)
    run.forward()
    seen.append((get(run, "a"), get(run, "b"), get(run, "c")))
    return seen


@pytest.mark.parametrize(
    ("text", "before_any_pass", "after_backward"),
    [
        (A + RESHAPE + C, [4, 6], [(6, 6, 0), 7]),
        (FORCE + A + RESHAPE + C, [4, 6], [(3, 3, 6), 7]),
        (A + FLATTEN + C, [0, 0], [(0, 6, 0), 6]),
        (FORCE + A + FLATTEN + C, [0, 0], [(3, 3, 6), 7]),
    ],
)
def test_reshape_and_flatten_share_data_and_diff_with_their_bottom(
    text: str, before_any_pass: list[float], after_backward: list[float]
) -> None:
    expected = [*before_any_pass, (2, 2, 6), 9, (8, 6), 24, *after_backward, 2, (10, 10, 30)]
    assert data_and_diffs(run_of(text)) == expected


@pytest.mark.parametrize(("force", "diffs"), [("", (0, 1, 0)), (FORCE, (3, 3, 0))])
def test_a_split_layers_tops_share_its_bottoms_data_and_not_its_diff(force: str, diffs: tuple[float, ...]) -> None:
    split = ' layer { name: "s" type: "Split" bottom: "a" top: "b" top: "d" }'
    run = run_of(force + A + split + C)
    put(run, "a", 4)
    assert get(run, "b") == 0
    put(run, "data", 1)
    run.forward()
    put(run, "d", 6)
    assert (get(run, "a"), get(run, "b"), get(run, "c")) == (6, 6, 6)
    put(run, "b", 1, diff=True)
    assert (get(run, "d", diff=True), get(run, "a", diff=True)) == (0, 0)
    run.forward(start=2)
    assert get(run, "c") == 18
    put(run, "c", 1, diff=True)
    run.backward()
    assert (get(run, "a", diff=True), get(run, "b", diff=True), get(run, "d", diff=True)) == diffs


@pytest.mark.parametrize("kind", ["Concat", "Slice"])
def test_concat_and_slice_of_one_blob_share_from_their_setup_on(kind: str) -> None:
    run = run_of(FORCE + A + f' layer {{ name: "b" type: "{kind}" bottom: "a" top: "b" }}' + C)
    put(run, "a", 4)
    put(run, "b", 3, diff=True)
    assert (get(run, "b"), get(run, "a", diff=True)) == (4, 3)


def test_a_layer_in_place_behind_flatten_overwrites_an_input() -> None:
    run = run_of(DATA + FLATTEN.replace('"a"', '"data"') + ' layer { name: "r" type: "ReLU" bottom: "b" top: "b" }' + C)
    put(run, "data", -2)
    run.forward()
    assert (get(run, "data"), get(run, "b"), get(run, "c")) == (0, 0, 0)


@pytest.mark.parametrize("force", ["", FORCE])
def test_a_later_reader_of_the_flattened_blob_sees_what_a_layer_in_place_left_there(force: str) -> None:
    last = ' layer { name: "x" type: "Power" bottom: "a" top: "x" power_param { scale: 5 } }'
    run = run_of(force + A + FLATTEN + ' layer { name: "r" type: "ReLU" bottom: "b" top: "b" }' + C + last)
    put(run, "data", -2)
    run.forward()
    assert (get(run, "a"), get(run, "b"), get(run, "x")) == (0, 0, 0)


def test_an_array_taken_before_the_memories_are_joined_remains_live() -> None:
    run = run_of(A + FLATTEN + C)
    early = run.blobs["b"].data_array()
    put(run, "data", 1)
    run.forward()
    assert (early == 2).all()
    early[...] = 9
    assert get(run, "a") == 9


def test_another_number_of_values_parts_the_memories_until_the_next_pass() -> None:
    run = run_of(A + FLATTEN + C)
    put(run, "data", 1)
    run.forward()
    run.blobs["data"].reshape((4, 3, 1, 2))
    put(run, "data", 3)
    run.forward()
    put(run, "b", 5)
    assert run.blobs["b"].shape == (4, 6)
    assert get(run, "a") == 5


def test_channels_last_values_are_read_and_written_under_both_shapes() -> None:
    first = TensorStorage((2, 3, 4, 5))
    values = torch.arange(120.0).reshape(2, 3, 4, 5)
    flat = TensorStorage((2, 60))
    flat.share(first, (2, 60))
    first.store(values.to(memory_format=torch.channels_last))
    assert torch.equal(flat.value(), values.reshape(2, 60))
    flat.write(values.reshape(2, 60) + 1)
    assert torch.equal(first.value(), values + 1)
    first.store((values + 2).to(memory_format=torch.channels_last))
    array = flat.array()
    first.array()[0, 0, 0, 0] = -1
    assert array[0, 0] == -1
    assert np.shares_memory(array, first.array())


def test_shared_storages_are_released_without_a_garbage_collection() -> None:
    gc.disable()
    try:
        first, second = TensorStorage((2, 3)), TensorStorage((6,))
        second.share(first, (6,))
        first.array()
        gone = weakref.ref(first)
        del first, second
        assert gone() is None
    finally:
        gc.enable()


CONV = ' layer { name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "constant" value: 0.5 } } }'
RELU = ' layer { name: "r" type: "ReLU" bottom: "b" top: "b" }'
SPLIT = ' layer { name: "s" type: "Split" bottom: "a" top: "b" top: "d" }'


def product(top: str, bottom: str, weight: float) -> str:
    return (
        f' layer {{ name: "{top}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" loss_weight: 1'
        f' inner_product_param {{ num_output: 2 weight_filler {{ type: "constant" value: {weight} }} }} }}'
    )


LATER_READERS = [
    DATA + CONV + FLATTEN + RELU + product("c", "b", 0.3) + product("x", "a", 0.7),
    DATA + CONV + FLATTEN + RELU + product("x", "a", 0.7) + product("c", "b", 0.3),
    DATA + CONV + SPLIT + RELU + product("c", "b", 0.3) + product("x", "d", 0.7),
    DATA + CONV + SPLIT + RELU + product("c", "b", 0.3) + product("x", "a", 0.7),
    DATA + CONV + SPLIT + RELU + product("c", "b", 0.3) + FLATTEN.replace('"b"', '"e"').replace('"a"', '"d"') + product("x", "e", 0.7),
    DATA + FLATTEN.replace('"a"', '"data"') + RELU + product("c", "b", 0.3) + product("x", "data", 0.7),
]
# In the TEST phase the engine makes the top of a Dropout a view of its bottom, which has a memory of its own in Caffe.
DROPPED = DATA + CONV + ' layer { name: "z" type: "Dropout" bottom: "a" top: "z" }' + FLATTEN.replace('"a"', '"z"') + RELU
DROPPED += product("c", "a", 0.3) + product("x", "z", 1)


@pytest.mark.parametrize(("text", "phase"), [*((text, phase) for text in LATER_READERS for phase in (TRAIN, TEST)), (DROPPED, TEST)])
def test_a_module_gives_later_readers_of_one_memory_what_a_layer_in_place_left_there(text: str, phase: int) -> None:
    # The convolution of these has results of both signs.
    values = np.random.RandomState(1).randn(2, 3, 1, 2).astype(np.float32)
    net = Net(parse(text, NetParameter), phase)
    run = Stepwise(Net(parse(text, NetParameter), phase))
    run.feed({"data": torch.from_numpy(values)})
    run.forward()
    run.backward()
    given = torch.from_numpy(values.copy())
    with torch.set_grad_enabled(phase == TRAIN):
        blobs = net({"data": given})
    for name, blob in blobs.items():
        np.testing.assert_allclose(blob.detach().numpy(), run.blobs[name].data_array(), rtol=1e-5)
    assert np.array_equal(given.numpy(), values)
    if phase == TRAIN:
        net.total_loss(blobs).backward()
        for layer, other in zip(net.layers, run.net.layers, strict=True):
            for ours, theirs in zip(layer.blobs, other.blobs, strict=True):
                assert ours.grad is not None
                assert theirs.grad is not None
                np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-5)


def test_gradients_of_a_blob_that_is_overwritten_after_it_was_read_are_refused_by_a_module() -> None:
    net = Net(parse(DATA + CONV + product("x", "a", 0.7) + FLATTEN + RELU + product("c", "b", 0.3), NetParameter), TRAIN)
    with pytest.raises(NetError, match="layer 'x'.*overwrites"):
        net({"data": np.zeros((2, 3, 1, 2), np.float32)})
    with torch.no_grad():
        assert set(net({"data": np.zeros((2, 3, 1, 2), np.float32)})) == {"c", "x"}


def test_a_net_whose_blobs_are_overwritten_in_another_shape_has_no_onnx_form() -> None:
    net = Net(parse(DATA + CONV + FLATTEN + RELU + product("x", "a", 0.7), NetParameter), TEST)
    with pytest.raises(ExportError, match="overwrites the blob 'a'"):
        build(net)


PARAMETER = 'layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 2 } } }'


def _parameter(name: str, top: str, spec: str = "") -> str:
    return f'layer {{ name: "{name}" type: "Parameter" top: "{top}" {spec} parameter_param {{ shape {{ dim: 3 }} }} }} '


X = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 } } } '
PRODUCT = 'layer { name: "s" type: "Eltwise" bottom: "x" bottom: "p" top: "y" eltwise_param { operation: PROD } loss_weight: 1 } '
TRIPLE = 'layer { name: "t" type: "Power" bottom: "%s" top: "z" power_param { scale: 3 } loss_weight: 1 }'
# Before and after the diff of the parameter is set to 7, after a forward pass, a backward pass, another one, clearing, setting the top's to 9.
ONE = [([1, 2, 3], 0), ([1, 2, 3], 7), (7, 7), ([1, 2, 3], [1, 2, 3]), ([1, 2, 3], [1, 2, 3]), (0, 0), (9, 9)]
TWO_READERS = [([4, 5, 6], 0), ([4, 5, 6], 7), (7, 7), ([4, 5, 6], [4, 5, 6]), ([4, 5, 6], [4, 5, 6]), (0, 0), (9, 9)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X + _parameter("P", "p") + PRODUCT, ONE),
        (X + _parameter("P", "p") + PRODUCT + TRIPLE % "p", TWO_READERS),
        # The gradient of the layer whose backward pass comes last is left of the two.
        (X + _parameter("P", "p", 'param { name: "w" }') + _parameter("Q", "q", 'param { name: "w" }') + PRODUCT + TRIPLE % "q", ONE),
        (X + _parameter("P", "p", "param { lr_mult: 0 }") + PRODUCT, [(0, 0), (0, 7), (7, 7), (7, 7), (7, 7), (0, 0), (9, 9)]),
    ],
)
def test_the_diff_of_a_parameter_layers_top_is_the_parameters_from_the_forward_pass_on(
    text: str, expected: list[tuple[object, object]]
) -> None:
    run = Stepwise(Net(parse(text, NetParameter), TRAIN))
    parameter = ParameterStorage(run.net.layer("P"), 0)
    seen: list[tuple[object, object]] = []

    def note() -> None:
        values = [array.tolist() for array in (run.blobs["p"].diff_array(), parameter.diff_array())]
        seen.append(tuple(row[0] if len(set(row)) == 1 else row for row in values))

    run.blobs["x"].data_array()[...] = [1, 2, 3]
    run.backward(keep=True)
    note()
    parameter.diff_array()[...] = 7
    note()
    run.forward()
    note()
    for _ in range(2):
        run.backward(keep=True)
        note()
    run.clear_param_diffs()
    note()
    put(run, "p", 9, diff=True)
    note()
    assert seen == expected


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_the_top_of_a_parameter_layer_lies_in_the_parameter_from_the_forward_pass_on(phase: int) -> None:
    power = ' layer { name: "c" type: "Power" bottom: "p" top: "c" power_param { scale: 3 } loss_weight: 1 }'
    run = Stepwise(Net(parse(PARAMETER + power, NetParameter), phase))
    parameter = run.net.layers[0].blobs[0]
    put(run, "p", 6)
    assert parameter.tolist() == [0, 0]
    with torch.no_grad():
        parameter.fill_(4)
    run.forward()
    assert (get(run, "p"), get(run, "c")) == (4, 12)
    put(run, "p", 2)
    assert parameter.tolist() == [2, 2]
    run.forward()
    run.backward()
    assert (get(run, "c"), get(run, "p", diff=True)) == (6, 3)
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [3, 3]
    with torch.no_grad():
        parameter.fill_(7)
    assert get(run, "p") == 7


SUM = """ layer { name: "s" type: "Convolution" bottom: "BLOB" top: "s"
    convolution_param { num_output: 1 kernel_size: 1 weight_filler { type: "constant" value: 1 } } }"""


@pytest.mark.parametrize(
    ("blob", "above", "below"),
    [
        ("data", "", SUM.replace("BLOB", "data")),
        ("a", 'layer { name: "a" type: "Flatten" bottom: "data" top: "a" }', SUM.replace("BLOB", "data")),
        ("a", 'layer { name: "a" type: "Split" bottom: "data" top: "a" top: "rest" }' + SUM.replace("BLOB", "rest"), ""),
    ],
)
def test_a_pass_begins_with_what_a_layer_in_place_has_left_in_the_input(blob: str, above: str, below: str) -> None:
    power = ' layer { name: "p" type: "Power" bottom: "BLOB" top: "BLOB" power_param { scale: 2 shift: 1 } }'
    run = run_of(DATA + above + power.replace("BLOB", blob) + below)
    put(run, "data", 1)
    for expected in (3, 7, 15):
        run.forward()
        assert (get(run, "data"), get(run, blob)) == (expected, expected)


def test_an_output_behind_flatten_lies_in_the_memory_of_the_blob_before_it() -> None:
    run = run_of(A + FLATTEN)
    put(run, "data", 1)
    run.forward()
    flat, before = run.blobs["b"].data_array(), run.blobs["a"].data_array()
    put(run, "data", 2)
    run.forward()
    assert (flat == 4).all()
    assert (before == 4).all()
    flat[...] = 9
    assert get(run, "a") == 9
    before[...] = 7
    assert (flat == 7).all()
    run.blobs["data"].reshape((4, 3, 1, 2))
    put(run, "data", 3)
    run.forward()
    put(run, "b", 5)
    assert run.blobs["a"].shape == (4, 3, 1, 2)
    assert get(run, "a") == 5


@pytest.mark.parametrize(("bottom", "above"), [("a", A), ("data", DATA)])
def test_a_split_layers_outputs_lie_in_the_memory_of_its_bottom(bottom: str, above: str) -> None:
    run = run_of(above + f' layer {{ name: "s" type: "Split" bottom: "{bottom}" top: "x" top: "y" }}')
    put(run, "data", 1)
    run.forward()
    put(run, "y", 8)
    assert (get(run, bottom), get(run, "x"), get(run, "y")) == (8, 8, 8)
    run.forward()
    # What is written to an output is in the input, and so in the next pass.
    after = {"a": 2, "data": 8}[bottom]
    assert (get(run, bottom), get(run, "x"), get(run, "y")) == (after, after, after)


def test_a_layer_in_place_on_one_top_of_a_split_overwrites_the_others_when_they_were_read_before() -> None:
    early = ' layer { name: "z" type: "Power" bottom: "d" top: "z" }'
    run = run_of(A + SPLIT + early + RELU + C)
    put(run, "data", -1)
    run.forward()
    assert [get(run, name) for name in ("z", "c", "a", "b", "d")] == [-2, 0, 0, 0, 0]
    run.forward(start=3, end=3)
    assert get(run, "z") == 0


def test_a_layer_in_place_on_one_top_of_a_split_overwrites_what_a_later_flatten_passes_on() -> None:
    run = run_of(A + SPLIT + RELU + C + FLATTEN.replace('"b"', '"e"').replace('"a"', '"d"'))
    put(run, "data", -1)
    run.forward()
    assert [get(run, name) for name in ("e", "c", "a", "b", "d")] == [0, 0, 0, 0, 0]


def test_a_reshape_between_two_passes_leaves_what_a_layer_in_place_has_overwritten() -> None:
    run = run_of(A + RESHAPE + RELU + C)
    for _ in range(2):
        put(run, "data", -1)
        run.forward()
        run.reshape()
    run.forward()
    assert [get(run, name) for name in ("a", "b", "c")] == [0, 0, 0]


FIRST = """ layer { name: "p" type: "Power" bottom: "data" top: "data" power_param { scale: 2 shift: 1 } }
layer { name: "before" type: "Convolution" bottom: "data" top: "m" convolution_param { num_output: 1 kernel_size: 1 weight_filler { value: 1 } } }"""


@pytest.mark.skipif(not native_conv.available(), reason=native.status())
@pytest.mark.parametrize("held", [False, True])
def test_a_net_with_a_layer_in_place_on_its_input_is_fused_and_leaves_its_values_there(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(DATA + FIRST + SUM.replace("BLOB", "m"))
    put(run, "data", 1)
    kept = run.blobs["data"].data_array() if held else None
    layers: list[int] = []
    monkeypatch.setattr(Stepwise, "_run", lambda run, step, record: layers.append(step.index))
    for data in (3, 7, 15):
        run.forward(record=False)
        assert not layers
        if data == 7:
            continue  # two passes without a look at an inner blob
        assert (get(run, "s"), get(run, "m"), get(run, "data")) == (3 * data, 3 * data, data)
        assert kept is None or (kept == data).all()
    put(run, "data", 2)
    assert get(run, "m") == 45, "of the last pass"
