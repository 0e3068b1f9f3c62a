"""Export to ONNX: seconds and memory, and the speed of the exported graph beside torch.onnx's of the same network.

    python benchmarks/export_onnx.py [--models bvlc_googlenet,vgg16] [--networks alexnet,googlenet] [--runs 10] [--json]

Export: the whole of ``caffetools export`` in a process of its own: reading, building, checking, comparing every blob with float64,
writing; random weights. Memory: the largest resident size over that of the same process after it has exported LeNet, which brings the
code of torch and onnxruntime into memory, divided by the size of the weights; and the same over a process that has imported the modules
only. Speed: networks of torchvision, with random weights, as torch.onnx
exports them, and as caffetools exports them after importing that file; in onnxruntime, alternating in one run. The ratio is that of their
median times, torch.onnx's over ours (above 1: ours is faster).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import caffetools
from caffetools.engines.onnxruntime import open_session
from caffetools.infer.export import export_deployed
from caffetools.net.malloc_tuning import return_freed_memory, return_large_blocks
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, save_weights
from caffetools.onnx.export import to_onnx
from caffetools.zoo.networks import prototxt_path


def export_once(deploy: str, weights: str, out: str) -> None:
    """Export in this process, as the command does, after a LeNet, and print what both took as JSON."""
    return_large_blocks()
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


def measure_speed(name: str, runs: int, folder: Path) -> dict[str, float]:
    """Median milliseconds of one network of torchvision from both exporters, and their ratio."""
    import torchvision

    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(**options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    theirs = folder / f"{name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(1, 3, 224, 224),), str(theirs), dynamo=False, opset_version=17)
    del model
    caffetools.import_onnx(theirs, folder / name)
    net = Net.from_file(folder / name / "deploy.prototxt", fill=False)
    load_weights(net, folder / name / "weights.caffemodel")
    x = np.random.RandomState(0).randn(1, 3, 224, 224).astype(np.float32)
    ours = folder / f"{name}.caffetools.onnx"
    ours.write_bytes(to_onnx(net).SerializeToString())
    # A session that is opened later may have its weights in better places: each file is opened twice, in both orders.
    opened = [
        (exporter, open_session(path)) for exporter, path in (("caffetools", ours), *[("torch.onnx", theirs)] * 2, ("caffetools", ours))
    ]
    times: dict[str, list[float]] = {"caffetools": [], "torch.onnx": []}
    for run in range(runs + 2):
        for exporter, session in opened[run % 4 :] + opened[: run % 4]:
            begin = time.perf_counter()
            session.run({next(iter(session.shapes)): x})
            times[exporter].append((time.perf_counter() - begin) * 1000)
    medians = {exporter: statistics.median(values[4:]) for exporter, values in times.items()}
    return {**medians, "ratio": medians["torch.onnx"] / medians["caffetools"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="bvlc_googlenet,vgg16")
    parser.add_argument("--networks", default="alexnet,googlenet,squeezenet1_1,resnet50,vgg16", help="of torchvision")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--export", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        export_once(*options.export)
        return
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for model in filter(None, options.models.split(",")):
            found[f"export {model}"] = measure_export(model, Path(name))
        for network in filter(None, options.networks.split(",")):
            found[f"{network} in onnxruntime, ms"] = measure_speed(network, options.runs, Path(name))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for title, numbers in found.items():
        print(f"{title}: " + ", ".join(f"{key} {value:.2f}" for key, value in numbers.items()))


if __name__ == "__main__":
    main()
