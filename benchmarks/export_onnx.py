"""Export to ONNX: seconds and memory, and the speed of the exported graph beside torch.onnx's of the same network.

    python benchmarks/export_onnx.py [--models bvlc_googlenet,vgg16] [--runs 10] [--json]

Export: the whole of ``caffetools export`` in a process of its own: reading, building, checking, comparing every blob with float64,
writing; random weights. Memory: the largest resident size over that of the same process after it has exported LeNet, which brings the
code of torch and onnxruntime into memory, divided by the size of the weights; and the same over a process that has imported the modules
only. Speed: ResNet-18 from caffetools' prototxt and from torchvision through torch.onnx, both with random
weights, in onnxruntime, alternating in one run; the ratio of their median times (below 1: ours is faster).
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffetools.engines.onnxruntime import open_session
from caffetools.infer.export import export_deployed
from caffetools.net.malloc_tuning import return_freed_memory
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.onnx.export import to_onnx
from caffetools.zoo.networks import prototxt_path


def export_once(deploy: str, weights: str, out: str) -> None:
    """Export in this process, after a LeNet, and print what both took as JSON."""
    imported = resident("VmRSS")
    small = Path(out).with_name("lenet.prototxt")
    export_deployed(small, small.with_suffix(".caffemodel"), small.with_suffix(".onnx"))
    return_freed_memory()
    loaded = resident("VmRSS")
    begin = time.perf_counter()
    export_deployed(deploy, weights, out)
    seconds = time.perf_counter() - begin
    peak = resident("VmHWM")
    sys.stdout.write(json.dumps({"seconds": seconds, "imported": peak - imported, "loaded": peak - loaded}) + "\n")


def resident(field: str) -> int:
    """Return a size of this process in kilobytes; ``ru_maxrss`` would begin with that of the process that started it."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))


def write_model(model: str, folder: Path) -> tuple[Path, Path]:
    """Write a network of the zoo with random weights."""
    deploy, weights = folder / f"{model}.prototxt", folder / f"{model}.caffemodel"
    deploy.write_text(prototxt_path(model, "deploy").read_text())
    torch.manual_seed(0)
    net = Net.from_file(deploy)
    # Biases and statistics of zeros would leave parts of the comparison empty.
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
    save_weights(net, weights)
    return deploy, weights


def measure_export(model: str, folder: Path) -> dict[str, float]:
    """Seconds of an export in a new process, and its memory over the weights."""
    write_model("lenet", folder)
    deploy, weights = write_model(model, folder)
    command = [sys.executable, __file__, "--export", str(deploy), str(weights), str(folder / f"{model}.onnx")]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = weights.stat().st_size
    return {
        "seconds": answer["seconds"],
        "memory over weights": answer["loaded"] * 1024 / size,
        "with the libraries' own": answer["imported"] * 1024 / size,
    }


def measure_speed(runs: int) -> dict[str, float]:
    """Median milliseconds of ResNet-18 from both exporters, and their ratio."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(resnet18().eval(), (torch.zeros(1, 3, 224, 224),), stream, dynamo=False, opset_version=17)  # type: ignore[arg-type]
    net = Net.from_file(prototxt_path("resnet18", "deploy"))
    with torch.no_grad():
        for layer in net.layers:
            if layer.type_name == "BatchNorm":
                layer.blobs[1].fill_(1.0)
                layer.blobs[2].fill_(1.0)
    x = np.random.RandomState(0).randn(1, 3, 224, 224).astype(np.float32)
    sessions: dict[str, Any] = {"caffetools": open_session(to_onnx(net).SerializeToString()), "torch.onnx": open_session(stream.getvalue())}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(runs + 2):
        for name, session in sessions.items():
            feed = {next(iter(session.shapes)): x}
            begin = time.perf_counter()
            session.run(feed)
            times[name].append((time.perf_counter() - begin) * 1000)
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    return {**medians, "ratio": medians["caffetools"] / medians["torch.onnx"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="bvlc_googlenet,vgg16")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--export", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        export_once(*options.export)
        return
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for model in options.models.split(","):
            found[f"export {model}"] = measure_export(model, Path(name))
    found["ResNet-18 in onnxruntime, ms"] = measure_speed(options.runs)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for title, numbers in found.items():
        print(f"{title}: " + ", ".join(f"{key} {value:.2f}" for key, value in numbers.items()))


if __name__ == "__main__":
    main()
