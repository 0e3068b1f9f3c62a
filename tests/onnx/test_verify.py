"""Verifying: what is measured, and that differences are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from caffetools.errors import ExportError, ModelFileError
from caffetools.net.net import Net
from caffetools.onnx.difference import measure
from caffetools.onnx.export import to_onnx
from caffetools.onnx.model import from_proto
from caffetools.onnx.verify import verify
from tests.net.test_net import conv, data, net_of, relu


def net() -> Net:
    torch.manual_seed(0)
    return net_of(data() + conv("c", "data") + relu("r", "c") + conv("d", "c") + conv("e", "c"))


def test_the_same_numbers_pass_and_every_blob_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(to_onnx(net()).SerializeToString())
    verification = verify(tmp_path / "a.onnx", net())
    assert {d.blob for d in verification.differences} == {"c", "d", "e"}
    assert {d.blob for d in verification.outputs} == {"d", "e"}
    assert verification.largest < 1e-5
    assert verification.largest == max(d.relative for d in verification.outputs)
    assert verification.measured_on == "random inputs (seed 0), batch size 2 and 3"
    assert "onnxruntime against float64 on random inputs" in verification.describe()


def test_other_weights_are_found_and_the_first_wrong_blob_is_named() -> None:
    changed = net()
    with torch.no_grad():
        changed.layer("e").blobs[0][0, 0, 0, 0] += 1e-2
    with pytest.raises(ExportError, match="the first blob that differs is 'e', of layer 'e'") as error:
        verify(to_onnx(net()).SerializeToString(), changed)
    assert error.value.exit_code == 1
    with torch.no_grad():
        changed.layer("c").blobs[0][0, 0, 0, 0] += 1e-2
    with pytest.raises(ExportError, match="the first blob that differs is 'c'"):
        verify(to_onnx(net()).SerializeToString(), changed)


def test_a_batch_that_was_baked_in_is_found() -> None:
    model = to_onnx(net_of(data() + relu("r", "data", "y")))
    model.graph.node[0].output[0] = "z"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3, 8, 8], np.int64), "shape"))
    model.graph.node.append(onnx.helper.make_node("Expand", ["z", "shape"], ["y"]))
    with pytest.raises(ExportError, match="with inputs data 3 x 3 x 8 x 8, onnxruntime cannot run the model"):
        verify(model.SerializeToString(), net_of(data() + relu("r", "data", "y")))


def test_an_error_that_only_larger_batches_have_is_found() -> None:
    """A factor for each item of the batch, which is 1 for the first two only."""
    made = net_of(data() + relu("r", "data", "z") + conv("c", "z") + 'layer { name: "p" type: "Power" bottom: "c" top: "y" }')
    model = to_onnx(made)
    node = next(node for node in model.graph.node if node.output[0] == "y")
    node.output[0] = "right"
    factors = np.array([1, 1, 0.5, 1], np.float32).reshape(4, 1, 1, 1)
    for name, value in {"factors": factors, "zero": np.array([0]), "one": np.array([1])}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("Shape", ["data"], ["shape"]),
            make("Slice", ["shape", "zero", "one"], ["batch"]),
            make("Slice", ["factors", "zero", "batch"], ["own"]),
            make("Mul", ["right", "own"], ["y"]),
        ]
    )
    with pytest.raises(ExportError, match="the first blob that differs is 'y'"):
        verify(model.SerializeToString(), made)


def test_given_inputs_are_what_is_compared_on() -> None:
    inputs = {"data": np.zeros((1, 3, 8, 8), np.float32)}
    verification = verify(to_onnx(net()).SerializeToString(), net(), inputs)
    assert verification.measured_on == "the given inputs, batch size 1 and 2"


def test_errors_are_measured_against_float64_and_allowed_by_those_of_float32() -> None:
    expected = np.array([[100.0, -400.0], [0.0, 1.0]])
    single = (expected + np.array([[0, 0], [0.5, 0]])).astype(np.float32)
    found = measure("y", expected, single, (expected + np.array([[0, 0], [0, 2]])).astype(np.float32))
    assert (found.relative, found.error, found.where, found.expected, found.got) == (2 / 400, 2.0, (1, 1), 1.0, 3.0)
    assert found.float32_error == 0.5
    assert found.allowed == pytest.approx(4 * 0.5 + 1e-6 * 400)
    assert found.passed
    assert not measure("y", expected, expected.astype(np.float32), (expected + 1e-3).astype(np.float32)).passed


def test_equal_infinities_are_equal_and_others_never_pass() -> None:
    good = np.ones((2, 2))
    for wrong in (np.full((2, 2), np.nan, np.float32), np.array([[1, np.inf], [1, 1]], np.float32)):
        assert not measure("y", good, good.astype(np.float32), wrong).passed
        same = wrong.astype(np.float64)
        assert measure("y", same, wrong, wrong).passed
        assert not measure("y", same, wrong, good.astype(np.float32)).passed
    overflowing = np.full((2, 2), 1e300)
    assert measure("y", overflowing, None, np.full((2, 2), np.inf, np.float32)).passed
    assert not measure("y", overflowing, None, np.full((2, 2), -np.inf, np.float32)).passed


def test_a_file_that_is_not_a_model_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x" * 100)
    with pytest.raises(ModelFileError, match=r"a\.onnx: this is text, and an ONNX model is expected"):
        verify(tmp_path / "a.onnx", net())


def test_probabilities_of_nought_and_one_hide_nothing() -> None:
    softmax = 'layer { name: "prob" type: "Softmax" bottom: "c" top: "prob" }'

    def saturated() -> Net:
        torch.manual_seed(0)
        made = net_of(data() + conv("c", "data") + softmax)
        with torch.no_grad():
            made.layer("c").blobs[0].mul_(0.01)
            made.layer("c").blobs[1].copy_(torch.tensor([1000.0, 0, 0, 0]))
        return made

    changed = saturated()
    with torch.no_grad():
        changed.layer("c").blobs[1][2] = 500
    model = to_onnx(saturated()).SerializeToString()
    assert {d.blob for d in verify(model, saturated()).differences} == {"prob", "c"}
    with pytest.raises(ExportError, match="first blob that differs is 'c'"):
        verify(model, changed)


def test_an_amplified_rounding_error_is_not_a_difference() -> None:
    """Scores of thousands, whose last bits a Softmax turns into 1e-4: float32 itself is as far off."""
    made = net_of(data() + conv("c", "data") + 'layer { name: "prob" type: "Softmax" bottom: "c" top: "prob" }')
    with torch.no_grad():
        made.layer("c").blobs[0].mul_(100)
    assert verify(to_onnx(made).SerializeToString(), made).worst.blob == "prob"


def test_infinities_of_exp_pass_with_a_note() -> None:
    made = net_of(data() + 'layer { name: "e" type: "Exp" bottom: "data" top: "y" }')
    verification = verify(to_onnx(made).SerializeToString(), made)
    assert verification.notes == ("blob 'y' is not finite on these inputs; verify on pictures (--pictures)",)


@pytest.mark.parametrize("kind", ["Scale", "Bias"])
def test_a_learned_blob_of_a_parameter_layer_is_compared_too(kind: str) -> None:
    text = data("dim: 2 dim: 4 dim: 3 dim: 3") + 'layer { name: "q" type: "Parameter" top: "q" parameter_param { shape { dim: 4 } } }'
    made = net_of(text + f'layer {{ name: "top" type: "{kind}" bottom: "data" bottom: "q" top: "top" }}')
    assert verify(to_onnx(made).SerializeToString(), made).largest < 1e-5


def test_a_step_that_turns_rounding_into_a_difference_is_looked_at_alone() -> None:
    made = net_of(
        data()
        + conv("c", "data")
        + 'layer { name: "a" type: "ArgMax" bottom: "c" top: "y" argmax_param { axis: 1 } }'
        + 'layer { name: "t" type: "Threshold" bottom: "c" top: "z" threshold_param { threshold: 3.5 } }'
    )
    with torch.no_grad():
        # Channels that differ by rounding only.
        made.layer("c").blobs[0][1:] = made.layer("c").blobs[0][:1] * (1 + 3e-8)
    assert verify(to_onnx(made).SerializeToString(), made).differences


AMPLIFYING = """
input: "data" input_dim: 1 input_dim: 64 input_dim: 9 input_dim: 9
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 32 kernel_size: 3 } }
layer { name: "s" type: "Sigmoid" bottom: "c" top: "c" }
layer { name: "f" type: "InnerProduct" bottom: "c" top: "f" inner_product_param { num_output: 10 } }
layer { name: "p" type: "Softmax" bottom: "f" top: "p" }
"""


@pytest.mark.parametrize("seed", range(3))
def test_layers_that_amplify_rounding_are_compared_on_their_own_bottoms(seed: int) -> None:
    """An in-place Sigmoid and a Softmax of huge scores: the model is right, even where float32 rounds by chance less than onnxruntime."""
    torch.manual_seed(seed)
    amplifying = net_of(AMPLIFYING)
    with torch.no_grad():
        amplifying.layer("c").blobs[0].normal_(0, 3)
        amplifying.layer("f").blobs[0].normal_(0, 1e5)
    model = to_onnx(amplifying).SerializeToString()
    assert all(difference.passed for difference in verify(model, amplifying).differences)
    with torch.no_grad():
        amplifying.layer("c").blobs[1].fill_(40)
    with pytest.raises(ExportError, match=r"the first blob that differs is 'c', of layer 'c' \(Convolution\)"):
        verify(model, amplifying)


def test_a_chain_of_layers_that_amplify_is_followed_in_the_optimized_model() -> None:
    """Swish, whose error is allowed next to 150, and TanH, which makes that error large next to 1; the output is a layer behind it."""
    chain = net_of(
        'input: "data" input_dim: 2 input_dim: 4 input_dim: 23 input_dim: 15'
        ' layer { name: "s" type: "Swish" bottom: "data" top: "s" swish_param { beta: 0.7 } }'
        ' layer { name: "b" type: "Bias" bottom: "s" top: "b" bias_param { filler { value: 1.5 } } }'
        ' layer { name: "t" type: "TanH" bottom: "b" top: "t" } layer { name: "a" type: "AbsVal" bottom: "t" top: "a" }'
    )
    x = np.random.RandomState(0).randn(2, 4, 23, 15).astype(np.float32) * 50
    # Swish is -1.5 here, so that what TanH reads is rounding.
    x[0, 0] = np.float32(-4.4)
    assert verify(to_onnx(chain).SerializeToString(), chain, {"data": x}).differences


def gated(blocks: int) -> str:
    """Blocks of a convolution whose channels are weighed by a Sigmoid of their means, as in squeeze-and-excitation networks."""
    layers, bottom = ['input: "data" input_dim: 1 input_dim: 16 input_dim: 7 input_dim: 7'], "data"
    for i in range(blocks):
        layers.append(f"""
