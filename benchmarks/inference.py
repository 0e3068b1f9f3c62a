"""Time and memory of a forward pass: ``import caffe`` of caffetools against onnxruntime, OpenCV 4 and real Caffe, in one run.

    python benchmarks/inference.py [--batch 16 1] [--rounds 15] [--only squeezenet_v1.1] [--sides onnxruntime] [--threads N]
    python benchmarks/inference.py --save rows.json --minutes 12     # every row; again with the same file: those that are missing

Each side runs in a process of its own with the same random weights and pictures; the rounds alternate (ours, theirs, ours, …), so that
a machine that slows down slows all. A round is a pause, one pass ("after a pause": threads sleep, caches are cold), and passes that follow
it at once ("back to back", as many as fit into 0.2 s, one to ten; the round's figure is their median). The figures are medians of wall
milliseconds over the rounds with their quartiles, and CPU milliseconds of the passes back to back; the ratios are theirs / ours (above 1:
caffetools is faster). On Linux a round in which other programs took more than a tenth of a processor is measured again, so that other work
on the machine does not count; how many were, and whether that did not help, is written to stderr.

Memory is the peak of what the process had in main memory (shared libraries and mapped files included) up to the last round, and what it
was when the engine had been imported and nothing loaded yet; the interpreter and NumPy are in both.

onnxruntime runs our own export, in two modes: as it is by default, and "pinned", each of its threads on a processor of its own
(``session.intra_op_thread_affinities``), where its second thread helps also after a pause. caffetools is never pinned. OpenCV 4 and real
Caffe run where ``caffetools engine add opencv4`` and ``caffetools engine add caffe`` have made their environments, else they are left
out, as is one that cannot run a net. "pytorch" is the network by hand in plain eager PyTorch (plain.py). "Layer by layer" is caffetools
without its inference plan, by torch's operators. "limit" is the time
that the multiply–adds would take at the rate of a large matrix product by torch, measured in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from inference_report import AFTER_PAUSE, BACK_TO_BACK, CPU, IMPORT, PEAK, Figure, Row, report, saved_rows, summary, table

if TYPE_CHECKING:
    from caffetools.net.net import Net

FIRST = ["bvlc_alexnet", "bvlc_googlenet", "squeezenet_v1.1"]  # at each batch before the others
NETWORKS = [*FIRST, "mobilenet_v1", "mobilenet_v2", "resnet50", "vgg16"]
Step = Callable[[], object]
SETTLE = 0.15  # seconds
LEAST_ROUNDS = 3
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
    folder.mkdir(parents=True, exist_ok=True)
    write_prototxt(folder / "deploy.prototxt", param)
    torch.manual_seed(0)
    net = Net(param)
    fill(net, 0.5, 1.5)
    save_weights(net, folder / "weights.caffemodel")
    (folder / "model.onnx").write_bytes(to_onnx(net).SerializeToString())
    shape = net.blob_shapes[net.inputs[0]]
    np.save(folder / "pictures.npy", np.random.RandomState(1).randn(*shape).astype(np.float32) * 50)
    (folder / "facts.json").write_text(json.dumps({"macs": sum(layer.macs() for layer in net.layers), "input": net.inputs[0]}))


def fill(net: Net, low: float, high: float) -> None:
    """Give a net random weights, since a deploy net that names no fillers has zeros: vectors from ``low`` to ``high``, statistics 1."""
    for layer in net.layers:
        for blob, spec in zip(layer.blobs, layer.specs, strict=True):
            if not spec.learnable:
                blob.data.fill_(1.0)
            elif blob.dim() > 1:
                blob.data.normal_(std=(2 / blob[0].numel()) ** 0.5)
            else:
                blob.data.uniform_(low, high)


def ours(folder: Path, threads: int) -> Step:
    """``net.forward()`` of ``import caffe``."""
    import torch

    torch.set_num_threads(threads)
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
    """The network by hand in plain PyTorch, in eager mode, with the same weights."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from plain import NETWORKS as BY_HAND
    from plain import load_caffemodel

    torch.set_num_threads(threads)
    name = folder.name.rpartition("_")[0]
    if name not in BY_HAND:
        sys.exit(f"plain.py has no {name}")
    model = BY_HAND[name][0]().eval()
    load_caffemodel(model, folder / "weights.caffemodel")
    x = torch.from_numpy(np.load(folder / "pictures.npy"))

    def step() -> torch.Tensor:
        with torch.inference_mode():
            return model.probabilities(x)

    return step


