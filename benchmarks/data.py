"""Databases and the Data layer against named opponents, both measured in one run.

    python benchmarks/data.py [reader] [build] [mean] [layer] [png] [training] [--records N] [--rounds 3] [--json]

reader    records per second of our LMDB reader and of py-lmdb, for records of several sizes: in order, and at random places
build     JPEGs of about 500 x 375 into an LMDB of 256 x 256 pixels: convert_imageset of ours with 2 threads, against one thread that
          decodes, resizes and puts with OpenCV and py-lmdb; peak memory
mean      the mean of 3 x 256 x 256 records: ours, against a Python loop of py-lmdb, Datum and float64 NumPy
layer     records per second of the Data layer: read, parsed, cropped to 227, mirrored, mean picture subtracted; with a Python that has
          pycaffe (``caffetools engine add caffe``), the same layer of real Caffe in turns with ours
png       20,000 small PNGs into an LMDB: bytes per second against the JPEGs of ``build``
training  an iteration of a small net on the layer's batches, and on one batch that is in memory

Without a name all but ``training`` run. Pictures are noise on gradients, so that JPEG files have the size of photographs.
With CAFFE_ROOT set to a build of real Caffe, its convert_imageset and compute_image_mean are measured as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import torch

from caffetools.data.convert_imageset import ImagesetOptions, convert_imageset
from caffetools.data.databases import LmdbWriter, record_key
from caffetools.data.datum import array_to_datum
from caffetools.data.lmdb_file import LmdbFile
from caffetools.data.means import compute_mean
from caffetools.engines.environments import find_environment
from caffetools.errors import CaffeToolsError
from caffetools.layers.registry import layer_class
from caffetools.net.malloc_tuning import disable_malloc_trim
from caffetools.proto.binary import write_binaryproto
from caffetools.proto.schema import TRAIN, Datum, LayerParameter, NetParameter, SolverParameter
from caffetools.proto.text import parse, write_prototxt
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


def photographs(folder: Path, count: int) -> Path:
    """Write ``count`` JPEGs of about 500 x 375, and their list."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        height, width = (375, 500) if number % 3 else (500, 375)
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.int16)
        image = np.clip(image + rng.integers(-12, 12, (height, width, 1), dtype=np.int16), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:06d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        lines.append(f"{number:06d}.jpg {number % 100}")
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return folder


def cpu_ms(step: Callable[[], Any], count: int) -> float:
    """Return the CPU milliseconds of ``step`` for each of ``count`` items, over all threads: on a busy machine the steadier figure."""
    begin = time.process_time()
    step()
    return 1000 * (time.process_time() - begin) / count


def timed(step: Callable[[], Any], rounds: int) -> float:
    """Return the least seconds of ``rounds`` calls: what the machine can do when nothing else disturbs it."""
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def compared(what: str, milliseconds: list[float]) -> dict[str, float]:
    theirs, ours = milliseconds
    return {f"{what}, py-lmdb, CPU us": 1000 * theirs, f"{what}, ours, CPU us": 1000 * ours, f"{what}, ratio": theirs / ours}


def at_random(path: Path, count: int, rounds: int) -> list[float]:
    """Return the CPU milliseconds of a record at a random place: py-lmdb's, in a transaction for each, and ours."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, count, min(count, 20_000)).tolist()
    database = LmdbFile(path)
    keys = [record_key(number, "picture") for number in numbers]
    with lmdb.open(str(path), readonly=True, lock=False) as environment:

        def theirs() -> None:
            for key in keys:
                with environment.begin() as transaction:
                    transaction.get(key)

        def ours() -> None:
            for number in numbers:
                database.item(number)

        assert database.item(numbers[0])[0] == keys[0]
        pairs = [(cpu_ms(theirs, len(numbers)), cpu_ms(ours, len(numbers))) for _ in range(rounds + 1)]
    return [min(column) for column in zip(*pairs, strict=True)]


def reader(folder: Path, rounds: int) -> dict[str, float]:
    results = {}
    for count, size in ((100_000, 800), (40_000, 3080), (10_000, 20_000), (2000, 196_620)):
        path = folder / f"reader_{size}"
        path.mkdir()
        writer, value = LmdbWriter(path), np.random.default_rng(0).bytes(size)
        for number in range(count):
            writer.put(record_key(number, "picture"), value)
        writer.close()

        def theirs(path: Path = path) -> int:
            with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
                return sum(len(value) for _, value in transaction.cursor())

        def ours(path: Path = path) -> int:
            return sum(len(value) for _, value in LmdbFile(path).records())

        assert theirs() == ours() == count * size
        pairs = [(cpu_ms(theirs, count), cpu_ms(ours, count)) for _ in range(rounds)]
        results |= compared(f"{size} bytes, cursor", [min(column) for column in zip(*pairs, strict=True)])
        results |= compared(f"{size} bytes, at random", at_random(path, count, rounds))
        shutil.rmtree(path)
    return results


def opencv_loop(folder: Path, out: Path) -> None:
    """Decode, resize and put in one thread, as a script does."""
    with lmdb.open(str(out), map_size=1 << 36, sync=False) as environment:
        transaction = environment.begin(write=True)
        for number, line in enumerate((folder / "list.txt").read_text().splitlines()):
            name, label = line.split()
            image = cv2.resize(cv2.imread(str(folder / name)), (256, 256))  # type: ignore[arg-type]
            datum = Datum(channels=3, height=256, width=256, data=image.transpose(2, 0, 1).tobytes(), label=int(label), encoded=False)
            transaction.put(record_key(number, name), datum.SerializeToString())
            if number % 1000 == 999:
                transaction.commit()
                transaction = environment.begin(write=True)
        transaction.commit()
        environment.sync(True)


def build(folder: Path, count: int, rounds: int) -> dict[str, float]:
    (folder / "jpegs").mkdir()
    pictures = photographs(folder / "jpegs", count)
    cv2.setNumThreads(1)

    def theirs() -> None:
        shutil.rmtree(folder / "theirs", ignore_errors=True)
        opencv_loop(pictures, folder / "theirs")

    def ours(threads: int = 2) -> None:
        options = ImagesetOptions(resize_width=256, resize_height=256, force=True, threads=threads)
        convert_imageset(pictures, pictures / "list.txt", folder / "ours", options)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    theirs()
    one, two = (LmdbFile(folder / name) for name in ("ours", "theirs"))
    assert all(first == second for first, second in zip(one.records(), two.records(), strict=True))
    seconds = timed(theirs, rounds), timed(ours, rounds), timed(lambda: ours(1), 1)
    results = {
        "OpenCV loop, pictures/s": count / seconds[0],
        "ours, 2 threads, pictures/s": count / seconds[1],
        "ours, 1 thread, pictures/s": count / seconds[2],
        "ratio": seconds[0] / seconds[1],
        "OpenCV loop, CPU ms/picture": cpu_ms(theirs, count),
        "ours, CPU ms/picture": cpu_ms(ours, count),
        "memory that ours adds, MB": grown,
        "MB/s of JPEG": sum(path.stat().st_size for path in pictures.glob("*.jpg")) / 1e6 / seconds[1],
    }
    if (tool := caffe_tool("convert_imageset")) is not None:
        command = [tool, "--resize_width=256", "--resize_height=256", f"{pictures}/", pictures / "list.txt", folder / "caffe"]
        results["real convert_imageset, pictures/s"] = count / timed(lambda: run_fresh(command, folder / "caffe"), 1)
    return results


def mean(folder: Path, rounds: int) -> dict[str, float]:
    path = folder / "lmdb"
    count = len(LmdbFile(path))

    def theirs() -> Any:
        total, seen = np.zeros((3, 256, 256)), 0
        with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
            for _, value in transaction.cursor():
                datum = Datum()
                datum.ParseFromString(value)
                total += np.frombuffer(datum.data, np.uint8).reshape(datum.channels, datum.height, datum.width)
                seen += 1
        return total / seen

    np.testing.assert_allclose(compute_mean(path)[0], theirs(), rtol=1e-5)
    seconds = timed(theirs, rounds), timed(lambda: compute_mean(path), rounds)
    results = {"Python loop, records/s": count / seconds[0], "ours, records/s": count / seconds[1], "ratio": seconds[0] / seconds[1]}
    results |= {"Python loop, CPU ms/record": cpu_ms(theirs, count), "ours, CPU ms/record": cpu_ms(lambda: compute_mean(path), count)}
    if (tool := caffe_tool("compute_image_mean")) is not None:
        results["real compute_image_mean, records/s"] = count / timed(lambda: subprocess.run([tool, path], check=True), 1)
    return results


def png(folder: Path, count: int, rounds: int) -> dict[str, float]:
    (folder / "pngs").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "pngs" / f"{number}.png"), cv2.resize(image, (64, 64), interpolation=cv2.INTER_CUBIC))
        lines.append(f"{number}.png {number % 10}")
    (folder / "pngs" / "list.txt").write_text("\n".join(lines) + "\n")
    options = ImagesetOptions(force=True, threads=2)
    seconds = timed(lambda: convert_imageset(folder / "pngs", folder / "pngs" / "list.txt", folder / "png_db", options), rounds)
    size = sum(path.stat().st_size for path in (folder / "pngs").glob("*.png")) / 1e6
    return {"pictures/s": count / seconds, "MB/s of PNG": size / seconds}


def caffe_tool(name: str) -> Path | None:
    """Return a tool of the Caffe build at CAFFE_ROOT, if there is one."""
    root = os.environ.get("CAFFE_ROOT")
    places = [Path(root) / "build" / "tools" / name, Path(root) / "bin" / name] if root else []
    return next((place for place in places if place.exists()), None)


def run_fresh(command: list[Any], out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


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


_CAFFE = """
import sys, time
import caffe
net, batch, ahead, count = caffe.Net(sys.argv[1], caffe.TRAIN), *map(int, sys.argv[2:])
for _ in range(ahead):
    net.forward()
begin, cpu = time.perf_counter(), time.process_time()
for _ in range(count):
    net.forward()
print(batch * count / (time.perf_counter() - begin), 1000 * (time.process_time() - cpu) / (batch * count))
"""


def layer_and_caffes(param: LayerParameter, batch: int, rounds: int, folder: Path) -> dict[str, float]:
    """The figures of :func:`alone`, and of real Caffe's layer where there is a Python with pycaffe: the medians of three turns each."""
    try:
        python = str(find_environment("caffe").python)
    except CaffeToolsError as error:
        print(f"real Caffe is left out: {error}")
        return alone(param, batch, rounds)
    write_prototxt(folder / "data.prototxt", NetParameter(name="data", layer=[param]))
    ahead = int(param.data_param.prefetch) + 1
    command = [python, "-c", _CAFFE, str(folder / "data.prototxt"), *map(str, (batch, ahead, rounds * ahead))]
    ours, caffes = [], []
    for _ in range(3):
        ours.append(alone(param, batch, rounds))
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "GLOG_minloglevel": "2"})
        caffes.append([float(word) for word in done.stdout.split()])
    result = {name: statistics.median(turn[name] for turn in ours) for name in ours[0]}
    result["real Caffe: records/s"] = statistics.median(turn[0] for turn in caffes)
    result["real Caffe: CPU ms/record"] = statistics.median(turn[1] for turn in caffes)
    result["ours / real Caffe, records/s"] = statistics.median(a["records/s"] / b[0] for a, b in zip(ours, caffes, strict=True))
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


