"""Datasets of other tools to Caffe's databases and back."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffetools.cancel import CancelToken
from caffetools.data.datasets.build import build_dataset
from caffetools.data.formats.convert import convert_dataset, convert_parts
from caffetools.data.formats.examples import ConvertOptions, Example, Part
from caffetools.data.formats.idx import mersenne_twister
from caffetools.data.means import compute_mean
from caffetools.errors import Cancelled, DataError
from caffetools.proto.binary import read_binaryproto
from caffetools.proto.schema import Datum
from tests.data.drawing import draw_classes
from tests.data.foreign import RNG, arrays, hugging_face_table, png, records, write_cifar, write_idx

# MNIST


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_records_are_those_of_convert_mnist_data(tmp_path: Path, packed: bool) -> None:
    images, labels = write_idx(tmp_path / "in", packed=packed)
    write_idx(tmp_path / "in", 2, "t10k", packed=packed)
    result = convert_dataset("mnist", tmp_path / "in", tmp_path / "out")
    assert list(result.counts.values()) == [5, 2]
    # convert_mnist_data sets channels, height, width, data and label, and no `encoded`.
    wanted = {
        f"{n:08d}": Datum(channels=1, height=4, width=3, data=image.tobytes(), label=label).SerializeToString()
        for n, (image, label) in enumerate(zip(images, labels, strict=True))
    }
    assert records(tmp_path / "out/mnist_train_lmdb") == wanted


def test_siamese_pairs_follow_mt19937_of_the_seed(tmp_path: Path) -> None:
    numbers = mersenne_twister(5489)  # the default seed of std::mt19937; its 10000th number is in the C++ standard
    assert [next(numbers) for _ in range(10000)][-1] == 4123659995
    images, labels = write_idx(tmp_path / "in", 6)
    convert_dataset("mnist", tmp_path / "in", tmp_path / "out", ConvertOptions(pairs=True, seed=11, split="train"))
    draw = mersenne_twister(11)
    for array, label in arrays(tmp_path / "out"):
        left, right = next(draw) % 6, next(draw) % 6
        assert np.array_equal(array, np.stack([images[left], images[right]]))
        assert label == int(labels[left] == labels[right])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:10], "truncated"),
        (lambda data: data[:-1], "truncated: 1 bytes are missing"),
        (lambda data: b"\0\0\x08\x01" + data[4:], "magic number is 2049, not 2051; it is a file of labels"),
        (lambda data: b"<html" + data, "magic number"),
        (lambda data: gzip.compress(data)[:-12], "damaged"),
        (lambda data: data[:4] + struct.pack(">I", 4) + data[8:], "has 5 labels, but"),
        (lambda data: b"", "the file is empty"),
    ],
)
def test_a_bad_idx_file_is_one_error_that_names_it(tmp_path: Path, change: Any, message: str) -> None:
    write_idx(tmp_path / "in")
    path = tmp_path / "in/train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        convert_dataset("mnist", tmp_path / "in", tmp_path / "out")
    assert "train-" in str(caught.value)
    assert [item.name for item in tmp_path.iterdir() if not item.name.startswith(".")] == ["in"]


def test_a_cancelled_conversion_leaves_nothing(tmp_path: Path) -> None:
    write_idx(tmp_path / "in")
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        convert_dataset("mnist", tmp_path / "in", tmp_path / "out", cancel=token)
    assert not (tmp_path / "out").exists()


# CIFAR


def test_cifar10_records_mean_and_labels(tmp_path: Path) -> None:
    rows = write_cifar(tmp_path / "in")
    convert_dataset("cifar10", tmp_path / "in", tmp_path / "out")
    wanted = {
        f"{n:05d}": Datum(channels=3, height=32, width=32, data=row[1:].tobytes(), label=int(row[0])).SerializeToString()
        for n, row in enumerate(rows[:5])
    }
    assert records(tmp_path / "out/cifar10_train_lmdb") == wanted
    assert len(records(tmp_path / "out/cifar10_test_lmdb")) == 2
    mean = read_binaryproto(tmp_path / "out/mean.binaryproto")
    assert np.array_equal(mean, compute_mean(tmp_path / "out/cifar10_train_lmdb"))
    assert (tmp_path / "out/labels.txt").read_text().split() == [f"class{n}" for n in range(10)]


@pytest.mark.parametrize("coarse", [False, True])
def test_cifar100_takes_fine_or_coarse_labels(tmp_path: Path, coarse: bool) -> None:
    rows = write_cifar(tmp_path / "in", 2)
    convert_dataset("cifar100", tmp_path / "in", tmp_path / "out", ConvertOptions(coarse=coarse))
    found = arrays(tmp_path / "out/cifar100_train_lmdb")
    assert [label for _, label in found] == rows[:5, 0 if coarse else 1].tolist()
    assert np.array_equal(found[4][0].reshape(-1), rows[4, 2:])


def test_cifar_batches_that_are_cut_or_missing_are_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path / "in")
    path = tmp_path / "in/data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="data_batch_3.bin.*truncated"):
        convert_dataset("cifar10", tmp_path / "in", tmp_path / "out")
    path.write_bytes(b"")
    with pytest.raises(DataError, match="data_batch_3.bin: the file is empty"):
        convert_dataset("cifar10", tmp_path / "in", tmp_path / "out")
    path.unlink()
    with pytest.raises(DataError, match="data_batch_3"):
        convert_dataset("cifar10", tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Arrays


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_npz_arrays_of_either_layout(tmp_path: Path, layout: str) -> None:
    images = RNG.integers(0, 256, (4, 3, 6, 5), np.uint8)
    stored = images if layout == "nchw" else images.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "in.npz", data=stored, label=np.array([3, 1, 2, 0]))
    convert_dataset("numpy", tmp_path / "in.npz", tmp_path / "out")
    found = arrays(tmp_path / "out")
    assert [label for _, label in found] == [3, 1, 2, 0]
    assert np.array_equal(np.stack([array for array, _ in found]), images)
    convert_dataset("numpy", tmp_path / "in.npz", tmp_path / "bgr", ConvertOptions(swap_channels=True))
    assert np.array_equal(np.stack([array for array, _ in arrays(tmp_path / "bgr")]), images[:, ::-1])


def test_floats_become_float_data_and_come_back(tmp_path: Path) -> None:
    values = RNG.normal(size=(3, 2, 4, 5)).astype(np.float32)
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["data"], file["label"] = values, np.array([0.0, 1.0, 2.0], np.float32)
    (tmp_path / "list.txt").write_text("train.h5\n")
    convert_dataset("hdf5", tmp_path / "list.txt", tmp_path / "db")
    assert np.array_equal(np.stack([array for array, _ in arrays(tmp_path / "db")]), values)
    convert_dataset("lmdb", tmp_path / "db", tmp_path / "back", ConvertOptions(per_file=2), to="hdf5")
    listed = [str(tmp_path / f"back/data_000{number}.h5") for number in range(2)]
    assert (tmp_path / "back/list.txt").read_text().split() == listed
    moved = (tmp_path / "back").rename(tmp_path / "moved")
    convert_dataset("hdf5", moved / "list.txt", tmp_path / "again")
    assert records(tmp_path / "again") == records(tmp_path / "db")
    found = []
    for name in ("data_0000.h5", "data_0001.h5"):
        with h5py.File(moved / name) as file:
            found.append((np.array(file["data"]), np.array(file["label"])))
    assert np.array_equal(np.concatenate([data for data, _ in found]), values)
    assert np.concatenate([label for _, label in found]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"data": np.zeros((3, 4, 4, 4), np.uint8), "label": np.zeros(3, int)}, "--layout"),
        ({"data": np.zeros((3, 1, 5, 5), np.uint8), "label": np.zeros(2, int)}, "3 pictures, but labels"),
        ({"data": np.zeros((3, 1, 5, 5), np.uint8), "label": np.full(3, 0.5)}, "row 0.*0.5 is not an integer"),
        ({"data": np.zeros((3, 1, 5, 5), np.uint8), "label": np.zeros((3, 2), int)}, "2 values"),
        ({"data": np.array(["a", "b"])}, "rows of numbers"),
        ({"data": np.full((1, 1, 2, 2), 2**30 + 1)}, "too large for float32"),
        ({"pictures": np.zeros((3, 1, 5, 5), np.uint8)}, "it has no arrays 'data'; it has: pictures; name one with --data"),
    ],
)
def test_arrays_that_make_no_records_are_refused(tmp_path: Path, contents: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "in.npz", **contents)
    with pytest.raises(DataError, match=message):
        convert_dataset("numpy", tmp_path / "in.npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="in.npy: cannot be read as a NumPy file: it is damaged, or holds Python objects"):
        convert_dataset("numpy", tmp_path / "in.npy", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mnist", "this is not a folder; unpack it first"),
        ("cifar10", "this is not a folder; unpack the archive"),
        ("imagefolder", "this is not a folder; unpack it first"),
        ("numpy", "this is a gzip archive, and a NumPy file is expected; unpack it first"),
        ("hdf5", "this is not an HDF5 file but a gzip archive"),
        ("huggingface", "this is a gzip archive, and a Parquet or Arrow file is expected; unpack it first"),
        ("lmdb", "this is a gzip archive, and a database .* is expected; unpack it first"),
    ],
)
def test_an_archive_in_place_of_what_is_in_it_is_named(tmp_path: Path, kind: str, message: str) -> None:
    needs_extra(kind)
    (tmp_path / "downloaded.tar.gz").write_bytes(gzip.compress(bytes(100000)))
    with pytest.raises(DataError, match=f"downloaded.tar.gz: {message}"):
        convert_dataset(kind, tmp_path / "downloaded.tar.gz", tmp_path / "out")


# Round trips


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three classes: PNGs and one JPEG, of different sizes."""
    for number, name in enumerate(["ant", "bee", "cat"]):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(2):
            image = RNG.integers(0, 256, (5 + number, 6 + index, 3), np.uint8)
            (tmp_path / "pictures" / name / f"{index}.png").write_bytes(png(image))
    jpeg = bytes(cv2.imencode(".jpg", RNG.integers(0, 256, (8, 9, 3), np.uint8))[1])
    (tmp_path / "pictures/bee/z.jpg").write_bytes(jpeg)
    return tmp_path / "pictures"


