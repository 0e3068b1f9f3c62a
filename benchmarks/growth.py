"""How time and memory grow with the batch (1 to 256), the depth (10 to 10,000 layers) and the parameters (1 to 500 million).

    python benchmarks/growth.py [--part depth] [--quick] [--json] [--figure docs/pictures/growth.png]

Every point is a process of its own on one thread: CPU seconds (the smallest of a few, less shaken by other work than wall seconds), and the
peak of its memory over what it had before the net was made. "exponent" is the slope between the last two sizes on logarithmic scales: 1
is linear. Batch: SqueezeNet v1.1 on pictures of 67 x 67. Depth: convolutions of 8 channels over 8 x 8 maps, each with a ReLU in place
and a bias, without which values fade until they are subnormal, which processors multiply ten times as slowly. Parameters: inner
products of up to 10,000 x 10,000.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

    from caffetools.net.net import Net
    from caffetools.proto.schema import NetParameter

SIZES = {
    "batch": (1, 4, 16, 64, 256),
    "depth": (10, 100, 1000, 3000, 10_000),
    "parameters": (1_000_000, 10_000_000, 100_000_000, 500_000_000),
}
QUICK = {"batch": (1, 4), "depth": (10, 40), "parameters": (10_000, 40_000)}
UNITS = {"batch": "images in a batch", "depth": "layers", "parameters": "parameters"}
Figures = dict[str, float]
T = TypeVar("T")


def batch_net(batch: int) -> str:
    """SqueezeNet v1.1 over Input layers of small pictures, as text."""
    from caffetools.graph.inputs import data_layers_to_inputs
    from caffetools.proto.text import format_text, read_net
    from caffetools.zoo.networks import prototxt_path

    net = data_layers_to_inputs(read_net(prototxt_path("squeezenet_v1.1", "train_val")), batch=batch)
    for shape in (shape for layer in net.layer for shape in layer.input_param.shape if len(shape.dim) == 4):
        shape.dim[2:] = [67, 67]
    return format_text(net)


def depth_net(layers: int) -> str:
    """A chain of so many layers: convolutions, each with a ReLU in place, and a classifier."""
    text = [_INPUT.replace("SHAPE", "dim: 4 dim: 8 dim: 8 dim: 8").replace("BATCH", "4")]
    below = "data"
    for index in range((layers - 3) // 2):
        text.append(_CONV.replace("NAME", f"conv{index}").replace("BELOW", below))
        below = f"conv{index}"
    return "\n".join([*text, _LOSS.replace("BELOW", below)])


def parameters_net(parameters: int) -> str:
    """Inner products, each of the same number of inputs and outputs, that have so many weights together."""
    count = max(1, math.ceil(parameters / 10**8))
    side = round(math.sqrt(parameters / count))
    text = [_INPUT.replace("SHAPE", f"dim: 4 dim: {side}").replace("BATCH", "4")]
    below = "data"
    for index in range(count):
        text.append(_PRODUCT.replace("NAME", f"ip{index}").replace("BELOW", below).replace("SIDE", str(side)))
        below = f"ip{index}"
    return "\n".join([*text, _LOSS.replace("BELOW", below)])


_INPUT = 'layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { SHAPE } shape { dim: BATCH } } }'
_CONV = """layer { name: "NAME" type: "Convolution" bottom: "BELOW" top: "NAME"
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "msra" }
    bias_filler { type: "constant" value: 0.1 } } }
