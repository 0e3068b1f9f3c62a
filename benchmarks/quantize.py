"""int8 and fp16: speed of a quantized network in onnxruntime, against the float model of the same network in the same run.

    python benchmarks/quantize.py [--model bvlc_googlenet] [--threads 1] [--runs 20] [--operators] [--json]

Random weights (He's variance) and random pictures: the speed does not depend on them, the agreement of trained weights does. The
models run alternately, a picture at a time; the ratio is of the medians (above 1: int8 is faster). ``--operators`` adds onnxruntime's own
profile: milliseconds a picture by operator.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from caffetools.graph.passes.fold_batch_norm import fold_batch_norm
from caffetools.layers.normalization import BatchNorm
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, read_weights, save_weights
from caffetools.onnx.export import build
from caffetools.quant.calibration import calibrate
from caffetools.quant.models import to_fp16, to_int8
from caffetools.zoo.networks import prototxt_path


class RandomImages:
    """Seeded random inputs of a net."""

    identity = "random"

    def __init__(self, blob: str, shape: Sequence[int], count: int):
        self.blob = blob
        self._values = (np.random.default_rng(0).standard_normal((count, *shape)) * 50).astype(np.float32)

    def __len__(self) -> int:
        return len(self._values)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._values[start:stop]


def session(model: onnx.ModelProto, threads: int, profile: str = "") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def operators(model: onnx.ModelProto, batch: dict[str, NDArray[np.float32]], threads: int, folder: str) -> dict[str, float]:
    """Milliseconds a picture by operator."""
    profiled, runs = session(model, threads, f"{folder}/profile"), 5
    for _ in range(runs):
        profiled.run(None, batch)
    totals: collections.Counter[str] = collections.Counter()
    for event in json.loads(Path(profiled.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            totals[event["args"]["op_name"]] += event["dur"] / 1000 / runs
    return dict(totals.most_common(8))


def folded(net: Net) -> Net:
    """The net with its batch normalizations folded, as the quantize command does."""
    with tempfile.TemporaryDirectory() as folder:
        save_weights(net, f"{folder}/net.caffemodel")
        made = fold_batch_norm(net.param, read_weights(f"{folder}/net.caffemodel"))
    result = Net(made.net, fill=False)
    load_weights(result, made.weights)
    return result


def models(name: str) -> tuple[dict[str, onnx.ModelProto], dict[str, NDArray[np.float32]]]:
    """The float, int8 and fp16 models of a zoo network, and one input."""
    torch.manual_seed(0)
    net = Net.from_file(prototxt_path(name, "deploy"))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
            elif not parameter.requires_grad:
                parameter.fill_(1)  # the statistics of batch normalization
    if any(isinstance(layer, BatchNorm) for layer in net.layers):
        net = folded(net)
    images = RandomImages(net.inputs[0], net.blob_shapes[net.inputs[0]][1:], 4)
    model = build(net)[0]
    ranges = {value: counted.clipped("minmax") for value, counted in calibrate(model, images, batch=2).values.items()}
    made = {"float": model.to_proto(), "int8": to_int8(model, net, ranges), "fp16": to_fp16(model, net)}
    return made, {images.blob: images.read(0, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bvlc_googlenet")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    made, batch = models(arguments.model)
    sessions = {name: session(model, arguments.threads) for name, model in made.items()}
    times: dict[str, list[float]] = {name: [] for name in made}
    for number in range(arguments.runs + 2):
        for name, loaded in sessions.items():
            begin = time.perf_counter()
            loaded.run(None, batch)
            if number >= 2:
                times[name].append((time.perf_counter() - begin) * 1000)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "model": arguments.model,
        "threads": arguments.threads,
        "milliseconds": medians,
        "int8_ratio": medians["float"] / medians["int8"],
        "fp16_ratio": medians["float"] / medians["fp16"],
        "megabytes": {name: model.ByteSize() / 1e6 for name, model in made.items()},
    }
    if arguments.operators:
        with tempfile.TemporaryDirectory() as folder:
            result["operators"] = {name: operators(model, batch, arguments.threads, folder) for name, model in made.items()}
    if arguments.json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return
    for name, milliseconds in medians.items():
        sys.stdout.write(f"{arguments.model} {name}: {milliseconds:.1f} ms, {made[name].ByteSize() / 1e6:.1f} MB\n")
        for operator, part in result.get("operators", {}).get(name, {}).items():  # type: ignore[attr-defined]
            sys.stdout.write(f"    {operator:20} {part:7.2f} ms\n")
    sys.stdout.write(f"int8 is {result['int8_ratio']:.2f} times as fast as float, fp16 {result['fp16_ratio']:.2f} times\n")


if __name__ == "__main__":
    main()