layer {{ name: "c{i}" type: "Convolution" bottom: "{bottom}" top: "c{i}" convolution_param {{ num_output: 16 kernel_size: 3 pad: 1 }} }}
layer {{ name: "p{i}" type: "Pooling" bottom: "c{i}" top: "p{i}" pooling_param {{ pool: AVE global_pooling: true }} }}
layer {{ name: "u{i}" type: "Convolution" bottom: "p{i}" top: "u{i}" convolution_param {{ num_output: 16 kernel_size: 1 }} }}
layer {{ name: "g{i}" type: "Sigmoid" bottom: "u{i}" top: "u{i}" }}
layer {{ name: "r{i}" type: "Reshape" bottom: "u{i}" top: "r{i}" reshape_param {{ shape {{ dim: 0 dim: 0 }} num_axes: 4 }} }}
layer {{ name: "s{i}" type: "Scale" bottom: "c{i}" bottom: "r{i}" top: "s{i}" scale_param {{ axis: 0 }} }}
layer {{ name: "a{i}" type: "ReLU" bottom: "s{i}" top: "s{i}" }}""")
        bottom = f"s{i}"
    classifier = f'layer {{ name: "f" type: "InnerProduct" bottom: "{bottom}" top: "f" inner_product_param {{ num_output: 10 }} }}'
    return "".join([*layers, classifier, 'layer { name: "prob" type: "Softmax" bottom: "f" top: "prob" }'])


@pytest.mark.parametrize("seed", [8, 11])
def test_gates_that_amplify_rounding_from_block_to_block_are_no_difference(seed: int) -> None:
    """One run of float32 may be nearer to float64 by chance than another program's; a wrong gate is found all the same."""
    torch.manual_seed(seed)
    made = net_of(gated(14))
    with torch.no_grad():
        for i in range(14):
            made.layer(f"c{i}").blobs[0].normal_(0, 2 * (2 / 144) ** 0.5)
            made.layer(f"u{i}").blobs[0].normal_(0, 2)
        made.layer("f").blobs[0].normal_(0, 1e-4)
    model = to_onnx(made).SerializeToString()
    assert all(difference.passed for difference in verify(model, made).differences)
    with torch.no_grad():
        made.layer("c9").blobs[0][0].mul_(1.001)
    with pytest.raises(ExportError, match="the first blob that differs is 'c9'"):
        verify(model, made)


@pytest.mark.parametrize(("field", "value"), [("data_type", 0), ("data_type", 77), ("raw_data", b"\0" * 7), ("dims", [5, 5])])
def test_a_model_with_a_damaged_tensor_is_one_error_that_names_it(field: str, value: object) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    held = model.graph.initializer[0]
    if field == "dims":
        held.dims[:] = [5, 5]
    else:
        setattr(held, field, value)
    with pytest.raises(ModelFileError, match="the tensor 'w' of the ONNX model is damaged"):
        from_proto(model)
