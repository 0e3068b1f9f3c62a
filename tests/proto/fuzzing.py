"""A process that reads damaged files of one kind, one after the other: ``python -m tests.proto.fuzzing KIND TRIES``.

Prints how many were read as something, the longest processor time that one took (seconds), by how much the process grew (bytes) and the size
of the largest input, as JSON. Anything but a right answer or one of the project's own errors ends it with a traceback.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import h5py
import numpy as np
import onnx
import torch

from caffetools.data.databases import new_lmdb, open_database
from caffetools.data.datasets.card import load_card
from caffetools.data.leveldb import new_leveldb
from caffetools.data.picture_lists import read_lines
from caffetools.engines.onnxruntime import open_session
from caffetools.errors import CaffeToolsError
from caffetools.infer.preprocess import read_labels, read_mean
from caffetools.infer.sidecar import read_preprocessing
from caffetools.net.net import Net
from caffetools.net.weights import read_hdf5_weights
from caffetools.onnx.model import from_proto, load_model
from caffetools.proto.binary import (
    read_binaryproto,
    read_caffemodel,
    read_solverstate,
    write_binaryproto,
    write_caffemodel,
    write_solverstate,
)
from caffetools.proto.forks.dialect import encode
from caffetools.proto.model import SolverState
from caffetools.proto.options import override_dialect
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import format_text, parse, read_solver
from caffetools.results import Preprocessing
from caffetools.solver.checkpoints.hdf5 import read_state_hdf5, write_state_hdf5
from caffetools.solver.checkpoints.run_state import dumps, read_run_state
from caffetools.solver.random_streams import RandomStream
from caffetools.zoo.cards import read_card
from caffetools.zoo.networks import prototxt_path
from caffetools.zoo.resources import zoo_file
from tests.proto.test_binary import small_model
from tests.proto.test_dialect import DETECTED
from tests.proto.test_unknown import NET

WORDS = [*"{}<>[]:\"'#\n\\\0é;,", "layer", "type:", "-1", "1e999", "nan", " a: 1 ", "{ " * 200]


def originals() -> list[str]:
    return [*DETECTED.values(), NET, prototxt_path("lenet", "train_val").read_text()]


def damaged_text(text: str, random: Random) -> str:
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(text) + 1)
        kind = random.random()
        if kind < 0.4:
            text = text[:place] + random.choice(WORDS) + text[place:]
        elif kind < 0.7:
            text = text[:place] + text[place + random.randint(1, 30) :]
        else:
            other = random.randrange(len(text) + 1)
            text = text[:place] + text[other : other + random.randint(1, 60)] + text[place:]
    return text


def damaged_bytes(data: bytes, random: Random) -> bytes:
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(data) + 1)
        kind = random.random()
        if kind < 0.6:
            data = data[:place] + bytes([random.randrange(256)]) + data[place + 1 :]
        elif kind < 0.8:
            data = data[:place] + data[place + random.randint(1, 5) :]
        else:
            data = data[:place] + random.randbytes(random.randint(1, 6)) + data[place:]
    return data


def read_text(text: str, index: int) -> bool:
    with override_dialect("any" if index % 3 == 0 else None), contextlib.suppress(CaffeToolsError):
        printed = format_text(parse(text, NetParameter))
        assert printed == "" or format_text(parse(printed, NetParameter)) == printed, text
        return True
    return False


def read_binary(data: bytes, path: Path) -> bool:
    path.write_bytes(data)
    with contextlib.suppress(CaffeToolsError):
        model = read_caffemodel(path)
        for arrays in model.blobs.values():
            for array in arrays:
                array.sum()
        write_caffemodel(path, model)
        again = read_caffemodel(path)
        assert again.blobs.keys() == model.blobs.keys() and format_text(again.net) is not None, data
        return True
    return False


def measure(attempts: Callable[[int], tuple[bool, int]], tries: int) -> dict[str, float]:
    """Run ``attempts``, of which each says whether something was read, and how many bytes the input had."""
    read, longest, largest = 0, 0.0, 0
    for index in range(-20, tries):
        start = time.process_time()
        done, size = attempts(index)
        if index < 0:
            # The first only warm up: what is allocated once is not held against the inputs.
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            continue
        read, longest, largest = read + done, max(longest, time.process_time() - start), max(largest, size)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"read": read, "longest": longest, "grown": grown, "largest": largest}


def read_hdf5_data(path: Path) -> None:
    net = f'layer {{ name: "d" type: "HDF5Data" top: "data" hdf5_data_param {{ source: "{path.with_suffix(".txt")}" batch_size: 2 }} }}'
    path.with_suffix(".txt").write_text(f"{path}\n")
    Net(parse(net, NetParameter), TRAIN)()


def read_database(path: Path) -> None:
    with contextlib.closing(open_database(path)) as database:
        for _key, value in database.records():
            bytes(value)


def read_list(path: Path) -> None:
    for _, line in read_lines(path):
        line.encode("utf-8", "surrogateescape")


def read_onnx(path: Path) -> None:
    from_proto(load_model(path))
    Preprocessing.from_properties(open_session(path, fast=False).properties)


def read_state(path: Path) -> None:
    runstate = read_run_state(path)
    # What a resumed run does with it.
    RandomStream(torch.device("cpu"), 0).set_states(runstate["random"])
    assert all(loss + 1.0 is not None for loss in runstate["losses"]) and all(net.keys() is not None for net in runstate["nets"])


def files(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """Kind → a valid file (the one that is damaged), and what reads it, or the database in whose folder it is."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_solverstate(folder / "s.solverstate", SolverState(3, "w.caffemodel", [array, array[0]], 1))
    write_binaryproto(folder / "m.binaryproto", np.ones((1, 3, 4, 4), np.float32))
    write_state_hdf5(folder / "s.solverstate.h5", SolverState(3, "w.caffemodel.h5", [array, array[0]], 1))
    for name, sets in (("w.caffemodel.h5", {"data/ip/0": array, "data/ip/1": array[0]}), ("rows.h5", {"data": array})):
        with h5py.File(folder / name, "w") as file:
            for key, values in sets.items():
                file[key] = values
    np.save(folder / "m.npy", np.ones((3, 4, 4), np.float32))
    (folder / "solver.prototxt").write_text('net: "n.prototxt" base_lr: 0.1 lr_policy: "step" gamma: 0.1 stepsize: 10 max_iter: 100')
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy"]
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]), ir_version=8, opset_imports=opsets)
    onnx.helper.set_model_props(model, {"caffetools.source": "net.prototxt"})
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    random = RandomStream(torch.device("cpu"), 3).get_states()
    run = {"format": 1, "run": "a", "time": 1, "iteration": 3, "random": random, "losses": [1.5], "nets": [{}], "weights_crc32": 5}
    (folder / "r.runstate.json").write_text(dumps(run))
    card: dict[str, object] = {
        "skipped": [],
        "format": 1,
        "classes": ["a", "b"],
        "train_counts": [1, 1],
        "val_counts": [1, 1],
        "width": 4,
        "height": 4,
        "channels": 3,
        "seed": 1,
        "val": 0.5,
        "mean_values": [],
    }
    (folder / "dataset.json").write_text(json.dumps(card))
    how = {"format": 1, "channel_order": "BGR", "mean_values": [1, 2, 3], "scale": 0.5, "resize": [8, 8], "labels": ["a", "b"]}
    (folder / "deploy.json").write_text(json.dumps(how))
    (folder / "list.txt").write_text("a b.png 0\nc.png 1\n")
    (folder / "labels.txt").write_text("cat\ndog\n")
    zoo = folder / "squeezenet_v1.1.yaml"
    shutil.copy(zoo_file(zoo.name), zoo)
    with new_lmdb(folder / "lmdb") as lmdb:
        for number in range(40):
            lmdb.put(b"%08d" % number, bytes([number]) * 100)
    read_mean_file: Callable[[Path], object] = read_mean
    found: dict[str, tuple[Path, Callable[[Path], object]]] = {
        "solver": (folder / "solver.prototxt", read_solver),
        "solverstate": (folder / "s.solverstate", read_solverstate),
        "binaryproto": (folder / "m.binaryproto", read_binaryproto),
        "hdf5-weights": (folder / "w.caffemodel.h5", read_hdf5_weights),
        "hdf5-state": (folder / "s.solverstate.h5", read_state_hdf5),
        "hdf5-data": (folder / "rows.h5", read_hdf5_data),
        "npy": (folder / "m.npy", read_mean_file),
        "onnx": (folder / "m.onnx", read_onnx),
        "runstate": (folder / "r.runstate.json", read_state),
        "dataset-card": (folder / "dataset.json", lambda path: load_card(path.parent)),
        "deploy-json": (folder / "deploy.json", lambda path: read_preprocessing(path.with_suffix(".prototxt"))),
        "zoo-card": (zoo, read_card),
        "list": (folder / "list.txt", read_list),
        "labels": (folder / "labels.txt", read_labels),
        "lmdb": (folder / "lmdb" / "data.mdb", lambda path: read_database(path.parent)),
    }
    try:
        with new_leveldb(folder / "leveldb") as leveldb:
            for number in range(40):
                leveldb.put(b"%08d" % number, bytes([number]) * 100)
        table = max((folder / "leveldb").iterdir(), key=lambda path: path.stat().st_size)
        found["leveldb"] = (table, lambda path: read_database(path.parent))
    except CaffeToolsError:  # plyvel is not installed
        pass
    return found


