"""Attribution by its definitions: nets whose answer is known by hand, a torch twin, and Captum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caffetools import visualize
from caffetools.errors import DataError, NetError
from caffetools.layers import registry
from caffetools.layers.plugin import load_plugin
from caffetools.net.net import Net
from caffetools.net.probe import needed_layers, run_probe
from caffetools.proto.schema import TRAIN
from caffetools.visualize.attribution import METHODS
from tests.net.test_net import conv, data, net_of, relu

GRADIENTS = ["saliency", "guided_backprop", "deconvnet", "integrated_gradients", "smooth_grad"]


def linear(outputs: int, bottom: str = "data", name: str = "ip") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        f'inner_product_param {{ num_output: {outputs} weight_filler {{ type: "gaussian" std: 0.3 }} }} }}\n'
    )


def one_by_one(name: str, bottom: str, outputs: int) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ num_output: {outputs} kernel_size: 1 }} }}\n"
    )


def set_weights(net: Net, layer: str, *arrays: object) -> None:
    with torch.no_grad():
        for blob, values in zip(net.layer(layer).blobs, arrays, strict=False):
            blob.copy_(torch.as_tensor(values, dtype=torch.float32).reshape(blob.shape))


@pytest.fixture
def rectified() -> tuple[Net, NDArray[np.float32]]:
    """x (one pixel, one channel) → conv (1, -1, 1) → in-place ReLU → ip."""
    net = net_of(data("dim: 1 dim: 1 dim: 1 dim: 1") + one_by_one("conv", "data", 3) + relu("relu", "conv") + linear(2, "conv"))
    set_weights(net, "conv", [1.0, -1.0, 1.0], [0.0, 0.0, 0.5])
    set_weights(net, "ip", [[2.0, 3.0, -5.0], [0.0, -7.0, 4.0]])
    return net, np.full((1, 1, 1), 2.0, np.float32)


@pytest.fixture
def small() -> tuple[Net, nn.Sequential, NDArray[np.float32]]:
    """A net with an in-place ReLU, its twin of torch modules, and a picture."""
    torch.manual_seed(0)
    pool = 'layer { name: "pool" type: "Pooling" bottom: "conv1" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }\n'
    net = net_of(
        data() + conv("conv1", "data") + relu("relu1", "conv1") + pool + conv("conv2", "pool") + relu("relu2", "conv2") + linear(5, "conv2")
    )
    twin = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )
    with torch.no_grad():
        for layer, module in (("conv1", twin[0]), ("conv2", twin[3]), ("ip", twin[6])):
            module.weight.copy_(net.layer(layer).blobs[0])
            net.layer(layer).blobs[1].normal_(std=0.1)
            module.bias.copy_(net.layer(layer).blobs[1])
    return net, twin, np.random.default_rng(1).standard_normal((3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_linear_net_is_explained_by_its_weights(name: str) -> None:
    net = net_of(data("dim: 1 dim: 2 dim: 2 dim: 2") + linear(3))
    weights = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2) - 7
    set_weights(net, "ip", weights, [1.0, 2.0, 3.0])
    image = np.linspace(-1, 2, 8, dtype=np.float32).reshape(2, 2, 2)
    expected = weights[1] * image if name == "integrated_gradients" else weights[1]
    got = getattr(visualize, name)(net, image, blob="ip", unit=1)
    assert got.dtype == np.float32 and got.shape == (2, 2, 2)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(getattr(visualize, name)(net, torch.from_numpy(image), blob="ip", unit=(1,)), got)


def test_rectifiers_pass_back_what_their_rule_states(rectified: tuple[Net, NDArray[np.float32]]) -> None:
    net, x = rectified  # conv: 2, -2, 2.5; after the ReLU: 2, 0, 2.5
    gradient = {name: float(getattr(visualize, name)(net, x, blob="ip", unit=0)[0, 0, 0]) for name in GRADIENTS[:3]}
    assert gradient == {
        "saliency": 2.0 - 5.0,  # channels 0 and 2 are active
        "guided_backprop": 2.0,  # channel 2's gradient is negative
        "deconvnet": 2.0 - 3.0,  # channel 1 is not active, but its gradient is positive
    }
    assert float(visualize.saliency(net, x, blob="ip", unit=0, absolute=True)[0, 0, 0]) == 3.0


PLUGIN = '''
from dataclasses import replace

from caffetools.layers.activation import Elementwise
from caffetools.layers.registry import register


@register("CappedReLU")
class CappedReLU(Elementwise):
    """y = min(max(0, x), 9)."""

    TRAITS = replace(Elementwise.TRAITS, rectifier=True)

    def forward(self, x):
        return (x.clamp(0, 9),)
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[str]:
    """A rectifier of a user's own; its type."""
    (tmp_path / "capped.py").write_text(PLUGIN)
    (kind,) = load_plugin(tmp_path / "capped.py")
    yield kind
    registry.unregister([kind])