def test_imagefolder_records_are_those_of_convert_imageset(tmp_path: Path, pictures: Path) -> None:
    from caffetools.data.convert_imageset import ImagesetOptions, convert_imageset

    convert_dataset("imagefolder", pictures, tmp_path / "out", ConvertOptions(size=(8, 8)))
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*"))
    listing = "".join(f"{name} {['ant', 'bee', 'cat'].index(name.partition('/')[0])}\n" for name in names)
    (tmp_path / "list.txt").write_text(listing)
    convert_imageset(pictures, tmp_path / "list.txt", tmp_path / "wanted", ImagesetOptions(resize_width=8, resize_height=8))
    assert records(tmp_path / "out") == records(tmp_path / "wanted")


def needs_extra(kind: str) -> None:
    if kind == "huggingface":
        pytest.importorskip("pyarrow", reason="needs the extra 'huggingface'")


@pytest.mark.parametrize("to", ["imagefolder", "webdataset", "tfrecord", "huggingface"])
def test_files_of_pictures_survive_a_round_trip(tmp_path: Path, pictures: Path, to: str) -> None:
    needs_extra(to)
    options = ConvertOptions(encoded=True, per_file=3)
    convert_dataset("imagefolder", pictures, tmp_path / "db", options)
    convert_dataset("lmdb", tmp_path / "db", tmp_path / "middle", options, to=to)
    convert_dataset(to, tmp_path / "middle", tmp_path / "back", options)
    wanted = [Datum.FromString(value) for value in records(tmp_path / "db").values()]
    found = [Datum.FromString(value) for value in records(tmp_path / "back").values()]
    assert [(datum.data, datum.label) for datum in found] == [(datum.data, datum.label) for datum in wanted]


