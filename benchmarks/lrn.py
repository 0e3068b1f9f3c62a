"""LRN across channels, forward and backward, against copying its input and its output once: how far from memory's speed it is.

    python benchmarks/lrn.py [--batch 16] [--rounds 30] [--json]

The shapes are those of AlexNet and GoogLeNet. Rounds alternate between the layer with the native kernel, the layer with its twin in
torch, and the copies (which, like the layer, ask for the memory of what they make), so that a machine that slows down slows all;
the figure is each one's median, the ratio is to the copies' time. The kernel is meant to stay below 3.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch

from caffetools.layers import native
from caffetools.layers.registry import layer_class
from caffetools.proto.schema import LayerParameter

SHAPES = {
    "AlexNet norm1": (96, 55, 55),
    "AlexNet norm2": (256, 27, 27),
    "GoogLeNet norm1": (64, 56, 56),
    "GoogLeNet norm2": (192, 56, 56),
}
LAYOUTS = {"channels-last": torch.channels_last, "NCHW": torch.contiguous_format}


def lrn(x: torch.Tensor, dy: torch.Tensor, *, kernel: bool) -> Callable[[], None]:
    """Forward and backward of an LRN layer with AlexNet's settings, by the native kernel or by its twin."""
    param = LayerParameter(name="norm", type="LRN", bottom=["x"], top=["y"])
    param.lrn_param.local_size, param.lrn_param.alpha, param.lrn_param.beta = 5, 1e-4, 0.75
    layer = layer_class("LRN")(param)
    layer.configure([tuple(x.shape)])

    def step() -> None:
        os.environ["CAFFETOOLS_NATIVE"] = "1" if kernel else "0"
        torch.autograd.grad(layer(x), x, dy)

    return step


def copies(x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """Copy the input and the output."""

    def step() -> None:
        x.detach().clone()
        y.clone()

    return step


def measure(shape: tuple[int, ...], layout: torch.memory_format, rounds: int) -> dict[str, float]:
    """Milliseconds of each, and the ratios."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(shape, generator=generator) * 20).contiguous(memory_format=layout).requires_grad_()
    dy = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
    steps = {"native": lrn(x, dy, kernel=True), "torch": lrn(x, dy, kernel=False), "copies": copies(x, dy)}
    times: dict[str, list[float]] = {who: [] for who in steps}
    for round_ in range(rounds + 2):
        for who, step in steps.items():
            begin = time.perf_counter()
            step()
            if round_ >= 2:
                times[who].append(1000 * (time.perf_counter() - begin))
    medians = {who: statistics.median(values) for who, values in times.items()}
    return {**medians, "native ratio": medians["native"] / medians["copies"], "torch ratio": medians["torch"] / medians["copies"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.pop("CAFFETOOLS_NATIVE", None)
    if not native.enabled():
        raise SystemExit(native.status())
    results: dict[str, dict[str, float]] = {}
    for name, shape in SHAPES.items():
        for layout, memory_format in LAYOUTS.items():
            result = results[f"{name}, {layout}"] = measure((options.batch, *shape), memory_format, options.rounds)
            if not options.json:
                print(
                    f"{name:16} {layout:14} copies {result['copies']:7.2f} ms"
                    f"   native {result['native']:7.2f} ms = {result['native ratio']:.2f} copies"
                    f"   torch {result['torch']:7.2f} ms = {result['torch ratio']:.1f} copies"
                )
    if options.json:
        print(
            json.dumps(
                {"batch": options.batch, "threads": torch.get_num_threads(), "torch": torch.__version__, "results": results}, indent=2
            )
        )


if __name__ == "__main__":
    main()
