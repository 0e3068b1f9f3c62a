"""The native kernels give what their twins in torch give, on every layout and instruction set, and are left out where they must be."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caffetools.layers import native
from caffetools.layers.lrn import _AcrossChannels
from caffetools.layers.registry import layer_class
from caffetools.proto.schema import LayerParameter
from tests.layers import test_golden as golden

LRN_CASES = [case for case in golden.CASES if case["layer_types"] == ["LRN"]]
VARIANTS = ["baseline", "AVX2", "AVX-512"]


@pytest.fixture
def library() -> Iterator[ctypes.CDLL]:
    """The library; afterwards it uses the best instruction set again."""
    if not native.enabled():
        pytest.skip(native.status())
    loaded = native.kernels()
    assert loaded is not None
    yield loaded
    loaded.caffetools_native_use(3)


@pytest.fixture(params=range(3), ids=VARIANTS)
def variant(request: pytest.FixtureRequest, library: ctypes.CDLL) -> int:
    """The kernel for one instruction set."""
    if not library.caffetools_native_use(request.param):
        pytest.skip(f"this processor has no {VARIANTS[request.param]}")
    return int(request.param)


@st.composite
def problems(draw: Any) -> tuple[torch.Tensor, torch.Tensor, tuple[int, float, float, float]]:
    """x and dy in some layout, and (size, alpha, beta, k)."""
    n, c, h, w = (draw(st.integers(1, most)) for most in (3, 70, 9, 11))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tensors = []
    for scale in (draw(st.sampled_from([1e-3, 1.0, 30.0])), 1.0):
        layout = draw(st.sampled_from(["NCHW", "channels-last", "stepped", "transposed", "expanded", "channels of more"]))
        if layout == "stepped":
            t = torch.randn(n, c, h, 2 * w, generator=generator)[..., ::2]
        elif layout == "transposed":
            t = torch.randn(w, c, h, n, generator=generator).transpose(0, 3)
        elif layout == "expanded":
            t = torch.randn(n, c, 1, w, generator=generator).expand(n, c, h, w)
        elif layout == "channels of more":
            t = torch.randn(n, h, w, c + 3, generator=generator).permute(0, 3, 1, 2)[:, 2 : c + 2]
        else:
            t = torch.randn(n, c, h, w, generator=generator)
            t = t.contiguous(memory_format=torch.channels_last) if layout == "channels-last" else t
        tensors.append(t * scale if layout != "expanded" else t)
    size = 2 * draw(st.integers(0, 6)) + 1
    return (
        tensors[0],
        tensors[1],
        (
            size,
            draw(st.sampled_from([0.0, 1e-4, 0.9, 3.0])),
            draw(st.sampled_from([0.75, 0.5, 1.3])),
            draw(st.sampled_from([0.5, 1.0, 2.0])),
        ),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems(), threads=st.integers(1, 2))
def test_lrn_gives_the_numbers_of_its_twin(
    variant: int, problem: tuple[torch.Tensor, torch.Tensor, tuple[int, float, float, float]], threads: int
) -> None:
    x, dy, options = problem
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y, dx = native.lrn_forward(x, *options), native.lrn_backward(x, dy, *options)
    finally:
        torch.set_num_threads(before)
    exact = x.double().requires_grad_()  # the twin: the kernel takes float32 alone
    expected = _AcrossChannels.apply(exact, *options)
    (gradient,) = torch.autograd.grad(expected, exact, dy.double())
    torch.testing.assert_close(y.double(), expected.detach(), rtol=2e-6, atol=1e-12)
    torch.testing.assert_close(dx.double(), gradient, rtol=2e-6, atol=2e-6 * float(dy.abs().max()))
    assert y.shape == dx.shape == x.shape


@pytest.mark.parametrize("case", LRN_CASES, ids=lambda case: case["id"])
def test_the_golden_cases_hold_with_each_kernel(variant: int, case: dict[str, Any]) -> None:
    golden.test_layer_gives_the_numbers_of_caffe(case)


@pytest.mark.parametrize("case", LRN_CASES, ids=lambda case: case["id"])
def test_the_golden_cases_hold_without_kernels(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFFETOOLS_NATIVE", "0")
    assert not native.enabled()
    assert "switched off" in native.status()
    golden.test_layer_gives_the_numbers_of_caffe(case)


def test_the_layout_is_kept_and_neither_is_copied(library: ctypes.CDLL) -> None:
    x = torch.randn(2, 5, 3, 4)
    assert native.lrn_forward(x, 5, 1e-4, 0.75, 1.0).is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    y = native.lrn_forward(last, 5, 1e-4, 0.75, 1.0)
    assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
    for tensor in (x, last):
        assert native._laid_out(tensor)[0].data_ptr() == tensor.data_ptr()
    assert native.lrn_backward(last, x, 5, 1e-4, 0.75, 1.0).is_contiguous(memory_format=torch.channels_last)


def test_overflow_and_nan_end_as_in_the_formula(variant: int) -> None:
    x = torch.ones(1, 20, 4, 4)
    x[0, 3, 0, 0] = 1e25  # its square is infinite
    x[0, 3, 1, 1] = 1e18
    x[0, 3, 2, 2] = torch.nan
    x[0, 3, 3, 3] = torch.inf
    for layout in (torch.contiguous_format, torch.channels_last):
        wide = x.contiguous(memory_format=layout)
        y = native.lrn_forward(wide, 5, 1e-4, 0.75, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CAFFETOOLS_NATIVE", "0")
            twin = wide.clone().requires_grad_()
            expected = _AcrossChannels.apply(twin, 5, 1e-4, 0.75, 1.0)
            (gradient,) = torch.autograd.grad(expected, twin, torch.ones_like(y))
        torch.testing.assert_close(y, expected.detach(), rtol=1e-5, atol=0, equal_nan=True)
        assert y[0, 3, 0, 0] == 0 and y[0, 4, 0, 0] == 0 and y[0, 3, 1, 1] > 0
        dx = native.lrn_backward(wide, torch.ones_like(y), 5, 1e-4, 0.75, 1.0)
        torch.testing.assert_close(dx, gradient, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_what_the_kernel_cannot_take_is_computed_by_the_twin(library: ctypes.CDLL) -> None:
    x = torch.ones(1, 2, 2, 2)
    assert native.lrn_takes(x, 1e-4, 1.0)
    assert native.lrn_takes(torch.nn.Parameter(x), 1e-4, 1.0)
    assert not native.lrn_takes(x.double(), 1e-4, 1.0)
    assert not native.lrn_takes(x.half(), 1e-4, 1.0)
    assert not native.lrn_takes(x.to("meta"), 1e-4, 1.0)
    assert not native.lrn_takes(x[:0], 1e-4, 1.0)
    assert not native.lrn_takes(x, 1e-4, 0.0), "its scale may be zero"
    assert not native.lrn_takes(x, -1e-4, 1.0), "its scale may be negative"


def test_the_layer_uses_the_kernel_and_autograd_finds_its_gradient(library: ctypes.CDLL) -> None:
    param = LayerParameter(name="norm", type="LRN", bottom=["x"], top=["y"])
    param.lrn_param.alpha = 0.5
    layer = layer_class("LRN")(param)
    layer.configure([(2, 7, 3, 3)])
    x = torch.randn(2, 7, 3, 3, requires_grad=True)
    y = layer(x)
    np.testing.assert_array_equal(y.detach(), native.lrn_forward(x.detach(), 5, 0.5, 0.75, 1.0))
    dy = torch.ones_like(y, requires_grad=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    np.testing.assert_array_equal(dx.detach(), native.lrn_backward(x.detach(), dy.detach(), 5, 0.5, 0.75, 1.0))
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_a_missing_or_foreign_library_falls_back_to_torch(tmp_path: Any) -> None:
    script = (
        "import sys, pathlib; from caffetools.layers import native; native._FILE = pathlib.Path(sys.argv[1]);"
        "assert not native.enabled(); print(native.status()); assert ('torch' in sys.modules) == native._FILE.exists()"
    )
    (tmp_path / "broken.so").write_bytes(b"no library")
    environment = {key: value for key, value in os.environ.items() if key != "CAFFETOOLS_NATIVE"}
    for name, words in (("missing.so", "were not built"), ("broken.so", "another version or machine")):
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.count("\n") == 1 and words in done.stdout and "native kernels are skipped" in done.stdout
