"""The files that the pages' commands name: pictures of flowers (drawn ones), a dataset, a small trained net, old and new forms of it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import yaml

from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.schema import TEST
from caffetools.zoo.networks import prototxt_path
from tests.bundle.conftest import DETECTOR, write_net
from tests.cli.inprocess import run_well
from tests.data.foreign import hugging_face_table, write_cifar, write_idx

ROOT = Path(__file__).parents[2]
CLASSES = ("daisy", "rose", "tulip")

BODY = """\
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 6 kernel_size: 5 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "bn2" type: "BatchNorm" bottom: "conv2" top: "conv2" }
layer { name: "scale2" type: "Scale" bottom: "conv2" top: "conv2" scale_param { bias_term: true } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "conv3" type: "Convolution" bottom: "conv2" top: "conv3"
  convolution_param { num_output: 16 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu3" type: "ReLU" bottom: "conv3" top: "conv3" }
layer { name: "pool5" type: "Pooling" bottom: "conv3" top: "pool5" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool5" top: "ip1"
  inner_product_param { num_output: 16 weight_filler { type: "xavier" } } }
layer { name: "relu5" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "drop1" type: "Dropout" bottom: "ip1" top: "ip1" dropout_param { dropout_ratio: 0.5 } }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""
TRAIN_VAL = f"""\
name: "flowers"
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TRAIN }}
  transform_param {{ mirror: true crop_size: 32 mean_file: "mean.binaryproto" }}
  data_param {{ source: "data/train_lmdb" batch_size: 8 backend: LMDB }} }}
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TEST }}
  transform_param {{ crop_size: 32 mean_file: "mean.binaryproto" }}
  data_param {{ source: "data/val_lmdb" batch_size: 3 backend: LMDB }} }}
{BODY}layer {{ name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" include {{ phase: TEST }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }}
"""
SOLVER = """\
net: "train_val.prototxt"
test_iter: 2
test_interval: 20
base_lr: 0.001
momentum: 0.9
lr_policy: "fixed"
display: 10
max_iter: 20
snapshot: 10
random_seed: 1
snapshot_prefix: "snapshot"
"""


def make_world(folder: Path) -> None:
    """Fill ``folder``, which is the working directory."""
    draw_flowers(Path("pictures"))
    for name in CLASSES:
        shutil.copy(f"pictures/{name}/00.jpg", f"{name}.jpg")
    Path("photos").mkdir()
    for number, path in enumerate(sorted(Path("pictures").glob("*/*.jpg"))[::3]):
        shutil.copy(path, f"photos/{number:02d}.jpg")
    for name in ("photo.jpg", "photo1.jpg", "photo2.jpg", "painting.jpg"):
        shutil.copy("tulip.jpg", name)
    run_well("dataset", "build", "pictures", "data", "--size", "40", "--val", "0.2", "--seed", "1")
    for name in ("labels.txt", "mean.binaryproto", "train.txt", "val.txt"):
        shutil.copy(f"data/{name}", name)
    for name in ("train_lmdb", "DB"):
        shutil.copytree("data/train_lmdb", name)
    shutil.copytree("pictures", "images")
    draw_flowers(Path("more_pictures"), each=4, seed=2)
    shutil.make_archive("pictures", "zip", "pictures")
    people = "".join(f"pictures/{name}/{number:02d}.jpg,{name},{number // 2}\n" for name in CLASSES for number in range(12))
    Path("people.csv").write_text("path,label,person\n" + people)
    _write_nets()
    _write_hdf5()
    _write_downloads()
    run_well("train", "solver.prototxt", "--quiet", "--device", "cpu")
    run_well("deploy", "train_val.prototxt", "-o", "deploy.prototxt")
    for name in ("weights", "w", "a", "base", "float", "after"):
        shutil.copy("snapshot_iter_20.caffemodel", f"{name}.caffemodel")
    for name in ("b", "before", "snapshot_iter_60"):
        shutil.copy("snapshot_iter_10.caffemodel", f"{name}.caffemodel")
    for name in ("run", "run1", "run2", "older_run"):
        shutil.copy("snapshot.log", f"{name}.log")
    _write_a_class_less()
    _write_a_detector()
    _write_scripts()
    _write_digits()
    run_well("export", "deploy.prototxt", "weights.caffemodel", "-o", "model.onnx")


def _write_hdf5() -> None:
    """Write train.h5, and hdf5_train.prototxt, a net that reads it."""
    import h5py

    with h5py.File("train.h5", "w") as file:
        file["data"] = np.random.default_rng(0).random((12, 3, 8, 8)).astype(np.float32)
        file["label"] = (np.arange(12) % 3).astype(np.float32)
    Path("hdf5_train.txt").write_text("train.h5\n")
    Path("hdf5_train.prototxt").write_text(
        'layer { name: "data" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "hdf5_train.txt" batch_size: 4 } }\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }\n'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }\n'
    )


def _write_downloads() -> None:
    """Write small files in the forms of MNIST, CIFAR-10 and a set of Hugging Face's."""
    import pyarrow.parquet

    for prefix in ("train", "t10k"):
        write_idx(Path("mnist"), prefix=prefix)
    write_cifar(Path("cifar-10-batches-bin"))
    Path("beans").mkdir()
    pyarrow.parquet.write_table(hugging_face_table(3)[1], "beans/train-00000-of-00001.parquet")


def make_zoo(folder: Path, name: str = "squeezenet_v1.1") -> None:
    """Copy the zoo's cards to ``folder``; one of them names random weights of this machine, since tests have no network."""
    shutil.copytree(ROOT / "zoo", folder)
    weights = folder / f"{name}.caffemodel"
    save_weights(Net.from_file(prototxt_path(name, "deploy"), TEST), weights)
    card = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    digits = hashlib.sha256(weights.read_bytes()).hexdigest()
    card["weights"] = {
        "file": weights.name,
        "megabytes": 5,
        "urls": [weights.resolve().as_uri()],
        "sha256": digits,
        "checksum_source": "made here",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    shutil.copy(weights, weights.name)


def draw_flowers(folder: Path, *, each: int = 12, size: int = 40, seed: int = 1) -> None:
    """Write ``each`` pictures of every class as JPEG: blossoms of a colour and a number of petals, on noisy green."""
    rng = np.random.default_rng(seed)
    colours = {"daisy": (230, 230, 230), "rose": (60, 40, 220), "tulip": (40, 200, 240)}
    petals = {"daisy": 8, "rose": 5, "tulip": 3}
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            image = rng.integers(0, 90, (size, size, 3), np.uint8)
            x, y = (int(v) for v in rng.integers(14, size - 14, 2))
            for angle in np.linspace(0, 2 * np.pi, petals[name], endpoint=False):
                at = (int(x + 7 * np.cos(angle)), int(y + 7 * np.sin(angle)))
                cv2.circle(image, at, 4, colours[name], -1)
            cv2.imwrite(str(folder / name / f"{number:02d}.jpg"), image)


def _write_nets() -> None:
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    Path("solver.prototxt").write_text(SOLVER)
    for name in ("mine", "old"):
        Path(f"{name}.prototxt").write_text(TRAIN_VAL)
    Path("new.prototxt").write_text(TRAIN_VAL.replace("dropout_ratio: 0.5", "dropout_ratio: 0.4"))


def _write_a_detector() -> None:
    """Write ssd/, a small detector of three classes, as many as labels.txt has."""
    Path("ssd").mkdir()
    made = write_net(Path("ssd"), DETECTOR)
    shutil.copy(made.weights, "ssd.caffemodel")


def _write_a_class_less() -> None:
    """Write faces/, a net that was trained before the last class joined, with its labels in data40, and data42 with all classes."""
    Path("data40").mkdir()
    Path("data40/labels.txt").write_text("daisy\nrose\n")
    shutil.copytree("data", "data42")
    Path("faces").mkdir()
    two = TRAIN_VAL.replace("num_output: 3 weight", "num_output: 2 weight")
    Path("faces/train_val.prototxt").write_text(two)
    save_weights(Net.from_file("faces/train_val.prototxt", TEST), "faces/snapshot_iter_900.caffemodel")


def _write_scripts() -> None:
    script = "import caffe\nprint(caffe.Net('deploy.prototxt', 'weights.caffemodel', caffe.TEST).blobs['prob'].data.shape)\n"
    Path("my_script.py").write_text(script)
    Path("train.py").write_text("import caffe\nprint caffe.get_solver('solver.prototxt').net.blobs['loss'].data.shape\n")
    Path("augment.yaml").write_text("rotation: 15\nbrightness: 0.2\n")
    Path("embeddings").mkdir()
    for number in (1, 2):
        np.save(f"embeddings/photo{number}.ip1.npy", np.eye(2, dtype=np.float32)[number - 1])
    np.save("image.npy", np.zeros((3, 32, 32), np.float32))
    shutil.copy("weights.caffemodel", "SE-ResNeXt-50.caffemodel")
    shutil.copy("deploy.prototxt", "SE-ResNeXt-50.prototxt")
    shutil.copy("weights.caffemodel", "head.caffemodel")


def _write_digits() -> None:
    """Write digits/, the files of an archive of DIGITS, whose original net has stages."""
    Path("digits").mkdir()
    for name in ("deploy.prototxt", "train_val.prototxt", "solver.prototxt", "mean.binaryproto", "labels.txt"):
        shutil.copy(name, f"digits/{name}")
    shutil.copy("weights.caffemodel", "digits/snapshot_iter_30.caffemodel")
    stages = {"train": 8, "val": 3}
    sources = "".join(
        f'layer {{ name: "{stage}-data" type: "Data" top: "data" top: "label" include {{ stage: "{stage}" }}\n'
        f"  transform_param {{ crop_size: 32 }} data_param {{ batch_size: {batch} }} }}\n"
        for stage, batch in stages.items()
    )
    end = (
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" exclude { stage: "deploy" } }\n'
        'layer { name: "prob" type: "Softmax" bottom: "ip2" top: "prob" include { stage: "deploy" } }\n'
    )
    Path("digits/original.prototxt").write_text(f'name: "digits"\n{sources}{BODY}{end}')