layer { name: "relu_NAME" type: "ReLU" bottom: "NAME" top: "NAME" }"""
_PRODUCT = """layer { name: "NAME" type: "InnerProduct" bottom: "BELOW" top: "NAME"
  inner_product_param { num_output: SIDE weight_filler { type: "constant" value: 1e-4 } } }"""
_LOSS = """layer { name: "classes" type: "InnerProduct" bottom: "BELOW" top: "classes" inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "classes" bottom: "label" top: "loss" }"""
NETS: dict[str, Callable[[int], str]] = {"batch": batch_net, "depth": depth_net, "parameters": parameters_net}


def worker(part: str, size: int) -> Figures:
    """Measure one point; called in a process of its own."""
    import torch

    from caffetools.proto.schema import NetParameter
    from caffetools.proto.text import parse

    torch.set_num_threads(1)
    text = NETS[part](size)
    before = resident("VmRSS")
    reading, param = once(lambda: parse(text, NetParameter))
    figures = {"read prototxt": reading, **measure_test(param)}
    figures["GB, TEST"] = resident("VmHWM") - before
    figures["training iteration"] = training_seconds(param)
    figures["GB, training"] = resident("VmHWM") - before
    return figures


def measure_test(param: NetParameter) -> Figures:
    """Return the seconds of building a net, of passes in the TEST phase, and of its weights file."""
    import torch

    from caffetools.net.net import Net
    from caffetools.net.weights import load_weights, save_weights
    from caffetools.proto.schema import TEST

    building, net = once(lambda: Net(param, TEST))
    batch = batch_for(net)
    with torch.no_grad():
        first, _ = once(lambda: net(batch))
        later = least(lambda: net(batch))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.caffemodel"
        # Nearly all of both is the system's copying from and to its cache, which varies by several times.
        writing = min(once(lambda: save_weights(net, path))[0] for _ in range(3))
        reading = min(once(lambda: load_weights(net, path))[0] for _ in range(3))
    return {"build the net": building, "first TEST pass": first, "TEST pass": later, "write weights": writing, "read weights": reading}


def training_seconds(param: NetParameter) -> float:
    """Return the seconds of an iteration of SGD with momentum."""
    from caffetools.proto.schema import SolverParameter
    from caffetools.solver.solver import Solver

    settings = {"base_lr": 1e-6, "lr_policy": "fixed", "momentum": 0.9, "max_iter": 10**6, "random_seed": 1}
    solver = Solver(SolverParameter(train_net_param=param, **settings))
    solver.train_inputs = batch_for(solver.net)
    solver.step(1)
    return least(lambda: solver.step(1))


def batch_for(net: Net) -> dict[str, torch.Tensor]:
    """Return random inputs, and labels of class 0."""
    import torch

    batch = {name: torch.rand(net.blob_shapes[name]) for name in net.inputs}
    return batch | {"label": torch.zeros(net.blob_shapes["label"])}


def once(call: Callable[[], T]) -> tuple[float, T]:
    """Return the CPU seconds of ``call``, and its result."""
    begin = time.process_time()
    result = call()
    return time.process_time() - begin, result


def least(call: Callable[[], object]) -> float:
    """Return the smallest CPU seconds of two to twenty calls, as many as fit into a second."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < 20 and sum(times) < 1):
        times.append(once(call)[0])
    return min(times)


def resident(field: str) -> float:
    """Return a figure of this process's memory in GB: VmRSS now, VmHWM its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def measure(part: str, size: int) -> Figures:
    """Return the figures of one point, from a new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--worker", part, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{part} {size}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def exponents(sizes: tuple[int, ...], points: list[Figures]) -> Figures:
    """Return the slope of every figure between the last two sizes, on logarithmic scales; {} where there is one size only."""
    if len(sizes) < 2:
        return {}
    (one, other), (first, last) = sizes[-2:], points[-2:]
    steps = math.log(other / one)
    return {what: math.log(max(last[what], 1e-9) / max(first[what], 1e-9)) / steps for what in first}


def draw(results: dict[str, dict[int, Figures]], path: Path) -> None:
    """Draw every figure against the size, on logarithmic scales, with a line of slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(4.6 * len(results), 8), layout="constrained")
    for memory, part_of_figure in enumerate(figure.subfigures(2, 1)):
        panels = part_of_figure.subplots(1, len(results), squeeze=False)[0]
        for panel, (part, points) in zip(panels, results.items(), strict=True):
            draw_panel(panel, points, UNITS[part], memory=bool(memory))
        # The lines are the same in all panels: below them, a legend hides nothing.
        part_of_figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)


def draw_panel(panel: Axes, points: dict[int, Figures], unit: str, *, memory: bool) -> None:
    """Draw the times, or the memory, of one part."""
    sizes = sorted(points)
    for what in points[sizes[0]]:
        if what.startswith("GB") == memory:
            panel.plot(sizes, [max(points[size][what], 1e-6) for size in sizes], marker="o", label=what.removeprefix("GB, "))
    low, high = panel.get_ylim()
    panel.plot(sizes, [high * size / sizes[-1] for size in sizes], color="0.6", linestyle=":", label="linear")
    panel.set(xscale="log", yscale="log", xlabel=unit, ylim=(low if low > 0 else None, None))
    panel.set_ylabel("peak memory, GB" if memory else "CPU seconds")
    panel.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(SIZES), action="append")
    parser.add_argument("--most", type=int, default=10**12, help="leave out larger sizes")
    parser.add_argument("--quick", action="store_true", help="two small sizes of each part: whether it runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sys.path.pop(0)
        print(json.dumps(worker(options.worker[0], int(options.worker[1]))))
        return
    results: dict[str, dict[int, Figures]] = {}
    slopes: dict[str, Figures] = {}
    for part in options.part or list(SIZES):
        sizes = tuple(size for size in (QUICK if options.quick else SIZES)[part] if size <= options.most)
        results[part] = {}
        for size in sizes:
            results[part][size] = measure(part, size)
            if not options.json:
                print(
                    f"{size:>11,} {UNITS[part]:18}" + "  ".join(f"{what} {value:.4g}" for what, value in results[part][size].items()),
                    flush=True,
                )
        slopes[part] = exponents(sizes, list(results[part].values()))
        if not options.json:
            print(f"   exponents {'':18}" + "  ".join(f"{what} {value:.2f}" for what, value in slopes[part].items()), flush=True)
    if options.json:
        print(json.dumps({"results": results, "exponents": slopes}, indent=2))
    if options.figure is not None:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
