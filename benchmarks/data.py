"""Records per second of the Data layer: read, parse, crop, mirror, mean; alone, and behind training.

    python benchmarks/data.py [--batch 256] [--records 2048] [--rounds 5] [--no-training]

The records are 256 x 256 pictures of random bytes in an LMDB in a temporary folder (uint8, three channels, as convert_imageset
stores them); a batch is cropped to 227, mirrored by chance and has a mean picture taken off. Alone: what the layer gives, one batch
after the other. Behind training: an iteration of a small net (AlexNet's first two convolutions) on the layer's batches, and on one
batch that is there already.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffetools.data.databases import LmdbWriter, record_key
from caffetools.data.datum import array_to_datum
from caffetools.layers.registry import layer_class
from caffetools.net.malloc_tuning import disable_malloc_trim
from caffetools.proto.binary import write_binaryproto
from caffetools.proto.schema import TRAIN, LayerParameter, NetParameter, SolverParameter
from caffetools.proto.text import parse
from caffetools.solver.solver import Solver

_NET = """
layer { name: "data" type: "Input" top: "data" top: "label"
  input_param { shape { dim: BATCH dim: 3 dim: 227 dim: 227 } shape { dim: BATCH } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 96 kernel_size: 11 stride: 4 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param { num_output: 256 pad: 2 kernel_size: 5 group: 2 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "pool2" top: "fc"
  inner_product_param { num_output: 1000 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


def write_records(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    (folder / "lmdb").mkdir()
    writer = LmdbWriter(folder / "lmdb")
    for number in range(count):
        datum = array_to_datum(rng.integers(0, 256, (3, 256, 256), dtype=np.uint8), number % 1000)
        writer.put(record_key(number, "picture"), datum.SerializeToString())
    writer.close()
    write_binaryproto(folder / "mean.binaryproto", (rng.random((1, 3, 256, 256)) * 255).astype(np.float32))


def data_layer(folder: Path, batch: int) -> LayerParameter:
    param = LayerParameter(name="data", type="Data", top=["data", "label"])
    param.data_param.source, param.data_param.backend, param.data_param.batch_size = str(folder / "lmdb"), 1, batch
    param.transform_param.crop_size, param.transform_param.mirror = 227, True
    param.transform_param.mean_file = str(folder / "mean.binaryproto")
    return param


def median_seconds(step: Callable[[], Any], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def alone(param: LayerParameter, batch: int, rounds: int) -> dict[str, float]:
    """Records per second over ``rounds`` batches, once the batches that were made ahead are used up; CPU seconds per record besides."""
    layer: Any = layer_class("Data")(param, TRAIN)
    layer.configure([])
    ahead = int(param.data_param.prefetch) + 1
    for _ in range(ahead):
        layer()
    begin, cpu = time.perf_counter(), time.process_time()
    seconds = median_seconds(layer, rounds * ahead)
    total = time.perf_counter() - begin
    result = {
        "records/s": batch * rounds * ahead / total,
        "records/s at the median batch": batch / seconds,
        "CPU ms/record": 1000 * (time.process_time() - cpu) / (batch * rounds * ahead),
    }
    layer.close()
    return result


def behind_training(param: LayerParameter, batch: int, rounds: int) -> dict[str, float]:
    """Seconds per iteration with the batch there already, and with the layer's batches."""
    net = parse(_NET.replace("BATCH", str(batch)), NetParameter)
    reading = type(net)()
    reading.CopyFrom(net)
    reading.layer[0].CopyFrom(param)
    settings = {"base_lr": 1e-4, "lr_policy": "fixed", "momentum": 0.9, "max_iter": 10**6}
    solvers = {"there already": Solver(SolverParameter(train_net_param=net, **settings))}
    solvers["from the Data layer"] = Solver(SolverParameter(train_net_param=reading, **settings))
    picture = torch.randn(batch, 3, 227, 227).contiguous(memory_format=torch.channels_last)
    solvers["there already"].train_inputs = {"data": picture, "label": torch.zeros(batch)}
    times: dict[str, list[float]] = {who: [] for who in solvers}
    for _ in range(rounds):
        for who, solver in solvers.items():
            solver.step(1)  # meanwhile the layer fills up what it keeps ready
            for _ in range(2):
                begin = time.perf_counter()
                solver.step(1)
                times[who].append(time.perf_counter() - begin)
    return {who: statistics.median(values) for who, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--records", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    disable_malloc_trim()  # as training does
    with tempfile.TemporaryDirectory() as name:
        write_records(Path(name), options.records)
        param = data_layer(Path(name), options.batch)
        results = alone(param, options.batch, options.rounds)
        if not options.no_training:
            trained = behind_training(param, options.batch, options.rounds)
            results |= {f"s/iteration, pictures {who}": seconds for who, seconds in trained.items()}
    if options.json:
        print(json.dumps({"batch": options.batch, "threads": torch.get_num_threads(), "results": results}, indent=2))
        return
    for what, value in results.items():
        print(f"{what:42} {value:10.3f}")


if __name__ == "__main__":
    main()