@pytest.mark.parametrize("to", ["numpy", "hdf5", "webdataset", "tfrecord", "imagefolder", "huggingface"])
def test_pixels_survive_a_round_trip(tmp_path: Path, to: str) -> None:
    needs_extra(to)
    images = RNG.integers(0, 256, (7, 3, 6, 5), np.uint8)
    np.savez(tmp_path / "in.npz", data=images, label=np.arange(7))
    options = ConvertOptions(layout="nchw", per_file=3)
    convert_dataset("numpy", tmp_path / "in.npz", tmp_path / "db", options)
    convert_dataset("lmdb", tmp_path / "db", tmp_path / "middle", options, to=to)
    convert_dataset(to, tmp_path / "middle", tmp_path / "back", options)
    found = arrays(tmp_path / "back")
    assert [label for _, label in found] == list(range(7))
    assert np.array_equal(np.stack([array for array, _ in found]), images)


@pytest.mark.parametrize("names", [[], ["zebra", "a/b", "a:b", "A_B", *"hgfedc", "unlabelled", "Zebra"]])
def test_labels_survive_folders_in_another_order(tmp_path: Path, names: list[str]) -> None:
    """Names that are not sorted, are equal as names of files, or are numbers of different lengths; a label without records, and records without."""
    wanted: list[int | None] = [0, 1, 2, 3, 5, 10, 11, 12, 13, None]
    pictures = [Example(f"{number:08d}", label, array=np.full((3, 4, 4), number, np.uint8)) for number, label in enumerate(wanted)]
    parts = [Part(part, lambda: iter(pictures), len(pictures), names) for part in ("train", "test")]
    for chosen, places in ((parts[:1], [""]), (parts, ["train_lmdb", "test_lmdb"])):
        middle, back = tmp_path / f"middle{len(chosen)}", tmp_path / f"back{len(chosen)}"
        convert_parts(
            [replace(part, name="" if len(chosen) == 1 else part.name) for part in chosen], "in", middle, ConvertOptions(), to="imagefolder"
        )
        convert_dataset("imagefolder", middle, back)
        for place in places:
            found = [Datum.FromString(value) for value in records(back / place).values()]
            assert [datum.label if datum.HasField("label") else None for datum in found] == wanted
            assert [datum.data[0] for datum in found] == list(range(len(wanted)))