def test_every_rectifier_of_the_registry_and_of_a_plugin_follows_the_rules(plugin: str) -> None:
    kinds = [kind for kind, layer_class in registry.layer_types().items() if layer_class.TRAITS.rectifier]
    assert {"ReLU", "ReLU6", plugin} <= set(kinds)
    for kind in kinds:
        layers = one_by_one("conv", "data", 3) + relu("relu", "conv").replace("ReLU", kind) + linear(1, "conv")
        net = net_of(data("dim: 1 dim: 1 dim: 1 dim: 1") + layers)
        set_weights(net, "conv", [1.0, -1.0, 1.0], [0.0, 0.0, 0.5])
        set_weights(net, "ip", [[2.0, 3.0, -5.0]])
        x = np.full((1, 1, 1), 2.0, np.float32)
        gradient = [float(getattr(visualize, name)(net, x, blob="ip", unit=0)[0, 0, 0]) for name in GRADIENTS[:3]]
        assert gradient == [2.0 - 5.0, 2.0, 2.0 - 3.0], kind
    sigmoid = net_of(data() + conv("conv1", "data") + relu("a", "conv1").replace("ReLU", "Sigmoid") + linear(2, "conv1"))
    image = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    plain = visualize.saliency(sigmoid, image, blob="ip", unit=0)
    np.testing.assert_array_equal(visualize.guided_backprop(sigmoid, image, blob="ip", unit=0), plain)


def test_a_blob_is_its_last_value_and_a_layer_its_own(rectified: tuple[Net, NDArray[np.float32]]) -> None:
    net, x = rectified
    assert visualize.saliency(net, x, blob="conv", unit=1)[0, 0, 0] == 0.0, "after the in-place ReLU channel 1 is 0"
    values = run_probe(net, torch.from_numpy(x)[None], blobs=["ip"], layers=["conv", "relu"], record=True)
    assert values.tops["conv"].flatten().tolist() == [2.0, -2.0, 2.5]
    assert values.tops["relu"].flatten().tolist() == values.blobs["conv"].flatten().tolist() == [2.0, 0.0, 2.5]
    score = values.blobs["ip"][0, 0]
    assert values.gradient(score, values.tops["conv"]).flatten().tolist() == [2.0, 0.0, -5.0]
    assert values.gradient(score, values.tops["relu"]).flatten().tolist() == [2.0, 3.0, -5.0]


def test_grad_cam_by_hand(rectified: tuple[Net, NDArray[np.float32]]) -> None:
    net = net_of(data("dim: 1 dim: 1 dim: 1 dim: 2") + one_by_one("conv", "data", 2) + relu("relu", "conv") + linear(1, "conv"))
    set_weights(net, "conv", [1.0, -1.0])
    set_weights(net, "ip", [[4.0, 2.0, -1.0, 1.0]])
    x = np.array([[[3.0, -2.0]]], np.float32)
    # conv: (3, -2), (-3, 2); gradients before the ReLU: (4, 0), (0, 1), after it: (4, 2), (-1, 1).
    np.testing.assert_allclose(visualize.grad_cam(net, x, layer="conv", blob="ip", unit=0), [[2 * 3 + 0.5 * -3, 0.0]])
    np.testing.assert_allclose(visualize.grad_cam(net, x, layer="relu", blob="ip", unit=0), [[3 * 3, 0.0]])
    # Grad-CAM++ at the ReLU: ΣA = 3, 2; α = 1 / (2 + ΣA g).
    first, second = 4 / (2 + 3 * 4) + 2 / (2 + 3 * 2), 1 / (2 + 2 * 1)
    expected = [[first * 3, second * 2]]
    np.testing.assert_allclose(visualize.grad_cam_plus_plus(net, x, layer="relu", blob="ip", unit=0), expected, rtol=1e-6)


