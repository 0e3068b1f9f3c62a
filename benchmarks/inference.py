"""Milliseconds of a forward pass: ``import caffe`` of caffetools against onnxruntime, OpenCV 4, real Caffe and plain PyTorch, in one run.

    python benchmarks/inference.py [--batch 1 16] [--rounds 15] [--only squeezenet_v1.1] [--sides onnxruntime] [--threads N]

Each side runs in a process of its own with the same random weights and pictures; the rounds alternate (ours, theirs, ours, …), so that
a machine that slows down slows all. A round is a pause, one pass ("after a pause": threads sleep, caches are cold), and passes that follow
it at once ("back to back", as many as fit into 0.2 s, one to ten; the round's figure is their median). The figures are medians of wall
milliseconds over the rounds with their quartiles, and CPU milliseconds of the passes back to back; the ratios are theirs / ours (above 1:
caffetools is faster). On Linux a round in which other programs took more than a tenth of a processor is measured again, so that other work
on the machine does not count; how many were, and whether that did not help, is written to stderr.

onnxruntime runs our own export, in two modes: as it is by default, and "pinned", each of its threads on a processor of its own
(``session.intra_op_thread_affinities``), where its second thread helps also after a pause. caffetools is never pinned. OpenCV 4 and real
Caffe run where ``caffetools engine add opencv4`` and ``caffetools engine add caffe`` have made their environments, else they are left
out. "limit" is the time that the multiply–adds would take at the rate of a large matrix product by torch, measured in this process.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

NETWORKS = ["bvlc_alexnet", "bvlc_googlenet", "squeezenet_v1.1", "mobilenet_v1", "mobilenet_v2", "resnet50", "vgg16"]
AFTER_PAUSE, BACK_TO_BACK, CPU = "after a pause", "back to back", "CPU"
Step = Callable[[], object]
SETTLE = 0.15  # seconds
BURST, BURST_SECONDS = 10, 0.2  # passes back to back, at the most
MOST_OTHER, MOST_TRIES = 0.1, 4  # of a processor, by other programs in a round; times that a round is measured on average


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
            elif blob.dim() > 1:
                # A deploy net that names no fillers has weights of zero.
                blob.data.normal_(std=(2 / blob[0].numel()) ** 0.5)
            else:
                blob.data.uniform_(0.5, 1.5)
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
    return onnxruntime_step(folder, threads, pinned=False)


def onnxruntime_pinned(folder: Path, threads: int) -> Step:
    """Each thread on a processor of its own."""
    return onnxruntime_step(folder, threads, pinned=True)


def onnxruntime_step(folder: Path, threads: int, *, pinned: bool) -> Step:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    processors = sorted(os.sched_getaffinity(0))[:threads]
    if pinned and len(processors) == threads:
        # Of all threads but the caller's; processors count from 1 there.
        if threads > 1:
            others = ";".join(str(processor + 1) for processor in processors[1:])
            options.add_session_config_entry("session.intra_op_thread_affinities", others)
        os.sched_setaffinity(0, processors[:1])
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


SIDES = {
    "caffetools": ours,
    "onnxruntime": onnxruntime,
    "onnxruntime pinned": onnxruntime_pinned,
    "opencv4": opencv,
    "caffe": real_caffe,
    "layer by layer": pytorch,
}


def worker(who: str, folder: Path, threads: int) -> None:
    """A round for each line of standard input; its seconds as a line of JSON: of the first pass, and wall and CPU of those after it."""
    step = SIDES[who](folder, threads)
    for _ in sys.stdin:
        first = timed(step)
        more = [timed(step) for _ in range(max(1, min(BURST, int(BURST_SECONDS / first[0]))))]
        wall, cpu = (statistics.median(seconds[i] for seconds in more) for i in (0, 1))
        print(json.dumps([first[0], wall, cpu]), flush=True)


def timed(step: Step) -> tuple[float, float]:
    """Wall and CPU seconds of a pass."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def busy_seconds() -> float:
    """CPU seconds of all programs since the machine started, what its host took from it included; 0 where the system does not say."""
    try:
        user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    except OSError:
        return 0.0
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """CPU seconds of a process; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Side:
    """A worker process."""

    def __init__(self, who: str, python: str, folder: Path, threads: int):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads), "GLOG_minloglevel": "3"}
        command = [python, __file__, "--worker", who, "--folder", str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.times: dict[str, list[float]] = {AFTER_PAUSE: [], BACK_TO_BACK: [], CPU: []}

    def step(self, *, count: bool = True, again: bool = False) -> bool:
        """Measure a round; return whether it counts. With ``again`` it does not where other programs ran."""
        # Threads of the side before spin for a while after its pass (OpenBLAS's for about 30 ms); they would take a core from this one.
        time.sleep(SETTLE)
        assert self.process.stdin and self.process.stdout
        start, others = time.perf_counter(), busy_seconds() - process_seconds(self.process.pid)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        figures = json.loads(self.process.stdout.readline())
        others = busy_seconds() - process_seconds(self.process.pid) - others
        # The system counts hundredths of a second.
        if again and others > 0.01 + MOST_OTHER * (time.perf_counter() - start):
            return False
        for times, seconds in zip(self.times.values(), figures, strict=True):
            if count:
                times.append(seconds * 1e3)
        return True

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def pythons() -> dict[str, str]:
    """The interpreter of each side that there is."""
    from caffetools.engines.environments import find_environment
    from caffetools.errors import CaffeToolsError

    found = {who: sys.executable for who in ("caffetools", "onnxruntime", "onnxruntime pinned", "layer by layer")}
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


@dataclass(frozen=True)
class Figure:
    """Milliseconds over the rounds: median, first and third quartile, and the median over that of caffetools."""

    median: float
    first: float
    third: float
    ratio: float

    @classmethod
    def of(cls, times: list[float], ours: list[float]) -> Figure:
        first, median, third = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        return cls(median, first, third, median / statistics.median(ours))


def compare(name: str, batch: int, rounds: int, threads: int, chosen: list[str]) -> tuple[dict[str, dict[str, Figure]], float]:
    """Return the figures of each side, and the limit in milliseconds."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(name, batch, folder)
        sides = {who: Side(who, python, folder, threads) for who, python in pythons().items() if who in chosen}
        for side in [*sides.values()] * 2:
            side.step(count=False)
        left = (MOST_TRIES - 1) * rounds * len(sides)  # rounds that may be measured again
        for side in [*sides.values()] * rounds:
            while not side.step(again=left > 0):
                left -= 1
        for side in sides.values():
            side.close()
        macs = json.loads((folder / "facts.json").read_text())["macs"]
    repeated = (MOST_TRIES - 1) * rounds * len(sides) - left
    if repeated:
        print(f"{name}, batch {batch}: {repeated} rounds measured again{'' if left else '; the machine is busy'}", file=sys.stderr)
    ours = sides["caffetools"].times
    results = {who: {what: Figure.of(times, ours[what]) for what, times in side.times.items()} for who, side in sides.items()}
    return results, limit(macs, threads)