@given(st.integers(1, 9), st.sampled_from([np.uint8, np.float32]), st.tuples(*[st.integers(1, 4)] * 3))
def test_a_numpy_round_trip_keeps_values_types_and_shapes(
    tmp_path_factory: pytest.TempPathFactory, count: int, dtype: Any, shape: tuple[int, int, int]
) -> None:
    folder = tmp_path_factory.mktemp("numpy")
    values = RNG.integers(0, 256, (count, *shape)).astype(dtype)
    (folder / "in").mkdir()
    np.save(folder / "in/data.npy", values)
    np.save(folder / "in/label.npy", np.arange(count))
    options = ConvertOptions(layout="nchw")
    convert_dataset("numpy", folder / "in", folder / "db", options)
    convert_dataset("lmdb", folder / "db", folder / "out", options, to="numpy")
    back = np.load(folder / "out/data.npy")
    assert back.dtype == dtype
    assert np.array_equal(back, values)
    assert np.array_equal(np.load(folder / "out/label.npy"), np.arange(count))


def test_leveldb_can_be_written(tmp_path: Path) -> None:
    pytest.importorskip("plyvel")
    write_idx(tmp_path / "in")
    convert_dataset("mnist", tmp_path / "in", tmp_path / "a", ConvertOptions(split="train"))
    convert_dataset("mnist", tmp_path / "in", tmp_path / "b", ConvertOptions(split="train"), to="leveldb")
    assert records(tmp_path / "a") == records(tmp_path / "b")