KINDS = [
    "text",
    "binary",
    "solver",
    "solverstate",
    "binaryproto",
    "hdf5-weights",
    "hdf5-state",
    "hdf5-data",
    "npy",
    "onnx",
    "runstate",
    "dataset-card",
    "deploy-json",
    "zoo-card",
    "list",
    "labels",
    "lmdb",
    "leveldb",
]


def main(kind: str, tries: int) -> None:
    random, texts = Random(KINDS.index(kind) + 1), originals()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.caffemodel"
        write_caffemodel(path, small_model())
        models = [path.read_bytes(), *(encode(parse(text, NetParameter)) for text in texts)]
        readers = files(Path(folder)) if kind not in ("text", "binary") else {}
        if readers and kind not in readers:
            print(json.dumps({"skipped": True}))
            return
        place, read = readers.get(kind, (path, read_solver))
        whole = place.read_bytes()
        if readers:
            read(place)  # the undamaged file has to be read

        def attempt(index: int) -> tuple[bool, int]:
            if kind == "text":
                text = damaged_text(random.choice(texts), random)
                return read_text(text, index), len(text)
            if kind == "binary":
                data = damaged_bytes(random.choice(models), random)
                return read_binary(data, path), len(data)
            data = damaged_bytes(whole, random)
            place.write_bytes(data)
            with contextlib.suppress(CaffeToolsError):
                read(place)
                return True, len(data)
            return False, len(data)

        print(json.dumps(measure(attempt, tries)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
