"""The native kernels for pictures of bytes: the bits of their twins in NumPy and OpenCV, and of sums in the order of the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caffetools.data.databases import LmdbWriter, record_key
from caffetools.data.datum import array_to_datum, record_to_array
from caffetools.data.lmdb_file import LmdbFile
from caffetools.data.means import compute_mean
from caffetools.data.pixels_native import add_pictures, addresses_of, pixels_library
from caffetools.data.sharding import shard_database
from caffetools.data.transformer import Transformer
from caffetools.errors import DataError
from caffetools.events import Event, Warned, on_progress
from caffetools.proto.binary import write_binaryproto
from caffetools.proto.schema import TRAIN, Datum, TransformationParameter
from caffetools.util.buffers import ArrayPool

Pictures = list[NDArray[np.uint8]]


@pytest.fixture(params=[0, 1, 2])
def variant(request: pytest.FixtureRequest) -> Iterator[None]:
    """One set of instructions after the other, as far as this processor has them."""
    library = pixels_library()
    if library is None:
        pytest.skip("the native library was not built here")
    library.caffetools_pixels_use(request.param)
    yield
    library.caffetools_pixels_use(2)


def laid_out(rng: np.random.Generator, shape: tuple[int, int, int], kind: str) -> NDArray[np.uint8]:
    """Return a picture (C, H, W): planes one after the other, pixels one after the other (as OpenCV decodes them), or neither."""
    channels, height, width = shape
    if kind == "planes":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == "pixels":
        return rng.integers(0, 256, (height, width, channels), dtype=np.uint8).transpose(2, 0, 1)
    return rng.integers(0, 256, (channels, height, 2 * width), dtype=np.uint8)[::-1, ::-1, ::-2]


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("kind", ["planes", "pixels", "neither"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "settings",
    [
        "",
        "crop_size: 37",
        "crop_size: 37 mean_value: 104.25 scale: 0.017",
        "mean_file: 'MEAN' scale: 0.5",
        "crop_size: 40 mean_file: 'MEAN'",
    ],
)
def test_batches_are_those_of_numpy_to_the_last_bit(
    settings: str, channels: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    pictures = [laid_out(rng, (channels, 41, 53), kind) for _ in range(9)]
    write_binaryproto(tmp_path / "mean", rng.uniform(0, 255, (1, channels, 41, 53)).astype(np.float32))
    text = f"mirror: true {settings}".replace("MEAN", str(tmp_path / "mean"))
    batches = []
    for native in ("1", "0"):
        monkeypatch.setenv("CAFFETOOLS_NATIVE", native)
        batches.append(Transformer(parsed(text), TRAIN)(pictures, np.random.default_rng(5)))
    np.testing.assert_array_equal(*batches, strict=True)
    assert batches[0].strides == batches[1].strides


def parsed(text: str) -> TransformationParameter:
    from google.protobuf import text_format

    return text_format.Parse(text, TransformationParameter())


@pytest.mark.usefixtures("variant")
def test_sums_are_taken_in_float32_in_the_order_of_the_pictures() -> None:
    rng = np.random.default_rng(2)
    pictures = list(rng.integers(0, 256, (11, 3, 37, 901), dtype=np.uint8))
    # Where float32 has no odd numbers, nor, in the last plane, those between multiples of 64: the order decides.
    expected = np.zeros((3, 37, 901), np.float32) + np.array([7, 2**24, 2**30], np.float32).reshape(3, 1, 1)
    sums = expected.copy()
    for picture in pictures:
        expected += picture
    assert add_pictures(addresses_of(pictures), sums)
    np.testing.assert_array_equal(sums, expected, strict=True)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("size", [70, 3 * 37 * 901])
def test_sums_that_are_added_as_integers_are_those_of_float32_up_to_its_last_integer(size: int) -> None:
    pictures = [np.full(size, 255, np.uint8), *np.random.default_rng(2).integers(0, 256, (18, size), dtype=np.uint8)]
    addresses = addresses_of(pictures)
    for added in (0, 65_770, 65_774, 65_775, 65_793, 1 << 20):
        # As if so many white pictures had been added before: 2^24 is between 65,793 and 65,794 of them.
        expected = np.full(size, 255 * added, np.float32)
        sums = expected.copy()
        for picture in pictures:
            expected += picture
        assert add_pictures(addresses, sums, added)
        np.testing.assert_array_equal(sums, expected, strict=True)


def write(path: Path, records: list[bytes]) -> Path:
    path.mkdir()
    writer = LmdbWriter(path)
    for number, record in enumerate(records):
        writer.put(record_key(number, "p"), record)
    writer.close()
    return path


def datums(shape: tuple[int, int, int], count: int) -> list[bytes]:
    rng = np.random.default_rng(1)
    return [array_to_datum(rng.integers(0, 256, shape, dtype=np.uint8), number % 7).SerializeToString() for number in range(count)]


@pytest.mark.parametrize(("shape", "count"), [((1, 9, 11), 1500), ((3, 70, 40), 90), ((3, 300, 300), 40)])
def test_the_mean_is_the_same_with_and_without_kernels(
    shape: tuple[int, int, int], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "db", datums(shape, count))
    progress: list[tuple[int, int]] = []
    plain_progress: list[tuple[int, int]] = []
    native = compute_mean(path, events=on_progress(lambda *step: progress.append(step)))
    monkeypatch.setenv("CAFFETOOLS_NATIVE", "0")
    plain = compute_mean(path, events=on_progress(lambda *step: plain_progress.append(step)))
    np.testing.assert_array_equal(native, plain, strict=True)
    assert progress[-1] == plain_progress[-1] == (count, count)
    # A step is some megabytes, not a record.
    assert max(len(progress), len(plain_progress)) <= 2


def test_the_mean_of_shards_is_added_up_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "db", datums((3, 40, 50), 70))
    shard_database(path, tmp_path / "shards", shards=3)
    whole = compute_mean(path)
    np.testing.assert_array_equal(compute_mean(tmp_path / "shards"), whole, strict=True)
    monkeypatch.setattr(LmdbFile, "records", None)  # what is not read from the pages fails
    if pixels_library() is not None:
        np.testing.assert_array_equal(compute_mean(tmp_path / "shards"), whole, strict=True)


@pytest.mark.parametrize("odd", ["another size", "floats", "damaged", "empty"])
def test_a_record_that_is_not_plain_pixels_is_treated_as_without_kernels(odd: str, tmp_path: Path) -> None:
    records = datums((3, 20, 30), 60)
    records[41] = {
        "another size": datums((3, 20, 31), 1)[0],
        "floats": array_to_datum(np.full((3, 20, 30), 0.5, np.float32)).SerializeToString(),
        "damaged": records[41][:-900],
        "empty": b"",
    }[odd]
    path = write(tmp_path / "db", records)
    if odd == "floats":
        arrays = [record_to_array(record)[0].astype(np.float32) for record in records]
        np.testing.assert_array_equal(compute_mean(path)[0], sum(arrays[1:], arrays[0]) / np.float32(60))
        return
    with pytest.raises(DataError, match="00000041_p"):
        compute_mean(path)
    if odd != "another size":
        seen: list[Event] = []
        mean = compute_mean(path, skip_corrupt=1, events=seen.append)
        arrays = [record_to_array(record)[0].astype(np.float32) for number, record in enumerate(records) if number != 41]
        np.testing.assert_array_equal(mean[0], sum(arrays[1:], arrays[0]) / np.float32(59))
        assert sum(isinstance(event, Warned) for event in seen) == 1


def test_records_that_share_bytes_with_the_one_before_are_parsed_as_any_other() -> None:
    """Fields in every order, repeated ones and unknown ones: what was learned of one record must not change another."""
    rng = np.random.default_rng(4)
    pieces = [
        Datum(channels=1),
        Datum(height=2),
        Datum(width=6),
        Datum(width=3),
        Datum(height=4),
        Datum(data=bytes(range(12))),
        Datum(label=5),
    ]
    pieces += [Datum(label=300), Datum(encoded=False), Datum(data=bytes(range(3, 15)))]
    records = [b"".join(pieces[i].SerializeToString() for i in rng.permutation(len(pieces))[: rng.integers(5, 11)]) for _ in range(400)]
    fine = 0
    for record in records:
        expected: Any = Datum.FromString(record)
        for _ in range(2):
            try:
                array, label = record_to_array(record)
            except DataError:
                assert expected.channels * expected.height * expected.width != len(expected.data) or not expected.data
                continue
            fine += 1
            assert (array.tobytes(), array.shape) == (expected.data, (expected.channels, expected.height, expected.width))
            assert label == expected.label
    assert fine > 100


def test_memory_of_a_batch_is_used_again_only_when_nothing_refers_to_it() -> None:
    pool = ArrayPool()
    first = pool.take((64, 3, 64, 64))
    first[:] = 1
    kept: Any = torch.from_numpy(first.transpose(0, 2, 3, 1))[5]
    address = first.ctypes.data
    del first
    other = pool.take((64, 3, 64, 64))
    assert other.ctypes.data != address
    other[:] = 2
    assert bool((kept == 1).all())
    del kept
    assert pool.take((64, 3, 64, 64)).ctypes.data == address
    assert pool.take((2, 2)).shape == (2, 2)


def test_the_mean_of_a_database_that_is_being_written_is_that_of_one_of_its_states(tmp_path: Path) -> None:
    path = write(tmp_path / "db", datums((3, 50, 50), 30))
    reader = LmdbFile(path)
    with lmdb.open(str(path), map_size=1 << 26, sync=False) as environment:
        for number in range(5):
            with environment.begin(write=True) as transaction:
                transaction.put(record_key(30 + number, "p"), datums((3, 50, 50), 1)[0])
            arrays = [record_to_array(value)[0].astype(np.float32) for _, value in LmdbFile(path).records()]
            np.testing.assert_array_equal(compute_mean(reader)[0], sum(arrays[1:], arrays[0]) / np.float32(31 + number))