def test_occlusion_by_hand() -> None:
    net = net_of(data("dim: 1 dim: 1 dim: 1 dim: 3") + linear(1))
    set_weights(net, "ip", [[1.0, 10.0, 100.0]])
    x = np.array([[[1.0, 2.0, 3.0]]], np.float32)
    got = visualize.occlusion(net, x, blob="ip", unit=0, window=(1, 2), stride=(1, 1))
    np.testing.assert_allclose(got, [[21.0, (21 + 320) / 2, 320.0]])
    np.testing.assert_allclose(visualize.occlusion(net, x, blob="ip", unit=0), [[1.0, 20.0, 300.0]], err_msg="one pixel by default")
    got = visualize.occlusion(net, x, blob="ip", unit=0, window=(1, 2), stride=(1, 2), value=1.0)
    np.testing.assert_allclose(got, [[10.0, 10.0, 200.0]])


def test_integrated_gradients_add_up_to_the_difference_of_scores(small: tuple[Net, nn.Sequential, NDArray[np.float32]]) -> None:
    net, twin, image = small
    got = visualize.integrated_gradients(net, image, blob="ip", unit=2, steps=300, batch=50)
    with torch.no_grad():
        scores = twin(torch.stack([torch.from_numpy(image), torch.zeros(3, 8, 8)]))[:, 2]
    assert abs(got.sum() - float(scores[0] - scores[1])) < 5e-3


def test_units_of_maps_are_positions_or_sums_of_channels(small: tuple[Net, nn.Sequential, NDArray[np.float32]]) -> None:
    net, twin, image = small
    for unit, score in (((3, 2, 1), lambda y: y[0, 3, 2, 1]), ((3,), lambda y: y[0, 3].sum()), (3, lambda y: y[0, 3].sum())):
        x = torch.from_numpy(image)[None].requires_grad_()
        score(twin[:5](x)).backward()
        np.testing.assert_allclose(visualize.saliency(net, image, blob="conv2", unit=unit), x.grad[0], atol=1e-6)


def test_without_a_unit_the_largest_is_explained(small: tuple[Net, nn.Sequential, NDArray[np.float32]]) -> None:
    net, twin, image = small
    best = int(twin(torch.from_numpy(image)[None]).argmax())
    for name in GRADIENTS:
        function = getattr(visualize, name)
        np.testing.assert_array_equal(function(net, image), function(net, image, blob="ip", unit=best))


def test_frozen_nets_and_other_batches_are_explained_alike(small: tuple[Net, nn.Sequential, NDArray[np.float32]]) -> None:
    net, _, image = small
    before = visualize.saliency(net, image, blob="ip", unit=0)
    net({"data": torch.zeros(7, 3, 8, 8)})
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    shapes = [list(layer.top_shapes) for layer in net.layers]
    np.testing.assert_array_equal(visualize.saliency(net, image, blob="ip", unit=0), before)
    assert [list(layer.top_shapes) for layer in net.layers] == shapes, "the net is not changed"
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_batch_does_not_change_the_result(small: tuple[Net, nn.Sequential, NDArray[np.float32]]) -> None:
    net, _, image = small
    for name in ("integrated_gradients", "smooth_grad", "occlusion"):
        function: Callable[..., NDArray[np.float32]] = getattr(visualize, name)
        options = {"window": 3} if name == "occlusion" else {}
        one, many = (function(net, image, blob="ip", unit=1, batch=batch, **options) for batch in (1, 7))
        np.testing.assert_allclose(one, many, atol=1e-5)


