"""Milliseconds of a forward pass: ``import caffe`` of caffetools against onnxruntime, OpenCV 4, real Caffe and plain PyTorch, in one run.

    python benchmarks/inference.py [--batch 1 16] [--rounds 15] [--only squeezenet_v1.1] [--threads N]

Each side runs in a process of its own with the same random weights and pictures; the rounds alternate (ours, theirs, ours, …), so that
a machine that slows down slows all. The figures are medians of wall and CPU milliseconds; the ratios are theirs / ours (above 1:
caffetools is faster). onnxruntime runs our own export. OpenCV 4 and real Caffe run where ``caffetools engine add opencv4`` and
``caffetools engine add caffe`` have made their environments, else they are left out. "limit" is the time that the multiply–adds would
take at the rate of a large matrix product by torch, measured in the same process as ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

NETWORKS = ["bvlc_alexnet", "bvlc_googlenet", "squeezenet_v1.1", "mobilenet_v1", "mobilenet_v2", "resnet50", "vgg16"]
Step = Callable[[], object]
SETTLE = 0.15  # seconds


def prepare(name: str, batch: int, folder: Path) -> None:
    """Write the net with ``batch``, random weights, pictures and the exported model into ``folder``."""
    import torch

    from caffetools.net.net import Net
    from caffetools.net.weights import save_weights
    from caffetools.onnx.export import to_onnx
    from caffetools.proto.text import read_net, write_prototxt
    from caffetools.zoo.networks import prototxt_path

    param = read_net(prototxt_path(name, "deploy"))
    param.layer[0].input_param.shape[0].dim[0] = batch
    write_prototxt(folder / "deploy.prototxt", param)
    torch.manual_seed(0)
    net = Net(param)
    for layer in net.layers:
        for blob, spec in zip(layer.blobs, layer.specs, strict=True):
            if not spec.learnable:
                blob.data.fill_(1.0)
    save_weights(net, folder / "weights.caffemodel")
    (folder / "model.onnx").write_bytes(to_onnx(net).SerializeToString())
    shape = net.blob_shapes[net.inputs[0]]
    np.save(folder / "pictures.npy", np.random.RandomState(1).randn(*shape).astype(np.float32) * 50)
    (folder / "facts.json").write_text(json.dumps({"macs": sum(layer.macs() for layer in net.layers), "input": net.inputs[0]}))


def ours(folder: Path, threads: int) -> Step:
    """``net.forward()`` of ``import caffe``."""
    import torch

    import caffetools

    torch.set_num_threads(threads)
    caffetools.install_as_caffe()
    return caffe_step(folder)


def caffe_step(folder: Path) -> Step:
    import caffe

    net = caffe.Net(str(folder / "deploy.prototxt"), str(folder / "weights.caffemodel"), caffe.TEST)
    net.blobs[net.inputs[0]].data[...] = np.load(folder / "pictures.npy")
    return net.forward


def real_caffe(folder: Path, threads: int) -> Step:
    """The same script in a real Caffe."""
    return caffe_step(folder)


def onnxruntime(folder: Path, threads: int) -> Step:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.load(folder / "pictures.npy")}
    return lambda: session.run(None, feed)


def opencv(folder: Path, threads: int) -> Step:
    import cv2

    cv2.setNumThreads(threads)
    net = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(folder / "weights.caffemodel"))
    pictures = np.load(folder / "pictures.npy")

    def step() -> None:
        net.setInput(pictures)
        net.forward()

    return step


def pytorch(folder: Path, threads: int) -> Step:
    """Our Net as a plain module, layer by layer by torch's own operators."""
    import torch

    from caffetools.net.net import Net
    from caffetools.net.weights import load_weights

    torch.set_num_threads(threads)
    net = Net.from_file(folder / "deploy.prototxt")
    load_weights(net, folder / "weights.caffemodel")
    net.inference.enabled = False
    x = torch.from_numpy(np.load(folder / "pictures.npy"))

    def step() -> None:
        with torch.inference_mode():
            net({net.inputs[0]: x})

    return step


SIDES = {"caffetools": ours, "onnxruntime": onnxruntime, "opencv4": opencv, "caffe": real_caffe, "layer by layer": pytorch}


def worker(who: str, folder: Path, threads: int) -> None:
    """One pass for each line of standard input; its wall and CPU seconds as a line of JSON."""
    step = SIDES[who](folder, threads)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


class Side:
    """A worker process."""

    def __init__(self, who: str, python: str, folder: Path, threads: int):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads), "GLOG_minloglevel": "3"}
        command = [python, __file__, "--worker", who, "--folder", str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def step(self, *, count: bool = True) -> None:
        # Threads of the side before spin for a while after its pass (OpenBLAS's for about 30 ms); they would take a core from this one.
        time.sleep(SETTLE)
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, cpu = json.loads(self.process.stdout.readline())
        if count:
            self.wall.append(wall * 1e3)
            self.cpu.append(cpu * 1e3)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def pythons() -> dict[str, str]:
    """The interpreter of each side that there is."""
    from caffetools.engines.environments import find_environment
    from caffetools.errors import CaffeToolsError

    found = {who: sys.executable for who in ("caffetools", "onnxruntime", "layer by layer")}
    for who in ("opencv4", "caffe"):
        try:
            found[who] = str(find_environment(who).python)
        except CaffeToolsError as error:
            print(f"left out: {error}")
    return found


def limit(macs: int, threads: int) -> float:
    """Milliseconds that ``macs`` take at the rate of a large matrix product."""
    import torch
    from plain import sgemm_seconds

    torch.set_num_threads(threads)
    return sgemm_seconds(macs) * 1e3


def compare(name: str, batch: int, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(name, batch, folder)
        sides = {who: Side(who, python, folder, threads) for who, python in pythons().items()}
        for turn in range(rounds + 2):
            for side in sides.values():
                side.step(count=turn >= 2)
        for side in sides.values():
            side.close()
        macs = json.loads((folder / "facts.json").read_text())["macs"]
    results = {who: {"wall ms": statistics.median(side.wall), "CPU ms": statistics.median(side.cpu)} for who, side in sides.items()}
    for figures in results.values():
        figures["/ ours"] = figures["wall ms"] / results["caffetools"]["wall ms"]
    return {**results, "limit": {"wall ms": limit(macs, threads)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", default=NETWORKS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        # The folder of this script holds nothing that a worker may import by accident.
        sys.path.pop(0)
        worker(options.worker, options.folder, options.threads)
        return
    results = {}
    for name in options.only:
        for batch in options.batch:
            result = results[f"{name}, batch {batch}"] = compare(name, batch, options.rounds, options.threads)
            if not options.json:
                print(f"{name}, batch {batch}")
                for who, figures in result.items():
                    print(f"  {who:16}" + "".join(f"{value:10.2f} {what}" for what, value in figures.items()), flush=True)
    if options.json:
        print(json.dumps({"threads": options.threads, "results": results}, indent=2))


if __name__ == "__main__":
    main()