_PARTS = ("reader", "build", "mean", "layer", "png", "training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *_PARTS], metavar="PART")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--records", type=int, default=2048, help="records of mean, layer and training (the issue's figure: 10000)")
    parser.add_argument("--pictures", type=int, default=2000, help="pictures of build; ten times as many for png")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parts = options.parts or [part for part in _PARTS if part != "training"]
    disable_malloc_trim()  # as training does
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"mean", "layer", "training"} & set(parts):
            write_records(folder, options.records)
        param = data_layer(folder, options.batch)
        run: dict[str, Callable[[], dict[str, float]]] = {
            "reader": lambda: reader(folder, options.rounds),
            "build": lambda: build(folder, options.pictures, options.rounds),
            "mean": lambda: mean(folder, options.rounds),
            "layer": lambda: layer_and_caffes(param, options.batch, options.rounds, folder),
            "png": lambda: png(folder, 10 * options.pictures, options.rounds),
            "training": lambda: {
                f"s/iteration, batch {who}": s for who, s in behind_training(param, options.batch, options.rounds).items()
            },
        }
        for part in parts:
            results[part] = run[part]()
            if not options.json:
                for what, value in results[part].items():
                    print(f"{part:9} {what:42} {value:12.3f}", flush=True)
    if options.json:
        print(json.dumps({"batch": options.batch, "threads": torch.get_num_threads(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
