"""Inference, training and reading on a GPU: caffetools and plain PyTorch side by side, in about ten minutes on an H100.

    python benchmarks/gpu.py [--minutes 10] [--only squeezenet_v1.1] [--json]
    python benchmarks/gpu.py --device cpu --quick      (a dry run of every part; its figures are not for comparing)

Both sides compute the same losses from the same random pictures on the device. Variants: precision (fp32 without TF32, TF32, bf16, fp16),
memory layout (plain PyTorch in NCHW and channels-last; caffetools is always channels-last), torch.compile, and CUDA graphs (caffetools
records its passes by itself; plain PyTorch for inference, by hand). cuDNN chooses its algorithms by trying them on both sides. "reading"
trains behind a Data layer: images transformed on the CPU, and sent as bytes and transformed on the device. Figures are images per second
at the median of the rounds, and the peak of PyTorch's allocator. A variant that cannot run here is left out with the reason.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from plain import NETWORKS as BY_HAND

from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, NetParameter, SolverParameter
from caffetools.proto.text import read_net
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.distributed import DistributedSolver
from caffetools.zoo.networks import prototxt_path

Step = Callable[[], object]
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
NETWORKS = {"bvlc_alexnet": 227, "bvlc_googlenet": 224, "squeezenet_v1.1": 227, "resnet10": 224, "resnet50": 224}  # side of the pictures
SOLVER = {"base_lr": 1e-3, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 5e-4, "max_iter": 10**6, "random_seed": 1}


@dataclass(frozen=True)
class Case:
    """A variant of a part.

    Attributes:
        part: ``inference``, ``training`` or ``reading``.
        who: ``caffetools`` or ``pytorch``.
        variant: What distinguishes it.
        make: Builds it and returns one step of it.
        precision: As in :data:`PRECISIONS`.
        graph: Whether the step runs as a CUDA graph.
    """

    part: str
    who: str
    variant: str
    make: Callable[[], Step]
    precision: str = "fp32"
    graph: bool = False


@dataclass(frozen=True)
class Setting:
    """The network, the batch, the side of the pictures and the device."""

    name: str
    batch: int
    size: int
    device: torch.device

    def pictures(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Random pictures (N, 3, H, W) float32 and labels (N), on the device."""
        generator = torch.Generator().manual_seed(1)
        data = torch.randn(self.batch, 3, self.size, self.size, generator=generator) * 50
        return data.to(self.device), torch.randint(0, 1000, (self.batch,), generator=generator).to(self.device)

    def param(self) -> NetParameter:
        """The network with its losses over Input layers."""
        param = data_layers_to_inputs(read_net(prototxt_path(self.name, "train_val")), batch=self.batch)
        for shape in (shape for layer in param.layer for shape in layer.input_param.shape if len(shape.dim) == 4):
            shape.dim[2:] = [self.size, self.size]
        return param


def cases_of(setting: Setting, precisions: Sequence[str], *, compiled: bool) -> Iterator[Case]:
    """Yield what is measured of one network."""
    for precision in precisions:
        yield Case("inference", "caffetools", precision, partial(our_inference, setting, precision), precision)
        yield Case("training", "caffetools", precision, partial(our_training, setting, precision), precision)
        for last, layout in ((False, "NCHW"), (True, "channels-last")):
            variant = f"{precision}, {layout}"
            yield Case("inference", "pytorch", variant, partial(plain_inference, setting, precision, last=last), precision)
            yield Case("training", "pytorch", variant, partial(plain_training, setting, precision, last=last), precision)
    first = precisions[0]
    for last, layout in ((False, "NCHW"), (True, "channels-last")):
        make = partial(plain_inference, setting, first, last=last)
        yield Case("inference", "pytorch", f"{first}, {layout}, CUDA graph", make, first, graph=True)
    yield Case("inference", "caffetools", f"{first}, no CUDA graph", partial(our_inference, setting, first, recorded=False), first)
    yield Case("training", "caffetools", f"{first}, no CUDA graph", partial(our_training, setting, first, cuda_graphs=False), first)
    make = partial(our_training, setting, first, checkpoint_memory=True)
    yield Case("training", "caffetools", f"{first}, --checkpoint-memory", make, first)
    if compiled:
        yield Case("training", "caffetools", f"{first}, --compile", partial(our_training, setting, first, compiled=True), first)


def our_inference(setting: Setting, precision: str, *, recorded: bool = True) -> Step:
    """A TEST pass of a caffetools net, which records a CUDA graph by itself where ``recorded`` lets it."""
    net = Net(setting.param(), TEST).to(setting.device)
    net.graphs.enabled, net.allow_tf32 = recorded, precision == "tf32"
    data, label = setting.pictures()
    batch = {"data": data.contiguous(memory_format=torch.channels_last), "label": label.float()}

    def step() -> object:
        with torch.no_grad(), autocast(setting, precision):
            return net(batch)

    return step


def plain_inference(setting: Setting, precision: str, *, last: bool) -> Step:
    """The same in plain PyTorch."""
    model, data, label = plain_model(setting, last=last)
    model.eval()

    def step() -> object:
        with torch.no_grad(), autocast(setting, precision):
            return model(data, label)

    return step


def our_training(
    setting: Setting, precision: str, *, compiled: bool = False, checkpoint_memory: bool = False, cuda_graphs: bool | None = None
) -> Step:
    """An iteration of caffetools's solver."""
    compute = ComputeOptions(precision, compiled, checkpoint_memory=checkpoint_memory, cuda_graphs=cuda_graphs)
    solver = DistributedSolver(SolverParameter(train_net_param=setting.param(), **SOLVER), compute=compute, device=setting.device)
    data, label = setting.pictures()
    solver.train_inputs = {"data": data, "label": label.float()}
    return lambda: solver.step(1)


