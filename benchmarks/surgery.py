"""How long surgery takes on long nets: retarget and inspect of conv + ReLU chains, ResNet-152 and SE-ResNet-50.

    python benchmarks/surgery.py [--layers 1000,4000,50000]

Times are of the whole command's work in one process (parse, surgery, solver and deploy net), without writing files: the best of
three files that differ in the net's name, in seconds of processor time, since other work on the machine does not count in it.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from caffetools.graph.summary import summarize
from caffetools.project.retargeting import prepare_retarget
from caffetools.proto.text import read_net
from caffetools.zoo.networks import prototxt_path

DATA = (
    'layer { name: "data" type: "Data" top: "data" top: "label" transform_param { crop_size: 8 }'
    ' data_param { source: "train_lmdb" batch_size: 8 backend: LMDB } }\n'
)
CONV = (
    'layer {{ name: "conv{0}" type: "Convolution" bottom: "{1}" top: "conv{0}" param {{ lr_mult: 1 }} param {{ lr_mult: 2 }}'
    ' convolution_param {{ num_output: 8 kernel_size: 3 pad: 1 weight_filler {{ type: "msra" }} }} }}\n'
    'layer {{ name: "relu{0}" type: "ReLU" bottom: "conv{0}" top: "conv{0}" }}\n'
)
HEAD = (
    'layer {{ name: "fc" type: "InnerProduct" bottom: "{0}" top: "fc" inner_product_param {{ num_output: 10 }} }}\n'
    'layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }}\n'
)


def chain(layers: int, name: str = "chain") -> str:
    """Return the prototxt of a net of about ``layers`` layers: convolutions, each with a ReLU in place."""
    blobs = ["data", *(f"conv{i}" for i in range(layers // 2))]
    return f'name: "{name}"\n' + DATA + "".join(CONV.format(i, blob) for i, blob in enumerate(blobs[:-1])) + HEAD.format(blobs[-1])


def seconds(work: Callable[[Path], object], files: list[Path]) -> float:
    """Return the least processor time of ``work`` over ``files``, which differ in the net's name, so that no summary is cached."""
    best = float("inf")
    for path in files:
        start = time.process_time()
        work(path)
        best = min(best, time.process_time() - start)
    return best


def copies(folder: Path, text: str, name: str) -> list[Path]:
    """Write three prototxts of the net ``text`` under different names."""
    files = [folder / f"{name}_{number}.prototxt" for number in range(3)]
    for path in files:
        path.write_text(re.sub(r'^name: ".*"', f'name: "{path.stem}"', text, count=1, flags=re.MULTILINE))
    return files


def main() -> None:
    """Print a line for each net."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="1000,2000,4000,8000")
    sizes = [int(size) for size in parser.parse_args().layers.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What the first command imports does not count.
        seconds(lambda path: prepare_retarget(path, 5, folder / "out"), copies(folder, chain(100), "first"))
        for size in sizes:
            files = copies(folder, chain(size), f"chain{size}")
            retargeted = seconds(lambda path: prepare_retarget(path, 5, folder / "out"), files)
            print(f"chain of {size:6d} layers: parse {seconds(read_net, files):.3f} s, retarget {retargeted:.3f} s")
        for model in ("resnet152", "se_resnet50"):
            files = copies(folder, prototxt_path(model, "train_val").read_text(), model)
            retargeted = seconds(lambda path: prepare_retarget(path, 5, folder / "out"), files)
            nets = {path: read_net(path) for path in files}
            print(f"{model}: retarget {retargeted:.3f} s, inspect {seconds(lambda path: summarize(nets[path]), files):.4f} s")  # noqa: B023


if __name__ == "__main__":
    main()