# Requests, outputs and URLs


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in fsspec's memory file system."""
    import fsspec

    system = fsspec.filesystem("memory")
    yield "memory://formats"
    if system.exists("/formats"):
        system.rm("/formats", recursive=True)


def test_sources_and_outputs_may_be_urls(tmp_path: Path, memory: str) -> None:
    import fsspec

    write_idx(tmp_path / "in", packed=True)
    convert_dataset("mnist", tmp_path / "in", tmp_path / "local", ConvertOptions(split="train"))
    for file in (tmp_path / "in").iterdir():
        fsspec.filesystem("memory").put_file(str(file), f"/formats/in/{file.name}")
    convert_dataset("mnist", f"{memory}/in", f"{memory}/out", ConvertOptions(split="train"))
    assert records(f"{memory}/out") == records(tmp_path / "local")
    convert_dataset("lmdb", f"{memory}/out", f"file://{tmp_path}/tars", to="webdataset")
    convert_dataset("webdataset", f"file://{tmp_path}/tars", tmp_path / "back", ConvertOptions(gray=True))
    assert [label for _, label in arrays(tmp_path / "back")] == [label for _, label in arrays(tmp_path / "local")]
    with pytest.raises(DataError, match="already exists"):
        convert_dataset("lmdb", f"{memory}/out", f"file://{tmp_path}/tars", to="webdataset")


def test_a_url_that_does_not_exist_or_cannot_be_opened(tmp_path: Path, memory: str) -> None:
    with pytest.raises(DataError, match="memory://formats/none: does not exist"):
        convert_dataset("tfrecord", f"{memory}/none", tmp_path / "out")
    with pytest.raises(DataError, match="this kind of URL cannot be opened"):
        convert_dataset("tfrecord", "nothing9://x", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "to", "options", "message"),
    [
        ("minst", "lmdb", {}, "did you mean 'mnist'"),
        ("mnist", "tfrecords", {}, "did you mean 'tfrecord'"),
        ("mnist", "lmdb", {"split": "val"}, "no part 'val'; parts: train"),
        ("numpy", "lmdb", {"pairs": True}, "pairs are made of MNIST's files only"),
        ("mnist", "lmdb", {"coarse": True}, "CIFAR-100"),
        ("mnist", "lmdb", {"layout": "nc"}, "layout"),
    ],
)
def test_requests_that_cannot_be_met(tmp_path: Path, kind: str, to: str, options: dict[str, Any], message: str) -> None:
    write_idx(tmp_path / "in")
    with pytest.raises(DataError, match=message):
        convert_dataset(kind, tmp_path / "in", tmp_path / "out", ConvertOptions(**options), to=to)


def test_an_existing_output_is_replaced_by_force_only_if_it_is_ours(tmp_path: Path) -> None:
    write_idx(tmp_path / "in")
    for out in ("db", "folder"):
        (tmp_path / out).mkdir()
        (tmp_path / out / "precious.txt").write_text("x")
        for force in (False, True):
            with pytest.raises(DataError):
                convert_dataset("mnist", tmp_path / "in", tmp_path / out, ConvertOptions(split="train" if out == "db" else ""), force=force)
    convert_dataset("mnist", tmp_path / "in", tmp_path / "new")
    convert_dataset("mnist", tmp_path / "in", tmp_path / "new", force=True)