def plain_training(setting: Setting, precision: str, *, last: bool) -> Step:
    """The same in plain PyTorch."""
    model, data, label = plain_model(setting, last=last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler(setting.device.type, enabled=precision == "fp16")

    def step() -> None:
        optimizer.zero_grad()
        with autocast(setting, precision):
            loss = model(data, label)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def plain_model(setting: Setting, *, last: bool) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The network by hand, and its inputs, in one of the two memory layouts."""
    torch.manual_seed(1)
    layout = torch.channels_last if last else torch.contiguous_format
    model: nn.Module = BY_HAND[setting.name][0]()
    data, label = setting.pictures()
    return model.to(setting.device, memory_format=layout), data.contiguous(memory_format=layout), label


def reading_cases(setting: Setting, folder: Path, records: int) -> Iterator[Case]:
    """Yield training behind a Data layer over ``records`` images in ``folder``."""
    from data import data_layer, write_records

    write_records(folder, records)

    def make(on_device: bool) -> Step:
        param = copy.deepcopy(setting.param())
        inputs = [layer for layer in param.layer if layer.type == "Input"]
        for layer in inputs:
            param.layer.remove(layer)
        param.layer.insert(0, data_layer(folder, setting.batch))
        param.layer[0].transform_param.crop_size = setting.size
        solver_param = SolverParameter(train_net_param=param, **SOLVER)
        compute = ComputeOptions("tf32", device_transform=on_device)
        solver = DistributedSolver(solver_param, compute=compute, device=setting.device)
        return lambda: solver.step(1)

    for on_device in (False, True):
        yield Case("reading", "caffetools", f"transformed on the {'device' if on_device else 'CPU'}", lambda d=on_device: make(d), "tf32")


def autocast(setting: Setting, precision: str) -> AbstractContextManager[object]:
    """The context of a pass in ``precision``."""
    return torch.autocast(setting.device.type, HALF[precision]) if precision in HALF else nullcontext()


@contextmanager
def settings_of(case: Case) -> Iterator[None]:
    """Set TF32 and cuDNN's autotuning for a case, and restore them."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = case.precision == "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def as_graph(step: Step) -> Step:
    """Record ``step`` as a CUDA graph; return its replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(case: Case, setting: Setting, seconds: float, rounds: int) -> dict[str, float] | str:
    """Return images per second, milliseconds and peak GB of a case, or why it was left out."""
    cuda = setting.device.type == "cuda"
    if case.graph and not cuda:
        return "CUDA graphs need a CUDA device"
    try:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with settings_of(case):
            step = case.make()
            for _ in range(5 if cuda else 1):
                step()
            step = as_graph(step) if case.graph else step
            times = time_rounds(step, setting.device, seconds, rounds)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    median = statistics.median(times)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    return {"images/s": setting.batch / median, "ms": 1000 * median, "peak GB": peak}


def time_rounds(step: Step, device: torch.device, seconds: float, rounds: int) -> list[float]:
    """Return the seconds of one step in each round; a round is as many steps as fit its share of ``seconds``."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    step()
    wait()
    once = max(time.perf_counter() - begin, 1e-6)
    count = max(1, int(seconds / rounds / once))
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        times.append((time.perf_counter() - begin) / count)
    return times


def run(setting: Setting, cases: list[Case], seconds: float, rounds: int, *, quiet: bool) -> list[dict[str, object]]:
    """Measure ``cases`` one after the other; print each at once."""
    rows: list[dict[str, object]] = []
    for case in cases:
        found = measure(case, setting, seconds, rounds)
        row: dict[str, object] = {"net": setting.name, "part": case.part, "who": case.who, "variant": case.variant}
        row |= {"left out": found} if isinstance(found, str) else found
        rows.append(row)
        if not quiet:
            figures = f"left out: {found}" if isinstance(found, str) else "".join(f"{value:11.2f} {what}" for what, value in found.items())
            print(f"{setting.name:16} {case.part:10} {case.who:11} {case.variant:28}{figures}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of it, building the nets not counted")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(NETWORKS))
    parser.add_argument("--precision", default=",".join(PRECISIONS), help="several, with commas; the first has all variants")
    parser.add_argument("--compile", action="store_true", help="also through torch.compile, which takes minutes to build")
    parser.add_argument("--records", type=int, default=4096, help="images of the part that reads")
    parser.add_argument("--quick", action="store_true", help="one small network, 2 pictures of 67 x 67, one round: whether all of it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --quick tries the script itself")
    precisions = ["fp32", "bf16"] if options.quick else options.precision.split(",")
    if unknown := set(precisions) - set(PRECISIONS):
        parser.error(f"--precision: {', '.join(sorted(unknown))} is none of {', '.join(PRECISIONS)}")
    names = [options.only or "squeezenet_v1.1"] if options.quick else [options.only] if options.only else list(NETWORKS)
    batch, rounds, records = (2, 1, 8) if options.quick else (options.batch, options.rounds, options.records)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        planned = []
        for index, name in enumerate(names):
            setting = Setting(name, batch, 67 if options.quick else NETWORKS[name], device)
            cases = list(cases_of(setting, precisions, compiled=options.compile))
            cases += list(reading_cases(setting, Path(folder), records)) if index == 0 else []
            planned.append((setting, cases))
        seconds = 0.0 if options.quick else 60 * options.minutes / sum(len(cases) for _, cases in planned)
        for setting, cases in planned:
            rows += run(setting, cases, seconds, rounds, quiet=options.json)
    if options.json:
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        print(json.dumps({"device": what, "torch": torch.__version__, "batch": batch, "quick": options.quick, "results": rows}, indent=2))


if __name__ == "__main__":
    main()