def table(title: str, results: dict[str, dict[str, Figure]], least: float) -> str:
    """The figures of a net as text."""
    lines = [
        f"{title:26}"
        + "".join(f"{what + ': ms':>22}{'quartiles':>18}{'/ ours':>8}" for what in (AFTER_PAUSE, BACK_TO_BACK))
        + f"{'CPU ms':>10}"
    ]
    for who, figures in results.items():
        cells = (figures[what] for what in (AFTER_PAUSE, BACK_TO_BACK))
        text = "".join(f"{f.median:22.2f}{f'{f.first:.2f} to {f.third:.2f}':>18}{f.ratio:8.2f}" for f in cells)
        lines.append(f"  {who:24}{text}{figures[CPU].median:10.2f}")
    return "\n".join([*lines, f"  {'limit':24}{least:22.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", default=NETWORKS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES), help="opponents (default: all)")
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
            figures, least = compare(name, batch, options.rounds, options.threads, ["caffetools", *options.sides])
            if not options.json:
                print(table(f"{name}, batch {batch}", figures, least), flush=True)
            sides = {who: {what: asdict(figure) for what, figure in side.items()} for who, side in figures.items()}
            results[f"{name}, batch {batch}"] = {**sides, "limit": {"ms": least}}
    if options.json:
        print(json.dumps({"threads": options.threads, "results": results}, indent=2))


if __name__ == "__main__":
    main()