def test_damaged_pictures_are_tolerated_up_to_a_number(tmp_path: Path, pictures: Path) -> None:
    (pictures / "ant/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DataError, match=r"ant/broken.png: the picture is truncated"):
        convert_dataset("imagefolder", pictures, tmp_path / "out")
    result = convert_dataset("imagefolder", pictures, tmp_path / "out", skip_corrupt=1)
    assert len(result.skipped) == 1
    assert result.counts == {str(tmp_path / "out"): 7}


# Damage


@pytest.mark.parametrize("kind", ["mnist", "cifar10", "numpy", "hdf5", "webdataset", "tfrecord", "huggingface"])
def test_damaged_sources_are_read_or_refused_and_nothing_else(tmp_path: Path, kind: str) -> None:
    """Random changes of a source's bytes give a database or one error of ours, and never a half-written output."""
    images = RNG.integers(0, 256, (4, 3, 6, 5), np.uint8)
    source = file = tmp_path / "in"
    if kind == "mnist":
        write_idx(source, packed=True)
        file = source / "train-images-idx3-ubyte.gz"
    elif kind == "cifar10":
        write_cifar(source)
        file = source / "data_batch_2.bin"
    elif kind == "huggingface":
        parquet = pytest.importorskip("pyarrow.parquet")
        source = file = tmp_path / "in.parquet"
        parquet.write_table(hugging_face_table(4)[1], file)
    else:
        source = file = tmp_path / "in.npz"
        np.savez_compressed(file, data=images, label=np.arange(4))
        if kind != "numpy":
            convert_dataset("numpy", file, tmp_path / "db", ConvertOptions(layout="nchw"))
            convert_dataset("lmdb", tmp_path / "db", tmp_path / "made", to=kind)
            source = file = next(path for path in sorted((tmp_path / "made").iterdir()) if path.suffix in (".h5", ".tar", ".tfrecord"))
    good, rng = file.read_bytes(), np.random.default_rng(11)
    for attempt in range(16):
        data = bytearray(good[: int(rng.integers(len(good)))] if attempt % 4 == 0 else good)
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(len(data))) if len(data) else 0 : 0] = b"" if attempt % 4 == 0 else bytes([int(rng.integers(256))])
            if attempt % 4 and len(data):
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
        file.write_bytes(bytes(data))
        out = tmp_path / f"out{attempt}"
        try:
            convert_dataset(kind, source, out, ConvertOptions(layout="nchw"))
        except DataError:
            assert not out.exists()


@pytest.mark.parametrize(("kind", "wanted"), [("hdf5", " --to hdf5"), ("mnist", "")])
def test_a_database_as_source_of_another_format_names_the_command(tmp_path: Path, kind: str, wanted: str) -> None:
    write_idx(tmp_path / "in")
    convert_dataset("mnist", tmp_path / "in", tmp_path / "out", ConvertOptions(split="train"))
    with pytest.raises(DataError, match=r"out: it is a database \(lmdb\), not of the format") as failure:
        convert_dataset(kind, tmp_path / "out", tmp_path / "converted")
    assert failure.value.hint == f"FORMAT is that of SOURCE: caffetools dataset convert lmdb {tmp_path / 'out'} OUT{wanted}"


@pytest.mark.parametrize("to", ["imagefolder", "huggingface"])
def test_a_database_in_a_dataset_takes_its_class_names_along(tmp_path: Path, to: str) -> None:
    needs_extra(to)
    build_dataset(draw_classes(tmp_path / "pictures", {"cat": 3, "dog": 3}), tmp_path / "data", size=8)
    convert_dataset("lmdb", tmp_path / "data" / "val_lmdb", tmp_path / "middle", to=to)
    assert convert_dataset(to, tmp_path / "middle", tmp_path / "back").classes == ["cat", "dog"]
    assert [label for _, label in arrays(tmp_path / "back")] == [label for _, label in arrays(tmp_path / "data" / "val_lmdb")]