def test_smooth_grad_has_a_seed_and_without_noise_is_the_gradient(small: tuple[Net, nn.Sequential, NDArray[np.float32]]) -> None:
    net, _, image = small
    first, second, other = (visualize.smooth_grad(net, image, blob="ip", unit=1, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    plain = visualize.smooth_grad(net, image, blob="ip", unit=1, noise=0.0, samples=3)
    np.testing.assert_allclose(plain, visualize.saliency(net, image, blob="ip", unit=1), atol=1e-6)


def test_layers_that_the_unit_does_not_need_are_not_run() -> None:
    text = data() + data("dim: 2", "label") + conv("conv1", "data") + relu("relu1", "conv1") + linear(5, "conv1")
    text += 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }\n'
    text += 'layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }\n'
    net = net_of(text)
    image = np.ones((3, 8, 8), np.float32)
    assert visualize.saliency(net, image, blob="ip", unit=0).shape == (3, 8, 8)
    assert [layer.name for layer in needed_layers(net, ["ip"])] == ["data", "conv1", "relu1", "ip"]
    with pytest.raises(NetError, match=r"'label' \(2\) is needed and not given"):
        visualize.saliency(net, image, blob="loss", unit=0)
    scores = visualize.saliency(net, image, blob="ip")
    np.testing.assert_array_equal(visualize.saliency(net, image), scores, err_msg="a net with a loss is explained by its scores")
    several = data() + linear(5, "data") + linear(3, "data", "ip2")
    with pytest.raises(NetError, match=r"has 2 outputs \(ip, ip2\); name the blob"):
        visualize.saliency(net_of(several), image)
    detector = net_of(several + 'layer { name: "p" type: "Softmax" bottom: "ip2" top: "p" }')
    probabilities = visualize.saliency(detector, image, blob="p")
    np.testing.assert_array_equal(visualize.saliency(detector, image), probabilities, err_msg="of several outputs the probabilities")


def test_wrong_names_units_and_pictures_are_refused(small: tuple[Net, nn.Sequential, NDArray[np.float32]]) -> None:
    net, _, image = small
    for error, message, call in (
        (NetError, "has no blob 'fc8'; it has data, conv1", lambda: visualize.saliency(net, image, blob="fc8", unit=0)),
        (DataError, "'ip' has units 5, so it has no unit 5", lambda: visualize.saliency(net, image, blob="ip", unit=5)),
        (DataError, "no unit -1", lambda: visualize.deconvnet(net, image, blob="ip", unit=-1)),
        (DataError, r"4 x 4 x 4, so it has no unit \(1, 2\)", lambda: visualize.saliency(net, image, blob="conv2", unit=(1, 2))),
        (DataError, "picture .* is expected, not an array of 8 x 8", lambda: visualize.saliency(net, image[0], blob="ip", unit=0)),
        (NetError, "picture is 2 x 8 x 8, but input 'data' takes 3 x 8 x 8", lambda: visualize.saliency(net, image[:2], unit=0)),
        (NetError, "the picture is 3 x 9 x 9, and input 'data' takes 3 x 8 x 8", lambda: visualize.saliency(net, np.ones((3, 9, 9)), unit=0)),
        (NetError, "a net of caffetools.load_net is expected, not str", lambda: visualize.saliency("deploy.prototxt", image)),
        (NetError, r"transpose the picture from \(H, W, C\)", lambda: visualize.saliency(net, image.transpose(1, 2, 0), unit=0)),
        (DataError, "NaN or infinite", lambda: visualize.saliency(net, np.where(image > 1, np.nan, image), unit=0)),
        (DataError, "NaN or infinite", lambda: visualize.integrated_gradients(net, image, unit=0, baseline=float("nan"))),
        (DataError, "numbers is expected, not an array of type object", lambda: visualize.saliency(net, None, unit=0)),
        (DataError, "picture .* is expected, not an array of 3 x 0 x 0", lambda: visualize.smooth_grad(net, np.ones((3, 0, 0)), unit=0)),
        (DataError, "not of complex ones", lambda: visualize.saliency(net, image.astype(np.complex64), unit=0)),
        (DataError, "a unit is an index c or .*, not 1.5", lambda: visualize.saliency(net, image, unit=1.5)),
        (DataError, "a unit is an index c or .*, not 'cat'", lambda: visualize.saliency(net, image, unit="cat")),
        (DataError, r"a unit is an index c or .*, not \(\)", lambda: visualize.saliency(net, image, unit=())),
        (DataError, "at least 1 picture must be computed at once", lambda: visualize.smooth_grad(net, image, unit=0, batch=0)),
        (NetError, "has no layer 'conv9'; it has data, conv1", lambda: visualize.grad_cam(net, image, layer="conv9", unit=0)),
        (NetError, "does not depend on", lambda: visualize.grad_cam(net, image, layer="conv2", blob="conv1", unit=0)),
        (DataError, "needs channels with positions", lambda: visualize.grad_cam(net, image, layer="ip", unit=0)),
        (DataError, "window of 9 x 9 .* does not fit", lambda: visualize.occlusion(net, image, unit=0, window=9)),
        (DataError, "at least 1 step", lambda: visualize.integrated_gradients(net, image, unit=0, steps=0)),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    assert visualize.saliency(net, image, blob="ip", unit=0).any(), "a refused picture leaves the net usable"


def test_a_net_that_trains_is_refused() -> None:
    net = net_of(data() + linear(5), phase=TRAIN)
    with pytest.raises(NetError, match="in the TRAIN phase; load it in the TEST phase"):
        visualize.saliency(net, np.ones((3, 8, 8), np.float32), unit=0)
    tested = net_of(data() + linear(5))
    tested.train()
    with pytest.raises(NetError, match=r"in torch's training mode.*call net.eval\(\)"):
        visualize.saliency(tested, np.ones((3, 8, 8), np.float32), unit=0)


def test_maps_of_the_input_and_of_layers_that_share_a_name() -> None:
    net = net_of(data() + conv("c", "data", top="a") + conv("c", "a", top="b") + linear(5, "b"))
    image = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    weights = visualize.saliency(net, image, unit=1).mean((1, 2))
    expected = np.maximum(np.tensordot(weights, image, 1), 0)
    np.testing.assert_allclose(visualize.grad_cam(net, image, layer="data", unit=1), expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(NetError, match="2 layers 'c'; name the blob that one of them makes: 'a', 'b'"):
        visualize.grad_cam(net, image, layer="c", unit=1)
    assert not np.array_equal(visualize.grad_cam(net, image, layer="a", unit=1), visualize.grad_cam(net, image, layer="b", unit=1))


def reshape(shape: str, bottom: str, name: str = "flat") -> str:
    return f'layer {{ name: "{name}" type: "Reshape" bottom: "{bottom}" top: "{name}" reshape_param {{ shape {{ {shape} }} }} }}\n'


@pytest.mark.parametrize("declared", [1, 6])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_batch_size_in_a_reshape_mixes_no_pictures(declared: int, weighted: bool) -> None:
    shape = f"dim: {declared} dim: 3 dim: 8 dim: 8"
    top = linear(5, "flat") if weighted else ""
    torch.manual_seed(0)
    fixed = net_of(data(shape) + conv("conv1", "data") + relu("r", "conv1") + reshape(f"dim: {declared} dim: -1", "conv1") + top)
    free = net_of(data() + conv("conv1", "data") + relu("r", "conv1") + reshape("dim: 0 dim: -1", "conv1") + top)
    for layer in (layer.name for layer in fixed.layers if len(layer.blobs)):
        set_weights(free, layer, *fixed.layer(layer).blobs)
    image = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    for name in (*GRADIENTS, "occlusion"):
        function: Callable[..., NDArray[np.float32]] = getattr(visualize, name)
        options = {"window": 4} if name == "occlusion" else {}
        expected = function(free, image, unit=3, **options)
        np.testing.assert_allclose(function(fixed, image, unit=3, **options), expected, rtol=1e-5, atol=1e-6, err_msg=name)
    cam = visualize.grad_cam(free, image, layer="conv1", unit=3)
    np.testing.assert_allclose(visualize.grad_cam(fixed, image, layer="conv1", unit=3), cam, rtol=1e-5, atol=1e-6)


def test_the_picture_belongs_to_the_input_that_the_blob_depends_on() -> None:
    text = data("dim: 2 dim: 1 dim: 1 dim: 1", "label") + data() + data(name="pair") + data("dim: 2 dim: 5", "extra")
    text += linear(5, "data") + linear(5, "pair", "ip_p")
    text += 'layer { name: "sum" type: "Eltwise" bottom: "ip" bottom: "extra" top: "sum" eltwise_param { operation: PROD } }\n'
    net = net_of(text)
    image = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    for blob in ("ip", "ip_p"):
        weights = net.layer(blob).blobs[0][2].detach().reshape(3, 8, 8)
        np.testing.assert_allclose(visualize.saliency(net, image, blob=blob, unit=2), weights, rtol=1e-5)
    extra = np.arange(5, dtype=np.float32)
    weights = 2 * net.layer("ip").blobs[0][2].detach().reshape(3, 8, 8)
    for name in ("saliency", "smooth_grad"):
        got = getattr(visualize, name)(net, image, blob="sum", unit=2, inputs={"extra": extra})
        np.testing.assert_allclose(got, weights, rtol=1e-4, atol=1e-6)
    with pytest.raises(NetError, match=r"'extra' \(2 x 5\) is needed and not given"):
        visualize.saliency(net, image, blob="sum", unit=2)
    with pytest.raises(DataError, match="the value of input 'extra' is 4, but 5 is expected"):
        visualize.saliency(net, image, blob="sum", unit=2, inputs={"extra": extra[:4]})
    with pytest.raises(NetError, match="no input 'data' next to the picture's 'data'"):
        visualize.saliency(net, image, blob="sum", unit=2, inputs={"data": extra})


@pytest.mark.parametrize("name", [*GRADIENTS, "occlusion", "grad_cam"])
def test_a_blob_that_the_picture_does_not_reach_is_refused(name: str) -> None:
    filled = 'layer { name: "fill" type: "DummyData" top: "fill" dummy_data_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }\n'
    text = filled + data() + data("dim: 1 dim: 7", "vector") + data(name="pair") + conv("conv1", "data")
    text += linear(5, "conv1") + linear(5, "vector", "ip_v") + linear(5, "fill", "ip_f") + linear(5, "pair", "ip_p")
    net = net_of(text)
    image = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    function = partial(getattr(visualize, name), net, image, unit=2, **({"layer": "conv1"} if name == "grad_cam" else {}))
    assert np.abs(function(blob="ip")).sum() > 0
    for blob, why in (
        ("vector", "does not reach blob 'vector', another input"),
        ("pair", "does not reach blob 'pair', another input"),
        ("fill", "does not reach blob 'fill', another input"),
        ("ip_v", "does not reach blob 'ip_v', computed from 'vector'"),
        ("ip_f", "does not reach blob 'ip_f', computed from 'fill'"),
    ):
        with pytest.raises(NetError, match=f"the picture is for input 'data' of the net .* and {why}"):
            function(blob=blob)


@pytest.mark.parametrize("name", [*GRADIENTS, "occlusion", "grad_cam", "grad_cam_plus_plus"])
def test_weights_that_are_not_finite_are_refused(name: str) -> None:
    net = net_of(data() + conv("conv1", "data") + linear(5, "conv1"))
    with torch.no_grad():
        net.layer("conv1").blobs[0][0, 0, 0, 0] = float("nan")
    image = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    options = {"layer": "conv1"} if name.startswith("grad_cam") else {}
    for unit in (None, 2):
        with pytest.raises(DataError, match="blob 'ip' or its gradient is not finite"):
            getattr(visualize, name)(net, image, blob="ip", unit=unit, **options)


def test_values_and_gradients_do_not_depend_on_the_number_of_threads() -> None:
    wide = 'layer { name: "wide" type: "Convolution" bottom: "data" top: "wide" convolution_param { num_output: 128 kernel_size: 3 pad: 1 '
    one = 'layer { name: "one" type: "Convolution" bottom: "wide" top: "one" convolution_param { num_output: 32 kernel_size: 1 '
    filler = 'weight_filler { type: "gaussian" std: 0.1 } } }\n'
    net = net_of(data("dim: 1 dim: 32 dim: 28 dim: 28") + wide + filler + one + filler)
    image = np.random.default_rng(0).standard_normal((32, 28, 28)).astype(np.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            values = run_probe(net, torch.from_numpy(image[None]), blobs=["one"]).blobs["one"].numpy()
            found.append((values, visualize.saliency(net, image, blob="one", unit=3)))
    finally:
        torch.set_num_threads(before)
    for values, gradient in found[1:]:
        assert np.array_equal(values, found[0][0]) and np.array_equal(gradient, found[0][1])


def test_the_callers_grad_mode_and_the_nets_precision_do_not_matter(small: tuple[Net, nn.Sequential, NDArray[np.float32]]) -> None:
    net, _, image = small
    expected = visualize.saliency(net, image, blob="ip", unit=0)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            np.testing.assert_array_equal(visualize.saliency(net, image, blob="ip", unit=0), expected)
            np.testing.assert_array_equal(visualize.saliency(net, torch.from_numpy(image).clone(), blob="ip", unit=0), expected)
    net.double()
    got = visualize.saliency(net, image, blob="ip", unit=0)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


class Wrapped(nn.Module):
    """Our net as a module that Captum takes."""

    def __init__(self, net: Net):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net({"data": x})["ip"]
        return scores


def test_captum_agrees(small: tuple[Net, nn.Sequential, NDArray[np.float32]]) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    net, twin, image = small
    x = torch.from_numpy(image)[None].requires_grad_()
    expected = {
        "saliency": attr.Saliency(twin).attribute(x, target=2, abs=False),
        "guided-backprop": attr.GuidedBackprop(twin).attribute(x, target=2),
        "deconvnet": attr.Deconvolution(twin).attribute(x, target=2),
        "integrated-gradients": attr.IntegratedGradients(twin).attribute(x, target=2),
        "occlusion": attr.Occlusion(twin).attribute(x, sliding_window_shapes=(3, 3, 3), strides=(3, 2, 2), target=2)[:, 0],
    }
    for name, values in expected.items():
        options = {"window": 3, "stride": 2} if name == "occlusion" else {}
        got = METHODS[name](net, image, blob="ip", unit=2, **options)
        np.testing.assert_allclose(got, values[0].detach().numpy(), atol=2e-6, err_msg=name)
    for layer, module in (("conv2", twin[3]), ("relu2", twin[4])):
        cam = attr.LayerGradCam(twin, module).attribute(x, target=2, relu_attributions=True)[0, 0]
        np.testing.assert_allclose(visualize.grad_cam(net, image, layer=layer, blob="ip", unit=2), cam.detach().numpy(), atol=1e-6)


def test_captum_takes_our_module(small: tuple[Net, nn.Sequential, NDArray[np.float32]]) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    net, _, image = small
    x = torch.from_numpy(image)[None]
    ours = visualize.occlusion(net, image, blob="ip", unit=1, window=3, stride=3)
    theirs = attr.Occlusion(Wrapped(net)).attribute(x, sliding_window_shapes=(3, 3, 3), strides=(3, 3, 3), target=1)
    np.testing.assert_allclose(ours, theirs[0, 0].detach().numpy(), atol=2e-6)
    gradients = attr.Saliency(Wrapped(net)).attribute(x.requires_grad_(), target=1, abs=False)[0]
    np.testing.assert_allclose(visualize.saliency(net, image, blob="ip", unit=1), gradients.numpy(), atol=2e-6)
    line = attr.IntegratedGradients(Wrapped(net)).attribute(x, target=1)[0]
    np.testing.assert_allclose(visualize.integrated_gradients(net, image, blob="ip", unit=1), line.detach().numpy(), atol=2e-6)