def layer_by_layer(folder: Path, threads: int) -> Step:
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


def import_caffetools() -> None:
    import caffetools

    caffetools.install_as_caffe()
    importlib.import_module("caffe")


# By name: what a script imports, and what it does then.
SIDES: dict[str, tuple[Callable[[], object], Callable[[Path, int], Step]]] = {
    "caffetools": (import_caffetools, ours),
    "onnxruntime": (lambda: importlib.import_module("onnxruntime"), onnxruntime),
    "onnxruntime pinned": (lambda: importlib.import_module("onnxruntime"), onnxruntime_pinned),
    "opencv4": (lambda: importlib.import_module("cv2"), opencv),
    "caffe": (lambda: importlib.import_module("caffe"), real_caffe),
    "pytorch": (lambda: importlib.import_module("torch"), pytorch),
    "layer by layer": (import_caffetools, layer_by_layer),
}


def peak_memory() -> float:
    """MB. Linux keeps the peak of this very program; ru_maxrss would begin with that of the process that started it."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def worker(who: str, folder: Path, threads: int) -> None:
    """A round for each line of standard input; its figures as a line of JSON: seconds of the first pass, wall and CPU of those after it, MB."""
    load, prepare_step = SIDES[who]
    load()
    imported = peak_memory()
    step = prepare_step(folder, threads)
    for _ in sys.stdin:
        first = timed(step)
        more = [timed(step) for _ in range(max(1, min(BURST, int(BURST_SECONDS / first[0]))))]
        wall, cpu = (statistics.median(seconds[i] for seconds in more) for i in (0, 1))
        print(json.dumps([first[0], wall, cpu, peak_memory(), imported]), flush=True)


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


class SideEnded(Exception):
    """A worker process ended before its time."""


class Side:
    """A worker process."""

    def __init__(self, who: str, python: str, folder: Path, threads: int):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads), "GLOG_minloglevel": "3"}
        command = [python, __file__, "--worker", who, "--folder", str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.times: dict[str, list[float]] = {AFTER_PAUSE: [], BACK_TO_BACK: [], CPU: []}
        self.memory = {PEAK: 0.0, IMPORT: 0.0}

    def step(self, *, count: bool = True, again: bool = False) -> bool:
        """Measure a round; return whether it counts. With ``again`` it does not where other programs ran. Raises :class:`SideEnded`."""
        # Threads of the side before spin for a while after its pass (OpenBLAS's for about 30 ms); they would take a core from this one.
        time.sleep(SETTLE)
        assert self.process.stdin and self.process.stdout
        start, others = time.perf_counter(), busy_seconds() - process_seconds(self.process.pid)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SideEnded(f"it ended with exit code {self.process.wait()}")
        *figures, self.memory[PEAK], self.memory[IMPORT] = json.loads(line)
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
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def pythons(chosen: list[str]) -> dict[str, str]:
    """The interpreter of each of the chosen sides that there is."""
    from caffetools.engines.environments import find_environment
    from caffetools.errors import CaffeToolsError

    found = {who: sys.executable for who in SIDES if who not in ("opencv4", "caffe")}
    for who in {"opencv4", "caffe"}.intersection(chosen):
        try:
            found[who] = str(find_environment(who).python)
        except CaffeToolsError as error:
            print(f"left out: {error}", file=sys.stderr)
    return {who: found[who] for who in SIDES if who in chosen and who in found}


def limit(macs: int, threads: int) -> float:
    """Milliseconds that ``macs`` take at the rate of a large matrix product."""
    import torch
    from plain import sgemm_seconds

    torch.set_num_threads(threads)
    return sgemm_seconds(macs) * 1e3


def warm_up(sides: dict[str, Side], title: str) -> float:
    """Run two rounds that do not count, without the sides that cannot; return the seconds of the second."""
    seconds = 0.0
    for _ in range(2):
        start = time.monotonic()
        for who in list(sides):
            try:
                sides[who].step(count=False)
            except SideEnded as error:
                if who == "caffetools":
                    raise
                print(f"{title}: without {who}: {error}", file=sys.stderr)
                del sides[who]
        seconds = time.monotonic() - start
    return seconds


def measure(sides: dict[str, Side], title: str, most: int, until: float) -> int:
    """Measure up to ``most`` rounds, after three none that would end later than ``until``; return how many."""
    round_seconds = warm_up(sides, title)
    left = given = (MOST_TRIES - 1) * most * len(sides)  # rounds that may be measured again
    rounds = 0
    while rounds < most and (rounds < LEAST_ROUNDS or time.monotonic() + round_seconds < until):
        start = time.monotonic()
        for side in sides.values():
            while not side.step(again=left > 0 and time.monotonic() < until):
                left -= 1
        round_seconds = time.monotonic() - start
        rounds += 1
    if left < given:
        print(f"{title}: {given - left} rounds measured again{'' if left else '; the machine is busy'}", file=sys.stderr)
    return rounds


def compare(name: str, batch: int, options: argparse.Namespace, seconds: float) -> Row:
    """Measure a net at a batch in about ``seconds``."""
    until = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        folder = (options.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))) / f"{name}_{batch}"
        # The facts are written last.
        if not (folder / "facts.json").exists():
            prepare(name, batch, folder)
        chosen = ["caffetools", *options.sides]
        sides = {who: Side(who, python, folder, options.threads) for who, python in pythons(chosen).items()}
        for side in sides.values():
            stack.callback(side.close)
        rounds = measure(sides, f"{name}, batch {batch}", options.rounds, until)
        macs = json.loads((folder / "facts.json").read_text())["macs"]
    ours = sides["caffetools"].times
    times = {who: {what: Figure.of(times, ours[what]) for what, times in side.times.items()} for who, side in sides.items()}
    return Row(times, {who: side.memory for who, side in sides.items()}, limit(macs, options.threads), rounds)


def run(options: argparse.Namespace, rows: dict[str, Row]) -> None:
    """Measure the rows that are not in ``rows`` yet, and save each at once."""
    end = time.monotonic() + options.minutes * 60
    first, others = ([name for name in options.only if (name in FIRST) is wanted] for wanted in (True, False))
    wanted = [(name, batch) for batch in options.batch for name in first]
    # The longest ones, VGG-16's batches, come last.
    wanted += [(name, batch) for batch in sorted(options.batch) for name in others]
    missing = [(name, batch) for name, batch in wanted if f"{name}, batch {batch}" not in rows]
    for done, (name, batch) in enumerate(missing):
        left = end - time.monotonic()
        if left <= 0:
            print(f"{len(missing) - done} rows are left for want of time", file=sys.stderr)
            return
        title = f"{name}, batch {batch}"
        rows[title] = compare(name, batch, options, min(options.seconds, left))
        if options.save:
            scratch = options.save.with_name(options.save.name + ".part")
            scratch.write_text(report(rows, options.threads))
            scratch.replace(options.save)
        if not options.json:
            print(table(title, rows[title]), flush=True)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--rounds", type=int, default=15, help="at most (default: 15)")
    parser.add_argument("--only", nargs="+", default=NETWORKS, metavar="NET", help="default: " + " ".join(NETWORKS))
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES), help="opponents (default: all)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=60, help=f"of a row, but at least {LEAST_ROUNDS} rounds (default: 60)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row after them")
    parser.add_argument("--save", type=Path, metavar="FILE", help="save each row as JSON; rows that it has already are not measured again")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="keep the nets and weights there for further runs")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--worker", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    if options.worker:
        # The folder of this script holds nothing that a worker may import by accident.
        sys.path.pop(0)
        worker(options.worker, options.folder, options.threads)
        return
    from caffetools.errors import CaffeToolsError

    if min(options.rounds, options.threads, *options.batch) < 1:
        parser.error("rounds, threads and batches are at least 1")
    if options.save and not options.save.parent.is_dir():
        parser.error(f"there is no folder {options.save.parent} for {options.save.name}")
    try:
        rows = saved_rows(options.save, options.threads) if options.save else {}
        run(options, rows)
    except (CaffeToolsError, SideEnded, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # the rows before are saved
    print(report(rows, options.threads) if options.json else summary(rows))


if __name__ == "__main__":
    main()
