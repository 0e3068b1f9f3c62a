"""A model run part by part, and the memory that an export takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.engines.onnxruntime import open_session
from caffetools.net.net import Net
from caffetools.onnx.export import build
from caffetools.onnx.parts import run_in_parts
from caffetools.onnx.reference import run_double
from caffetools.zoo.networks import prototxt_path
from tests.net.test_net import conv, data, net_of, relu


@pytest.mark.parametrize("size", [0, 2**23])
def test_parts_give_the_values_of_the_whole(size: int) -> None:
    torch.manual_seed(0)
    net = Net.from_file(prototxt_path("lenet", "deploy"))
    model = build(net)[0]
    blobs = [blob for blob in net.blob_shapes if blob not in net.inputs]
    inputs = {"data": np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)}
    whole = open_session(model.light(blobs), weights=model.large_weights, fast=False).run(inputs)
    parts = list(run_in_parts(model, inputs, set(blobs), dict.fromkeys(blobs, size)))
    assert len(parts) == (1 if not size else len(blobs))
    found = {blob: value for part in parts for blob, value in part.items()}
    assert set(found) == set(blobs)
    for blob in blobs:
        np.testing.assert_allclose(found[blob], whole[blob], rtol=1e-5, atol=1e-6)


def test_bodies_of_loops_read_weights_of_the_graph_around_them() -> None:
    text = (
        'layer { name: "x" type: "Input" top: "x" top: "c" input_param { shape { dim: 3 dim: 2 dim: 40 } shape { dim: 3 dim: 2 } } }'
        'layer { name: "l" type: "LSTM" bottom: "x" bottom: "c" top: "y" recurrent_param { num_output: 20 '
        'weight_filler { type: "uniform" min: -0.5 max: 0.5 } } }'
    )
    net = net_of(text)
    random = np.random.default_rng(1)
    inputs = {"x": random.normal(size=(3, 2, 40)).astype(np.float32), "c": np.array([[0, 0], [1, 1], [0, 1]], np.float32)}
    model = build(net, dynamic_axes=())[0]
    (part,) = run_in_parts(model, inputs, {"y"}, {})
    expected = net({name: torch.from_numpy(value) for name, value in inputs.items()})["y"]
    np.testing.assert_allclose(part["y"], expected.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "settings", ["pad: 1 kernel_size: 3", "kernel_h: 5 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 3", "kernel_size: 3 dilation: 2 pad: 2"]
)
def test_float64_convolutions_in_strips_are_those_of_the_layer(settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = data() + 'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 '
    net = net_of(text + settings + ' weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.5 } } }').double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    (expected,) = net.layers[1].run(x)
    monkeypatch.setattr("caffetools.onnx.reference._PART", 100)
    ((_, tops),) = run_double(net, {"data": x})
    torch.testing.assert_close(tops["c"], expected)


MEASURE = """
import sys
from pathlib import Path
from caffetools.infer.export import export_deployed
from caffetools.net.malloc_tuning import return_freed_memory

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

folder = Path(sys.argv[1])
export_deployed(folder / "small.prototxt", folder / "small.caffemodel", folder / "small.onnx")
return_freed_memory()
before = resident("VmRSS")
export_deployed(folder / "large.prototxt", folder / "large.caffemodel", folder / "large.onnx")
print((resident("VmHWM") - before) * 1024 / (folder / "large.caffemodel").stat().st_size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_export_takes_at_most_two_and_a_half_times_the_weights(tmp_path: Path) -> None:
    from caffetools.net.weights import save_weights

    for name, channels in (("small", 8), ("large", 512)):
        # onnxruntime copies the weights of convolutions twice.
        text = data() + "".join(conv(f"c{i}", f"c{i - 1}" if i else "data", outputs=channels) + relu(f"r{i}", f"c{i}") for i in range(5))
        text += f'layer {{ name: "f" type: "InnerProduct" bottom: "c4" top: "y" inner_product_param {{ num_output: {channels // 8} }} }}'
        (tmp_path / f"{name}.prototxt").write_text(text)
        save_weights(Net.from_file(tmp_path / f"{name}.prototxt"), tmp_path / f"{name}.caffemodel")
    assert (tmp_path / "large.caffemodel").stat().st_size > 40e6
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2.5
